"""The commands as one program: finding them, running one, telling what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from vmsim.cli.common import Invocation, error_facts, print_json, report_error
from vmsim.cli.interrupts import Interrupted, interruptible
from vmsim.cli.streams import OutputLost, standard_streams
from vmsim.errors import UsageError
from vmsim.host.rlimit import raise_fd_limit

FAILED = 1
MISUSED = 2


COMMANDS: Final = {
    "check": "Test a vhost-user-fs back-end as a front-end and as a guest.",
    "diff": "Say what changed between two streams, saved machines or states.",
    "docs": "Show a page of the documentation.",
    "doctor": "Say what this host can do for vmsim, and what is lost without it.",
    "inspect": "Say what is in a migration stream, a saved machine or a state.",
    "migrate": "Migrate a machine live while its guest works, and check everything.",
    "restore": "Continue a machine that was saved by vmsim migrate --save.",
    "serve": "Serve a directory to QEMU and others over vhost-user.",
    "shell": "A shell in a guest whose root is a directory.",
}
"""What each is about; the module of its name is imported when it is used: back-ends start quickly."""


class Commands(click.Group):
    """The commands, found when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"vmsim.cli.{cmd_name}"), cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, without importing them all."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
             invoke_without_command=True)
@click.version_option(package_name="vmsim", prog_name="vmsim")
@click.option("--debug", is_flag=True, help="With an error, show its traceback.")
@click.pass_context
def cli(context: click.Context, /, debug: bool) -> None:
    """A virtual machine with a complete virtio-fs device and its stateful migration, in one process.

    \b
    Try:
      vmsim migrate                 a machine on a small directory migrates while it works, and is checked
      vmsim migrate --read-only .   the same on this directory, changing nothing
      vmsim migrate --hops 5 --ring packed --dialect rfc2023
      vmsim migrate --save FILE DIR, then: vmsim restore FILE --share DIR
      vmsim shell .                 look around in a guest; type "help"

    \b
    Exit status: 0 everything held, 1 something did not, 2 the command was used wrongly.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run the command line and exit."""
    status = FAILED
    try:
        with standard_streams():
            raise_fd_limit()
            status = run(sys.argv[1:])
    except OutputLost as error:
        # Whatever the command has found out, nobody has been told.
        status = status or FAILED
        report_error(error, debug=False)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """One command; its exit status. Errors have been told, on standard output as well with ``--json``."""
    options = set(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    invocation = Invocation(debug="--debug" in options, as_json="--json" in options)
    words = [word for word in arguments if word != "--debug"]
    try:
        with interruptible():
            status = cli.main(words, prog_name="vmsim", standalone_mode=False, obj=invocation)
    except BaseException as error:
        problem = error.__cause__ if isinstance(error, click.Abort) and error.__cause__ else error
        return _told(_interruption(problem) or problem, invocation)
    return status if isinstance(status, int) else 0


def _interruption(error: BaseException) -> Interrupted | None:
    """The signal that came first, if ``error`` is what clearing up after it, or click, made of it."""
    left, seen = [error], set()
    while left:
        each = left.pop()
        if isinstance(each, Interrupted):
            return each
        if id(each) not in seen:
            seen.add(id(each))
            left += filter(None, (each.__context__, each.__cause__))
    return None


def _told(error: BaseException, invocation: Invocation) -> int:
    """Tell what went wrong, and choose the exit status."""
    if isinstance(error, OutputLost):
        raise error
    if isinstance(error, KeyboardInterrupt | click.Abort):
        status = error.status if isinstance(error, Interrupted) else Interrupted.status
    elif isinstance(error, click.ClickException | UsageError):
        status = MISUSED
    elif isinstance(error, Exception):
        status = FAILED
    else:
        raise error
    report_error(error, debug=invocation.debug)
    if invocation.as_json:
        print_json({"ok": False, "error": error_facts(error), **invocation.facts})
    return status
