"""vhost-user messages as bytes, with descriptors of every sort, into a whole back-end; both dialects."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from engine import Finding
from reading import Reader
from rings_target import Link
from shares import Share

from devices.virtio_fs.backend import VirtioFsBackend
from vmsim.errors import InternalFault, VmsimError
from vmsim.host.fs import LinuxFs
from vmsim.host.services import HostServices
from vmsim.host.shm import SharedMemory
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost.backend import IMPLEMENTED, BackendOptions, VhostBackend
from vmsim.vhost.constants import HEADER_BYTES, VHOST_USER_F_PROTOCOL_FEATURES
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.framing import MessageBuffer
from vmsim.vhost.messages import decode_request, encode_reply
from vmsim.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1

MESSAGES_MAX = 100
USER = 0x7F0000000000
SIZE = 1 << 18
WORDS = (
    0, 1, 2, 3, 4, 8, 64, 128, 0x100, 0x101, 0x1000, SIZE, SIZE - 1, SIZE // 2, USER, USER + 0x1000,
    USER + 0x2000,
    USER + SIZE - 8, IMPLEMENTED, F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES,
    F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | VHOST_USER_F_PROTOCOL_FEATURES | 1 << 26,
    F_VERSION_1 | F_RING_PACKED | VHOST_USER_F_PROTOCOL_FEATURES, 1 << 32, 1 << 63, (1 << 64) - 1,
)  # fmt: skip


class ClosingLink(Link):
    """Owns the descriptors that it gets, as a link does."""

    def set_notifier(self, message: str, ring: int, fd: int) -> None:
        """Close it."""
        if fd >= 0:
            os.close(fd)

    def set_channel(self, fd: int) -> None:
        """Close it."""
        os.close(fd)


class Messages:
    """Target ``messages``."""

    name = "messages"
    watched = ("vmsim.vhost", "devices.virtio_fs.state", "vmsim.memory")

    def __init__(self) -> None:
        self._sent = 0
        self._share = Share()
        self._share.renew()
        self._shm = SharedMemory("fuzz", SIZE)
        self._pipe = os.pipe()
        null, folder = os.open("/dev/null", os.O_RDWR), os.open(self._share.path, os.O_RDONLY)
        event, short = os.eventfd(0, os.EFD_NONBLOCK), os.memfd_create("short")
        self._files = [os.dup(self._shm.fd), event, null, *self._pipe, short, folder]

    def close(self) -> None:
        """Give everything back."""
        for fd in self._files:
            os.close(fd)
        self._shm.close()
        self._share.close()

    def seeds(self) -> list[bytes]:
        """Each message after a boot, each without, and long lists of them."""
        single = [bytes([row.id, 1]) + bytes(range(40)) for row in DIALECTS["upstream"].messages.rows]
        return [
            *(bytes([dialect, boot]) + one for dialect in (0, 1) for boot in (0, 255) for one in single),
            *(
                bytes([dialect, 0]) + b"".join(single[step:] + single[:step])
                for dialect in (0, 1)
                for step in (0, 9, 20)
            ),
        ]

    def run(self, data: bytes) -> int:
        """A connection's life, and the next ones'."""
        reader = Reader(data)
        dialect = reader.choice(("upstream", "rfc2023"))
        options = BackendOptions(
            protocol_features=IMPLEMENTED,
            log_shared=bool(reader.u8() & 1),
            keeps_session=bool(reader.u8() & 1),
        )
        device = VirtioFsBackend(LinuxFs(), self._share.path, request_queues=1, tag="fuzz")
        backend = VhostBackend(device, HostServices(), ImmediateSchedule(), DIALECTS[dialect], options)
        backend.link = ClosingLink()
        fds_before = len(os.listdir("/proc/self/fd")) if reader.u8() == 7 else 0
        steps = self._sent = 0
        self._shm.view[:0x4000] = bytes(0x4000)
        try:
            if reader.u8() < 128:
                self._boot(backend)
            while reader.left and steps < MESSAGES_MAX:
                steps += 1
                self._step(backend, reader)
            self._reconnect(backend)
        finally:
            backend.close()
            device.close()
        if fds_before and len(os.listdir("/proc/self/fd")) > fds_before:
            raise Finding("descriptors are left")
        return max(self._sent, 1)

    def _step(self, backend: VhostBackend, reader: Reader) -> None:
        kind = reader.u8()
        if kind >= 240:
            if kind < 244:
                backend.kicked(kind & 1)
            elif kind < 248:
                backend.progress()
                self._check(backend)
            elif kind < 252:
                with suppress(OSError):
                    os.set_blocking(self._pipe[0], False)
                    os.read(self._pipe[0], 1 << 16)
            else:
                at = reader.u16() % (SIZE - 8)
                self._shm.view[at : at + 8] = struct.pack("<Q", reader.choice(WORDS))
            return
        rows = backend.dialect.messages.rows
        row = rows[kind % len(rows)]
        number = row.id if reader.u8() < 250 else reader.u8()
        flags = reader.choice((1, 1, 9, 9, 5, 0, 0xFFFFFFFF))
        words = b"".join(self._word(reader) for _ in range(reader.u8() & 15))
        size = getattr(row.request, "size", len(words)) if reader.u8() < 200 else len(words)
        body = words[:size].ljust(size, b"\0") if row.request is not None or reader.u8() < 20 else b""
        fds = tuple(os.dup(reader.choice(self._files)) for _ in range(reader.u8() % 3 if row.fds[1] else 0))
        if not self._send(backend, struct.pack("<III", number, flags & 0xFFFFFFFF, len(body)) + body, fds):
            self._reconnect(backend)
            if reader.u8() < 220:
                self._boot(backend)

    @staticmethod
    def _word(reader: Reader) -> bytes:
        value = reader.choice(WORDS) if reader.u8() < 220 else reader.u64()
        return struct.pack("<Q", value) if reader.u8() < 128 else struct.pack("<I", value & 0xFFFFFFFF)

    def _send(self, backend: VhostBackend, data: bytes, fds: tuple[int, ...]) -> bool:
        """As a server's loop does; whether the connection is still there."""
        self._sent += 1
        buffer = MessageBuffer(os.close)
        try:
            message = buffer.feed(data[:HEADER_BYTES], fds)
            if message is None and len(data) > HEADER_BYTES:
                message = buffer.feed(data[HEADER_BYTES:])
        except VmsimError:
            return False
        if message is None:
            buffer.discard()
            return False
        try:
            request = decode_request(backend.dialect.messages, message.header, message.body, message.fds)
        except VmsimError:
            for fd in message.fds:
                os.close(fd)
            return False
        try:
            reply = backend.handle(request)
        except InternalFault:
            raise
        except VmsimError:
            self._check(backend)
            return False
        if reply is not None:
            encode_reply(request.row, reply)
            for fd in reply.fds:
                os.close(fd)
        self._check(backend)
        return True

    @staticmethod
    def _check(backend: VhostBackend) -> None:
        for error in (backend.refusal, backend.transfer.failure):
            if isinstance(error, InternalFault):
                raise error

    @staticmethod
    def _reconnect(backend: VhostBackend) -> None:
        backend.close()
        backend.link = ClosingLink()

    def _boot(self, backend: VhostBackend) -> None:
        """What every front-end says first."""
        features = F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES
        region = struct.pack("<QQQQ", 0, SIZE, USER, 0)
        plan = [("SET_OWNER", b"", ()), ("SET_PROTOCOL_FEATURES", struct.pack("<Q", backend._offered()), ()),
                ("SET_FEATURES", struct.pack("<Q", features), ()),
                ("SET_MEM_TABLE", struct.pack("<II", 1, 0) + region, (self._files[0],))]  # fmt: skip
        for ring in (0, 1):
            base = USER + 0x1000 * (1 + 3 * ring)
            areas = struct.pack("<2I4Q", ring, 0, base, base + 0x800, base + 0x400, 0)
            plan += [("SET_VRING_NUM", struct.pack("<II", ring, 64), ()),
                     ("SET_VRING_BASE", struct.pack("<II", ring, 0), ()),
                     ("SET_VRING_ADDR", areas, ()),
                     ("SET_VRING_KICK", struct.pack("<Q", ring), (self._files[1],)),
                     ("SET_VRING_ENABLE", struct.pack("<II", ring, 1), ())]  # fmt: skip
        for name, body, fds in plan:
            number = backend.dialect.messages[name].id
            data = struct.pack("<III", number, 1, len(body)) + body
            if not self._send(backend, data, tuple(map(os.dup, fds))):
                raise Finding(f"{name} is refused: {backend.refusal}")
