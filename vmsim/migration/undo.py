"""What a migration has done to its source, and how each step is undone."""

from __future__ import annotations

from collections.abc import Callable


class Undo:
    """Steps back, the last one first.

    Unlike ExitStack it forgets a step only when that has been made: what an interrupt left undone, ``close``
    does when it is called again. So each step may be made twice.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def callback(self, step: Callable[[], object]) -> None:
        """One more step."""
        self._steps.append(step)

    def close(self) -> None:
        """Go back all the way, whatever fails on it; then raise the first failure."""
        failed: Exception | None = None
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as error:
                failed = failed or error
            self._steps.pop()
        if failed is not None:
            raise failed
