"""Collecting the back-end's state while the guest runs, and writing it once the rings stand still.

The collection decides for every inode how the destination will find it: by ``(parent, name)`` in mode
find-paths, by file handle in mode file-handles (reference section 2.2). The server keeps the names that the
guest uses; here they are checked, and repaired where somebody else renamed. What the guest changes afterwards
comes in through the watch. Saving leaves the server unchanged, and drops all that was collected.
"""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from vmsim.fuse.session import Session

from ..passthrough.inodes import STALE
from .collect_paths import GONE, NotFound, PathFinder, reason_of
from .collect_records import RecordBuilder
from .collected import Collected
from .options import StateOptions

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.inodes import Inode

ROOT_ID = 1


class StateCollector:
    """One collection: ``start``, ``step`` while the guest runs, then ``save`` (or ``stop``).

    ``save`` without ``start`` does all at once. UsageError for options that contradict each other.
    """

    def __init__(self, fs: PassthroughFs, session: Session, options: StateOptions | None = None) -> None:
        self.options = (options if options is not None else StateOptions()).check()
        self._fs = fs
        self._session = session
        self.active = False
        self.leaves_traces = False
        """Whether something in the state saved last is made in the share's root by whoever loads it."""
        self._reset()

    def _reset(self) -> None:
        self.finder = PathFinder(self._fs)
        self.found = Collected(self.options)
        self._unplaced: dict[tuple[int, int, int], Inode] = {}
        self._hidden: set[int] = set()
        """Those of them that are gone if no name of them is found."""
        self._again: set[int] = set()
        self._todo: Iterator[Inode] = iter(())
        self._newest = 0
        self._scan: Generator[object, None, None] | None = None
        self._of_session = self._session.state

    # -- life cycle ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or begin anew; from now on the guest's changes are watched."""
        self.stop()
        if self.options.empty_state:
            return
        self._begin()
        self._fs.watch = self
        self.active = True

    def _begin(self) -> None:
        self._of_session = self._session.state
        inodes = self._fs.inodes.items()
        self._todo = iter(inodes)
        self._newest = inodes[-1].id if inodes else 0

    def _start_over(self) -> None:
        """The guest ended its session: nodeids mean something else now."""
        if self._scan is not None:
            self._scan.close()
        self._reset()
        self._begin()

    def survey(self) -> None:
        """Collect everything as it is at this moment, without watching and without saving."""
        self._begin()
        while not self.step(1 << 20):
            pass

    def stop(self) -> None:
        """Drop what was collected and stop watching."""
        if self.active:
            self._fs.watch = None
        self.active = False
        if self._scan is not None:
            self._scan.close()
        self._reset()

    def step(self, count: int) -> bool:
        """Collect ``count`` inodes (or scan ``count`` directories) more; True when nothing is left to do."""
        if self._session.state is not self._of_session:
            self._start_over()
        collect = self._collect
        current = self._fs.inodes.get
        for inode in self._todo:
            if current(inode.id) is inode:
                collect(inode)
            count -= 1
            if count <= 0:
                return False
        return self._scan_on(count)

    def save(self) -> bytes:
        """The state: blob and extension, or no bytes at all with ``empty_state``.

        The rings must stand still. OSError and StateError leave the server as it was, too.
        """
        if self.options.empty_state:
            return b""
        if not self.active:
            self.start()
        try:
            while not self.step(1 << 20):
                pass
            self._settle()
            builder = RecordBuilder(self.found, self._fs, self._session)
            saved = builder.build()
            self.leaves_traces = any(not stat.S_ISREG(file.mode) for file in builder.extra.anonymous)
            return saved
        finally:
            self.stop()

    # -- collecting ------------------------------------------------------------------------------

    def _collect(self, inode: Inode) -> None:
        """Decide how the destination finds one inode."""
        nodeid = inode.id
        if inode.state:
            gone = inode.state == STALE
            how = "was gone before" if gone else "did not survive"
            self.found.lost[nodeid] = NotFound(f"it {how} an earlier migration", gone=gone)
        elif self.options.mode == "file-handles":
            self._take_handle(inode)
        else:
            if nodeid != ROOT_ID:
                name = inode.name
                if name is None or not self.finder.is_at(inode, inode.parent_id, name):
                    self._look_for(inode)
            if self.options.verify_handles and nodeid not in self.found.lost:
                self._take_handle(inode)

    def _take_handle(self, inode: Inode) -> None:
        by_handle = self.options.mode == "file-handles"
        try:
            if by_handle:
                self.finder.require_alive(inode)
            self.found.handles[inode.id] = self.finder.handle_of(inode)
        except OSError as error:
            if by_handle:
                gone = error.errno in GONE
                why = "it is gone" if gone else f"it has no file handle: {reason_of(error)}"
                self.found.lost[inode.id] = NotFound(why, gone=gone)

    def _look_for(self, inode: Inode) -> None:
        """The last known name is wrong: ask the kernel, and leave the hard cases to the scan.

        That also looks for what only a search would find: one for all of them, instead of one for each.
        """
        self.found.places.pop(inode.id, None)
        self.found.lost.pop(inode.id, None)
        if self.finder.hides(inode):
            self._unplaced[inode.key] = inode
            self._hidden.add(inode.id)
            return
        try:
            place = self.finder.by_link(inode)
        except NotFound as reason:
            self.found.lost[inode.id] = reason
            return
        if place is None:
            self._unplaced[inode.key] = inode
        else:
            self.found.places[inode.id] = place

    def _scan_on(self, count: int) -> bool:
        """Look through the share for the inodes that have no place yet."""
        if not self._unplaced:
            return True
        if self._scan is None:
            self._scan = self._scanning()
        for _ in self._scan:
            count -= 1
            if count <= 0 and self._unplaced:
                return False
        self._scan = None
        for inode in self._unplaced.values():
            gone = inode.id in self._hidden
            self.found.lost[inode.id] = NotFound("no name of it was found in the share", gone=gone)
        self._unplaced.clear()
        return True

    def _scanning(self) -> Generator[object, None, None]:
        for found in self.finder.scan(self._unplaced):
            if found is not None:
                inode, place = found
                self._unplaced.pop(inode.key, None)
                self.found.places[inode.id] = place
            yield found

    def _settle(self) -> None:
        """Catch up with what the guest did since, and confirm all places if that was asked for."""
        inodes = self._fs.inodes
        if inodes.next_id > self._newest + 1:
            for inode in [inode for inode in inodes if inode.id > self._newest]:
                self._collect(inode)
        if self.options.mode == "find-paths":
            again = self._again.union(self.unsound())
            if self.options.confirm_paths:
                again.update(inode.id for inode in inodes)
            for nodeid in sorted(again):
                known = inodes.get(nodeid)
                if known is not None and nodeid != ROOT_ID and not known.state:
                    self._confirm(known)
        while not self._scan_on(1 << 20):
            pass

    def _confirm(self, inode: Inode) -> None:
        place = self.found.place_of(inode)
        if place is None or not self.finder.is_at(inode, *place):
            self._look_for(inode)
            if self.options.verify_handles and inode.id not in self.found.handles:
                self._take_handle(inode)

    def unsound(self) -> set[int]:
        """The inodes whose place hangs on a directory that the guest forgot or that moved meanwhile."""
        inodes = self._fs.inodes
        found: set[int] = set()
        unknown = {inode.parent_id for inode in inodes} - inodes.ids()
        found.update([inode.id for inode in inodes if inode.parent_id in unknown])
        found -= self.found.places.keys()
        broken = self.finder.broken()
        for nodeid, (parent, _) in self.found.places.items():
            if parent in broken or (type(parent) is int and parent not in inodes):
                found.add(nodeid)
        return found

    # -- the watch: what the guest does meanwhile --------------------------------------------------

    def named(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """The guest saw the inode under this name just now."""
        if self.options.mode == "file-handles":
            return
        self._unplaced.pop(inode.key, None)
        self.found.lost.pop(inode.id, None)
        if inode.parent_id == parent.id and inode.name == name:
            self.found.places.pop(inode.id, None)
        else:
            self.found.places[inode.id] = (parent.id, name)

    def unlinked(self, inode: Inode | None, parent: Inode, name: bytes) -> None:
        """A name is gone; it may have been the inode's place."""
        if inode is not None:
            self._again.add(inode.id)

    def renamed(
        self, inode: Inode | None, parent: Inode, name: bytes, newparent: Inode, newname: bytes,
        replaced: Inode | None, exchanged: bool,
    ) -> None:  # fmt: skip
        """The inode moved; what was at the new place lost its name, or got the old one."""
        if inode is not None:
            self.named(inode, newparent, newname)
        if replaced is not None and exchanged:
            self.named(replaced, parent, name)
        elif replaced is not None:
            self._again.add(replaced.id)

    def forgotten(self, inode: Inode) -> None:
        """The guest does not know the inode any more."""
        self.found.places.pop(inode.id, None)
        self.found.lost.pop(inode.id, None)
        self.found.handles.pop(inode.id, None)
        self._unplaced.pop(inode.key, None)
