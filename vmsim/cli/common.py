"""What all commands share: sizes, consoles, and one line for an error."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vmsim.cli.interrupts import Interrupted
from vmsim.errors import HostError, MigrationError, UsageError, VmsimError

if TYPE_CHECKING:
    from rich.console import Console

    from vmsim.vhost.device_options import DeviceOption

REPORT_WIDTH = 110
BUG = "a bug in vmsim: "
UNDECODABLE = 0xDC00
"""Bytes that are no text are characters from here on (PEP 383)."""
HINTS = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENOMEM: "ask for less --memory",
}


def device_flag(option: DeviceOption, default: Any) -> tuple[str, dict[str, Any]]:
    """An option of a device as click's: how it is written, and its settings but for name and help."""
    if option.flag:
        if option.paired:
            return f"--{option.word}/--no-{option.word}", {"default": default}
        return f"--{option.word}", {"is_flag": True}
    settings: dict[str, Any] = {"default": default, "metavar": option.metavar}
    if option.choices:
        settings = {"type": click.Choice(option.choices), "default": default, "show_default": True}
    elif option.many:
        settings = {"multiple": True, "metavar": option.metavar}
    return f"--{option.word}", settings


@dataclass(slots=True)
class Invocation:
    """How a command was called; ``facts`` are what it has found out so far, for a failure told as JSON."""

    debug: bool = False
    as_json: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class SizeType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """A size option, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse ``64M`` and the like."""
        if isinstance(value, int):
            return value
        from vmsim.machine.config import parse_size

        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(f"{error.message}: {error.hint}", param, ctx)


class DurationType(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """A duration option, in nanoseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse ``300ms`` and the like."""
        if isinstance(value, int):
            return value
        from vmsim.machine.asked import duration_ns

        try:
            return duration_ns(value)
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


def printable(text: str) -> str:
    """A name for a terminal: control characters and what is no text are escaped as in Python."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    byte = ord(character) - UNDECODABLE
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(character)[1:-1]


def stderr_console() -> Console:
    """Progress and diagnosis go to standard error, so that standard output stays clean."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def report_console() -> Console:
    """Reports go to standard output; on a pipe they are as wide as they need to be."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else REPORT_WIDTH)


def report_error(error: BaseException, *, debug: bool) -> None:
    """One clear line, a hint, and the traceback if it was asked for."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    print(f"vmsim: {error_line(error)}", file=sys.stderr)
    hint = error_hint(error)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


def error_line(error: BaseException) -> str:
    """What happened, on one line; of a migration also the step and the side."""
    if isinstance(error, MigrationError):
        where = [f"{name} {value}" for name, value in (("step", error.step), ("side", error.side)) if value]
        return printable(f"{error} ({', '.join(where)})" if where else str(error))
    if isinstance(error, OSError) and error.strerror:
        where_file = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        return printable(f"{error.strerror}{where_file}")
    if isinstance(error, click.ClickException):
        return printable(error.format_message())
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return str(error) if isinstance(error, Interrupted) else "interrupted"
    return printable(str(error) if isinstance(error, VmsimError) else f"{BUG}{type(error).__name__}: {error}")


def error_hint(error: BaseException) -> str:
    """What to do next; empty if there is nothing to say."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"see: {error.ctx.command_path} --help"
    if isinstance(error, OSError) or (isinstance(error, HostError) and not error.hint):
        return HINTS.get(error.errno or 0, "")
    if error_line(error).startswith(BUG):
        return "this should not happen, whatever the input; --debug shows where it did"
    return str(getattr(error, "hint", ""))


def error_facts(error: BaseException) -> dict[str, object]:
    """The same as JSON."""
    facts: dict[str, object] = {"type": type(error).__name__, "message": error_line(error)}
    if hint := error_hint(error):
        facts["hint"] = hint
    if isinstance(error, OSError) and error.errno:
        facts["errno"] = errno.errorcode.get(error.errno, str(error.errno))
    if isinstance(error, VmsimError):
        facts["blame"] = error.blame.value
        if error.spec:
            facts["spec"] = error.spec
        details = {name: value for name, value in error.details.items() if value not in ("", -1, 0)}
        if details:
            facts["details"] = {name: str(value) for name, value in details.items()}
    return facts


def print_json(facts: object) -> None:
    """One object on standard output."""
    print(json.dumps(facts, indent=2))
