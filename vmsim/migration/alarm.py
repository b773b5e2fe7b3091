"""When a migration is given up for lasting too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmsim.migration.downtime import Clock, milliseconds
from vmsim.migration.report import MigrationParameters
from vmsim.schedule import Schedule

LOOK_NS: Final = 10_000_000
"""How often it is looked whether a migration that waits has been cancelled, or has ended by itself."""


class Alarm:
    """Goes off when ``cancel_after_ns`` have passed since ``start``, if there is such a limit."""

    def __init__(self, parameters: MigrationParameters, clock: Clock) -> None:
        self._limit_ns = parameters.cancel_after_ns
        self._own_clock = parameters.clock is not None
        self._clock = clock
        self._at_ns = 0

    def start(self, schedule: Schedule, over: Callable[[], bool], cancel: Callable[[], object]) -> None:
        """From now on; ``cancel`` is called also while everybody waits for the other end, unless ``over``."""
        if self._limit_ns is None:
            return
        self._at_ns = self._clock() + self._limit_ns
        if not self._own_clock:
            schedule.spawn("cancel-after", lambda: self._wait(schedule, over, cancel))

    def _wait(self, schedule: Schedule, over: Callable[[], bool], cancel: Callable[[], object]) -> None:
        while not over() and (left := self._at_ns - self._clock()) > 0:
            schedule.sleep_ns(min(left, LOOK_NS))
        if not over():
            cancel()

    @property
    def rings(self) -> bool:
        """Whether it has gone off."""
        return self._at_ns > 0 and self._clock() >= self._at_ns

    def why(self) -> str:
        """What to add to the message of a cancellation."""
        return f": it was not done after {milliseconds(self._limit_ns or 0)}" if self.rings else ""
