"""Showing how a job goes on: a line per stage, a bar where somebody looks at it."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vmsim.cli.common import printable, stderr_console

LIVE_STAGES_MAX: Final = 12
"""Of many stages the first lines scroll away."""


class ConsoleWatcher:
    """Tells a person at the terminal; on a pipe one line per stage, or nothing with ``quiet``."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = stderr_console()
        self._live = self._console.is_terminal
        self._quiet = quiet and not self._live
        self._bar = Progress(
            TextColumn("{task.description:<8}"), BarColumn(bar_width=28),
            TextColumn("{task.fields[what]}", markup=False), TimeElapsedColumn(), console=self._console,
        )
        self._stages: list[TaskID] = []
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
        what = printable(what)
        if self._live:
            self._finish()
            self._stages.append(self._bar.add_task(name, total=1.0, what=what))
            if len(self._stages) > LIVE_STAGES_MAX:
                self._bar.remove_task(self._stages.pop(0))
            self._shown = -1
        elif not self._quiet:
            self._console.print(f"{name}: {what}", markup=False, soft_wrap=True)

    def progress(self, done: float, what: str) -> None:
        """How far it is, 0 to 1; shown in steps of a hundredth."""
        if self._live and self._stages and int(done * 100) != self._shown:
            self._shown = int(done * 100)
            self._bar.update(self._stages[-1], completed=done, what=what)

    def warn(self, what: str) -> None:
        """Something that the user should know now."""
        if not self._quiet:
            self._console.print(f"warning: {printable(what)}", markup=False, soft_wrap=True)

    def _finish(self) -> None:
        """The stage that is shown last is done: its clock stops."""
        if self._stages:
            self._bar.update(self._stages[-1], completed=1.0)
            self._bar.stop_task(self._stages[-1])
