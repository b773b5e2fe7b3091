"""What all commands share: sizes, consoles, and one line for an error."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import click
from rich.console import Console

from vmsim.errors import UsageError, VmsimError
from vmsim.machine.config import parse_size

REPORT_WIDTH = 110


class SizeType(click.ParamType):
    """A size option, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse ``64M`` and the like."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(f"{error.message}: {error.hint}", param, ctx)


def human_bytes(count: float) -> str:
    """``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def human_ns(duration_ns: float) -> str:
    """``1.25 ms``."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if duration_ns >= scale:
            return f"{duration_ns / scale:.2f} {unit}"
    return f"{duration_ns:.0f} ns"


def stderr_console() -> Console:
    """Progress and diagnosis go to standard error, so that standard output stays clean."""
    return Console(stderr=True, highlight=False)


def report_console() -> Console:
    """Reports go to standard output; on a pipe they are as wide as they need to be."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else REPORT_WIDTH)


def report_error(error: BaseException, *, debug: bool) -> None:
    """One clear line, a hint, and the traceback if it was asked for."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    print(f"vmsim: {error_line(error)}", file=sys.stderr)
    hint = getattr(error, "hint", "")
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


def error_line(error: BaseException) -> str:
    """What happened, on one line."""
    if isinstance(error, VmsimError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"{type(error).__name__}: {error}"


def error_facts(error: BaseException) -> dict[str, object]:
    """The same as JSON."""
    facts: dict[str, object] = {"type": type(error).__name__, "message": error_line(error)}
    if isinstance(error, VmsimError):
        facts["blame"] = error.blame.value
        if error.spec:
            facts["spec"] = error.spec
        if error.hint:
            facts["hint"] = error.hint
        details = {name: value for name, value in error.details.items() if value not in ("", -1)}
        if details:
            facts["details"] = {name: str(value) for name, value in details.items()}
    return facts


def print_json(facts: object) -> None:
    """One object on standard output."""
    print(json.dumps(facts, indent=2))
