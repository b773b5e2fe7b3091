"""vhost-user on a byte stream: where one message ends and the next begins, and whose the descriptors are.

Descriptors travel with the first byte of a message's header (vhost-user "Communication", wording of 2025).
A reader that asks for ``needed`` bytes at a time never gets parts of two messages at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmsim.vhost.constants import HEADER_BYTES, MESSAGE_FDS_MAX
from vmsim.vhost.messages import SPEC, Header, MessageError, decode_header


class RawMessage(NamedTuple):
    """A whole message: header, payload bytes, descriptors (now the receiver's)."""

    header: Header
    body: bytes
    fds: tuple[int, ...]


class MessageBuffer:
    """Collects the bytes and descriptors of one direction of a connection.

    ``close_fd`` closes descriptors of messages that never became whole.
    """

    def __init__(self, close_fd: Callable[[int], object]) -> None:
        self._close_fd = close_fd
        self._data = bytearray()
        self._fds: list[int] = []
        self._header: Header | None = None

    @property
    def needed(self) -> int:
        """How many bytes the present message (or its header) lacks; at least 1."""
        if self._header is None:
            return HEADER_BYTES - len(self._data)
        return HEADER_BYTES + self._header.size - len(self._data)

    @property
    def empty(self) -> bool:
        """Whether the stream is between two messages."""
        return not self._data

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> RawMessage | None:
        """Take up to ``needed`` bytes; the message if it is whole now.

        MessageError for a bad header, descriptors that come late or too many of them; the stream is of no
        more use then, and all descriptors are closed.
        """
        try:
            if fds and self._data:
                raise MessageError("descriptors come after the first byte of a message", spec=SPEC)
            self._fds.extend(fds)
            if len(self._fds) > MESSAGE_FDS_MAX:
                raise MessageError(f"{len(self._fds)} descriptors with one message", spec=SPEC)
            self._data += data
            if self._header is None:
                if len(self._data) < HEADER_BYTES:
                    return None
                self._header = decode_header(bytes(self._data[:HEADER_BYTES]))
        except MessageError:
            for fd in set(fds) - set(self._fds):
                self._close_fd(fd)
            self.discard()
            raise
        if len(self._data) < HEADER_BYTES + self._header.size:
            return None
        message = RawMessage(self._header, bytes(self._data[HEADER_BYTES:]), tuple(self._fds))
        self._data.clear()
        self._fds = []
        self._header = None
        return message

    def discard(self) -> None:
        """Forget an unfinished message and close its descriptors."""
        fds, self._fds = self._fds, []
        for fd in fds:
            self._close_fd(fd)
        self._data.clear()
        self._header = None
