"""Saving and loading the state of a back-end: ours in this process, ``vmsim serve``, virtiofsd.

Each is asked over the same vhost messages, its rings stopped, and had no chance to collect anything before:
what is timed is collecting, writing and moving the state, and on the other side reading and restoring it in
a fresh back-end up to the answer that it is there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Final

from devices.virtio_fs.state import blob
from tests.bench import trees
from tests.bench.contenders import INPROC, MISSING, NAMES, SERVED, THEIRS, Contender, contenders, virtiofsd
from tests.bench.measure import Figure, Plan, Times, quiet, quotient
from tests.bench.operations import DEPTH_MAX, Ask, Guest, Operation
from vmsim.errors import VmsimError
from vmsim.fuse import opcodes as op
from vmsim.vhost.dialects import DIALECTS

MODES: Final = ("find-paths", "file-handles")
"""The first one is everybody's default."""
WAYS: Final = ("save", "load")
NOTES: Final = {
    ("save", "find-paths"): "names are known from LOOKUP and only checked; virtiofsd looks through the share",
    ("save", "file-handles"): "virtiofsd holds a handle for each inode and writes it; ours is collected and "
    "encoded in Python",
    ("load", "find-paths"): "two calls of the host per inode, and Python; served, a pipe besides",
    ("load", "file-handles"): "four calls of the host per inode (open, statx, readlink, close), and Python",
}
AIM: Final = 1.0
SIZES: Final = (15_000, 100_000)
QUICK_SIZES: Final = (100, 200)
THEIR_NEEDS: Final = ("--modcaps=+dac_read_search", "--inode-file-handles=prefer")
"""virtiofsd holds a descriptor for each inode otherwise, and file handles need the capability."""


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Both sizes, both modes, both ways."""
    for size in sizes(quick=plan.quick):
        share = folder / f"tree-{size}"
        share.mkdir()
        made = trees.plant(share, size)
        for mode in MODES:
            if not virtiofsd():
                yield from skipped(size, mode, MISSING)
                continue
            try:
                times = measure(plan, share, mode, made + 1)
            except VmsimError as error:
                yield from skipped(size, mode, f"a back-end refuses: {error}")
                continue
            for way in WAYS:
                for subject in (INPROC, SERVED):
                    yield figure(times, size, mode, way, subject)


def sizes(*, quick: bool) -> tuple[int, ...]:
    """Inodes of the trees."""
    return QUICK_SIZES if quick else SIZES


def measure(plan: Plan, share: Path, mode: str, inodes: int) -> dict[str, Times]:
    """Rounds of: save on each, load on each. Seconds per inode, by way and contender."""
    words = [] if mode == MODES[0] else [f"--migration-mode={mode}"]
    times: dict[str, Times] = {way: {name: [] for name in NAMES} for way in WAYS}
    with contenders(share, words, THEIR_NEEDS) as subjects:
        for each in subjects.values():
            look_up_all(Guest(each), share)
            each.machine.pause()
        for turn in range(plan.pick(-1, 0), plan.pick(5, 1)):  # the first to warm up
            for name, each in subjects.items():
                took, state = save(each)
                if len(blob.decode(state)[0].inodes) != inodes:
                    raise RuntimeError(f"{name} did not save {inodes} inodes")
                needs = THEIR_NEEDS if name == THEIRS else ()
                with closing(Contender(name, share, [*words, *needs], boot=False)) as target:
                    loaded = load(target, state)
                if turn >= 0:
                    times["save"][name].append(took / inodes)
                    times["load"][name].append(loaded / inodes)
    return times


def look_up_all(guest: Guest, share: Path) -> None:
    """Every file is looked up by its name, as ``find`` in the guest would."""
    folders = sorted(os.listdir(share))

    def below(number: int) -> Operation:
        entry = (yield Ask(op.LOOKUP, 1, names=(folders[number].encode(),))).reply
        nodeid = int.from_bytes(entry[:8], "little")
        for name in os.listdir(share / folders[number]):
            yield Ask(op.LOOKUP, nodeid, names=(name.encode(),))

    guest.run(below, len(folders), DEPTH_MAX)


def save(contender: Contender) -> tuple[float, bytes]:
    """Seconds, and the state."""
    frontend = contender.machine.device.frontend
    with quiet():
        began = perf_counter()
        stream = b"".join(frontend.save_backend_state())
        took = perf_counter() - began
    return took, DIALECTS["upstream"].read_state(io.BytesIO(stream).read)


def load(contender: Contender, state: bytes) -> float:
    """Seconds; StateTransferError if the back-end refuses it."""
    frontend = contender.machine.device.frontend
    with quiet():
        began = perf_counter()
        frontend.load_backend_state(state)
        return perf_counter() - began


def title(size: int, mode: str, way: str, subject: str) -> str:
    """The name of a figure."""
    return f"peerstate.{way}.{mode}.{size}.{subject}"


def skipped(size: int, mode: str, why: str) -> Iterator[Figure]:
    """What cannot be had here."""
    for way in WAYS:
        for subject in (INPROC, SERVED):
            yield Figure(title(size, mode, way, subject), None, "x virtiofsd", skipped=why)


def figure(times: dict[str, Times], size: int, mode: str, way: str, subject: str) -> Figure:
    """``subject`` against virtiofsd."""
    each = times[way]
    detail = {f"{name} us/inode": min(each[name]) * 1e6 for name in (subject, THEIRS)}
    return Figure(
        title(size, mode, way, subject), quotient(each, subject, THEIRS), "x virtiofsd", AIM, detail=detail,
        note=NOTES[way, mode],
    )  # fmt: skip
