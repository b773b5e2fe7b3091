"""How things are timed: pinned, warmed up, and each figure against its yardstick of the same moment.

A figure is never a time on its own. Every round measures the yardstick and the subject right after one
another and keeps their quotient; what a busy machine does to one of them it does to the other. Reported are
the median of the rounds and their smallest and largest value.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median

Work = Callable[[], object]
clock = time.thread_time
"""Seconds that this thread has run: everything measured here happens in it, and what other programs do to
the CPU meanwhile is not our cost."""
CPUS = sorted(os.sched_getaffinity(0))
"""What we may run on, before ``pin``."""
Times = dict[str, list[float]]
"""Seconds per call of each case, one value per round; the same position is the same moment."""


@dataclass(slots=True)
class Spread:
    """Median and range of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(slots=True)
class Figure:
    """One line of the report.

    ``value`` is in ``unit`` (a quotient where that is "x ..."), ``aim`` the bound that issue and design name
    for it, ``more_is_better`` the direction. ``detail`` are secondary numbers, ``note`` is a sentence: what
    was compared, or what holds it back. ``skipped`` says why there is no value.
    """

    name: str
    value: Spread | None
    unit: str
    aim: float | None = None
    more_is_better: bool = False
    detail: dict[str, float] = field(default_factory=dict)
    note: str = ""
    skipped: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the aim; None without aim or value."""
        if self.aim is None or self.value is None:
            return None
        return self.value.median >= self.aim if self.more_is_better else self.value.median <= self.aim

    def as_json(self) -> dict[str, object]:
        """Plain data."""
        return {**asdict(self), "met": self.met}


@dataclass(slots=True)
class Plan:
    """How much to measure. ``quick``: just enough to see that it works."""

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """A count for this run."""
        return quick if self.quick else full


def pin() -> int:
    """Stay on one CPU (waking a task on another one costs more than what is measured); its number."""
    cpu = CPUS[-1]
    os.sched_setaffinity(0, {cpu})
    return cpu


@contextmanager
def quiet() -> Iterator[None]:
    """No cycle collection between two readings of the clock."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def seconds(work: Work, calls: int = 1, clock: Callable[[], float] = clock) -> float:
    """Seconds per call, over ``calls`` calls."""
    numbers = range(calls)
    began = clock()
    for _ in numbers:
        work()
    return (clock() - began) / calls


def interleave(
    cases: Mapping[str, Work], rounds: int, calls: Mapping[str, int] | int = 1,
    clock: Callable[[], float] = clock,
) -> Times:  # fmt: skip
    """Time all cases in turn, ``rounds`` times; the first two rounds warm up and do not count.

    ``clock`` is another one where the work is not all done by this thread.
    """
    times: Times = {name: [] for name in cases}
    with quiet():
        for turn in range(-2, rounds):
            for name, work in cases.items():
                took = seconds(work, calls if isinstance(calls, int) else calls[name], clock)
                if turn >= 0:
                    times[name].append(took)
    return times


def quotient(times: Times, subject: str, yardstick: str) -> Spread:
    """How many times as long ``subject`` took as ``yardstick``, round by round."""
    pairs = zip(times[subject], times[yardstick], strict=True)
    return Spread.of([mine / theirs for mine, theirs in pairs])


def speed(times: Times, subject: str, yardstick: str) -> Spread:
    """How fast ``subject`` was, where ``yardstick`` is 1."""
    return quotient(times, yardstick, subject)


def micros(times: Times, name: str) -> float:
    """Median in microseconds."""
    return median(times[name]) * 1e6
