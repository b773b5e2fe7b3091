"""The dialect of the RFC of March 2023: a 4 MiB shared buffer and three messages of its own.

FS_SET_STATE_FD attaches a buffer (or, with size 0 and no descriptor, detaches it), FS_GET_STATE copies a
piece of the state into it, FS_SET_STATE takes one from it. The ids collide with those of the upstream dialect
and no feature bit tells the two apart: the dialect is a matter of configuration.

In the migration stream the state is a be64 length and the bytes. The back-end applies the state at detach, so
a front-end whose load has failed does not detach: it resets the back-end instead.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from typing import Final

from vmsim.errors import PeerError, StreamError, contained
from vmsim.limits import STATE_BLOB_MAX
from vmsim.vhost import payloads as p
from vmsim.vhost.dialects.base import (
    BackendTransfer,
    ReadExactly,
    StateLink,
    StateTransferError,
    error_number,
)
from vmsim.vhost.messages import FRONTEND_ROWS, Ack, MessageError, MessageSet, Reply, Request, Row
from vmsim.vhost.seams import BackendIo, DeviceState, SharedBuffer

SHM_NAME: Final = "vhost-fs-state"
SHM_BYTES: Final = 4 << 20
SSIZE_MAX: Final = (1 << 63) - 1
NO_STATE: Final = (1 << 64) - 1
"""What FS_GET_STATE answers when it fails: the only value that every front-end refuses."""
BE64: Final = struct.Struct(">Q")

FS_SET_STATE_FD = Row(41, "FS_SET_STATE_FD", p.NUMBER, fds=(0, 1), ack=Ack.NEGOTIATED)
FS_GET_STATE = Row(42, "FS_GET_STATE", p.STATE_CHUNK, p.STATE_CHUNK)
FS_SET_STATE = Row(43, "FS_SET_STATE", p.STATE_CHUNK, ack=Ack.NEGOTIATED)


class Rfc2023:
    """The dialect; see the module."""

    name = "rfc2023"
    messages = MessageSet((*FRONTEND_ROWS, FS_SET_STATE_FD, FS_GET_STATE, FS_SET_STATE))
    transfer_messages = frozenset({"FS_SET_STATE_FD", "FS_GET_STATE", "FS_SET_STATE"})
    feature = -1
    section_version = 1
    subsection = False
    unsupported_hint = (
        "only `vmsim serve --dialect rfc2023` speaks the messages of the RFC of 2023; virtiofsd, "
        "and whatever works with QEMU, speaks the upstream dialect"
    )

    def save(self, link: StateLink) -> Iterator[bytes]:
        """The length, then the state in pieces of at most 4 MiB.

        A state that is an exact multiple of 4 MiB costs one more FS_GET_STATE, which returns 0.
        """
        link.require_stopped("FS_SET_STATE_FD (attach)")
        buffer = _buffer(link)
        try:
            _attach(link, buffer)
            try:
                yield from _fetch(link, buffer)
                link.require_stopped("FS_SET_STATE_FD (detach)")
            except BaseException:
                _detach_quietly(link)
                raise
            _detach(link, "")
        finally:
            buffer.close()

    def read_state(self, read: ReadExactly) -> bytes:
        """The length and as many bytes."""
        return b"".join(_read_pieces(read))

    def load(self, link: StateLink, state: bytes) -> None:
        """Attach, hand it over piece by piece (an empty state as one empty piece), detach."""
        link.require_stopped("FS_SET_STATE_FD (attach)")
        buffer = _buffer(link)
        try:
            _attach(link, buffer)
            try:
                rest = memoryview(state)
                for offset in range(0, len(state) or 1, SHM_BYTES):
                    piece = rest[offset : offset + SHM_BYTES]
                    buffer.view[: len(piece)] = piece
                    _ask(link, "FS_SET_STATE", p.StateChunk(offset, len(piece)))
                link.require_stopped("FS_SET_STATE_FD (detach)")
            except BaseException:
                # Detaching would make the back-end apply what it has.
                link.abandon_load()
                raise
            _detach(link, " -- perhaps it failed to deserialize/apply the state")
        finally:
            buffer.close()

    def serve(self, device: DeviceState, io: BackendIo, *, own_channel: bool = False) -> BackendTransfer:
        """The back-end half for one device; this dialect has no channel of its own to offer."""
        return Rfc2023Transfer(device, io)


def _buffer(link: StateLink) -> SharedBuffer:
    return link.host.shared_memory(SHM_NAME, SHM_BYTES, sealed=True)


def _ask(link: StateLink, name: str, payload: object, fds: tuple[int, ...] = (), *, what: str = "") -> object:
    """Send one message of the dialect; its reply's payload."""
    try:
        return link.exchange(name, payload, fds).payload
    except PeerError as error:
        failed = what or f"{name} failed"
        raise StateTransferError(f"{failed}: {error.message}", errno=error_number(error)) from error


def _attach(link: StateLink, buffer: SharedBuffer) -> None:
    _ask(
        link, "FS_SET_STATE_FD", p.Number(SHM_BYTES), (buffer.fd,),
        what="Failed to share the state FD with the vhost-user-fs back end",
    )


def _detach(link: StateLink, guess: str) -> None:
    what = f"Failed to remove state FD from the vhost-user-fs back end{guess}"
    _ask(link, "FS_SET_STATE_FD", p.Number(0), what=what)


def _detach_quietly(link: StateLink) -> None:
    """Detach after a failure that is going to be reported itself."""
    try:
        _detach(link, "")
    except PeerError:
        pass


def _fetch(link: StateLink, buffer: SharedBuffer) -> Iterator[bytes]:
    offset = total = 0
    while True:
        reply = _ask(link, "FS_GET_STATE", p.StateChunk(offset, SHM_BYTES))
        assert isinstance(reply, p.StateChunk)
        remaining = reply.size_bytes
        if remaining > SSIZE_MAX:
            raise StateTransferError("FS_GET_STATE failed: the back-end refused", errno=errno.EPROTO)
        if offset == 0:
            total = remaining
            if total > STATE_BLOB_MAX:
                raise StateTransferError(
                    f"FS_GET_STATE failed: a state of {total} bytes, at most {STATE_BLOB_MAX} are accepted",
                    errno=errno.EFBIG,
                )
            yield BE64.pack(total)
        elif remaining != total - offset:
            raise StateTransferError(
                f"FS_GET_STATE failed: {remaining} bytes remain at {offset}, the length was {total}",
                errno=errno.EPROTO,
            )
        size = min(remaining, SHM_BYTES)
        if size:
            yield bytes(buffer.view[:size])
        offset += size
        if remaining < SHM_BYTES:
            return


def _read_pieces(read: ReadExactly) -> Iterator[bytes]:
    (remaining,) = BE64.unpack(read(8))
    if remaining > STATE_BLOB_MAX:
        raise StreamError(
            f"back-end state of {remaining} bytes, at most {STATE_BLOB_MAX} are accepted",
            field="vhost-user-fs/back-end",
        )
    while remaining:
        piece = read(min(remaining, SHM_BYTES))
        remaining -= len(piece)
        yield piece


class Rfc2023Transfer:
    """The back-end's end: serialised at the first FS_GET_STATE, applied at detach after FS_SET_STATE."""

    def __init__(self, device: DeviceState, io: BackendIo) -> None:
        self._device = device
        self._io = io
        self._shm: memoryview | None = None
        self._state: bytes | None = None
        self._received: list[bytes] | None = None
        self._received_bytes = 0
        self.failure: Exception | None = None
        """Why the last transfer failed; FS_GET_STATE's reply has no room for it."""

    def handle(self, request: Request, take_fd: Callable[[], int], rings_stopped: bool) -> Reply | None:
        """Answer one of the three messages; a refusal is raised, and acknowledged as one by the caller."""
        if not rings_stopped:
            raise MessageError(f"{request.row.name} while rings run", errno=errno.EBUSY)
        if request.row is FS_GET_STATE:
            return self._get(request.payload)
        if request.row is FS_SET_STATE:
            self._set(request.payload)
        elif request.payload.value or request.fds:
            self._attach(request, take_fd)
        else:
            self._detach()
        return None

    def _attach(self, request: Request, take_fd: Callable[[], int]) -> None:
        size = request.payload.value
        if not size or not request.fds:
            raise MessageError(
                f"FS_SET_STATE_FD: {size} bytes with {len(request.fds)} descriptors", errno=errno.EINVAL
            )
        if self._shm is not None:
            raise MessageError("FS_SET_STATE_FD: a buffer is attached already", errno=errno.EBUSY)
        if size > STATE_BLOB_MAX:
            raise MessageError(f"FS_SET_STATE_FD: a buffer of {size} bytes", errno=errno.EINVAL)
        fd = take_fd()
        try:
            self._shm = self._io.map(fd, size, 0)
        finally:
            self._io.close(fd)
        self.failure = None

    def _get(self, asked: p.StateChunk) -> Reply:
        try:
            shm = self._attached("FS_GET_STATE", asked)
            if self._received is not None:
                raise MessageError("FS_GET_STATE: this buffer is used for loading", errno=errno.EINVAL)
            if self._state is None:
                self._state = b"".join(self._device.save_state())
            remaining = len(self._state) - asked.state_offset
            if remaining < 0:
                where = f"offset {asked.state_offset} in {len(self._state)} bytes"
                raise MessageError(f"FS_GET_STATE: {where}", errno=errno.EINVAL)
        except Exception as error:
            self.failure = error if isinstance(error, OSError) else contained(error)
            return Reply(p.StateChunk(asked.state_offset, NO_STATE))
        size = min(asked.size_bytes, remaining)
        shm[:size] = memoryview(self._state)[asked.state_offset : asked.state_offset + size]
        return Reply(p.StateChunk(asked.state_offset, remaining))

    def _set(self, given: p.StateChunk) -> None:
        try:
            shm = self._attached("FS_SET_STATE", given)
            if self._state is not None:
                raise MessageError("FS_SET_STATE: this buffer is used for saving", errno=errno.EINVAL)
            if given.state_offset != self._received_bytes:
                raise MessageError(
                    f"FS_SET_STATE: offset {given.state_offset}, {self._received_bytes} was expected "
                    "(no holes, no overlaps)", errno=errno.EINVAL,
                )
            if self._received_bytes + given.size_bytes > STATE_BLOB_MAX:
                raise MessageError(f"FS_SET_STATE: more than {STATE_BLOB_MAX} bytes", errno=errno.EFBIG)
        except MessageError as error:
            self.failure = error if isinstance(error, OSError) else contained(error)
            raise
        if self._received is None:
            self._received = []
        self._received.append(bytes(shm[: given.size_bytes]))
        self._received_bytes += given.size_bytes

    def _attached(self, name: str, chunk: p.StateChunk) -> memoryview:
        if self._shm is None:
            raise MessageError(f"{name}: no buffer is attached", errno=errno.EINVAL)
        if chunk.size_bytes > len(self._shm):
            raise MessageError(
                f"{name}: {chunk.size_bytes} bytes in a buffer of {len(self._shm)}", errno=errno.EINVAL
            )
        return self._shm

    def _detach(self) -> None:
        if self._shm is None:
            raise MessageError("FS_SET_STATE_FD: no buffer is attached", errno=errno.EINVAL)
        received, failure = self._received, self.failure
        self.abandon()
        if failure is not None:
            self.failure = failure
            raise MessageError(f"FS_SET_STATE_FD: the transfer had failed: {failure}", errno=errno.EIO)
        if received is None:
            return
        try:
            self._device.load_state(b"".join(received))
        except Exception as error:
            self.failure = error if isinstance(error, OSError) else contained(error)
            why = f"FS_SET_STATE_FD: cannot apply the state: {error}"
            raise MessageError(why, errno=errno.EIO) from error

    def waits_for(self) -> tuple[int, bool] | None:
        """Nothing: the state goes through shared memory, message by message."""
        return None

    def progress(self) -> bool:
        """Nothing moves by itself in this dialect."""
        return False

    def abandon(self) -> None:
        """Unmap the buffer, forget the state."""
        if self._shm is not None:
            shm, self._shm = self._shm, None
            self._io.unmap(shm)
        self._state = self._received = None
        self._received_bytes = 0
        self.failure = None
