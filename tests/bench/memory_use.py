"""Resident memory per inode that the file server knows, in a process of its own.

Resident pages are read from the kernel, before and after; the files are real ones, each looked up once.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.bench import trees
from tests.bench.measure import Figure, Plan, Spread

AIM = 500.0
ROOT = Path(__file__).resolve().parents[2]


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Growing trees; the aim is that of the largest."""
    made = 0
    for count in (plan.pick(10_000, 1000), plan.pick(100_000, 2000), plan.pick(1_000_000, 3000)):
        share = folder / f"tree-{count}"
        share.mkdir()
        made = trees.plant(share, count)
        yield measure(share, made)


def measure(share: Path, count: int) -> Figure:
    """One tree, in a fresh process."""
    command = [sys.executable, "-c", "from tests.bench.memory_use import main; main()", str(share)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    facts = json.loads(done.stdout)
    if facts["inodes"] != count + 1:
        raise RuntimeError(f"the server knows {facts['inodes']} of {count} inodes")
    each = facts["bytes"] / count
    return Figure(
        f"memory.inodes.{count}", Spread.of([each]), "bytes/inode", AIM,
        detail={"open descriptors": facts["descriptors"], "MB": facts["bytes"] / 1e6},
        note="resident pages of the process, one lookup per inode" if count > 500_000 else "",
    )  # fmt: skip


def main() -> None:
    """The process that is measured: prints one JSON object."""
    share = Path(sys.argv[1])
    with closing(trees.Server(share).boot()) as server:
        gc.collect()
        before = resident()
        inodes = server.look_up_all(share)
        gc.collect()
        facts = {
            "inodes": inodes, "bytes": resident() - before, "descriptors": len(os.listdir("/proc/self/fd")),
        }  # fmt: skip
        print(json.dumps(facts))


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
