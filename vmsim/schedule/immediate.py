"""The immediate schedule: a kick runs the device at once, so one request is one chain of function calls."""

from __future__ import annotations

from collections.abc import Callable

from vmsim.schedule import Descriptors
from vmsim.schedule.clock import Clock, MonotonicClock
from vmsim.schedule.tasks import SimTask, TurnTaking


class ImmediateSchedule(TurnTaking):
    """Runs kicks inline; who waits lets the spawned activities run in turn.

    A kick that arrives while the same callable is already running is not nested: the running one is run once
    more when it returns, as a doorbell that rings while it is being answered.
    """

    def __init__(
        self, clock: Clock | None = None, idle: Callable[[int | None], bool] | None = None,
        descriptors: Descriptors | None = None,
    ) -> None:  # fmt: skip
        super().__init__(clock if clock is not None else MonotonicClock(), idle, descriptors)
        self._kicks: dict[Callable[[], object], bool] = {}
        self._last: SimTask | None = None

    def kick(self, run: Callable[[], object], what: str) -> None:
        """Call ``run()`` at once, or again after the call of it that is under way; raises what it raises."""
        kicks = self._kicks
        if run in kicks:
            kicks[run] = True
            return
        kicks[run] = False
        try:
            run()
            while kicks[run]:
                kicks[run] = False
                run()
        finally:
            del kicks[run]

    def _choose(self, runnable: list[SimTask]) -> SimTask:
        """Round robin: the first one after whoever ran last."""
        order = self._tasks
        start = order.index(self._last) + 1 if self._last in order else 0
        for task in order[start:]:
            if task in runnable:
                break
        else:
            task = runnable[0]
        self._last = task
        return task
