"""``vmsim shell``: look around in a guest, by hand or from a script."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Final

import click
from click.core import ParameterSource

from vmsim.cli.common import error_hint, error_line, printable
from vmsim.cli.interrupts import Interrupted, only_this_line
from vmsim.cli.options import choice_of, machine_options
from vmsim.cli.shell import changes, completion, descriptors, files, machine
from vmsim.cli.shell.command import COMMANDS, Session, ShellError, ShellExit
from vmsim.cli.shell.words import Statement, expanded, statements
from vmsim.cli.tracing import traced_seams, tracer_for
from vmsim.errors import UsageError, VmsimError
from vmsim.machine import Machine
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.workload.choices import check_backend
from vmsim.workload.share import existing

__all__ = ["run_line", "shell"]

PROMPT: Final = "guest:{}$ "
MODULES: Final = (files, changes, descriptors, machine)
"""Where the commands are, in the order of help."""

WHERE: Final = ("transport", "backend")
"""Options that no file says anything about."""


@click.command()
@click.argument("directory", required=False, metavar="[DIR]")
@click.option("--read-only", is_flag=True, help="Nothing in DIR can be changed.")
@click.option("-c", "script", metavar="COMMANDS",
              help="Run these commands (separated by ; or lines), and end.")
@click.option("--restore", metavar="FILE", help="Go on with a machine that was saved by the command save.")
@machine_options
@click.option("--trace", metavar="GLOB", help="Print matching events on standard error.")
def shell(
    directory: str | None, read_only: bool, script: str | None, restore: str | None, trace: str | None,
    **options: Any,
) -> int:  # fmt: skip
    """A shell in a guest whose root is DIR (default: an empty temporary directory).

    ls, cat, cp, mv, rm, mkdir, ln, stat, echo TEXT > FILE and so on; open, read, write and close keep files
    open across migrate; rings and inodes show what is inside: type help. Commands may come from standard
    input; then the exit status is 1 if any of them failed.
    """
    given = _given(options) if restore is not None else {}
    choice = choice_of(options)
    with ExitStack() as stack:
        if restore is not None and directory is None:
            raise UsageError("--restore needs DIR", hint="name the directory that the saved machine shared")
        temporary = directory is None
        if directory is None:
            directory = tempfile.mkdtemp(prefix="vmsim-share-")
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory = existing(directory)
        schedule = ImmediateSchedule()
        seams = traced_seams(tracer_for(trace, schedule), "vm") if trace else None
        if restore is not None:
            check_backend(choice.transport, choice.backend)
            guest = Machine.restore(
                restore, share=directory, schedule=schedule, seams=seams,
                transport=choice.transport, backend_command=choice.backend,
                migration=given.pop("migration", None),
                options=given | {"readonly": True} if read_only else given,
            )  # fmt: skip
        else:
            launch = choice.arguments(readonly=read_only)
            launch["schedule"], launch["seams"] = schedule, seams
            guest = Machine(directory, **launch)
        session = Session(guest, temporary=temporary)
        stack.callback(session.close)
        if script is not None:
            return _run_lines(session, script.splitlines())
        return _interact(session) if sys.stdin.isatty() else _run_lines(session, sys.stdin)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What was said about a restored machine; UsageError for what only its file can say."""
    context = click.get_current_context()
    said = {
        name: value for name, value in options.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }  # fmt: skip
    for name in said:
        if not name.startswith("migration") and name not in WHERE:
            raise UsageError(f"--{name} cannot be changed by --restore", hint="leave it out: FILE says it")
    return {name: value for name, value in said.items() if name not in WHERE}


def _interact(session: Session) -> int:
    completion.install(session)
    print('a guest with a virtio-fs share; "help" lists the commands, "exit" ends')
    with only_this_line():
        while True:
            try:
                run_line(session, input(PROMPT.format(printable(session.fs.getcwd()))))
            except EOFError:
                print()
                return 0
            except ShellExit as end:
                return end.status or 0
            except Interrupted:
                raise
            except KeyboardInterrupt:
                print()


def _run_lines(session: Session, lines: Iterable[str]) -> int:
    failed = False
    for line in lines:
        try:
            failed |= not run_line(session, line)
        except ShellExit as end:
            if end.status is not None:
                return end.status
            break
    return 1 if failed else 0


def run_line(session: Session, line: str) -> bool:
    """Run the commands of a line; what goes wrong is said in one line each. Whether all of them succeeded."""
    try:
        found = statements(line)
    except ShellError as error:
        return _complain("vmsim", str(error))
    results = [_run(session, statement) for statement in found]
    return all(results)


def _run(session: Session, statement: Statement) -> bool:
    fs = session.fs
    name = statement.words[0].text
    try:
        command = COMMANDS.get(name)
        if command is None:
            return _complain(name, "no such command; help lists them")
        words = [text for word in statement.words[1:] for text in expanded(word, fs.listdir)]
        if statement.target is None:
            command.run(session, words)
        else:
            with fs.open_file(statement.target.text, "ab" if statement.append else "wb") as session.out:
                command.run(session, words)
    except BrokenPipeError:
        raise
    except (ShellError, ValueError) as error:
        return _complain(name, str(error))
    except (OSError, VmsimError) as error:
        hint = error_hint(error)
        return _complain(name, error_line(error) + (f" ({hint})" if hint else ""))
    finally:
        session.out = None
    return True


def _complain(who: str, what: str) -> bool:
    print(f"{printable(who)}: {printable(what)}", file=sys.stderr)
    return False
