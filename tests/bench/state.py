"""Saving and restoring the back-end's state of 100 000 inodes, per second, in both modes.

The yardstick is one stat(2) by name of each of the same files: what it costs the host to find them at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from devices.virtio_fs.state.collect import StateCollector
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.restore import RestoreError, restore_state
from tests.bench import trees
from tests.bench.measure import Figure, Plan, Spread, clock, quiet

SAVE_AIM = 300_000.0
RESTORE_AIM = 200_000.0
HOST_CALLS = {
    ("save", "find-paths"): "1, to see that it is still there (name_to_handle_at or statx)",
    ("save", "file-handles"): "none where its handle is known",
    ("restore", "find-paths"): "2 (statx and name_to_handle_at)",
    ("restore", "file-handles"): "4 (open_by_handle_at, statx, readlink, close)",
}


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Both modes, saving and restoring."""
    trees.plant(folder, plan.pick(100_000, 1000))
    with closing(trees.Server(folder).boot()) as server:
        server.look_up_all(folder)
        for mode in ("find-paths", "file-handles"):
            yield from measure(plan, folder, server, mode)


def measure(plan: Plan, folder: Path, server: trees.Server, mode: str) -> Iterator[Figure]:
    """Rounds of: stat everything, collect, encode, restore."""
    options = StateOptions(mode=mode)
    count = len(server.fs.inodes)
    parts: dict[str, list[float]] = {name: [] for name in ("stat", "collect", "encode", "restore")}
    blob = b""
    for _ in range(plan.pick(5, 2)):
        collector = StateCollector(server.fs, server.session, options)
        with quiet():
            marks = [clock()]
            stat_all(folder)
            marks.append(clock())
            collector.start()
            while not collector.step(1 << 20):
                pass
            marks.append(clock())
            try:
                blob = collector.save()
            except OSError as error:
                yield skipped(mode, "save", str(error))
                return
            marks.append(clock())
        for name, begin, end in zip(parts, marks, marks[1:], strict=False):
            parts[name].append(end - begin)
        try:
            parts["restore"].append(restored(folder, blob, options, count))
        except RestoreError as error:
            if error.errno != errno.EPERM:
                raise
    yield figure(mode, "save", count, parts, ("collect", "encode"), SAVE_AIM, len(blob))
    if parts["restore"]:
        yield figure(mode, "restore", count, parts, ("restore",), RESTORE_AIM, len(blob))
    else:
        yield skipped(mode, "restore", "open_by_handle_at needs CAP_DAC_READ_SEARCH")


def restored(folder: Path, blob: bytes, options: StateOptions, count: int) -> float:
    """Seconds of loading ``blob`` into a fresh server; RestoreError as from there."""
    with closing(trees.Server(folder)) as target, quiet():
        began = clock()
        report = restore_state(target.fs, target.session, blob, options)
        took = clock() - began
        if report.losses or len(target.fs.inodes) != count:
            raise RuntimeError(f"{len(report.losses)} of {count} inodes were lost")
    return took


def stat_all(folder: Path) -> None:
    """stat(2) of every file by its name in its directory."""
    for place in sorted(folder.iterdir()):
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        for name in os.listdir(fd):
            os.stat(name, dir_fd=fd, follow_symlinks=False)
        os.close(fd)


def figure(
    mode: str, what: str, count: int, parts: dict[str, list[float]], names: tuple[str, ...], aim: float,
    blob_bytes: int,
) -> Figure:  # fmt: skip
    """Inodes per second, and the time in units of a stat of the same file."""
    spent = [sum(part) for part in zip(*(parts[name] for name in names), strict=True)]
    ratios = [mine / theirs for mine, theirs in zip(spent, parts["stat"], strict=True)]
    detail = {f"{name} us/inode": min(parts[name]) / count * 1e6 for name in (*names, "stat")}
    return Figure(
        f"state.{what}.{mode}", Spread.of([count / each for each in spent]), "inodes/s", aim,
        more_is_better=True,
        detail={"x stat by name": Spread.of(ratios).median, **detail, "blob bytes/inode": blob_bytes / count},
        note=f"{count:,} inodes; calls of the host per inode: {HOST_CALLS[what, mode]}",
    )  # fmt: skip


def skipped(mode: str, what: str, why: str) -> Figure:
    """A figure that cannot be had here."""
    return Figure(f"state.{what}.{mode}", None, "inodes/s", skipped=why)
