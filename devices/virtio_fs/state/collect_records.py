"""Writing down what was collected: refcounts as virtiofsd expects them, handles, and the extension."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from vmsim.errors import StateError
from vmsim.fuse.session import Session

from . import blob, extension
from .collect_content import ContentBudget, TooLarge, capture
from .collect_paths import Missing, Parent, mount_paths, reason_of
from .collect_ready import ReadyRun
from .collected import Collected
from .extension import Extension, Flock, HandleExtra, Loss, ModeInfo, PosixLock, RawName, ToldOf
from .negotiation import options_of
from .postcard import is_utf8
from .records import FILE_HANDLE, INVALID, PATH, ROOT, HandleRecord, InodeRecord, StateBlob
from .restore_plan import clean_flags

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.inodes import Inode

ROOT_EXTRA = 1
"""virtiofsd's root starts with two references, which every blob counts; ours with one lookup."""


class RecordBuilder:
    """Turns a finished collection into bytes.

    Without ``contents`` unlinked files are measured and tried, but not read: for a look at what would happen.
    """

    def __init__(
        self, found: Collected, fs: PassthroughFs, session: Session, *, contents: bool = True
    ) -> None:
        self._found = found
        self._fs = fs
        self._session = session
        self._options = found.options
        self._records: list[InodeRecord] = []
        self._runs: list[tuple[int, ReadyRun]] = []
        """What is encoded already, and before which of the records it stands."""
        self._next_inode = max(fs.inodes.next_id, 2)
        self.extra = Extension(
            info=ModeInfo(self._options.mode, self._options.verify_handles, self._options.confirm_paths),
            raw_names=[], anonymous=[], losses=[], handles=[], stale=[],
        )
        self.travelling: dict[int, int] = {}
        """Bytes of each unlinked file whose contents go along, by nodeid."""
        self._budget = ContentBudget()
        self._contents = contents

    def build(self) -> bytes:
        """The state's bytes."""
        negotiated = self._session.save()
        state = StateBlob(negotiated=options_of(negotiated))
        if negotiated.initialized:
            self._add_inodes()
            state.handles = self._handles()
            self._count_children()
            self._add_locks()
            self._add_told()
            if self._options.mode == "file-handles":
                state.mount_paths = mount_paths(self._fs, self._found.mounts())
        state.inodes = self._records
        state.next_inode = self._next_inode
        state.next_handle = self._fs.handles.next_id
        ready = [(index, len(run.inodes), run.body) for index, run in self._runs]
        out = blob.encode(state, ready)
        if self._options.extension:
            self.extra.negotiated = negotiated
            out += extension.encode(self.extra)
        return bytes(out)

    # -- inodes ----------------------------------------------------------------------------------

    def _add_inodes(self) -> None:
        """One record per inode, ascending by nodeid."""
        inodes = self._fs.inodes.items()
        done = 0
        for start, run in self._found.unchanged(inodes):
            self._add(inodes[done:start])
            self._runs.append((len(self._records), run))
            done = start + len(run.inodes)
        self._add(inodes[done:] if done else inodes)

    def _add(self, inodes: list[Inode]) -> None:
        by_handle = self._options.mode == "file-handles"
        lost, places, handles = self._found.lost, self._found.places, self._found.handles
        append = self._records.append
        for inode in inodes:
            nodeid = inode.id
            if nodeid == 1:
                verify = None if by_handle else handles.get(1)
                append(InodeRecord(1, ROOT_EXTRA + inode.nlookup, ROOT, file_handle=verify))
            elif nodeid in lost:
                self._add_lost(inode)
            elif by_handle:
                append(InodeRecord(nodeid, inode.nlookup, FILE_HANDLE, handle=handles[nodeid]))
            else:
                name = inode.name
                parent: Parent = inode.parent_id
                if nodeid in places:
                    parent, name = places[nodeid]
                if isinstance(parent, Missing):
                    parent = self._missing_id(parent)
                if name is None:
                    raise StateError(f"inode {nodeid} was never collected")
                if name.isascii() or is_utf8(name):
                    append(InodeRecord(nodeid, inode.nlookup, PATH, parent, name, None, handles.get(nodeid)))
                else:
                    append(InodeRecord(nodeid, inode.nlookup, INVALID))
                    self.extra.raw_names.append(RawName(nodeid, parent, name))

    def _add_lost(self, inode: Inode) -> None:
        """Invalid in the blob; an unlinked file travels in the extension, within the limit."""
        self._records.append(InodeRecord(inode.id, inode.nlookup, INVALID))
        reason = self._found.lost[inode.id]
        if reason.gone and not any(handle.fd >= 0 for handle in self._fs.handles.of_inode(inode.id)):
            self.extra.stale.append(inode.id)
            return
        why = str(reason)
        if reason.unlinked and self._options.extension:
            left = self._budget.left
            try:
                self.extra.anonymous.append(capture(self._fs, inode, self._budget, contents=self._contents))
                self.travelling[inode.id] = left - self._budget.left
                return
            except OSError as error:
                why = f"{why}; its contents cannot travel: {reason_of(error)}"
            except TooLarge as error:
                why = f"{why}; its contents cannot travel: {error}"
        self.extra.losses.append(Loss(inode.id, why))

    def _missing_id(self, directory: Missing) -> int:
        """The nodeid of a directory that the guest does not know; made up in the state alone.

        Nobody but its children refers to it, so the destination drops it once they are there.
        """
        chain: list[Missing] = []
        here: Parent = directory
        while isinstance(here, Missing) and here.id == 0:
            chain.append(here)
            here = here.parent
        for record in reversed(chain):
            record.id = self._next_inode
            self._next_inode += 1
            parent = record.parent
            parent_id = parent.id if isinstance(parent, Missing) else parent
            self._records.append(InodeRecord(record.id, 0, PATH, parent_id, record.name))
        return directory.id

    def _count_children(self) -> None:
        """Add to each refcount one per child that refers to it as parent (reference section 1.2)."""
        children = Counter([record.parent for record in self._records if record.location == PATH])
        for _, run in self._runs:
            for parent, more in run.parents.items():
                children[parent] += more
        if self._runs:
            self._reopen(children)
        for record in self._records:
            count = children.get(record.id)
            if count:
                record.refcount += count

    def _reopen(self, children: Counter[int]) -> None:
        """Make records again of the runs in which a directory has another number of children than before."""
        before = self._found.ready_children
        other = {nodeid for nodeid in before.keys() | children.keys() if before[nodeid] != children[nodeid]}
        records, runs = self._records, self._runs
        self._records, self._runs = [], []
        done = 0
        for index, run in runs:
            self._records += records[done:index]
            done = index
            if other.isdisjoint(run.id_set):
                self._runs.append((len(self._records), run))
            else:
                self._add(run.inodes)
        self._records += records[done:]

    # -- handles, locks, mounts ------------------------------------------------------------------

    def _handles(self) -> list[HandleRecord]:
        known = self._fs.inodes
        records = []
        for handle in self._fs.handles.items():
            if handle.inode_id not in known:
                why = f"fh {handle.id} is open, but the guest forgot the inode"
                self.extra.losses.append(Loss(handle.inode_id, why))
                continue
            flags = clean_flags(handle.flags)
            if handle.is_dir:
                flags |= os.O_DIRECTORY
            records.append(HandleRecord(handle.id, handle.inode_id, flags))
            self.extra.handles.append(HandleExtra(handle.id, handle.flags, handle.guest_flags))
        return records

    def _add_locks(self) -> None:
        locks = self._fs.locks
        self.extra.locks = [PosixLock(*lock) for lock in locks.held()]
        self.extra.flocks = [Flock(*lock) for lock in locks.held_flocks()]
        self.extra.waiting = self._session.waiting()

    def _add_told(self) -> None:
        told = self._fs.told
        made_again = {file.id for file in self.extra.anonymous}
        self.extra.told = [
            ToldOf(nodeid, *facts) for nodeid, facts in sorted(told.by_id.items()) if nodeid not in made_again
        ]
        self.extra.numbers = sorted(told.numbers)
