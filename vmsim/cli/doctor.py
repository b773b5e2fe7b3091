"""``vmsim doctor``: what this host can do, and what is lost without it."""

from __future__ import annotations

import os

import click

from vmsim.cli.common import Invocation, print_json, printable, report_console
from vmsim.errors import UsageError
from vmsim.host.abilities import Ability, Found, examine


@click.command()
@click.argument("directory", required=False, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def doctor(invocation: Invocation, /, directory: str | None, as_json: bool) -> int:
    """Say what this host can do for vmsim, and what is lost without it.

    DIRECTORY stands for one that you would share: its file system is tried as well (default: that of
    temporary files). Nothing is changed.

    \b
    Exit status: 0 vmsim works here, perhaps without something; 1 it does not; 2 wrong usage.
    """
    if directory is not None and not (os.path.isdir(directory) and os.access(directory, os.W_OK)):
        problem = f"{directory} is not a directory that we may write to"
        raise UsageError(problem, hint="probes make a file there, which is gone afterwards")
    found = examine(directory)
    works = all(seen.there for ability, seen in found if ability.required)
    if as_json:
        rows = [
            {"name": ability.name, "there": seen.there, "found": seen.what, "without": ability.without,
             "required": ability.required}
            for ability, seen in found
        ]  # fmt: skip
        print_json({"ok": works, "abilities": rows})
        return int(not works)
    _tell(found)
    return int(not works)


def _tell(found: list[tuple[Ability, Found]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for ability, seen in found:
        mark = "[green]yes[/]" if seen.there else "[bold red]NO[/]" if ability.required else "[yellow]no[/]"
        loss = "" if seen.there else f"[dim]→ {escape(ability.without)}[/]"
        table.add_row(mark, ability.name, escape(printable(seen.what)), loss)
    report_console().print(table)
