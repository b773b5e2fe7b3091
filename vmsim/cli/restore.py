"""``vmsim restore``: a saved machine goes on in this process."""

from __future__ import annotations

import click
import msgspec

from vmsim.cli.common import Invocation, print_json, report_console
from vmsim.cli.interrupts import undisturbed
from vmsim.cli.options import backend_options
from vmsim.cli.show import show_continued
from vmsim.cli.tracing import traced_seams, tracer_for
from vmsim.cli.watch import ConsoleWatcher
from vmsim.errors import VmsimError
from vmsim.machine.config import MIGRATIONS
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.workload.choices import check_backend
from vmsim.workload.continued import ContinuedJob


@click.command()
@click.argument("file")
@click.option("--share", required=True, metavar="DIR", help="The directory that the saved machine shared.")
@click.option("--migration-on-error", type=click.Choice(["abort", "guest-error"]), default=None,
              help="What happens when an inode cannot be found again  [default: as saved]")
@click.option("--migration-load", type=click.Choice(MIGRATIONS), default=None,
              help="Which kind of migration may be loaded  [default: as saved]")
@backend_options
@click.option("--keep", is_flag=True, help="Leave the guest's scratch folder in DIR.")
@click.option("--trace", metavar="GLOB", help="Print matching events on standard error.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def restore(
    invocation: Invocation, /, file: str, share: str, migration_on_error: str | None,
    migration_load: str | None, transport: str, backend: str | None, keep: bool, trace: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Continue the machine in FILE, saved by: vmsim migrate --save FILE.

    Verifies every handle, offset, lock and byte of its guest against the record in the file, lets the guest
    work on, verifies again, and removes the guest's scratch folder. DIR may be at another place than it was.
    Exit status 0 only if everything held.
    """
    check_backend(transport, backend)
    override = None if migration_on_error is None else {"migration_on_error": migration_on_error}
    with ConsoleWatcher(quiet=as_json) as watcher:
        job = ContinuedJob(
            file, share, watcher, override, keep=keep, transport=transport, backend=backend,
            migration_load=migration_load,
        )  # fmt: skip
        if trace is not None:
            job.schedule = ImmediateSchedule()
            job.seams = traced_seams(tracer_for(trace, job.schedule), "vm")
        try:
            report = job.run(undisturbed)
        except BaseException as error:
            invocation.facts.update(job.so_far())
            if isinstance(error, VmsimError) and not error.hint:
                error.hint = "FILE has to be a saved machine, and DIR the directory that it shared"
            raise
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        show_continued(report, report_console())
    return 0 if report.ok else 1
