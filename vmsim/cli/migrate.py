"""``vmsim migrate``: the main job."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from vmsim.cli.common import Invocation, print_json, report_console
from vmsim.cli.interrupts import undisturbed
from vmsim.cli.options import choice_of, limit_options, limits_of, machine_options
from vmsim.cli.show import show_job
from vmsim.cli.tracing import traced_seams, tracer_for
from vmsim.cli.watch import ConsoleWatcher
from vmsim.workload.job import Job, JobOptions


@click.command()
@click.argument("directory", required=False, metavar="[DIR]")
@click.option("--read-only", is_flag=True, help="The guest only reads; nothing in DIR changes.")
@click.option("--inodes", type=click.IntRange(0, 1_000_000), default=200, show_default=True,
              help="Files that the guest makes (or finds) besides.")
@click.option("--hops", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="How often the machine migrates.")
@click.option("--seed", type=int, default=1, show_default=True,
              help="Fixes the guest's operations, and with back-ends in this process every interleaving.")
@click.option("--save", metavar="FILE",
              help="Save the machine afterwards, with its files in DIR: vmsim restore FILE --share DIR.")
@click.option("--keep-names", is_flag=True,
              help="The guest unlinks nothing: for back-ends that lose unlinked files when they move.")
@machine_options
@limit_options
@click.option("--trace", metavar="GLOB",
              help="Print matching events on standard error: fuse.*, virtio.ring.*, migration.*, ...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output instead of tables.")
@click.pass_obj
def migrate(
    invocation: Invocation, /, directory: str | None, read_only: bool, inodes: int, hops: int, seed: int,
    save: str | None, keep_names: bool, trace: str | None, as_json: bool, **machine: Any,
) -> int:  # fmt: skip
    """Migrate a machine live while its guest works on DIR, and check everything afterwards.

    The guest works in a scratch folder that it makes in DIR and that is removed again: files and directories,
    renamed and unlinked-but-open files, locks, requests in flight. Without DIR a small directory is made for
    the occasion. Exit status 0 only if every handle, offset, lock and byte is as an independent record says.

    When the downtime limit cannot be kept, that is said before the guest stops; --over-limit refuse ends the
    migration then, and the guest goes on at the source.
    """
    options = JobOptions(
        machine=choice_of(machine), limits=limits_of(machine), share=directory, read_only=read_only,
        inodes=inodes, hops=hops, seed=seed,
        save=save, keep_names=keep_names,
    )
    with ConsoleWatcher(quiet=as_json) as watcher:
        job = Job(options, watcher)
        if trace is not None:
            tracer = tracer_for(trace, job.schedule)
            job.seams = lambda where: traced_seams(tracer, where)
            job.schedule.trace = tracer.source("schedule")
        try:
            report = job.run(undisturbed)
        except BaseException:
            invocation.facts.update(job.so_far())
            raise
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        show_job(report, report_console())
    return 0 if report.ok else 1
