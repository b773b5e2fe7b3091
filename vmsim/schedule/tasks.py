"""Activities that take turns: the part that every schedule shares.

Each activity is a greenlet, so plain synchronous code is switched out where it waits. The code that is not
an activity (the script or test which called into the schedule, here ``main``) is the hub: activities run only
while main itself waits, sleeps or passes a checkpoint, and the loop that picks who is next runs on its stack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import greenlet

from vmsim.errors import StallError, StateError
from vmsim.schedule import Descriptors, TaskKilled
from vmsim.schedule.clock import Clock

MAIN: Final = "main"
KILLS_MAX: Final = 100
LOOK_NS: Final = 1_000_000
"""Between two looks at what no descriptor announces."""


class SimTask:
    """One activity: what it waits for, and how it ended.

    Nobody asks for the result of an ``urgent`` one: what it raises ends the run.
    """

    __slots__ = (
        "_error", "_value", "deadline_ns", "done", "greenlet", "killed", "name", "poll_error", "ready",
        "urgent", "what",
    )

    def __init__(self, name: str, body: greenlet.greenlet | None) -> None:
        self.name = name
        self.greenlet = body
        self.ready: Callable[[], bool] | None = None
        self.deadline_ns: int | None = None
        self.what = "its first turn"
        self.done = False
        self.killed = False
        self.urgent = False
        self.poll_error: Exception | None = None
        self._value: object = None
        self._error: BaseException | None = None

    @property
    def error(self) -> BaseException | None:
        """What the activity raised, if it has ended that way."""
        return self._error

    def result(self) -> object:
        """The activity's return value; raises what it raised, or StateError while it runs or when killed."""
        if not self.done:
            raise StateError(f"activity {self.name!r} still waits for {self.what}")
        if isinstance(self._error, TaskKilled):
            raise StateError(f"activity {self.name!r} was killed while it waited for {self.what}")
        if self._error is not None:
            raise self._error
        return self._value

    def finish(self, value: object, error: BaseException | None) -> None:
        """Record the end."""
        self._value = value
        self._error = error
        self.done = True
        self.ready = None

    def can_run(self) -> bool:
        """Whether its next turn would get it anywhere."""
        if self.killed or self.ready is None:
            return True
        try:
            return self.ready()
        except Exception as error:  # it belongs to whoever waits, not to the hub
            self.poll_error = error
            return True

    def take_poll_error(self) -> None:
        """Raise what ``ready()`` raised while the hub polled it."""
        if self.poll_error is not None:
            error, self.poll_error = self.poll_error, None
            raise error


class TurnTaking(ABC):
    """Spawns, switches and kills activities; a subclass chooses who is next and what a kick does.

    ``idle`` is asked when nobody can run: it waits for the outside world (at most until the given deadline,
    None for ever) and returns whether something may have changed. With ``descriptors`` it is theirs.
    """

    def __init__(
        self, clock: Clock, idle: Callable[[int | None], bool] | None = None,
        descriptors: Descriptors | None = None,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.descriptors: Descriptors | None = None
        self.idle = idle
        if descriptors is not None:
            self.attach(descriptors)
        self._looks: list[Callable[[], bool]] = []
        self._tasks: list[SimTask] = []
        self._current: SimTask | None = None
        self.now_ns = clock.now_ns

    # What protocol and guest code asks for (vmsim.schedule.Schedule)

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Return once ``ready()`` is true, letting others run; StallError if nobody can make it true."""
        if not ready():
            self._suspend(ready, None, what)

    def checkpoint(self, what: str) -> None:
        """A point where another activity may run first, also one that waits for the outside."""
        if self.idle is not None:
            self.idle(self.now_ns())
        if self._tasks:
            self._suspend(None, None, what)

    def sleep_ns(self, duration_ns: int) -> None:
        """Let ``duration_ns`` nanoseconds of the clock's time pass while others run."""
        deadline_ns = self.now_ns() + duration_ns
        self._suspend(lambda: self.now_ns() >= deadline_ns, deadline_ns, f"{duration_ns} ns to pass")

    def spawn(self, name: str, run: Callable[[], object]) -> SimTask:
        """Start another activity; its first turn comes when somebody waits."""
        return self._add(name, run)

    def attach(self, descriptors: Descriptors) -> bool:
        """Have ``descriptors`` waited for in ``idle``; whether that can be done: not beside another one."""
        if self.idle is None:
            self.idle, self.descriptors = descriptors.idle, descriptors
        return self.descriptors is descriptors

    def watch(self, look: Callable[[], bool]) -> None:
        """Have ``look()`` called every LOOK_NS while nobody can go on; whether it waits for the outside."""
        self._looks.append(look)

    def unwatch(self, look: Callable[[], bool]) -> None:
        """No more of that; nothing happens if it was not watched."""
        if look in self._looks:
            self._looks.remove(look)

    # What whoever owns the schedule asks for

    def join(self, task: SimTask) -> object:
        """Wait for the end of ``task``; its result, or what it raised."""
        self.wait(lambda: task.done, f"the end of {task.name}")
        return task.result()

    def settle(self) -> None:
        """Let the others run until none of them can go on without us or without time passing."""
        me = self._enter(None, None, "everybody else to settle")
        try:
            while True:
                runnable = [task for task in self._tasks if task is not me and task.can_run()]
                if not runnable:
                    return
                self._resume(self._choose(runnable))
        finally:
            self._leave(me)

    def kill(self, task: SimTask) -> None:
        """End ``task`` at the point where it waits: TaskKilled is raised there when its turn comes."""
        if task.done:
            return
        if task is self._current:
            raise TaskKilled(task.name)
        task.killed = True

    def close(self) -> None:
        """Kill all activities now, again where they wait to clean up, and also those that they start then.

        StateError names one that goes on.
        """
        for _ in range(KILLS_MAX):
            for task in list(self._tasks):
                self.kill(task)
                if not task.done:
                    self._resume(task)
        if self._tasks:
            raise StateError(f"activity {self._tasks[0].name!r} goes on although it was killed")

    def waits(self) -> dict[str, str]:
        """Who waits for what, by name."""
        return {task.name: task.what for task in self._tasks}

    # The hub

    @abstractmethod
    def _choose(self, runnable: list[SimTask]) -> SimTask:
        """Pick one of ``runnable`` (never empty, in order of spawning, main last)."""

    def _runnable(self) -> list[SimTask]:
        return [task for task in self._tasks if task.can_run()]

    def _facts(self) -> dict[str, int]:
        """What reproduces this moment, for messages."""
        return {}

    def _add(self, name: str, run: Callable[[], object]) -> SimTask:
        task = SimTask(name, None)
        task.greenlet = greenlet.greenlet(lambda: self._body(task, run))
        self._tasks.append(task)
        return task

    def _suspend(self, ready: Callable[[], bool] | None, deadline_ns: int | None, what: str) -> None:
        current = self._current
        if current is not None and current.greenlet is greenlet.getcurrent():
            self._yield_to_hub(current, ready, deadline_ns, what)
            return
        me = self._enter(ready, deadline_ns, what)
        try:
            while (task := self._next()) is not me:
                self._resume(task)
            me.take_poll_error()
        finally:
            self._leave(me)

    def _yield_to_hub(
        self, task: SimTask, ready: Callable[[], bool] | None, deadline_ns: int | None, what: str
    ) -> None:
        task.ready, task.deadline_ns, task.what = ready, deadline_ns, what
        assert task.greenlet is not None
        assert task.greenlet.parent is not None
        task.greenlet.parent.switch()
        task.ready, task.deadline_ns = None, None
        task.take_poll_error()

    def _enter(self, ready: Callable[[], bool] | None, deadline_ns: int | None, what: str) -> SimTask:
        """Main begins to wait and becomes the hub."""
        if self._current is not None:
            raise StateError("a schedule was entered from an activity that it did not spawn")
        me = SimTask(MAIN, greenlet.getcurrent())
        me.ready, me.deadline_ns, me.what = ready, deadline_ns, what
        self._tasks.append(me)
        return me

    def _leave(self, me: SimTask) -> None:
        self._tasks.remove(me)

    def _next(self) -> SimTask:
        while True:
            runnable = self._runnable()
            if runnable:
                return self._choose(runnable)
            deadlines = [task.deadline_ns for task in self._tasks if task.deadline_ns is not None]
            if self._look():
                if self._runnable():
                    continue
                deadlines.append(self.now_ns() + LOOK_NS)
            deadline_ns = min(deadlines, default=None)
            if self.idle is not None and self.idle(deadline_ns):
                continue
            if deadline_ns is None:
                raise self._stall()
            self.clock.advance_to(deadline_ns)

    def _look(self) -> bool:
        """Whether anything that was looked at waits for the world outside."""
        return True in [look() for look in list(self._looks)]

    def _resume(self, task: SimTask) -> None:
        body = task.greenlet
        assert body is not None
        hub = greenlet.getcurrent()
        if body.parent is not hub:
            body.parent = hub
        self._current = task
        try:
            if task.killed:
                task.killed = False
                if body:
                    body.throw(TaskKilled(task.name))
                else:
                    self._end(task, None, TaskKilled(task.name))
            else:
                body.switch()
        finally:
            self._current = None
        if task.urgent and task.error is not None and not isinstance(task.error, TaskKilled):
            raise task.error

    def _body(self, task: SimTask, run: Callable[[], object]) -> None:
        try:
            value = run()
        except (Exception, TaskKilled) as error:  # result() raises it again
            self._end(task, None, error)
        except BaseException as error:  # an interrupt by the user ends main too
            self._end(task, None, error)
            raise
        else:
            self._end(task, value, None)

    def _end(self, task: SimTask, value: object, error: BaseException | None) -> None:
        task.finish(value, error)
        self._tasks.remove(task)

    def _stall(self, problem: str = "nobody can go on") -> StallError:
        waits = self.waits()
        facts = self._facts()
        listing = "; ".join(f"{name} waits for {what}" for name, what in waits.items())
        note = "".join(f", {name} {value}" for name, value in facts.items())
        stall = StallError(
            f"{problem}{note}: {listing}", waits=waits,
            hint="another task has to make one of these conditions true, or stop waiting",
        )
        stall.details.update(facts)
        return stall
