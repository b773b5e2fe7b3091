"""Seam S4: who runs next, and what time it is.

Code that has to wait says what it waits for; a schedule decides who runs meanwhile. The implementations are
:mod:`vmsim.schedule.immediate` and :mod:`vmsim.schedule.seeded`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class TaskKilled(BaseException):
    """Raised inside an activity that was killed; a BaseException, so ``except Exception`` lets it pass."""


class Task(Protocol):
    """An activity that a schedule runs; ``result()`` raises what the activity raised."""

    name: str

    @property
    def done(self) -> bool:
        """Whether the activity has ended."""
        ...

    @property
    def error(self) -> BaseException | None:
        """What the activity raised, if it has ended that way."""
        ...

    def result(self) -> object:
        """The activity's return value; raises what it raised, or StateError while it runs."""
        ...


class Descriptors(Protocol):
    """Who waits for the world outside the process while no activity can go on."""

    def idle(self, deadline_ns: int | None) -> bool:
        """Wait for one of the descriptors, at most until ``deadline_ns``; whether one of them was ready."""
        ...


class Schedule(Protocol):
    """What protocol and guest code asks of the schedule."""

    @property
    def descriptors(self) -> Descriptors | None:
        """Who waits for descriptors on behalf of this schedule; None if nobody does yet."""
        ...

    def attach(self, descriptors: Descriptors) -> bool:
        """Have ``descriptors`` waited for when nobody can go on; whether that can be done.

        Not if the schedule waits for the outside in another way already.
        """
        ...

    def now_ns(self) -> int:
        """The (virtual) time in nanoseconds."""
        ...

    def kick(self, run: Callable[[], object], what: str) -> None:
        """Have ``run`` called soon: at once under the immediate schedule, later under a seeded one."""
        ...

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Return once ``ready()`` is true, letting others run; StallError if nobody can make it true."""
        ...

    def checkpoint(self, what: str) -> None:
        """A point where another activity may run first."""
        ...

    def sleep_ns(self, duration_ns: int) -> None:
        """Let (virtual) time pass."""
        ...

    def spawn(self, name: str, run: Callable[[], object]) -> Task:
        """Start another activity."""
        ...

    def watch(self, look: Callable[[], bool]) -> None:
        """Have ``look()`` called now and then while nobody can go on, until ``unwatch``.

        It looks at what no descriptor announces (such as a lock of another process) and says whether it waits
        for that: then waiting goes on instead of ending in StallError.
        """
        ...

    def unwatch(self, look: Callable[[], bool]) -> None:
        """No more of that; nothing happens if it was not watched."""
        ...
