"""What an outgoing migration tells: its user's callback, and the trace."""

from __future__ import annotations

from vmsim.errors import VmsimError
from vmsim.migration.report import MigrationStats, Progress, ProgressCallback
from vmsim.trace import Source
from vmsim.trace.events import MigrationCommit, MigrationFailed, MigrationPhase, MigrationRound


class MigrationTrace:
    """Passes progress on and turns it into events: phases, the commit or the failure, and the rounds."""

    def __init__(self, trace: Source, callback: ProgressCallback | None) -> None:
        self._trace = trace
        self._callback = callback
        self._phase = ""
        self._rounds = 0
        self.stats = MigrationStats()
        """Of the migration that reports."""

    def progress(self, report: Progress) -> None:
        """One report of the migration."""
        self._show_rounds()
        if report.phase != self._phase:
            self._phase = report.phase
            if self._trace.wants(MigrationPhase):
                self._trace.emit(MigrationPhase("source", report.phase))
        if self._callback is not None:
            self._callback(report)

    def committed(self, stats: MigrationStats) -> None:
        """It is done."""
        if self._trace.wants(MigrationCommit):
            self._trace.emit(MigrationCommit(stats.downtime_ns))

    def failed(self, error: VmsimError) -> None:
        """It ended before commit."""
        if self._trace.wants(MigrationFailed):
            step = str(error.details.get("step", ""))
            self._trace.emit(MigrationFailed(str(error.details.get("side", "")), step, error.message))

    def _show_rounds(self) -> None:
        """Those that have ended since the last report."""
        rounds = self.stats.rounds
        while self._rounds < len(rounds):
            each = rounds[self._rounds]
            self._rounds += 1
            if self._trace.wants(MigrationRound):
                self._trace.emit(MigrationRound(self._rounds, each.memory_bytes, each.dirty_bytes))
