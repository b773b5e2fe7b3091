"""``vmsim shell``: look around in a guest, by hand or from a script."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from contextlib import ExitStack
from typing import Any, TextIO

import click

from vmsim.cli.common import error_line
from vmsim.cli.options import choice_of, machine_options
from vmsim.cli.shell_commands import COMMANDS, Session, ShellError, ShellExit
from vmsim.cli.tracing import traced_seams, tracer_for
from vmsim.errors import UsageError, VmsimError
from vmsim.machine import Machine
from vmsim.sim.immediate import ImmediateSchedule

PROMPT = "guest:{}$ "


@click.command()
@click.argument("directory", required=False, metavar="[DIR]")
@machine_options
@click.option("--trace", metavar="GLOB", help="Print matching events on standard error.")
@click.option("-c", "script", metavar="COMMANDS", help="Run these commands (lines, or separated by ;) and end.")
def shell(directory: str | None, trace: str | None, script: str | None, **machine: Any) -> int:
    """A shell in a guest whose root is DIR (default: an empty temporary directory).

    ls, cat, cp, mv, rm, mkdir, ln, stat, echo TEXT > FILE and so on, and migrate, rings, inodes: type help.
    Commands may come from standard input; then the exit status is 1 if any of them failed.
    """
    choice = choice_of(machine)
    with ExitStack() as stack:
        if directory is None:
            directory = tempfile.mkdtemp(prefix="vmsim-share-")
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        schedule = ImmediateSchedule()
        seams = traced_seams(tracer_for(trace, schedule), "vm") if trace else None
        session = Session(Machine(directory, schedule=schedule, seams=seams, **choice.arguments()))
        stack.callback(session.close)
        if script is not None:
            return _run_lines(session, script.replace(";", "\n").splitlines())
        if sys.stdin.isatty():
            return _interact(session)
        return _run_lines(session, sys.stdin)


def _interact(session: Session) -> int:
    try:
        import readline  # noqa: F401  (line editing for input())
    except ImportError:
        pass
    print('a guest with a virtio-fs share; "help" lists the commands, "exit" ends')
    while True:
        try:
            line = input(PROMPT.format(session.fs.getcwd()))
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        try:
            run_line(session, line)
        except ShellExit:
            return 0


def _run_lines(session: Session, lines: list[str] | TextIO) -> int:
    failed = False
    for line in lines:
        try:
            failed |= not run_line(session, line)
        except ShellExit:
            break
    return 1 if failed else 0


def run_line(session: Session, line: str) -> bool:
    """Run one command; what goes wrong is said in one line. Whether it succeeded; ShellExit for ``exit``."""
    try:
        words = shlex.split(line, comments=True)
        if not words:
            return True
        command = COMMANDS.get(words[0])
        if command is None:
            raise ShellError(f"{words[0]}: no such command; help lists them")
        command.run(session, words[1:])
    except ShellExit:
        raise
    except (ValueError, ShellError) as error:
        print(f"vmsim: {error}", file=sys.stderr)
        return False
    except (OSError, VmsimError, UsageError) as error:
        print(f"{words[0]}: {error_line(error)}", file=sys.stderr)
        return False
    return True
