"""Inode records that go ahead of the state, while the guest runs: what the source sends.

A *run* is the inode vector of some inodes with neighbouring nodeids, encoded as in the blob. If nothing about
them changes until the state is saved, the blob has the same bytes, and what the destination has done for
them (:mod:`.early_inodes`) need not be done again. Only inodes that have a plain place go ahead; the others,
and those that change, are as before in the blob alone, which is complete in any case.

In mode file-handles the blob has no places. They go ahead all the same, beside the handle: only of a name
that is still there, in directories that nobody has changed, is it known without a look that its file has not
lost it. The destination makes the blob's bytes of them (:func:`.collect_ready.in_blob`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from . import blob
from .collect_paths import NotFound, Place, mount_paths
from .collect_ready import ReadyRun
from .postcard import is_utf8
from .records import PATH, InodeRecord

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.inodes import Inode
    from .collect import StateCollector

RANGE: Final = 64
"""Nodeids of one run: few enough that a change spoils little, and many enough that a run costs nothing."""
RUNS_IN_PIECE: Final = 16
"""A thousand inodes: what is looked at while the guest waits."""
ROOT_ID: Final = 1


class EarlyPiece(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Some runs, in ascending order of nodeids.

    In mode file-handles each record has place and handle, and ``mount_paths`` are those of the blob that is
    to come; else it is None.
    """

    runs: list[bytes]
    mount_paths: dict[int, bytes] | None = None


def pieces(collector: StateCollector, fs: PassthroughFs) -> Iterator[bytes]:
    """What can go ahead, of what ``collector`` has collected completely; others may run between pieces."""
    found = collector.found
    if not found.options.extension:
        return
    inodes = fs.inodes.items()
    children: Counter[int] = Counter()
    mounts: dict[int, bytes] | None = None
    if found.options.mode == "file-handles":
        mounts = mount_paths(fs, found.mounts())
    else:
        children.update(inode.parent_id for inode in inodes if inode.id not in found.places)
        children.update(parent for parent, _ in found.places.values() if isinstance(parent, int))
    runs: list[bytes] = []
    found.ready, found.ready_children = [], children
    for group in _groups(collector, fs, inodes, children):
        ready = [inode for record in group if (inode := fs.inodes.get(record.id)) is not None]
        if len(ready) == len(group):
            found.ready.append(ReadyRun(ready, group, children, by_handle=mounts is not None))
        runs.append(bytes(blob.encode_inodes(group)))
        if len(runs) == RUNS_IN_PIECE:
            yield msgspec.msgpack.encode(EarlyPiece(runs, mounts))
            runs = []
    if runs:
        yield msgspec.msgpack.encode(EarlyPiece(runs, mounts))


def _groups(
    collector: StateCollector, fs: PassthroughFs, inodes: list[Inode], children: Counter[int]
) -> Iterator[list[InodeRecord]]:
    """Records that will stand side by side in the blob, in groups."""
    group: list[InodeRecord] = []
    known = fs.inodes.get
    for inode in inodes:
        if known(inode.id) is not inode:
            continue  # forgotten meanwhile: it leaves no gap in the blob either
        record = _record(collector, inode, children[inode.id])
        if group and (record is None or record.id // RANGE != group[0].id // RANGE):
            yield group
            group = []
        if record is not None:
            group.append(record)
    if group:
        yield group


def _record(collector: StateCollector, inode: Inode, children: int) -> InodeRecord | None:
    """What the blob is going to say of the inode; None if that is not so simple."""
    nodeid = inode.id
    if inode.state or nodeid == ROOT_ID:
        return None
    handle = collector.found.handles.get(nodeid)
    if collector.found.options.mode == "file-handles" and handle is None:
        return None
    place = _place(collector, inode)
    if place is None:
        return None
    parent, name = place
    if not isinstance(parent, int) or not is_utf8(name) or inode.nlookup + children < 1:
        return None
    return InodeRecord(nodeid, inode.nlookup + children, PATH, parent, name, None, handle)


def _place(collector: StateCollector, inode: Inode) -> Place | None:
    """Where the inode is; a server that found it by its handle has never been told."""
    place = collector.found.place_of(inode)
    if place is None and inode.id not in collector.found.lost:
        try:
            return collector.finder.by_link(inode)
        except NotFound:
            return None
    return place
