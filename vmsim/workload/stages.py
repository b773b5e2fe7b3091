"""The stages of a job, who is told of them, and how a job ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import msgspec

Undisturbed = Callable[[], AbstractContextManager[object]]
"""Within what it returns, nothing interrupts: a command line ignores signals meanwhile."""


class Watcher(Protocol):
    """Who is told how the job goes on."""

    def stage(self, name: str, what: str) -> None:
        """A stage begins; the one before is done."""
        ...

    def progress(self, done: float, what: str) -> None:
        """How far the stage is, 0 to 1."""
        ...

    def warn(self, what: str) -> None:
        """Something that the user should know now."""
        ...


class Stage(msgspec.Struct):
    """One stage and how long it took."""

    name: str
    what: str
    seconds: float = 0.0


class Stages:
    """Tells a watcher of the stages, and keeps how long each took."""

    def __init__(self, watcher: Watcher) -> None:
        self.done: list[Stage] = []
        self._watcher = watcher
        self._began = 0.0

    def begin(self, name: str, what: str) -> None:
        """The stage before is over, and this one begins."""
        self.end()
        self._began = time.monotonic()
        self.done.append(Stage(name, what))
        self._watcher.stage(name, what)

    def end(self) -> None:
        """The last stage is over; may be called twice."""
        if self.done and self._began:
            self.done[-1].seconds = round(time.monotonic() - self._began, 6)
        self._began = 0.0


@contextmanager
def clearing_up(stack: ExitStack, before: Callable[[], None], undisturbed: Undisturbed) -> Iterator[None]:
    """At the end call ``before()`` and close ``stack``, undisturbed, whatever happened."""
    try:
        try:
            yield
        finally:
            before()
            with undisturbed():
                stack.close()
    finally:
        stack.close()  # if the interrupt came just before nothing interrupted any more
