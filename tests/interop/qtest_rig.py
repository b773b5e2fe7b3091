"""QEMU without a guest's operating system: our own guest drives the device of a real QEMU.

Registers are read and written through QEMU's qtest socket; guest memory is QEMU's memfd, mapped here. So our
whole facade (``fs.open(...)``) runs against QEMU's front-end and the back-end behind it.

QEMU does not see what we write to the memfd as dirty: all memory must be as it is to be before a migration
begins, which sends everything once. The guest rests meanwhile.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.interop.qemu_rig import Lines, Qemu
from vmsim.guest.calls.posix import GuestFs, mount
from vmsim.guest.config import GuestConfig
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.host.fence import full_fence
from vmsim.host.shm import map_shared, release
from vmsim.memory import GuestMemory, Region
from vmsim.schedule.clock import wall_clock_ns
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.virtio.constants import DEVICE_ID_FS
from vmsim.virtio.mmio import MAGIC

MEMORY_BYTES = 64 << 20
HEAP = (0x100000, 4 << 20)
"""Above the BIOS; not all of memory, so that little of it changes."""
BIOS_BYTES = 0x10000
HLT = b"\xf4"
FIRST_WINDOW = 0xFEB00000
WINDOW_BYTES = 0x200
WINDOWS = 24
LOOK_S = 0.0003
PATIENCE_S = 30
SIZES = {1: "b", 2: "w", 4: "l", 8: "q"}


class QtestBus:
    """The registers of the virtio-mmio window at ``base``; or of any address, with ``base`` 0."""

    def __init__(self, lines: Lines, base: int = 0) -> None:
        self.lines = lines
        self.base = base

    def _ask(self, words: str) -> list[str]:
        self.lines.send(words)
        answer = self.lines.receive()
        while answer.startswith("IRQ"):
            answer = self.lines.receive()
        assert answer.startswith("OK"), f"{words}: {answer}"
        return answer.split()[1:]

    def read(self, offset: int, size_bytes: int) -> int:
        """Load 1, 2, 4 or 8 bytes."""
        return int(self._ask(f"read{SIZES[size_bytes]} {self.base + offset:#x}")[0], 16)

    def write(self, offset: int, size_bytes: int, value: int) -> None:
        """Store 1, 2, 4 or 8 bytes."""
        self._ask(f"write{SIZES[size_bytes]} {self.base + offset:#x} {value:#x}")


class QtestVm:
    """A QEMU microvm on the back-end behind ``socket``, with our guest in it once ``boot`` was called.

    ``device`` and ``guest`` change the device's properties and the guest's configuration; ``incoming`` waits
    for a migration, after which ``take_over`` brings the guest here.
    """

    def __init__(
        self, peers: Any, socket: str, *, incoming: bool = False, tag: str = "myfs", device: str = "",
        guest: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        folder = Path(tempfile.mkdtemp(prefix="vmsim-qemu-"))
        (folder / "bios").write_bytes(HLT * BIOS_BYTES)
        properties = ",".join(["vhost-user-fs-device,chardev=fs", f"tag={tag}", *filter(None, [device])])
        self.qemu = Qemu(
            peers, "-machine", "microvm,memory-backend=mem", "-accel", "tcg", "-m", f"{MEMORY_BYTES >> 20}M",
            "-bios", f"{folder}/bios",
            "-object", f"memory-backend-memfd,id=mem,size={MEMORY_BYTES},share=on",
            "-global", "virtio-mmio.force-legacy=false",
            "-qtest", f"unix:{folder}/qtest,server=on,wait=off", "-qtest-log", "none",
            "-chardev", f"socket,id=fs,path={socket}", "-device", properties,
            *(["-incoming", "defer"] if incoming else []), folder=folder,
        )  # fmt: skip
        try:
            self._build(guest or {})
        except BaseException:
            self.qemu.close()
            raise

    def _build(self, guest: dict[str, Any]) -> None:
        self.lines = self.qemu.connect("qtest")
        self.bus = self._find()
        self.memory = self._map()
        self.schedule = ImmediateSchedule(idle=self._idle)
        self.patience_s = PATIENCE_S
        self._pending: dict[int, int] = {}
        self._since_s = 0.0
        config = GuestConfig(heap=[HEAP], realtime_ns=wall_clock_ns() - self.schedule.now_ns(), **guest)
        self.kernel = GuestKernel(self.memory, self.bus, self.schedule, config, full_fence)

    def _find(self) -> QtestBus:
        """The window with the file-system device."""
        for number in range(WINDOWS):
            bus = QtestBus(self.lines, FIRST_WINDOW + WINDOW_BYTES * number)
            if bus.read(0, 4) == MAGIC and bus.read(8, 4) == DEVICE_ID_FS:
                return bus
        raise AssertionError("QEMU has no virtio-fs device")

    def _map(self) -> GuestMemory:
        folder = Path("/proc", str(self.qemu.process.pid), "fd")
        for entry in folder.iterdir():
            try:
                found = os.readlink(entry).startswith("/memfd:") and entry.stat().st_size == MEMORY_BYTES
            except FileNotFoundError:
                continue
            if found:
                fd = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
                try:
                    view = map_shared(fd, MEMORY_BYTES, 0)
                finally:
                    os.close(fd)
                self._mapping = view.obj
                return GuestMemory([Region("mem", 0, MEMORY_BYTES, view)])
        raise AssertionError("QEMU's memory is not to be found")

    def _idle(self, deadline_ns: int | None) -> bool:
        """The guest waits: look whether there is an interrupt. False (a stall) if there is none for long."""
        del deadline_ns
        time.sleep(LOOK_S)
        now = {number: request.status for number, request in self.kernel.requests.items()}
        if now != self._pending:
            self._pending, self._since_s = now, time.monotonic()
        self.kernel.interrupt()
        return time.monotonic() < self._since_s + self.patience_s

    # The guest

    def boot(self) -> GuestFs:
        """Bring the device up, and mount."""
        self.kernel.boot()
        return self.mount()

    def mount(self) -> GuestFs:
        """The facade of the guest's first process."""
        return mount(self.kernel, 1)

    def take_over(self, source: QtestVm) -> GuestFs:
        """The guest of ``source``, whose machine has arrived here, goes on here."""
        self.kernel.restore(source.kernel.save())
        return self.mount()

    def close(self) -> None:
        """End it; may be called twice."""
        self.kernel.close()
        self.memory.close()
        release(self._mapping)
        self.lines.close()
        self.qemu.close()


def migrate(source: QtestVm, destination: QtestVm, stream: Path) -> GuestFs:
    """Move the guest through a file; its facade on the destination."""
    found = source.qemu.migrate(f"file:{stream}")
    assert found["status"] == "completed", found
    destination.qemu.incoming(f"file:{stream}")
    assert destination.qemu.arrived() == "running", destination.qemu.log
    return destination.take_over(source)
