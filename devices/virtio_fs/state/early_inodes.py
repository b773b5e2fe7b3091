"""Inodes that were found before their state came: what the destination does with records that go ahead.

They are restored into the tables of the fresh server at once. When the state comes, it decides: a run of
records that stands in it byte for byte is taken as done; a record that says the same of an inode as before
keeps what was found; everything else is found anew, and what the state does not have is dropped. Before that
each directory is looked at again, so that a name that somebody else has changed meanwhile is found as late as
without all this.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from vmsim.errors import StreamError
from vmsim.limits import EARLY_STATE_MAX, NAME_MAX

from ..passthrough.host_calls import CTIME, CTIME_NS, MTIME, MTIME_NS, SECOND
from ..passthrough.inodes import Inode, pack_handle
from ..passthrough.reach import open_listing
from . import blob
from .early import EarlyPiece
from .extension import Extension
from .records import PATH, InodeRecord
from .restore_inodes import InodeRestorer
from .restore_plan import Plan, Present

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs

SPEC: Final = "vmsim early state"
ROOT_ID: Final = 1
LAST_ID: Final = (1 << 63) - 1
RECENT_NS: Final = 2_000_000_000
"""A change of a directory may hide behind a time stamp that is not older than this when it is read."""
OTHERS: Final = 4096
"""Names of others that are read in a directory beside those that are looked for, before these are tried."""

Stamp = tuple[int, int, int, int]


class EarlyRun:
    """A run all of whose inodes were found; ``body`` is how it stands in the blob."""

    __slots__ = ("body", "ids", "parents")

    def __init__(self, body: bytes, records: list[InodeRecord]) -> None:
        self.body = body
        self.ids = [record.id for record in records]
        self.parents = Counter(record.parent for record in records)


class Changed(Exception):
    """What hangs on an inode that is another one now: begin anew without what was found before."""


class EarlyInodes:
    """What was found beforehand in the tables of ``fs``, which must be fresh."""

    def __init__(self, fs: PassthroughFs) -> None:
        self._fs = fs
        self._restorer = InodeRestorer(fs, {}, [])
        self._room = EARLY_STATE_MAX
        self._last = ROOT_ID
        self._stamps: dict[int, Stamp | None] = {}
        """Of each directory, taken before the first name in it was looked up; None: it proves nothing."""
        self._verified = False
        self.runs: list[EarlyRun] = []
        self.inodes: dict[int, Inode] = {}
        self.children: dict[int, list[int]] = {}
        """The inodes that were found, by parent."""

    def take(self, data: bytes) -> None:
        """Find the inodes of one piece; StreamError if it is malformed. What cannot be found waits."""
        try:
            piece = msgspec.msgpack.decode(data, type=EarlyPiece)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise StreamError(f"early state: {error}", field="early", spec=SPEC) from error
        for run in piece.runs:
            if len(run) > self._room:
                return
            self._room -= len(run)
            self._take_run(run)

    def _take_run(self, run: bytes) -> None:
        records, start = blob.decode_inodes(run)
        found = 0
        for record in records:
            self._check(record)
            found += self._find(record)
        if records and found == len(records):
            self.runs.append(EarlyRun(run[start:], records))

    def _check(self, record: InodeRecord) -> None:
        name = record.name
        if record.location != PATH or not self._last < record.id <= LAST_ID or record.refcount < 1:
            raise StreamError(f"inode {record.id} cannot go ahead", field="early.inodes", spec=SPEC)
        if b"/" in name or b"\0" in name or name in (b"", b".", b"..") or len(name) > NAME_MAX:
            raise StreamError(f"{name[:80]!r} is no plain name", field="early.filename", spec=SPEC)
        self._last = record.id

    def _find(self, record: InodeRecord) -> bool:
        parent = record.parent
        if parent != ROOT_ID and parent not in self.inodes:
            return False
        try:
            if parent not in self._stamps:
                self._stamps[parent] = self._stamp(parent, fresh=True)
            self._restorer.one(record)
        except OSError:
            return False
        inode = self._fs.inodes.get(record.id)
        assert inode is not None
        self.inodes[record.id] = inode
        self.children.setdefault(parent, []).append(record.id)
        self._verified = self._verified or record.file_handle is not None
        return True

    # -- has anybody changed a name? -----------------------------------------------------------------

    def _stamp(self, nodeid: int, *, fresh: bool) -> Stamp | None:
        """When a directory was changed last; None if a later change might look the same."""
        fs = self._fs
        directory = fs.inodes.get(nodeid)
        if directory is None:
            return None
        attr = fs.host.identify(fs.path_fd(directory))[0]
        stamp = (attr[MTIME], attr[MTIME_NS], attr[CTIME], attr[CTIME_NS])
        if fresh and max(stamp[:2], stamp[2:]) >= self._recently():
            return None
        return stamp

    def _recently(self) -> tuple[int, int]:
        """The host's present time, as it stamps files, less what a stamp may hide."""
        host = self._fs.host
        fd = host.memory_file(b"vmsim-time")
        try:
            attr = host.fstat(fd)
        finally:
            host.close(fd)
        return divmod(attr[CTIME] * SECOND + attr[CTIME_NS] - RECENT_NS, SECOND)

    def look_again(self) -> None:
        """Drop what is not where it was found any more, and all beneath it."""
        stale = [
            nodeid for parent in self.children if not self._unchanged(parent)
            for nodeid in self._strayed(parent)
        ]
        gone: set[int] = set()
        while stale:
            nodeid = stale.pop()
            if nodeid not in gone:
                gone.add(nodeid)
                stale += self.children.pop(nodeid, ())
        if gone:
            for nodeid in gone:
                self.drop(nodeid)
            self.runs = [run for run in self.runs if gone.isdisjoint(run.ids)]

    def _unchanged(self, parent: int) -> bool:
        stamp = self._stamps.get(parent)
        try:
            return stamp is not None and stamp == self._stamp(parent, fresh=False)
        except OSError:
            return False

    def _strayed(self, parent: int) -> list[int]:
        """The children of a changed directory that are not in it under their names any more."""
        fs = self._fs
        directory = fs.inodes.get(parent)
        children = self.children[parent]
        if directory is None:
            return list(children)
        try:
            dir_fd = fs.path_fd(directory)
            numbers = {} if self._verified else self._numbers(dir_fd, len(children) * 4 + OTHERS)
        except OSError:
            return list(children)
        strayed = []
        for nodeid in children:
            inode = self.inodes[nodeid]
            # The number of a mount point is here that of the directory beneath the mount.
            same = inode.mount is directory.mount and numbers.get(inode.name) == inode.ino
            if not same and not self._is_at(inode, dir_fd):
                strayed.append(nodeid)
        return strayed

    def _numbers(self, dir_fd: int, most: int) -> dict[bytes | None, int]:
        """Inode numbers by name: one look at the directory instead of one at each file in it."""
        host = self._fs.host
        numbers: dict[bytes | None, int] = {}
        fd = open_listing(partial(host.reopen, dir_fd))
        try:
            while len(numbers) < most and (entries := host.getdents(fd, -1)):
                numbers |= {name: ino for ino, _, _, name in entries}
        finally:
            host.close(fd)
        return numbers

    def _is_at(self, inode: Inode, dir_fd: int) -> bool:
        host = self._fs.host
        assert inode.name is not None
        try:
            if host.identify_at(dir_fd, inode.name)[:3] != inode.key:
                return False
            if self._verified:
                return pack_handle(*host.file_handle_at(dir_fd, inode.name)[1:]) == inode.handle
        except OSError:
            return False
        return True

    # -- when the state has come -------------------------------------------------------------------

    def present(self, runs: list[EarlyRun], extension: Extension | None) -> Present:
        """The inodes of ``runs``, for the plan; Changed if the state has more to say of one of them."""
        ids: set[int] = set()
        parents: Counter[int] = Counter()
        for run in runs:
            ids.update(run.ids)
            parents.update(run.parents)
        if extension is not None:
            named = [entry.id for entry in extension.raw_names] + [file.id for file in extension.anonymous]
            if not ids.isdisjoint(named):
                raise Changed
        return Present(ids, parents, self._look)

    def _look(self, nodeid: int) -> tuple[int, int]:
        inode = self.inodes[nodeid]
        return inode.nlookup, inode.parent_id

    def finish(self, plan: Plan) -> None:
        """Drop what the state does not have, and take the counts of directories from it."""
        for nodeid in self.inodes.keys() - plan.ids:
            self.drop(nodeid)
        for nodeid, count in plan.counts.items():
            self.inodes[nodeid].nlookup = count

    def drop(self, nodeid: int) -> None:
        """Forget one that is not as the state says; its children are somebody else's business."""
        inode = self.inodes.pop(nodeid)
        self._fs.fds.discard(inode)
        self._fs.inodes.remove(inode)

    def keep(self, record: InodeRecord) -> bool:
        """Whether what was found is what ``record``, of the state, says; then it has its count."""
        inode = self.inodes.get(record.id)
        if inode is None or record.location != PATH:
            return False
        if (inode.parent_id, inode.name) != (record.parent, record.name):
            return False
        parent = self._fs.inodes.get(record.parent)
        if parent is None or parent.state:
            return False
        expected = record.file_handle
        if expected is not None and pack_handle(expected.handle_type, expected.handle) != inode.handle:
            return False
        inode.nlookup = record.refcount
        return True

    def replace(self, record: InodeRecord, restorer: InodeRestorer) -> None:
        """Find an inode that is not as it was; Changed if what was found beneath it hangs on that."""
        before = self.inodes.get(record.id)
        if before is None:
            restorer.one(record)
            return
        self.drop(record.id)
        needed = bool(self.children.get(record.id))
        try:
            restorer.one(record)
        except OSError as error:
            if needed:
                raise Changed from error
            raise
        after = self._fs.inodes.get(record.id)
        if needed and (after is None or (after.key, after.handle) != (before.key, before.handle)):
            raise Changed
