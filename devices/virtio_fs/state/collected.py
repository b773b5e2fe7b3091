"""What a collection has found of each inode: how the destination will find it, or why it cannot."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING

from .options import StateOptions
from .records import FileHandle

if TYPE_CHECKING:
    from ..passthrough.inodes import Inode
    from .collect_paths import NotFound, Place
    from .collect_ready import ReadyRun

_BY_PLACE = attrgetter("nlookup", "state", "parent_id", "name")
_BY_HANDLE = attrgetter("nlookup", "state")


class Collected:
    """The collection as it stands: the collector fills it, whoever writes the state reads it."""

    def __init__(self, options: StateOptions) -> None:
        self.options = options
        self.places: dict[int, Place] = {}
        """Where an inode is, if not at its own (parent_id, name)."""
        self.lost: dict[int, NotFound] = {}
        self.handles: dict[int, FileHandle] = {}
        self.ready: list[ReadyRun] = []
        """Records that went ahead, and how many children each of all inodes had then."""
        self.ready_children: Counter[int] = Counter()

    def place_of(self, inode: Inode) -> Place | None:
        """Where the inode is, as far as is known; None if it is lost."""
        if inode.id in self.lost:
            return None
        place = self.places.get(inode.id)
        if place is None and inode.name is not None:
            place = (inode.parent_id, inode.name)
        return place

    def mounts(self) -> set[int]:
        """The mounts that the file handles name."""
        return {handle.mnt_id for handle in self.handles.values()}

    def unchanged(self, inodes: list[Inode]) -> list[tuple[int, ReadyRun]]:
        """Those of the runs whose inodes are as they were, but for the number of their children.

        Each with its index in ``inodes``, which are all, by nodeid.
        """
        handles = self.handles.get
        facts = _BY_HANDLE if self.options.mode == "file-handles" else _BY_PLACE
        elsewhere = self.lost.keys() | self.places.keys()
        ids = [inode.id for inode in inodes]
        found = []
        end = 0
        for run in self.ready:
            start = bisect_left(ids, run.inodes[0].id, end)
            if (
                inodes[start : start + len(run.inodes)] == run.inodes
                and list(map(facts, run.inodes)) == run.facts
                and list(map(handles, ids[start : start + len(run.inodes)])) == run.handles
                and elsewhere.isdisjoint(run.id_set)
            ):
                found.append((start, run))
                end = start + len(run.inodes)
        return found
