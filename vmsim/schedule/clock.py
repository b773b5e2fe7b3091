"""The two kinds of time: what the host counts, and what a simulation says."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of nanoseconds that can be told to let time pass."""

    def now_ns(self) -> int:
        """The present time in nanoseconds; never goes backwards."""
        ...

    def advance_to(self, deadline_ns: int) -> None:
        """Return with ``now_ns() >= deadline_ns``: by sleeping, or by saying so."""
        ...


class MonotonicClock:
    """The host's monotonic clock; advancing sleeps."""

    __slots__ = ()

    def now_ns(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def advance_to(self, deadline_ns: int) -> None:
        """Sleep until ``deadline_ns``."""
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns / 1e9)


def wall_clock_ns() -> int:
    """The host's wall clock: nanoseconds since 1970."""
    return time.time_ns()


class VirtualClock:
    """A clock that stands still until somebody advances it."""

    __slots__ = ("_now_ns",)

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """The virtual time in nanoseconds."""
        return self._now_ns

    def advance_to(self, deadline_ns: int) -> None:
        """Jump to ``deadline_ns`` unless that lies in the past."""
        self._now_ns = max(self._now_ns, deadline_ns)
