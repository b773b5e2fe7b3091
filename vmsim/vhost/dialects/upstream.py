"""The dialect of QEMU 8.2 and later: SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE over a pipe.

In the migration stream the state is ``{ be32 n, n bytes }`` repeated, then ``be32 0``. A stream that ends
between two chunks reads like the terminator to a careless reader. Here the terminator is written only after
the back-end's CHECK, and on load it must have been read before the back-end hears of the transfer at all.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from typing import Final

from vmsim.errors import HostError, PeerError, StreamError, contained
from vmsim.limits import STATE_BLOB_MAX
from vmsim.vhost import payloads as p
from vmsim.vhost.constants import F_DEVICE_STATE, NO_FD, PHASE_STOPPED, STATE_LOAD, STATE_SAVE
from vmsim.vhost.dialects.base import (
    BackendTransfer,
    ReadExactly,
    StateLink,
    StateTransferError,
    error_number,
)
from vmsim.vhost.messages import (
    FRONTEND_ROWS,
    GET_SHARED_OBJECT,
    MessageError,
    MessageSet,
    Reply,
    Request,
    Row,
)
from vmsim.vhost.seams import BackendIo, DeviceState

CHUNK_BYTES: Final = 1 << 20
BE32: Final = struct.Struct(">I")
STATUS_MASK: Final = 0xFF
REFUSED: Final = 1

SET_DEVICE_STATE_FD = Row(
    42, "SET_DEVICE_STATE_FD", p.DEVICE_STATE, p.NUMBER, fds=(1, 1), reply_fds=(0, 1), feature=F_DEVICE_STATE
)
CHECK_DEVICE_STATE = Row(43, "CHECK_DEVICE_STATE", reply=p.NUMBER, feature=F_DEVICE_STATE)


class Upstream:
    """The dialect; see the module."""

    name = "upstream"
    messages = MessageSet((*FRONTEND_ROWS, GET_SHARED_OBJECT, SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE))
    transfer_messages = frozenset({"SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"})
    feature = F_DEVICE_STATE
    section_version = 0
    subsection = True
    unsupported_hint = (
        "use a back-end that offers VHOST_USER_PROTOCOL_F_DEVICE_STATE (virtiofsd since 1.11, "
        "`vmsim serve`), or one that keeps its session while its front-ends change: migration=external"
    )

    def save(self, link: StateLink) -> Iterator[bytes]:
        """Chunks as the pipe delivers them (at most 1 MiB), then the terminator once CHECK said yes."""
        link.require_stopped("SET_DEVICE_STATE_FD")
        fd = _open(link, STATE_SAVE)
        total = 0
        try:
            while True:
                data = _receive(link, fd)
                if not data:
                    break
                total += len(data)
                if total > STATE_BLOB_MAX:
                    raise StateTransferError(f"Failed to receive state: more than {STATE_BLOB_MAX} bytes")
                yield BE32.pack(len(data))
                yield data
        finally:
            link.host.close(fd)
        link.require_stopped("CHECK_DEVICE_STATE")
        _check(link)
        yield BE32.pack(0)

    def read_state(self, read: ReadExactly) -> bytes:
        """Read to the terminator: a cut stream never gets past here."""
        return b"".join(_read_chunks(read))

    def load(self, link: StateLink, state: bytes) -> None:
        """Send, close, CHECK; a failure makes the back-end drop the state."""
        link.require_stopped("SET_DEVICE_STATE_FD")
        fd = _open(link, STATE_LOAD)
        try:
            _send(link, fd, state)
        except BaseException:
            # Once the pipe is closed the back-end sees a complete-looking state: it must forget it first.
            link.abandon_load()
            raise
        finally:
            link.host.close(fd)
        link.require_stopped("CHECK_DEVICE_STATE")
        _check(link)

    def serve(self, device: DeviceState, io: BackendIo, *, own_channel: bool = False) -> BackendTransfer:
        """The back-end half for one device."""
        return UpstreamTransfer(device, io, own_channel=own_channel)


def _read_chunks(read: ReadExactly) -> Iterator[bytes]:
    total = 0
    while size := BE32.unpack(read(4))[0]:
        total += size
        if total > STATE_BLOB_MAX:
            raise StreamError(
                f"Failed to read state: a chunk of {size} bytes makes more than {STATE_BLOB_MAX}",
                field="vhost-user-fs-backend/back-end",
            )
        while size:
            piece = read(min(size, CHUNK_BYTES))
            size -= len(piece)
            yield piece


def _open(link: StateLink, direction: int) -> int:
    """Agree on a channel; our end of it."""
    failed = "Failed to initiate state transfer: "
    if not link.has(F_DEVICE_STATE):
        why = "Back-end does not support migration state transfer"
        raise StateTransferError(failed + why, errno=errno.ENOTSUP)
    host = link.host
    read_end, write_end = host.pipe()
    ours, theirs = (read_end, write_end) if direction == STATE_SAVE else (write_end, read_end)
    try:
        host.adopt(ours)
        asked = p.DeviceState(direction, PHASE_STOPPED)
        reply = link.exchange("SET_DEVICE_STATE_FD", asked, (theirs,))
    except BaseException as error:
        host.close(ours)
        if isinstance(error, PeerError):
            raise StateTransferError(f"{failed}{error.message}", errno=error_number(error)) from error
        raise
    finally:
        host.close(theirs)
    try:
        replacement = _replacement(reply)
        if replacement is None:
            return ours
        host.adopt(replacement)
    except BaseException as error:
        for fd in (ours, *reply.fds):
            host.close(fd)
        if isinstance(error, StateTransferError):
            raise StateTransferError(failed + error.message, errno=error.errno) from error
        raise
    host.close(ours)
    return replacement


def _replacement(reply: Reply) -> int | None:
    """The descriptor that replaces ours; None if there is none."""
    value = reply.payload.value
    if value & STATUS_MASK:
        raise StateTransferError("Back-end did not accept migration state transfer")
    if value & NO_FD:
        if reply.fds:
            raise StateTransferError("Back-end sent a transfer FD and denied it", errno=errno.EPROTO)
        return None
    if len(reply.fds) != 1:
        raise StateTransferError("Failed to get back-end-provided transfer pipe FD")
    return reply.fds[0]


def _check(link: StateLink) -> None:
    reply = link.exchange("CHECK_DEVICE_STATE")
    if reply.payload.value:
        raise StateTransferError("Back-end failed to process its internal state", code=reply.payload.value)


def _receive(link: StateLink, fd: int) -> bytes:
    """The next bytes of the state; empty at its end."""
    try:
        while (data := link.host.read(fd, CHUNK_BYTES)) is None:
            link.progress(fd, writing=False)
    except HostError as error:
        raise StateTransferError(f"Failed to receive state: {error.message}", errno=error.errno) from error
    return data


def _send(link: StateLink, fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            written = link.host.write(fd, rest)
        except HostError as error:
            cause = ": Connection is closed" if error.errno == errno.EPIPE else f": {error.message}"
            raise StateTransferError(f"Failed to send state{cause}", errno=error.errno) from error
        if written is None:
            link.progress(fd, writing=True)
        else:
            rest = rest[written:]


class UpstreamTransfer:
    """The back-end's end: one transfer at a time, applied by CHECK and by nothing else."""

    def __init__(self, device: DeviceState, io: BackendIo, *, own_channel: bool) -> None:
        self._device = device
        self._io = io
        self._own_channel = own_channel
        self._fd = -1
        self._direction = -1
        self._source: Iterator[bytes] = iter(())
        self._rest = memoryview(b"")
        self._received: list[bytes] = []
        self._received_bytes = 0
        self.failure: Exception | None = None
        """Why the last transfer failed; the protocol itself has no room for it."""

    def handle(self, request: Request, take_fd: Callable[[], int], rings_stopped: bool) -> Reply | None:
        """Answer SET_DEVICE_STATE_FD or CHECK_DEVICE_STATE; every refusal is an error code in the reply."""
        if request.row is CHECK_DEVICE_STATE:
            return Reply(p.Number(0 if self._finish(rings_stopped) else REFUSED))
        self.abandon()
        try:
            return self._begin(request.payload, take_fd(), rings_stopped)
        except Exception as error:
            self.failure = error if isinstance(error, OSError) else contained(error)
            return Reply(p.Number(REFUSED | NO_FD))

    def _begin(self, asked: p.DeviceState, fd: int, rings_stopped: bool) -> Reply:
        reply = Reply(p.Number(NO_FD))
        source: Iterator[bytes] = iter(())
        try:
            if asked.direction not in (STATE_SAVE, STATE_LOAD) or asked.phase != PHASE_STOPPED:
                raise MessageError(f"SET_DEVICE_STATE_FD: direction {asked.direction}, phase {asked.phase}")
            if not rings_stopped:
                raise MessageError("SET_DEVICE_STATE_FD while rings run")
            self._io.adopt(fd)
            if asked.direction == STATE_SAVE:
                source = self._device.save_state()
            if self._own_channel:
                read_end, write_end = self._io.pipe()
                own, given = (write_end, read_end) if asked.direction == STATE_SAVE else (read_end, write_end)
                self._io.adopt(own)
                self._io.close(fd)
                fd, reply = own, Reply(p.Number(0), (given,))
        except BaseException:
            self._io.close(fd)
            raise
        self.failure = None
        self._fd = fd
        self._direction = asked.direction
        self._source = source
        return reply

    def waits_for(self) -> tuple[int, bool] | None:
        """Our end of the channel, while it is open."""
        return (self._fd, self._direction == STATE_SAVE) if self._fd >= 0 else None

    def progress(self) -> bool:
        """Write or read what the pipe takes or gives; a failure is kept for CHECK."""
        moved = False
        try:
            while self._fd >= 0 and (self._write() if self._direction == STATE_SAVE else self._read()):
                moved = True
        except Exception as error:
            self.failure = error if isinstance(error, OSError) else contained(error)
            self._close()
            moved = True
        return moved

    def _write(self) -> bool:
        while not self._rest:
            piece = next(self._source, None)
            if piece is None:
                self._close()
                return True
            self._rest = memoryview(piece)
        written = self._io.write(self._fd, self._rest)
        if written is None:
            return False
        self._rest = self._rest[written:]
        return True

    def _read(self) -> bool:
        data = self._io.read(self._fd, CHUNK_BYTES)
        if data is None:
            return False
        if not data:
            self._close()
            return True
        self._received_bytes += len(data)
        if self._received_bytes > STATE_BLOB_MAX:
            raise StreamError(f"back-end state of more than {STATE_BLOB_MAX} bytes")
        self._received.append(data)
        return True

    def _finish(self, rings_stopped: bool) -> bool:
        direction = self._direction
        self.progress()
        complete = direction >= 0 and self._fd < 0 and self.failure is None and rings_stopped
        blob = b"".join(self._received)
        reason = self.failure
        self.abandon()
        if not complete:
            self.failure = reason or MessageError("CHECK_DEVICE_STATE without a finished transfer")
            return False
        if direction == STATE_LOAD:
            try:
                self._device.load_state(blob)
            except Exception as error:
                self.failure = error if isinstance(error, OSError) else contained(error)
                return False
        return True

    def abandon(self) -> None:
        """Drop the transfer: close the channel, forget what came."""
        self._close()
        self._direction = -1
        self._source = iter(())
        self._rest = memoryview(b"")
        self._received = []
        self._received_bytes = 0
        self.failure = None

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._io.close(fd)
