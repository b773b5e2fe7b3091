"""Split and packed rings: chains at odd addresses and lengths, scribbled tables, stops, restarts."""

from __future__ import annotations

import struct
from contextlib import suppress

from engine import Finding
from fuse_requests import init_request, request, seeds
from reading import SPECIAL, Reader
from shares import Share

from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.options import FsOptions
from vmsim.errors import GuestViolation, StallError, UsageError, VmsimError
from vmsim.host.fs import LinuxFs
from vmsim.host.shm import SharedMemory
from vmsim.memory import GuestMemory, Region
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost.backend_ring import BackendRing
from vmsim.vhost.payloads import VringAddr
from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
)
from vmsim.virtio.ring_types import QueueFull, RingConfig
from vmsim.virtio.rings import DriverRing, make_driver_ring

MEMORY = 1 << 20
DESC, DRIVER, DEVICE, TABLES, BUFFERS = 0x1000, 0x3000, 0x5000, 0x8000, 0x20000
STEPS_MAX = 400
FEATURES = (0, F_EVENT_IDX, F_INDIRECT_DESC, F_EVENT_IDX | F_INDIRECT_DESC, F_IN_ORDER | F_INDIRECT_DESC)
SIZES = {False: (1, 2, 8, 64, 256), True: (1, 2, 3, 7, 64, 100)}


class Link:
    """Takes what a ring says to its front-end."""

    def __init__(self) -> None:
        self.broken = ""
        self.turns = 0

    def call(self, ring: int) -> None:
        """Nobody looks."""

    def ring_error(self, ring: int, why: str) -> None:
        """A broken ring is an answer to what was in it; a bug of ours is none."""
        self.broken = why
        if "a bug in vmsim" in why:
            raise Finding(why)

    def turn(self) -> None:
        """Nobody waits meanwhile."""

    def again(self, ring: int) -> None:
        """So no turn has an end."""

    def set_notifier(self, message: str, ring: int, fd: int) -> None:
        """There are none."""

    def set_channel(self, fd: int) -> None:
        """There is none."""


class Counted(VirtioFsBackend):
    """Counts the chains that get through the ring."""

    chains = 0

    def handle(self, ring, chain, complete):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        self.chains += 1
        return super().handle(ring, chain, complete)


class Rings:
    """Targets ``ring-split`` and ``ring-packed``."""

    name = "ring"
    packed = False
    watched = ("vmsim.virtio", "vmsim.vhost", "vmsim.memory")

    def __init__(self) -> None:
        self._share = Share()
        # Served read-only, so that one device does for all inputs.
        self.device = Counted(LinuxFs(), self._share.renew(), FsOptions(readonly=True))
        self._shm = SharedMemory("fuzz", MEMORY)
        half = MEMORY // 2
        self.memory = GuestMemory([
            Region("low", 0, half, self._shm.view[:half], self._shm.fd, 0, 0),
            Region("high", half, half, self._shm.view[half:], self._shm.fd, half, half),
        ])  # fmt: skip

    def close(self) -> None:
        """Remove the share, unmap the memory."""
        self.device.close()
        self._share.close()
        self.memory.close()
        self._shm.close()

    def seeds(self) -> list[bytes]:
        """Each size and feature with requests of each kind, then steps of each kind."""
        requests = seeds()
        return [
            *(bytes([size, features, 0, 0, 0]) + b"\x00\x05" * 4 + one + b"\xc8"
              for size in range(6) for features in range(5) for one in requests[size::17]),
            *(bytes([3, 3, 0, 0, 0]) + bytes([step, 3, 1, 2]) * 8 for step in range(200, 256, 2)),
        ]  # fmt: skip

    def run(self, data: bytes) -> int:
        """A ring's life."""
        self._shm.view[: BUFFERS + 0x1000] = bytes(BUFFERS + 0x1000)
        life = Life(self, Reader(data))
        try:
            return life.live()
        finally:
            life.end()


class Life:
    """One input: a device with one ring, and its driver."""

    def __init__(self, target: Rings, reader: Reader) -> None:
        self.memory = target.memory
        self.reader = reader
        self.device = target.device
        self.device.chains = 0
        self.size = reader.choice(SIZES[target.packed])
        self.features = F_VERSION_1 | reader.choice(FEATURES) | (F_RING_PACKED if target.packed else 0)
        self.link = Link()
        policy = "lenient" if reader.u8() & 1 else "strict"
        self.ring = BackendRing(1, self.device, ImmediateSchedule(), policy)  # type: ignore[arg-type]
        self.ring.link = self.link
        self.ring.set_memory(self.memory, self.features, None)
        self.ring.set_num(self.size)
        self.at = BUFFERS + reader.u8()
        self.unique = 0
        self._start(None)

    def _start(self, base: int | None) -> None:
        self.ring.set_addr(VringAddr(1, 0, DESC, DEVICE, DRIVER, 0))
        fresh = 0x8000_8000 if self.features & F_RING_PACKED else 0
        self.ring.set_base(fresh if base is None else base)
        self.ring.expect_kicks()
        self.ring.set_enabled(True)
        if base is None:
            self.memory.write(DESC, bytes(BUFFERS - DESC))
            self.driver: DriverRing = make_driver_ring(
                RingConfig(self.size, DESC, DRIVER, DEVICE, self.features), self.memory
            )

    def live(self) -> int:
        """Steps until the input is used up."""
        reader = self.reader
        self._offer(init_request(reader, 1), 200)
        self.ring.kicked()
        for _ in range(STEPS_MAX):
            if not reader.left:
                break
            step = reader.u8()
            if self.ring.broken:
                self.ring.reset()
                self._start(None)
            if step < 210:
                self.unique += 2
                self._offer(*request(reader, self.unique))
                if step & 3:
                    self.ring.kicked()
            else:
                self._other(step)
            with suppress(GuestViolation):
                while self.driver.reap() is not None:
                    pass
        self.ring.kicked()
        return max(self.device.chains, 1)

    def end(self) -> None:
        """Give everything back."""
        with suppress(StallError):
            self.ring.reset()
        self.ring.set_memory(GuestMemory(()), 0, None)
        self.device.reset()

    def _place(self, size: int) -> tuple[int, int]:
        if self.at + size + 300 > MEMORY:
            self.at = BUFFERS
        at = self.at
        self.at += size + (self.reader.u8() & 63)
        return at, size

    def _offer(self, data: bytes, room: int) -> None:
        reader = self.reader
        outs = []
        for piece in reader.cuts(memoryview(data)):
            at, size = self._place(len(piece))
            self.memory.write(at, piece)
            outs.append((at, size))
        ins = [self._place(len(piece)) for piece in reader.cuts(memoryview(bytes(room)))]
        if reader.u8() < 8:
            odd = (
                reader.choice((MEMORY // 2 - 3, MEMORY - 1, MEMORY, *SPECIAL)),
                reader.choice((0, 1, 8, 4096)),
            )
            ins.append(odd)
        table = None
        if self.features & F_INDIRECT_DESC and reader.u8() & 1:
            table = (TABLES + (reader.u8() & 63) * 256 + (reader.u8() & 15), 256)
        with suppress(UsageError, QueueFull, struct.error, OverflowError, GuestViolation):
            self.driver.add(outs, ins, table)
            self.driver.publish()

    def _other(self, step: int) -> None:
        """Something that no driver does, or few do."""
        reader = self.reader
        if step < 232:  # scribble: descriptors, then either ring, then tables
            base, span = ((DESC, 16 * self.size), (DRIVER, 64), (DEVICE, 64), (TABLES, 512))[step & 3]
            at = base + (reader.u16() % max(span, 1))
            at &= ~1 if step & 4 else ~15
            size = (2, 4, 8, 16)[step >> 3 & 3]
            data = (
                reader.take(size)
                if step & 8
                else (reader.number() & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            )
            self.memory.write(at, data)
            self.ring.kicked()
        elif step < 240:
            with suppress(StallError):
                base = self.ring.stop()
                self._start(base if step & 1 else None)
        elif step < 244:
            self.ring.set_enabled(bool(step & 1))
        elif step < 248:
            self.device.idle()
        elif step < 250:
            self.ring.reset()
            self._start(None)
        elif step < 252:
            with suppress(VmsimError):
                self.ring.stop()
                self.ring.set_base(reader.number() & 0xFFFFFFFF)
                self.ring.expect_kicks()
        else:
            self.ring.kicked()
