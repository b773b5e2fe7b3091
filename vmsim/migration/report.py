"""What a migration is told, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from vmsim.errors import MigrationError, VmsimError


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

    The machine is stopped once what is left can be sent within ``downtime_limit_ns`` at the bandwidth seen so
    far (or ``bandwidth``, bytes per second, which also throttles). After ``max_rounds`` it is stopped all the
    same if ``stop_when_diverging``, else the migration fails. ``part_bytes`` of memory are sent between two
    points where others may run. ``keep_running``: resume the source after it was saved to a file.
    """

    downtime_limit_ns: int = 300_000_000
    max_rounds: int = 30
    stop_when_diverging: bool = True
    bandwidth: int | None = None
    part_bytes: int = 1 << 20
    keep_running: bool = False


class Progress(NamedTuple):
    """One report while a migration runs; ``remaining_bytes`` of memory in this round."""

    phase: str
    round: int
    sent_bytes: int
    remaining_bytes: int


ProgressCallback = Callable[[Progress], object]


class Round(NamedTuple):
    """One pass over memory; ``dirty_bytes`` were written by others meanwhile."""

    memory_bytes: int
    duration_ns: int
    dirty_bytes: int


@dataclass(slots=True)
class MigrationStats:
    """What a migration did; times of the schedule's clock.

    ``downtime_ns`` counts from the guest's stop to the commit. ``section_bytes`` has every section by name,
    the ``ram`` section with all its parts.
    """

    rounds: list[Round] = field(default_factory=list)
    stream_bytes: int = 0
    pages: int = 0
    zero_pages: int = 0
    total_ns: int = 0
    downtime_ns: int = 0
    section_bytes: dict[str, int] = field(default_factory=dict)
    converged: bool = True
