"""Showing how a job goes on: a line per stage, a bar where somebody looks at it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vmsim.cli.common import stderr_console


class ConsoleWatcher:
    """Tells a person at the terminal; on a pipe one line per stage, or nothing with ``quiet``."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = stderr_console()
        self._live = self._console.is_terminal
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description:<8}"), BarColumn(bar_width=28), TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(), console=self._console, transient=False,
        )
        self._task: int | None = None
        self._shown = -1

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            if error is None:
                self._finish()
            self._bar.stop()

    def stage(self, name: str, what: str) -> None:
        """A stage begins; the one before is done."""
        if self._live:
            self._finish()
            self._task = self._bar.add_task(name, total=1.0, what=what)
            self._shown = -1
        elif not self._quiet:
            self._console.print(f"{name}: {what}", markup=False, soft_wrap=True)

    def progress(self, done: float, what: str) -> None:
        """How far it is, 0 to 1; shown in steps of a hundredth."""
        if self._live and self._task is not None and int(done * 100) != self._shown:
            self._shown = int(done * 100)
            self._bar.update(self._task, completed=done, what=what)  # type: ignore[arg-type]

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=1.0)  # type: ignore[arg-type]
