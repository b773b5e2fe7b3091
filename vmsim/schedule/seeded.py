"""The seeded schedule: one seed fixes every interleaving, and time is virtual.

Kicks are queued, and whoever can run next (activities, kicks, main) is a draw from the seed's random numbers.
Nothing else decides: with the same seed the same programs produce the same history, event for event.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.tasks import SimTask, TurnTaking
from vmsim.trace import NOWHERE, Source
from vmsim.trace.events import SimEnd, SimSpawn, SimTurn

STEP_NS: Final = 1000
"""Virtual nanoseconds that one turn takes."""


class SeededSchedule(TurnTaking):
    """Draws who runs next from ``seed``; every turn takes ``step_ns`` of virtual time.

    A kick of a callable that is already queued is one kick, and a callable never runs twice at the same time:
    that is how an eventfd with one reader behaves. What a kicked callable raises ends the run: it is raised
    in main, where the schedule was entered. ``turns`` counts; ``turns_max`` bounds a run that never ends.
    """

    def __init__(
        self, seed: int, *, trace: Source = NOWHERE, step_ns: int = STEP_NS, turns_max: int = 10_000_000
    ) -> None:
        super().__init__(VirtualClock())
        self.seed = seed
        self.turns = 0
        self._turns_max = turns_max
        self._step_ns = step_ns
        self.trace = trace
        """Where turns are shown."""
        self._draw = self.rng("schedule").randrange
        self._queued: set[Callable[[], object]] = set()
        self._answering: set[Callable[[], object]] = set()

    def rng(self, name: str) -> random.Random:
        """A stream of random numbers of its own for ``name``: what one stream draws moves no other."""
        return random.Random(f"{self.seed}/{name}")

    def kick(self, run: Callable[[], object], what: str) -> None:
        """Have ``run`` called in some later turn."""
        if run in self._queued:
            return
        self._queued.add(run)
        task = self._add(what, lambda: self._answer(run))
        task.what = "its turn"
        task.urgent = True
        task.ready = lambda: run not in self._answering

    def spawn(self, name: str, run: Callable[[], object]) -> SimTask:
        """Start another activity; its first turn is drawn like every other."""
        if self.trace.wants(SimSpawn):
            self.trace.emit(SimSpawn(name))
        return super().spawn(name, run)

    def _answer(self, run: Callable[[], object]) -> None:
        self._queued.discard(run)
        self._answering.add(run)
        try:
            run()
        finally:
            self._answering.discard(run)

    def _choose(self, runnable: list[SimTask]) -> SimTask:
        self.turns += 1
        if self.turns > self._turns_max:
            raise self._stall("no end in sight")
        task = runnable[self._draw(len(runnable))]
        self.clock.advance_to(self.now_ns() + self._step_ns)
        if self.trace.wants(SimTurn):
            self.trace.emit(SimTurn(task.name, task.what, len(runnable)))
        return task

    def _end(self, task: SimTask, value: object, error: BaseException | None) -> None:
        super()._end(task, value, error)
        if self.trace.wants(SimEnd):
            self.trace.emit(SimEnd(task.name, "" if error is None else f"{type(error).__name__}: {error}"))

    def _facts(self) -> dict[str, int]:
        return {"seed": self.seed, "turn": self.turns}
