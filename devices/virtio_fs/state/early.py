"""Inode records that go ahead of the state, while the guest runs: what the source sends.

A *run* is the inode vector of some inodes with neighbouring nodeids, encoded as in the blob. If nothing about
them changes until the state is saved, the blob has the same bytes, and what the destination has done for
them (:mod:`.early_inodes`) need not be done again. Only inodes of mode find-paths that have a plain place go
ahead; the others, and those that change, are as before in the blob alone, which is complete in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from . import blob
from .postcard import is_utf8
from .records import PATH, InodeRecord

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.inodes import Inode
    from .collect import StateCollector

RANGE: Final = 64
"""Nodeids of one run: few enough that a change spoils little, and many enough that a run costs nothing."""
RUNS_IN_PIECE: Final = 64
ROOT_ID: Final = 1


class EarlyPiece(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Some runs, in ascending order of nodeids."""

    runs: list[bytes]


def pieces(collector: StateCollector, fs: PassthroughFs) -> Iterator[bytes]:
    """What can go ahead, of what ``collector`` has collected completely; others may run between pieces.

    Nothing in mode file-handles: which of those files lose their name meanwhile, no record shows.
    """
    if collector.options.mode != "find-paths" or not collector.options.extension:
        return
    inodes = fs.inodes.items()
    children = Counter(inode.parent_id for inode in inodes if inode.id not in collector.places)
    children.update(parent for parent, _ in collector.places.values() if isinstance(parent, int))
    runs: list[bytes] = []
    for group in _groups(collector, fs, inodes, children):
        runs.append(bytes(blob.encode_inodes(group)))
        if len(runs) == RUNS_IN_PIECE:
            yield msgspec.msgpack.encode(EarlyPiece(runs))
            runs = []
    if runs:
        yield msgspec.msgpack.encode(EarlyPiece(runs))


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
    place = collector.place_of(inode)
    if place is None or inode.state or nodeid == ROOT_ID:
        return None
    parent, name = place
    if not isinstance(parent, int) or not is_utf8(name) or inode.nlookup + children < 1:
        return None
    handle = collector.handles.get(nodeid)
    return InodeRecord(nodeid, inode.nlookup + children, PATH, parent, name, None, handle)
