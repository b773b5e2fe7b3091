"""``vmsim migrate``: the main job."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from vmsim.cli.common import error_facts, human_bytes, human_ns, print_json, report_console
from vmsim.cli.job import Hop, Job, JobOptions, JobReport
from vmsim.cli.options import choice_of, machine_options
from vmsim.cli.tracing import traced_seams, tracer_for
from vmsim.cli.watch import ConsoleWatcher
from vmsim.errors import UsageError, VmsimError


@click.command()
@click.argument("directory", required=False, metavar="[DIR]")
@machine_options
@click.option("--read-only", is_flag=True, help="The guest only reads; nothing in DIR changes.")
@click.option("--inodes", type=click.IntRange(0, 1_000_000), default=200, show_default=True,
              help="Files that the guest makes (or reads) besides.")
@click.option("--hops", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="How often the machine migrates.")
@click.option("--seed", type=int, default=1, show_default=True,
              help="Fixes the guest's operations and every interleaving.")
@click.option("--save", metavar="FILE", help="Save the machine afterwards, for: vmsim restore FILE --share DIR.")
@click.option("--trace", metavar="GLOB",
              help="Print matching events on standard error: fuse.*, virtio.ring.*, migration.*, ...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output instead of tables.")
def migrate(
    directory: str | None, read_only: bool, inodes: int, hops: int, seed: int, save: str | None,
    trace: str | None, as_json: bool, **machine: Any,
) -> int:
    """Migrate a machine live while its guest works on DIR, and check everything afterwards.

    The guest works in a scratch folder that it makes in DIR and removes again: files and directories, renamed
    and unlinked-but-open files, locks, requests in flight. Without DIR a small directory is made for the
    occasion. Exit status 0 only if every handle, offset, lock and byte is as an independent record says.
    """
    options = JobOptions(
        machine=choice_of(machine), share=directory, read_only=read_only, inodes=inodes, hops=hops, seed=seed,
        save=save,
    )
    try:
        report = _run(options, trace, quiet=as_json)
    except (VmsimError, OSError) as error:
        if as_json and not isinstance(error, UsageError):
            print_json({"ok": False, "error": error_facts(error)})
        raise
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        show(report, report_console())
    return 0 if report.ok else 1


def _run(options: JobOptions, trace: str | None, *, quiet: bool) -> JobReport:
    with ConsoleWatcher(quiet=quiet) as watcher:
        job = Job(options, watcher)
        if trace is not None:
            tracer = tracer_for(trace, job.schedule)
            job.seams = lambda where: traced_seams(tracer, where)
        return job.run()


def show(report: JobReport, console: Console) -> None:
    """The report for people."""
    console.print()
    for number, hop in enumerate(report.hops, 1):
        console.print(_moved(hop, number, len(report.hops)))
        for note in hop.notes:
            console.print(f"  note: {note}", markup=False)
    if report.hops:
        console.print(_rounds(report.hops))
    alive = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in report.workload.items())
    console.print(f"kept alive: {alive}", markup=False)
    if report.saved:
        console.print(f"saved: {report.saved}; continue with: vmsim restore {report.saved} --share {report.share}",
                      markup=False, soft_wrap=True)
    for line in report.discrepancies:
        console.print(f"  differs: {line}", markup=False, soft_wrap=True)
    if report.ok:
        console.print("[green]verdict: everything held[/green]")
    else:
        console.print(f"[red]verdict: {len(report.discrepancies)} things did not hold[/red]"
                      f"  (again with: --seed {report.seed})")


def _moved(hop: Hop, number: int, hops: int) -> Table:
    table = Table(title=f"what moved, hop {number} of {hops}", title_justify="left")
    table.add_column("what")
    table.add_column("how much", justify="right")
    device = sum(size for name, size in hop.section_bytes.items() if name.endswith("-fs"))
    rows = (
        ("RAM", f"{human_bytes(hop.ram_bytes)}, {hop.pages} pages and {hop.zero_pages} zero pages sent"),
        ("vrings", f"{hop.moved['rings']} rings, {hop.requests_in_flight} requests in flight"),
        ("inodes", str(hop.moved["inodes"])),
        ("handles", str(hop.moved["handles"])),
        ("locks", f"{hop.moved['locks']} held, {hop.moved['waiting']} waited for"),
        ("device and back-end state", human_bytes(device)),
        ("guest state", human_bytes(hop.section_bytes.get("vmsim/guest", 0))),
        ("stream", human_bytes(hop.stream_bytes)),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _rounds(hops: list[Hop]) -> Table:
    table = Table(title="how it went", title_justify="left")
    for column in ("hop", "rounds", "memory sent", "dirty at last", "guest's steps", "downtime", "total"):
        table.add_column(column, justify="right")
    for number, hop in enumerate(hops, 1):
        sent = sum(each["memory_bytes"] for each in hop.rounds)
        table.add_row(
            str(number), str(len(hop.rounds)), human_bytes(sent), human_bytes(hop.rounds[-1]["dirty_bytes"]),
            str(hop.steps), human_ns(hop.downtime_ns), human_ns(hop.total_ns),
        )
    return table
