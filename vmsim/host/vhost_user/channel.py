"""The channel on which a back-end sends messages of its own (SET_BACKEND_REQ_FD): both of its ends."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Final

from vmsim.errors import HostError, PeerError
from vmsim.host.sockets import UnixSocket
from vmsim.host.waits import FdWaits, wait_ready
from vmsim.vhost.constants import FLAG_NEED_REPLY
from vmsim.vhost.framing import MessageBuffer, RawMessage
from vmsim.vhost.messages import (
    BACKEND_MESSAGES,
    MessageError,
    Reply,
    Request,
    Row,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from vmsim.vhost.payloads import Number, VringState

UNSUPPORTED: Final = 1
ANSWER_MS: Final = 1000
ACKNOWLEDGED: Final = 0
MESSAGES_PER_TURN: Final = 32
"""Pieces of messages that are read before everything else that is ready gets its turn."""


class ChannelServer:
    """The front-end's end: carries out VRING_CALL and VRING_ERR, refuses the rest.

    ``peer_fd`` is the other end, to be sent to the back-end. Bytes that are no message close the channel.
    """

    def __init__(
        self, waits: FdWaits, on_call: Callable[[int], object], on_error: Callable[[int], object]
    ) -> None:
        self._ours, self._theirs = UnixSocket.pair()
        self.peer_fd = self._theirs.fd
        self._waits = waits
        self._buffer = MessageBuffer(os.close)
        self._actions = {"VRING_CALL": on_call, "VRING_ERR": on_error}
        self._open = True
        waits.add(self._ours.fd, select.POLLIN, self._readable)

    def _readable(self) -> None:
        try:
            for _ in range(MESSAGES_PER_TURN):
                if not self._open or (found := self._ours.receive(self._buffer.needed)) is None:
                    return
                data, fds = found
                if not data:
                    self.close()
                    return
                message = self._buffer.feed(data, fds)
                if message is not None:
                    self._handle(message)
        except (PeerError, HostError):
            self.close()

    def _handle(self, message: RawMessage) -> None:
        header = message.header
        code = UNSUPPORTED
        try:
            if header.request not in BACKEND_MESSAGES.by_id:
                row = Row(header.request, f"message {header.request}")
            else:
                request = decode_request(BACKEND_MESSAGES, header, message.body, message.fds)
                row = request.row
                act = self._actions.get(row.name)
                if act is not None:
                    act(request.payload.ring)
                    code = ACKNOWLEDGED
        finally:
            for fd in message.fds:
                os.close(fd)
        if header.flags & FLAG_NEED_REPLY or row.answered:
            self._ours.send(encode_reply(row, Reply(Number(code))))

    def close(self) -> None:
        """Close both ends; may be called twice."""
        if self._open:
            self._open = False
            self._waits.remove(self._ours.fd)
            self._buffer.discard()
            self._ours.close()
            self._theirs.close()


class ChannelClient:
    """The back-end's end; it owns the descriptor ``fd``."""

    def __init__(self, fd: int) -> None:
        self._socket = UnixSocket.adopt(fd)
        self._buffer = MessageBuffer(os.close)

    def tell(self, name: str, ring: int, *, need_reply: bool = False) -> bool:
        """Send VRING_CALL or VRING_ERR; False if the front-end refused it or is gone."""
        row = BACKEND_MESSAGES[name]
        try:
            sent = self._socket.send(encode_request(Request(row, VringState(ring, 0), (), need_reply)))
            return sent is not None and (not need_reply or self._acknowledged(row))
        except (PeerError, HostError):
            return False

    def _acknowledged(self, row: Row) -> bool:
        deadline_ns = time.monotonic_ns() + ANSWER_MS * 1_000_000
        fd = self._socket.fd
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0 and wait_ready(fd, left_ns / 1e9):
            found = self._socket.receive(self._buffer.needed)
            if found is None:
                continue
            if not found[0]:
                return False
            message = self._buffer.feed(*found)
            if message is not None:
                reply = decode_reply(row, message.header, message.body, message.fds)
                return bool(reply.payload.value == ACKNOWLEDGED)
        raise MessageError(f"{row.name}: the front-end does not answer")

    def close(self) -> None:
        """Close it; may be called twice."""
        self._buffer.discard()
        self._socket.close()
