"""What a migration is told, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from vmsim.errors import MigrationError, UsageError, VmsimError
from vmsim.migration.downtime import Downtime, milliseconds

GO_ON = "go-on"
REFUSE = "refuse"
OVER_LIMIT = (GO_ON, REFUSE)
"""What to do about a downtime limit that cannot be kept."""


class MigrationInDoubt(MigrationError):
    """After the go the destination has not said whether it runs: it may, or it may not.

    The source stays stopped (never both) until somebody who has looked tells it.
    """


def as_migration_error(error: BaseException, step: str, side: str) -> BaseException:
    """The same failure with the step and side where it happened; errors that are bugs stay as they are."""
    if isinstance(error, MigrationError):
        error.step, error.side = error.step or step, error.side or side
        return error
    if not isinstance(error, VmsimError | OSError):
        return error
    errno = getattr(error, "errno", 0) or 0
    return MigrationError(
        f"{step}: {error}", step=step, side=side, errno=errno, spec=getattr(error, "spec", ""),
        hint=getattr(error, "hint", ""),
    )


@dataclass(slots=True, kw_only=True)
class MigrationParameters:
    """How a migration decides.

    The machine is stopped once everything that happens while nobody runs is expected to fit into
    ``downtime_limit_ns``: the memory that is left, at the bandwidth seen so far (or ``bandwidth``, bytes per
    second, which also throttles), and the state of guest, device and back-end, saved, sent and loaded
    (``Downtime``). ``memory_limit_ns`` bounds the part of memory alone; None: what the others leave.

    What cannot be kept is said before the guest stops (``Progress.warning``, ``MigrationStats.warnings``);
    with ``over_limit`` "refuse" the migration fails then, with "go-on" it is carried out. After
    ``max_rounds`` of memory it is stopped all the same if ``stop_when_diverging``, else the migration fails.
    ``cancel_after_ns``: it is cancelled unless it has committed by then. ``clock`` is the one by which parts
    of the downtime, and the time until it is cancelled, are measured; None: the schedule's.

    A guest that knows ``early_inodes`` or more sends state ahead of the stop, if the destination can answer.

    ``part_bytes`` of memory are sent between two points where others may run. ``keep_running``: resume the
    source after it was saved to a file.
    """

    downtime_limit_ns: int = 300_000_000
    max_rounds: int = 30
    stop_when_diverging: bool = True
    bandwidth: int | None = None
    part_bytes: int = 1 << 20
    keep_running: bool = False
    over_limit: str = GO_ON
    cancel_after_ns: int | None = None
    memory_limit_ns: int | None = None
    clock: Callable[[], int] | None = None
    early_inodes: int = 1000

    def check(self) -> None:
        """UsageError for what cannot be."""
        if self.over_limit not in OVER_LIMIT:
            hint = f"one of {', '.join(OVER_LIMIT)}"
            raise UsageError(f"over_limit={self.over_limit!r} is not known", hint=hint)
        if self.downtime_limit_ns < 0 or (self.cancel_after_ns is not None and self.cancel_after_ns < 0):
            raise UsageError("a time limit is not negative", hint="nanoseconds from 0 on")
        if self.max_rounds < 1 or self.part_bytes < 1:
            raise UsageError("memory is sent in at least one round, in parts of at least one byte")
        if self.bandwidth is not None and self.bandwidth < 1:
            raise UsageError(f"a bandwidth of {self.bandwidth} bytes per second sends nothing")


class Progress(NamedTuple):
    """One report while a migration runs; ``remaining_bytes`` of memory in this round.

    ``expected`` is the downtime if the guest stopped now, once that is known; ``warning`` what the limit that
    cannot be kept costs, said before the guest stops.
    """

    phase: str
    round: int
    sent_bytes: int
    remaining_bytes: int
    expected: Downtime | None = None
    warning: str = ""


ProgressCallback = Callable[[Progress], object]


class Round(NamedTuple):
    """One pass over memory; ``dirty_bytes`` were written by others meanwhile."""

    memory_bytes: int
    duration_ns: int
    dirty_bytes: int


@dataclass(slots=True)
class MigrationStats:
    """What a migration did; times of its clock.

    ``downtime`` has the parts of the time in which nobody ran, from the guest's stop to its start at the
    destination (as far as the source can see it: to the commit, if the destination is in another process),
    ``expected`` what was forecast before the stop. ``converged``: the limit was expected to be kept before
    the guest stopped, and was kept. ``warnings`` say what was not. ``section_bytes`` has every section by
    name, the ``ram`` section with all its parts.
    """

    rounds: list[Round] = field(default_factory=list)
    stream_bytes: int = 0
    pages: int = 0
    zero_pages: int = 0
    total_ns: int = 0
    downtime: Downtime = field(default_factory=Downtime)
    expected: Downtime = field(default_factory=Downtime)
    downtime_limit_ns: int = 0
    section_bytes: dict[str, int] = field(default_factory=dict)
    converged: bool = True
    warnings: list[str] = field(default_factory=list)

    @property
    def downtime_ns(self) -> int:
        """How long nobody ran."""
        return self.downtime.total_ns

    def judge(self) -> None:
        """Compare with what was promised; what took longer than the limit says so."""
        if self.downtime_ns > self.downtime_limit_ns and self.converged:
            self.converged = False
            self.warnings.append(
                f"the downtime was {milliseconds(self.downtime_ns)}, "
                f"{milliseconds(self.expected.total_ns)} were expected and "
                f"{milliseconds(self.downtime_limit_ns)} allowed; most of it for {self.downtime.longest}"
            )
