"""When to stop the guest: what is left must fit into the downtime, and what cannot be kept is said before."""

from __future__ import annotations

from typing import Final

from vmsim.errors import MigrationError
from vmsim.migration.downtime import Downtime, Forecast, expected, milliseconds, overrun
from vmsim.migration.report import REFUSE, MigrationParameters, MigrationStats
from vmsim.migration.seams import SourceMachine

MEMORY_SHARE: Final = 8
"""Memory may take an eighth of the downtime if the rest does not fit: rounds without end would not help."""


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
