"""The guest's page allocator: contiguous runs of pages, first fit, with quick lists for repeated sizes.

Its state is two lists of (address, bytes) and so travels as it is.
"""

from __future__ import annotations

from bisect import bisect_left

from vmsim.errors import StreamError, UsageError
from vmsim.guest.state import AllocatorState, Segments
from vmsim.memory import PAGE_SIZE

QUICK_MAX = 8


def pages_bytes(size_bytes: int) -> int:
    """``size_bytes`` rounded up to whole pages, at least one."""
    return max(PAGE_SIZE, -(-size_bytes // PAGE_SIZE) * PAGE_SIZE)


class PageAllocator:
    """Hands out page-aligned runs of guest memory; ``allocate`` answers None when there is no room."""

    __slots__ = ("state",)

    def __init__(self, state: AllocatorState) -> None:
        self.state = state

    @classmethod
    def over(cls, ranges: list[tuple[int, int]]) -> PageAllocator:
        """A fresh allocator of ``ranges``; UsageError if one is empty, unaligned or overlaps another."""
        ranges = sorted(ranges)
        end = 0
        for gpa, size in ranges:
            if gpa % PAGE_SIZE or size % PAGE_SIZE or size <= 0 or gpa < end:
                raise UsageError(f"guest heap range {gpa:#x}+{size:#x} is not made of free whole pages")
            end = gpa + size
        return cls(AllocatorState(ranges, list(ranges)))

    def allocate(self, size_bytes: int) -> int | None:
        """The address of a run of at least ``size_bytes``, or None."""
        size = -(-size_bytes // PAGE_SIZE) * PAGE_SIZE or PAGE_SIZE  # pages_bytes, without the call
        quick = self.state.quick.get(size)
        if quick:
            return quick.pop()
        gpa = self._first_fit(size)
        if gpa is None and self.state.quick:
            self._flush_quick()
            gpa = self._first_fit(size)
        return gpa

    def free(self, gpa: int, size_bytes: int) -> None:
        """Give back what ``allocate(size_bytes)`` returned."""
        size = -(-size_bytes // PAGE_SIZE) * PAGE_SIZE or PAGE_SIZE
        quick = self.state.quick.get(size)
        if quick is None:
            quick = self.state.quick[size] = []
        if len(quick) < QUICK_MAX:
            quick.append(gpa)
        else:
            self._release(gpa, size)

    @property
    def free_bytes(self) -> int:
        """Bytes that are not handed out."""
        lists = self.state.quick.items()
        return sum(size for _, size in self.state.free) + sum(size * len(gpas) for size, gpas in lists)

    def _first_fit(self, size: int) -> int | None:
        free = self.state.free
        for at, (gpa, run) in enumerate(free):
            if run >= size:
                if run == size:
                    del free[at]
                else:
                    free[at] = (gpa + size, run - size)
                return gpa
        return None

    def _flush_quick(self) -> None:
        quick, self.state.quick = self.state.quick, {}
        for size, gpas in quick.items():
            for gpa in gpas:
                self._release(gpa, size)

    def _release(self, gpa: int, size: int) -> None:
        free = self.state.free
        at = bisect_left(free, (gpa, 0))
        if at < len(free) and gpa + size == free[at][0] and not self._border(gpa + size):
            size += free[at][1]
            del free[at]
        if at and sum(free[at - 1]) == gpa and not self._border(gpa):
            gpa, size = free[at - 1][0], free[at - 1][1] + size
            at -= 1
            del free[at]
        free.insert(at, (gpa, size))

    def _border(self, gpa: int) -> bool:
        """Whether a range begins at ``gpa``: runs are not merged across ranges."""
        ranges = self.state.ranges
        at = bisect_left(ranges, (gpa, 0))
        return at < len(ranges) and ranges[at][0] == gpa

    def check(self) -> Segments:
        """All free runs, sorted. StreamError unless they are disjoint, page-aligned and inside the ranges."""
        state = self.state
        for size, gpas in state.quick.items():
            if size <= 0 or size % PAGE_SIZE or len(gpas) > QUICK_MAX:
                raise StreamError("allocator quick list is malformed", field="allocator.quick")
        runs = self.free_runs()
        end = 0
        for gpa, size in runs:
            aligned = gpa % PAGE_SIZE == 0 and size % PAGE_SIZE == 0 and size > 0
            if not aligned or gpa < end or not _inside(state.ranges, gpa, size):
                raise StreamError(f"allocator run {gpa:#x}+{size:#x} is malformed", field="allocator.free")
            end = gpa + size
        if state.free != sorted(state.free):
            raise StreamError("allocator runs are not sorted", field="allocator.free")
        return runs

    def free_runs(self) -> Segments:
        """Everything that is not handed out, sorted."""
        state = self.state
        return sorted([*state.free, *((gpa, size) for size, gpas in state.quick.items() for gpa in gpas)])

    def is_allocated(self, gpa: int, size_bytes: int, runs: Segments | None = None) -> bool:
        """Whether all of the range lies in the heap and none of it is free; ``runs``: those of ``check``."""
        free = self.free_runs() if runs is None else runs
        if not _inside(self.state.ranges, gpa, size_bytes):
            return False
        at = bisect_left(free, (gpa + size_bytes, 0)) - 1
        return at < 0 or sum(free[at]) <= gpa


def _inside(ranges: Segments, gpa: int, size_bytes: int) -> bool:
    """Whether one of the ranges, which are sorted, holds all of it."""
    at = bisect_left(ranges, (gpa + 1, 0)) - 1
    return at >= 0 and gpa + size_bytes <= sum(ranges[at])
