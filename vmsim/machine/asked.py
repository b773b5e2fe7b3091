"""What a migration is asked for in words, by the same names as on the command line of ``vmsim migrate``."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final, TypedDict

from vmsim.errors import UsageError
from vmsim.machine.config import parse_size
from vmsim.migration.report import MigrationParameters

DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|min)", re.ASCII | re.IGNORECASE)
UNITS_NS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9}


class Limits(TypedDict, total=False):
    """Keyword arguments of ``Machine.migrate``, ``send`` and ``save``.

    Times are text with a unit (``"300ms"``) or seconds, ``bandwidth`` is bytes per second (``"1G"``);
    ``over_limit`` says what to do about a downtime limit that cannot be kept: ``"go-on"`` or ``"refuse"``.
    """

    downtime_limit: str | float
    bandwidth: str | int
    max_rounds: int
    cancel_after: str | float
    over_limit: str


def parameters_of(parameters: MigrationParameters | None, limits: Limits) -> MigrationParameters:
    """``parameters`` (default: the usual ones) with the ``limits`` that were given; UsageError if wrong."""
    changes: dict[str, Any] = {}
    for name, value in limits.items():
        if value is None:
            continue
        if name in ("downtime_limit", "cancel_after"):
            changes[f"{name}_ns"] = duration_ns(value)  # type: ignore[arg-type]
        elif name == "bandwidth":
            changes[name] = parse_size(value)  # type: ignore[arg-type]
        elif name in Limits.__annotations__:
            changes[name] = value
        else:
            known = ", ".join(Limits.__annotations__)
            raise UsageError(f"a migration has no limit {name!r}", hint=f"one of {known}")
    result = dataclasses.replace(parameters or MigrationParameters(), **changes)
    result.check()
    return result


def duration_ns(duration: str | float) -> int:
    """Nanoseconds of ``"300ms"``, ``"1.5s"``, or of a number of seconds; UsageError for anything else."""
    if isinstance(duration, int | float):
        if not 0 <= duration < float("inf"):
            raise UsageError(f"{duration!r} is not a duration", hint="seconds, or a text such as 300ms")
        return round(duration * 1e9)
    match = DURATION.fullmatch(duration.strip())
    if not match:
        raise UsageError(
            f"{duration!r} is not a duration",
            hint="a number with ns, us, ms, s or min behind it, such as 300ms",
        )
    return round(float(match[1]) * UNITS_NS[match[2].lower()])
