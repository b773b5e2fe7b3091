"""What a job finds out: plain records, printed by :mod:`vmsim.cli.show` and as JSON."""

from __future__ import annotations

import time
from typing import Self

import msgspec

from vmsim.machine import Machine
from vmsim.migration.downtime import milliseconds
from vmsim.migration.report import MigrationStats, Progress
from vmsim.workload.choices import MachineChoice
from vmsim.workload.stages import Stage, Watcher


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


class Standstill(msgspec.Struct):
    """The time of one hop in which nobody ran: its parts by name, measured and expected before the stop.

    ``warnings`` say what of the limit could not be kept, or was not.
    """

    measured: dict[str, int]
    expected: dict[str, int]
    limit_ns: int
    warnings: list[str]

    @classmethod
    def of(cls, stats: MigrationStats) -> Standstill:
        """That of a migration."""
        parts, expected = stats.downtime.parts(), stats.expected.parts()
        return cls(parts, expected, stats.downtime_limit_ns, stats.warnings)


class JobReport(msgspec.Struct):
    """The facts, as printed and as JSON; ``share`` is the directory.

    ``left_out`` is what the guest did not do, or did without its back-end; ``downtimes`` go with ``hops``.
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
    downtimes: list[Standstill] = []


class HopWatch:
    """Follows one migration: progress for the watcher, and how long it took for the report."""

    def __init__(self, machine: Machine, watcher: Watcher) -> None:
        self._watcher = watcher
        self._ram_bytes = sum(size for _, size in machine.config.memory)
        self._round_bytes = 0
        self._round = -1
        self._began = time.monotonic_ns()
        self._warned = ""

    def __call__(self, report: Progress) -> None:
        """One report of the migration."""
        if report.round != self._round:
            self._round, self._round_bytes = report.round, max(1, report.remaining_bytes)
        done = 1 - report.remaining_bytes / max(self._round_bytes, report.remaining_bytes)
        left = report.remaining_bytes >> 10
        what = f"{report.phase}, round {report.round + 1}, {left} KiB of memory left"
        if report.expected is not None:
            what += f", downtime {milliseconds(report.expected.total_ns)}: most for {report.expected.longest}"
        self._watcher.progress(done, what)
        if report.warning not in ("", self._warned):
            self._warned = report.warning
            self._watcher.warn(report.warning)

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
            total_ns=self._ended - self._began, downtime_ns=stats.downtime_ns,
            steps=steps,
            requests_in_flight=machine.arrived_requests, moved=moved, notes=machine.notes(),
        )  # fmt: skip
