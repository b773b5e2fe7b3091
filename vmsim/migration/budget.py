"""When to stop the guest: what is left must fit into the downtime, and what cannot be kept is said before."""

from __future__ import annotations

from typing import Final

from vmsim.errors import MigrationError
from vmsim.migration.downtime import Downtime, Forecast, expected, milliseconds, overrun
from vmsim.migration.report import REFUSE, MigrationParameters, MigrationStats
from vmsim.migration.seams import SourceMachine

MEMORY_SHARE: Final = 8
"""Memory may take an eighth of the downtime if the rest does not fit: rounds without end would not help."""

ROUNDS_STUCK: Final = 4
"""If so many more leave no less memory, others will hardly help either."""


class Budget:
    """The downtime that is left, by ``parameters``; what is decided is noted in ``stats``.

    ``expected`` and ``warning`` are what the user is told, once they are known.
    """

    def __init__(
        self, machine: SourceMachine, parameters: MigrationParameters, stats: MigrationStats
    ) -> None:
        self._machine = machine
        self._parameters = parameters
        self._stats = stats
        self._stats.downtime_limit_ns = parameters.downtime_limit_ns
        self._forecast: Forecast | None = None
        self._bandwidth = float("inf")
        self.expected: Downtime | None = None
        self.warning = ""

    def measure(self, sent_bytes: int, took_ns: int) -> None:
        """A round of memory took so long."""
        if self._parameters.bandwidth is not None:
            self._bandwidth = self._parameters.bandwidth / 1e9
        else:
            # No time passed: a virtual clock, and sending costs nothing.
            self._bandwidth = sent_bytes / took_ns if took_ns > 0 else float("inf")
        left = [each.dirty_bytes for each in self._stats.rounds]
        if not self.warning and len(left) > ROUNDS_STUCK and left[-1] >= left[-1 - ROUNDS_STUCK]:
            more = self._parameters.max_rounds
            end = "the guest is stopped" if self._parameters.stop_when_diverging else "the migration fails"
            self.warning = f"{self._diverging(left[-1])}; after round {more} {end}"

    def fits(self, dirty_bytes: int) -> bool:
        """Whether the memory that is left fits into its part of the downtime."""
        limit = self._parameters.downtime_limit_ns
        own = self._parameters.memory_limit_ns
        if dirty_bytes > self._bandwidth * (limit if own is None else own):
            return False
        self._forecast = self._machine.forecast()
        if own is not None:
            return True
        others = expected(self._forecast, 0, self._bandwidth).total_ns
        return dirty_bytes <= self._bandwidth * max(limit - others, limit / MEMORY_SHARE)

    def give_up(self, dirty_bytes: int) -> None:
        """There is no other round: noted, or MigrationError if the guest is not to be stopped then."""
        self._stats.converged = False
        message = self._diverging(dirty_bytes)
        if not self._parameters.stop_when_diverging:
            hint = "allow a longer downtime, more bandwidth or more rounds, or a quieter guest"
            raise MigrationError(message, step="precopy", side="source", hint=hint)
        self._stats.warnings.append(message)

    def _diverging(self, dirty_bytes: int) -> str:
        needed = ""
        if self._bandwidth != float("inf"):
            needed = f", {milliseconds(int(dirty_bytes / self._bandwidth))} of downtime for them alone"
        rounds = len(self._stats.rounds)
        left = f"{dirty_bytes} bytes are left after {rounds} rounds"
        return f"memory changes as fast as it is sent: {left}{needed}"

    def promise(self, dirty_bytes: int) -> None:
        """The guest is about to stop: find out how long nobody will run, and whether that is too long."""
        forecast = self._forecast or self._machine.forecast()
        self.expected = self._stats.expected = expected(forecast, dirty_bytes, self._bandwidth)
        limit = self._parameters.downtime_limit_ns
        self.warning = overrun(self.expected, limit, forecast.because)
        if self.warning:
            self._stats.converged = False
            self._stats.warnings.append(self.warning)

    def refuse(self) -> None:
        """MigrationError if the limit cannot be kept and that is not wanted."""
        if self.warning and self.expected is not None and self._parameters.over_limit == REFUSE:
            raise MigrationError(
                self.warning, step="precopy", side="source",
                hint=f"allow a downtime of {milliseconds(self.expected.total_ns)}, "
                "or have it go on all the same (over_limit go-on)",
            )  # fmt: skip
