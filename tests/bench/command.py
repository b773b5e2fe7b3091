"""The command line of ``tools/bench``."""

from __future__ import annotations

import fnmatch
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tests.bench import getattr_path, memory_use, migration, peer_state, peers, rings, state, transfers
from tests.bench.measure import Figure, Plan, pin
from tests.bench.report import headline, line

Bench = Callable[[Plan, Path], Iterator[Figure]]

BENCHES: dict[str, Bench] = {
    "getattr": getattr_path.run,
    "ring": rings.run,
    "transfer": transfers.run,
    "state": state.run,
    "memory": memory_use.run,
    "migration": migration.run,
    "peers": peers.run,
    "peerstate": peer_state.run,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--json", "as_json", is_flag=True, help="One object on standard output instead of the table.")
@click.option("--only", metavar="GLOB", multiple=True, default=("*",),
              help=f"Parts to run, by name: {', '.join(BENCHES)}. May be given several times.")
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: does it work at all?")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
              help="Where the files that are needed meanwhile go (default: the temporary folder).")
def main(as_json: bool, only: tuple[str, ...], quick: bool, folder: Path | None) -> None:
    """Measure what vmsim costs, as ratios to what the host does without it.

    Each figure is a quotient of two things measured in turn, within one run, on one CPU: median of the
    rounds, smallest and largest. Times in the notes are of this machine at this moment and prove nothing.
    """
    chosen = [name for name in BENCHES if any(fnmatch.fnmatch(name, glob) for glob in only)]
    if not chosen:
        raise click.UsageError(f"no part matches; there are {', '.join(BENCHES)}")
    plan = Plan(quick)
    cpu = pin()
    began = time.monotonic()
    figures = []
    if not as_json:
        click.echo(headline(cpu, quick))
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="vmsim-bench-", dir=folder) as place:
            for figure in BENCHES[name](plan, Path(place)):
                figures.append(figure)
                if not as_json:
                    click.echo(line(figure))
                    sys.stdout.flush()
    if as_json:
        click.echo(json.dumps({
            "python": platform.python_version(), "kernel": os.uname().release, "cpus": os.cpu_count(),
            "quick": quick, "seconds": round(time.monotonic() - began, 1),
            "figures": [figure.as_json() for figure in figures],
        }, indent=1))  # fmt: skip
