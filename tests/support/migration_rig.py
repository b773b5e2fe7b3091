"""A small machine with real memory, a real dirty log and two devices, for tests of migrations."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from vmsim.errors import HostError, StreamTruncated, VmsimError
from vmsim.memory import DirtyLog, GuestMemory, Region
from vmsim.migration.channel import MemoryChannel
from vmsim.migration.destination import IncomingMigration
from vmsim.migration.downtime import Forecast
from vmsim.migration.report import MigrationParameters
from vmsim.migration.source import OutgoingMigration
from vmsim.migration.vmio import VmReader, VmWriter
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule

PAGES = (40, 8)  # of the two regions, with a hole between them


def make_memory(pages: tuple[int, ...] = PAGES) -> GuestMemory:
    regions, gpa = [], 0x1000
    for index, count in enumerate(pages):
        buffer = mmap.mmap(-1, count * 4096)
        regions.append(Region(f"ram{index}", gpa, count * 4096, memoryview(buffer)))
        gpa += (count + 16) * 4096
    return GuestMemory(regions)


def contents(memory: GuestMemory) -> list[bytes]:
    return [bytes(region.view) for region in memory.regions]


class Counter:
    """A section with one number and a subsection that is there when the number is odd."""

    version_id = max_version_id = 2

    def __init__(self, idstr: str, value: int = 0) -> None:
        self.idstr = idstr
        self.instance_id = 0
        self.value = value
        self.name = b""

    def save(self, out: VmWriter) -> None:
        out.be32("value", self.value)
        out.array("be16", "twice", (self.value & 0xFFFF, 2))
        if self.value & 1:
            name = self.idstr.rpartition("/")[2]
            with out.subsection(f"{name}/odd", 1):
                out.u8("len", len(self.name))
                out.buffer("name", self.name)

    def load(self, src: VmReader, version_id: int) -> None:
        self.value = src.be32("value")
        src.array("be16", "twice", 2)
        name = self.idstr.rpartition("/")[2]
        for _ in src.subsections(name, {f"{name}/odd": 1}):
            self.name = src.buffer("name", src.u8("len"))


class Machine:
    """Both kinds of machine. ``running`` says whether the guest may work; ``log`` what happened, in order."""

    machine_type = "vmsim-test"

    def __init__(self, memory: GuestMemory | None = None) -> None:
        self.memory = memory or make_memory()
        self.dirty = DirtyLog(self.memory)
        self.running = True
        self.finished = False
        self.discarded = False
        self.rings = True
        self.devices = [Counter("bus@0/timer", 41), Counter("vmsim/guest", 6)]
        self.devices[0].name = b"tick"
        self.log: list[str] = []
        self.fail_at = ""
        self.expects = Forecast()
        self.pieces: list[tuple[str, bytes]] = []
        self.came: list[tuple[str, bytes]] = []

    def _step(self, name: str) -> None:
        self.log.append(name)
        if name == self.fail_at:
            raise HostError(f"injected at {name}", errno=5)

    # The source

    def check_migratable(self) -> None:
        self._step("check_migratable")

    def configuration(self) -> bytes:
        self._step("configuration")
        return b"two regions"

    def start_log(self) -> None:
        self.dirty.start()
        self._step("start_log")

    def stop_log(self) -> None:
        self.dirty.stop()
        self.log.append("stop_log")

    def data_of(self):
        return None

    def harvest(self):
        self._step("harvest")
        return self.dirty.harvest()

    def early(self, *arguments):
        """Of the source: the pieces; of the destination: one that came."""
        if len(arguments) == 1:
            return iter(self.pieces)
        self.came.append(arguments)
        return None

    def forecast(self) -> Forecast:
        return self.expects

    def pause(self) -> None:
        self.running = False
        self._step("pause")

    def resume(self) -> None:
        self.running = True
        self.log.append("resume")

    def stop_rings(self) -> None:
        self.rings = False
        self._step("stop_rings")

    def restart_rings(self) -> None:
        self.rings = True
        self.log.append("restart_rings")

    def sections(self):
        return self.devices

    def finish(self) -> None:
        self.running = False
        self.finished = True

    # The destination

    @classmethod
    def built(cls, configuration: bytes, pages: tuple[int, ...] = PAGES) -> Machine:
        assert configuration == b"two regions"
        machine = cls(make_memory(pages))
        machine.running = False
        for device in machine.devices:
            device.value, device.name = 0, b""
        return machine

    def prepare(self) -> None:
        self._step("prepare")

    def run(self) -> None:
        self.running = True

    def page_writer(self) -> None:
        return None

    def discard(self) -> None:
        self.discarded = True
        self.running = False

    # What a test compares

    def untouched(self) -> bool:
        """Whether it runs as if no migration had been tried."""
        return self.running and self.rings and not self.finished and not self.dirty.running

    def state(self) -> object:
        return contents(self.memory), [(d.idstr, d.value, d.name) for d in self.devices]


class FaultChannel:
    """Fails the Nth operation: ``fail`` (once, nothing happened), ``lose`` (once, it happened), ``cut`` (for
    ever, both directions end)."""

    def __init__(self, inner, number: int = 0, kind: str = "fail") -> None:
        self._inner = inner
        self._number = number
        self._kind = kind
        self._is_cut = False
        self.operations: list[str] = []
        self.injected = False
        self.duplex = inner.duplex

    def _cross(self, operation: str) -> bool:
        self.operations.append(operation)
        if len(self.operations) != self._number:
            return self._is_cut
        self.injected = True
        if self._kind == "cut":
            self._is_cut = True
            self._inner.close()
        return True

    def write(self, data) -> None:
        faulty = self._cross("write")
        if not faulty or (self._kind == "lose" and not self._is_cut):
            self._inner.write(data)
        if faulty:
            raise HostError("injected write fault", errno=32 if self._is_cut else 5)

    def read_some(self, limit: int):
        if self._cross("read"):
            if self._is_cut:
                raise StreamTruncated("injected end of the channel")
            if self._kind == "lose":
                self._inner.read_some(limit)
            raise HostError("injected read fault", errno=5)
        return self._inner.read_some(limit)

    def read(self, size_bytes: int):
        raise AssertionError("migrations read through StreamInput")

    def close_write(self) -> None:
        self._inner.close_write()

    def finish(self) -> None:
        if self._cross("finish"):
            raise HostError("injected fault while finishing", errno=28)
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()


class Run:
    """One migration in one process over a memory channel, with a guest that works meanwhile."""

    def __init__(
        self, *, wrap_source: Callable = lambda end: end, wrap_destination: Callable = lambda end: end,
        parameters: MigrationParameters | None = None, guest: Callable[[Machine, int], None] | None = None,
        prepare: Callable[[Machine], None] = lambda machine: None, source: Machine | None = None,
        capacity: int = 8192, on_progress: Callable | None = None, schedule: ImmediateSchedule | None = None,
        ends: tuple[Any, Any] | None = None, memory: tuple[int, ...] = PAGES,
    ) -> None:
        self.schedule = schedule or ImmediateSchedule(VirtualClock())
        self.source = source or Machine()
        self.built: list[Machine] = []
        self.errors: dict[str, VmsimError] = {}
        self._prepare = prepare
        self._pages = memory
        one, other = ends or MemoryChannel.pair(self.schedule, capacity)
        self.source_end, self.destination_end = wrap_source(one), wrap_destination(other)
        self.outgoing = OutgoingMigration(
            self.source, self.source_end, self.schedule, parameters or MigrationParameters(part_bytes=8192),
            on_progress,
        )
        self.incoming = IncomingMigration(self.destination_end, self._build, self.schedule.now_ns)
        self._guest = guest
        self._done = False

    def _build(self, configuration: bytes) -> Machine:
        machine = Machine.built(configuration, self._pages)
        self.built.append(machine)
        self._prepare(machine)
        return machine

    def _work(self) -> None:
        step = 0
        while not self._done:
            if self.source.running and not self.source.finished:
                self._guest(self.source, step)
                step += 1
            self.schedule.sleep_ns(1_000_000)

    def _side(self, name: str, run: Callable[[], object]) -> None:
        try:
            run()
        except VmsimError as error:
            self.errors[name] = error

    def go(self) -> Run:
        tasks = [self.schedule.spawn("destination", lambda: self._side("destination", self.incoming.run))]
        if self._guest is not None:
            worker = self.schedule.spawn("guest", self._work)
        self._side("source", self.outgoing.run)
        for task in tasks:
            self.schedule.join(task)
        self._done = True
        if self._guest is not None:
            self.schedule.join(worker)
        return self

    @property
    def destination(self) -> Machine:
        (machine,) = self.built
        return machine

    def who_runs(self) -> list[str]:
        """``source`` and ``destination``: exactly one of them, whatever happened."""
        source = ["source"] if self.source.running and not self.source.finished else []
        return source + ["destination" for machine in self.built if machine.running and not machine.discarded]
