"""What a migration has done to its source, and how each step is undone."""

from __future__ import annotations

import os
from collections.abc import Callable

from vmsim.errors import StateError


class Undo:
    """Steps back, the last one first.

    Unlike ExitStack it forgets a step only when that has been made: what an interrupt left undone, ``close``
    does when it is called again. So each step may be made twice. In a forked child it makes none: what it
    would undo is the parent's, who goes on.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._steps: list[Callable[[], object]] = []

    def callback(self, step: Callable[[], object]) -> None:
        """One more step."""
        self._steps.append(step)

    def check_ours(self) -> None:
        """StateError in a forked child of the process whose migration it is."""
        if os.getpid() != self._owner:
            raise StateError(f"this is a forked child: the migration is that of process {self._owner}")

    def close(self) -> None:
        """Go back all the way, whatever fails on it; then raise the first failure."""
        if os.getpid() != self._owner:
            return
        failed: Exception | None = None
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as error:
                failed = failed or error
            self._steps.pop()
        if failed is not None:
            raise failed
