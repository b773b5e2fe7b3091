"""A machine whose whole memory is in use migrates, against copying as much memory once.

The yardstick copies the same bytes, 1 MiB at a time, into fresh shared memory: that is what the destination
gets them into. A second one copies into memory that is there already.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import Figure, Plan, Spread, clock, quiet
from tests.bench.memory_use import resident
from vmsim import Machine
from vmsim.host.shm import SharedMemory
from vmsim.schedule.clock import MonotonicClock
from vmsim.schedule.immediate import ImmediateSchedule

AIM = 3.0
PIECE = 1 << 20


class CpuClock(MonotonicClock):
    """The machine's clock counts what ``measure.clock`` counts."""

    def now_ns(self) -> int:
        """Nanoseconds that this thread has run."""
        return time.thread_time_ns()


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Rounds of: copy, migrate."""
    size = plan.pick(1 << 30, 16 << 20)
    (folder / "file").write_bytes(b"x")
    rows: dict[str, list[float]] = {
        name: [] for name in ("rate", "memcpy", "warm", "total", "ratio", "downtime", "idle")
    }
    grown = 0
    for _ in range(plan.pick(5, 1)):
        sample = once(folder, size)
        grown = max(grown, int(sample.pop("grown")))
        for name, value in sample.items():
            rows[name].append(value)
    mid = {name: Spread.of(values).median for name, values in rows.items()}
    fresh = 100 * (1 - mid["memcpy"] / mid["warm"])
    yield Figure(
        "migration.rounds", Spread.of(rows["rate"]), "GB/s", AIM, more_is_better=True,
        detail={
            "x memcpy": Spread.of(rows["ratio"]).median, "memcpy GB/s": mid["memcpy"],
            "memcpy warm GB/s": mid["warm"], "all s": mid["total"], "downtime ms": mid["downtime"] * 1e3,
            "untouched machine s": mid["idle"], "grown MB": grown / 1e6,
        },
        note=f"{size >> 20} MiB, every page in use, both sides on one CPU; of a bare copy into new memory "
        f"{fresh:.0f} % is the host providing its pages",
    )  # fmt: skip


def once(folder: Path, size: int) -> dict[str, float]:
    """One machine filled and migrated, and the copies next to it."""
    page = os.urandom(PIECE)
    sample: dict[str, float] = {}
    with Machine(share=folder, memory=str(size), schedule=ImmediateSchedule(CpuClock())) as vm, quiet():
        vm.mount()
        view = vm.memory.regions[0].view
        heap = vm.kernel.allocator.allocate(size - (8 << 20))
        if heap is None:
            raise RuntimeError("the guest's memory is not free")
        for start in range(heap, heap + size - (8 << 20), PIECE):
            view[start : start + PIECE] = page
        sample["memcpy"], sample["warm"] = copies(view, size)
        before = resident()
        began = clock()
        moved = vm.migrate()
        sample["total"] = clock() - began
        try:
            sample["grown"] = resident() - before
            stats = moved.migration_stats
            assert stats is not None
            spent = sum(row.duration_ns for row in stats.rounds)
            sample["rate"] = sum(row.memory_bytes for row in stats.rounds) / spent
            sample["downtime"] = stats.downtime_ns / 1e9
        finally:
            moved.close()
    sample["ratio"] = sample["rate"] / sample["memcpy"]
    sample["idle"] = idle(folder, size)
    gc.collect()
    return sample


def copies(view: memoryview, size: int) -> tuple[float, float]:
    """GB/s of copying ``view`` into fresh shared memory, and once more into the same."""
    target = SharedMemory("vmsim-bench", size)
    rates = []
    try:
        there = target.view
        for _ in range(2):
            began = clock()
            for start in range(0, size, PIECE):
                there[start : start + PIECE] = view[start : start + PIECE]
            rates.append(size / (clock() - began) / 1e9)
        there.release()
    finally:
        target.close()
    return rates[0], rates[1]


def idle(folder: Path, size: int) -> float:
    """Seconds of migrating a machine of the same size whose memory was hardly touched."""
    with Machine(share=folder, memory=str(size), schedule=ImmediateSchedule(CpuClock())) as vm:
        vm.mount()
        began = clock()
        moved = vm.migrate()
        took = clock() - began
        moved.close()
        return took
