"""What a job finds out: plain records, printed by :mod:`vmsim.cli.show` and as JSON."""

from __future__ import annotations

import time
from typing import Protocol, Self

import msgspec

from vmsim.cli.options import MachineChoice
from vmsim.machine import Machine
from vmsim.migration.report import Progress


class Watcher(Protocol):
    """Who is told how the job goes on."""

    def stage(self, name: str, what: str) -> None:
        """A stage begins; the one before is done."""
        ...

    def progress(self, done: float, what: str) -> None:
        """How far the stage is, 0 to 1."""
        ...


class Stage(msgspec.Struct):
    """One stage and how long it took."""

    name: str
    what: str
    seconds: float = 0.0


class Hop(msgspec.Struct):
    """One migration. Times are real ones, in nanoseconds; ``steps`` the workload did meanwhile.

    ``requests_in_flight`` the guest had when it arrived; ``moved`` is what the destination's back-end held
    when its rings ran again, ``waiting`` requests for locks among it.
    """

    rounds: list[dict[str, int]]
    ram_bytes: int
    pages: int
    zero_pages: int
    stream_bytes: int
    section_bytes: dict[str, int]
    total_ns: int
    downtime_ns: int
    steps: int
    requests_in_flight: int
    moved: dict[str, int]
    notes: list[str]

    @property
    def state_bytes(self) -> int:
        """Of the device and its back-end."""
        return sum(size for name, size in self.section_bytes.items() if name.endswith("-fs"))

    @property
    def guest_bytes(self) -> int:
        """Of the guest's kernel, besides what is in its memory."""
        return self.section_bytes.get("vmsim/guest", 0)


class JobReport(msgspec.Struct):
    """The facts, as printed and as JSON; ``share`` is the directory.

    ``left_out`` is what the guest did not do, or did without its back-end.
    """

    ok: bool
    share: str
    seed: int
    machine: MachineChoice
    stages: list[Stage]
    hops: list[Hop]
    workload: dict[str, int]
    discrepancies: list[str]
    saved: str | None = None
    left_out: list[str] = []


class Stages:
    """Tells a watcher of the stages, and keeps how long each took."""

    def __init__(self, watcher: Watcher) -> None:
        self.done: list[Stage] = []
        self._watcher = watcher
        self._began = 0.0

    def begin(self, name: str, what: str) -> None:
        """The stage before is over, and this one begins."""
        self.end()
        self._began = time.monotonic()
        self.done.append(Stage(name, what))
        self._watcher.stage(name, what)

    def end(self) -> None:
        """The last stage is over; may be called twice."""
        if self.done and self._began:
            self.done[-1].seconds = round(time.monotonic() - self._began, 6)
        self._began = 0.0


class HopWatch:
    """Follows one migration: progress for the watcher, the moment of the guest's stop for the report."""

    def __init__(self, machine: Machine, watcher: Watcher) -> None:
        self._watcher = watcher
        self._ram_bytes = sum(size for _, size in machine.config.memory)
        self._round_bytes = 0
        self._round = -1
        self._began = time.monotonic_ns()
        self._stopped = 0

    def __call__(self, report: Progress) -> None:
        """One report of the migration."""
        if report.phase == "stop" and not self._stopped:
            self._stopped = time.monotonic_ns()
        if report.round != self._round:
            self._round, self._round_bytes = report.round, max(1, report.remaining_bytes)
        done = 1 - report.remaining_bytes / max(self._round_bytes, report.remaining_bytes)
        self._watcher.progress(done, f"{report.phase}, round {report.round + 1}")

    def ended(self) -> Self:
        """The guest runs at the destination: its time has come."""
        self._ended = time.monotonic_ns()
        return self

    def hop(self, machine: Machine, steps: int, moved: dict[str, int]) -> Hop:
        """What came to ``machine``, in numbers."""
        stats = machine.migration_stats
        assert stats is not None
        return Hop(
            rounds=[{"memory_bytes": r.memory_bytes, "dirty_bytes": r.dirty_bytes} for r in stats.rounds],
            ram_bytes=self._ram_bytes, pages=stats.pages, zero_pages=stats.zero_pages,
            stream_bytes=stats.stream_bytes, section_bytes=stats.section_bytes,
            total_ns=self._ended - self._began, downtime_ns=self._ended - (self._stopped or self._began),
            steps=steps, requests_in_flight=machine.arrived_requests, moved=moved, notes=machine.notes(),
        )  # fmt: skip
