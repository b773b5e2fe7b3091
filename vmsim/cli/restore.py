"""``vmsim restore``: a saved machine goes on in this process."""

from __future__ import annotations

from contextlib import ExitStack

import click

from vmsim.cli.common import error_facts, print_json
from vmsim.cli.job import continue_job
from vmsim.cli.watch import ConsoleWatcher
from vmsim.errors import UsageError, VmsimError
from vmsim.machine import Machine


@click.command()
@click.argument("file")
@click.option("--share", required=True, metavar="DIR", help="The directory that the saved machine shared.")
@click.option("--migration-on-error", type=click.Choice(["abort", "guest-error"]), default=None,
              help="What happens when an inode cannot be found again  [default: as saved]")
@click.option("--keep", is_flag=True, help="Leave the guest's scratch folder in DIR.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def restore(file: str, share: str, migration_on_error: str | None, keep: bool, as_json: bool) -> int:
    """Continue the machine in FILE, saved by: vmsim migrate --save FILE.

    Verifies every handle, offset, lock and byte of its guest against the record in the file, lets the guest
    work on, verifies again, and removes the guest's scratch folder. Exit status 0 only if everything held.
    """
    try:
        facts = _restore(file, share, migration_on_error, keep=keep, quiet=as_json)
    except (VmsimError, OSError) as error:
        if as_json and not isinstance(error, UsageError):
            print_json({"ok": False, "error": error_facts(error)})
        raise
    if as_json:
        print_json(facts)
    else:
        for line in facts["notes"]:
            print(f"note: {line}")
        alive = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in facts["workload"].items())
        print(f"restored: {alive}")
        for line in facts["discrepancies"]:
            print(f"  differs: {line}")
        held = "everything held" if facts["ok"] else f"{len(facts['discrepancies'])} things did not hold"
        print(f"verdict: {held}")
    return 0 if facts["ok"] else 1


def _restore(file: str, share: str, on_error: str | None, *, keep: bool, quiet: bool) -> dict[str, object]:
    with ConsoleWatcher(quiet=quiet) as watcher, ExitStack() as stack:
        watcher.stage("restore", file)
        override = None if on_error is None else {"migration_on_error": on_error}
        machine = stack.enter_context(Machine.restore(file, share=share, options=override))
        work, found = continue_job(machine, watcher)
        counts = work.counts()
        if not keep:
            watcher.stage("clean up", "the guest removes its scratch folder")
            work.finish(machine.mount())
        return {
            "ok": not found, "share": machine.share, "moved": machine.facts(), "notes": machine.notes(),
            "workload": counts, "discrepancies": [str(each) for each in found],
        }
