"""Inodes that were found before their state came: what the destination does with records that go ahead.

They are restored into the tables of the fresh server at once. When the state comes, it decides: a run of
records that stands in it byte for byte is taken as done; a record that says the same of an inode as before
keeps what was found; everything else is found anew, and what the state does not have is dropped. Before that
each directory is looked at again, so that a name that somebody else has changed meanwhile is found as late as
without all this.
"""

from __future__ import annotations

import itertools
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
from .collect_ready import in_blob
from .early import EarlyPiece
from .extension import Extension
from .records import FILE_HANDLE, PATH, FileHandle, InodeRecord
from .restore_inodes import InodeRestorer
from .restore_plan import Plan, Present, check_mount_paths

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
    """A run all of whose inodes were found; ``body`` is how it stands in the blob.

    ``parents`` are those that the blob names, with how many children.
    """

    __slots__ = ("body", "ids", "parents")

    def __init__(self, body: bytes, records: list[InodeRecord]) -> None:
        self.body = body
        self.ids = [record.id for record in records]
        self.parents = Counter(record.parent for record in records if record.location == PATH)


class Changed(Exception):
    """What hangs on an inode that is another one now: begin anew without what was found before."""


class EarlyInodes:
    """What was found beforehand in the tables of ``fs``, which must be fresh."""

    def __init__(self, fs: PassthroughFs) -> None:
        self._fs = fs
        self._mount_paths: dict[int, bytes] = {}
        self._restorer = InodeRestorer(fs, self._mount_paths, [])
        self._mounts_here: dict[int, int] = {}
        """What the source calls a mount, and what is at its place here; -1: nothing."""
        self._mounted = self._mounts_below()
        self._room = EARLY_STATE_MAX
        self._last = ROOT_ID
        self._stamps: dict[int, Stamp | None] = {}
        """Of each directory, taken before the first name in it was looked up; None: it proves nothing."""
        self._verified = False
        self._dropped: set[int] = set()
        """The inode numbers of those that were dropped."""
        self.runs: list[EarlyRun] = []
        self.inodes: dict[int, Inode] = {}
        self.children: dict[int, list[int]] = {}
        """The inodes that were found, by parent."""
        self._mount_points: list[int] = []
        """Those at which a mount begins."""

    def take(self, data: bytes) -> None:
        """Find the inodes of one piece; StreamError if it is malformed. What cannot be found waits."""
        try:
            piece = msgspec.msgpack.decode(data, type=EarlyPiece)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise StreamError(f"early state: {error}", field="early", spec=SPEC) from error
        mounts = piece.mount_paths
        if mounts is not None:
            check_mount_paths(mounts)
            if any(self._mount_paths.setdefault(mnt_id, path) != path for mnt_id, path in mounts.items()):
                raise StreamError("a mount is at two places", field="early.mount_paths", spec=SPEC)
            if not self._fs.by_handle:
                return  # each would need a descriptor of its own, which may be needed for something else
        try:
            for run in piece.runs:
                if len(run) > self._room:
                    return
                self._room -= len(run)
                self._take_run(run, by_handle=mounts is not None)
        finally:
            self._restorer.close()

    def _take_run(self, run: bytes, *, by_handle: bool) -> None:
        records, start = blob.decode_inodes(run)
        found = 0
        for record in records:
            self._check(record, by_handle)
            found += self._find(record, by_handle)
        if not records or found < len(records):
            return
        body = run[start:]
        if by_handle:
            records = list(map(in_blob, records))
            body = blob.encode_records(records)
        self.runs.append(EarlyRun(body, records))

    def _check(self, record: InodeRecord, by_handle: bool) -> None:
        name = record.name
        if by_handle and record.file_handle is None:
            raise StreamError(f"inode {record.id} has no handle", field="early.inodes", spec=SPEC)
        if record.location != PATH or not self._last < record.id <= LAST_ID or record.refcount < 1:
            raise StreamError(f"inode {record.id} cannot go ahead", field="early.inodes", spec=SPEC)
        if b"/" in name or b"\0" in name or name in (b"", b".", b"..") or len(name) > NAME_MAX:
            raise StreamError(f"{name[:80]!r} is no plain name", field="early.filename", spec=SPEC)
        self._last = record.id

    def _find(self, record: InodeRecord, by_handle: bool) -> bool:
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
        if by_handle and not self._by_handle(inode, record.file_handle):
            self.drop(record.id)
            return False
        self.children.setdefault(parent, []).append(record.id)
        directory = self._fs.inodes.get(parent)
        if directory is not None and inode.mount is not directory.mount:
            self._mount_points.append(record.id)
        self._verified = self._verified or record.file_handle is not None
        return True

    def _by_handle(self, inode: Inode, handle: FileHandle | None) -> bool:
        """Whether the handle of an inode, which is that of its name, leads to it as the blob will say."""
        return inode.mount.fd >= 0 and handle is not None and self._here(handle.mnt_id) == inode.mount.mnt_id

    def _here(self, mnt_id: int) -> int:
        """What the source calls its mount ``mnt_id``, in this process."""
        here = self._mounts_here.get(mnt_id)
        if here is None:
            try:
                here = self._restorer.mount_here(mnt_id)
            except OSError:
                here = -1
            self._mounts_here[mnt_id] = here
        return here

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
        # No directory says that something has been mounted over it.
        same = self._mounted == self._mounts_below()
        stale = [
            nodeid for parent in self.children if not same or not self._unchanged(parent)
            for nodeid in (self._strayed(parent) if same else self.children[parent])
        ]
        stale += itertools.filterfalse(self._is_mounted, self._mount_points)
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

    def _mounts_below(self) -> list[tuple[int, bytes]]:
        """What is mounted beneath the share: what else is mounted on this host changes nothing here."""
        host = self._fs.host
        share = host.path_of(self._fs.root.fd).rstrip(b"/") + b"/"
        return [(mnt_id, path) for mnt_id, path in host.mount_points() if path.startswith(share)]

    def _is_mounted(self, nodeid: int) -> bool:
        """Whether the mount at ``nodeid`` is still the one that was found.

        Its number, its place and the number of its device are given again as soon as they are free, so what
        lies there is compared by its evidence.
        """
        fs, inode = self._fs, self.inodes[nodeid]
        directory = fs.inodes.get(inode.parent_id)
        assert directory is not None
        assert inode.name is not None
        assert inode.handle is not None
        try:
            dir_fd = fs.path_fd(directory)
            same = fs.host.identify_at(dir_fd, inode.name)[:3] == inode.key
            return same and fs.evidence_at(dir_fd, inode.name, inode.handle) == inode.handle
        except OSError:
            return False

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
            if not self._verified:
                return host.identify_at(dir_fd, inode.name)[:3] == inode.key
            mnt_id, kind, raw = host.file_handle_at(dir_fd, inode.name)
        except OSError:
            return False
        return mnt_id == inode.mount.mnt_id and pack_handle(kind, raw) == inode.handle

    # -- when the state has come -------------------------------------------------------------------

    def present(
        self, runs: list[EarlyRun], extension: Extension | None, mount_paths: dict[int, bytes]
    ) -> Present:
        """The inodes of ``runs``, for the plan; Changed if the state has more to say of one of them."""
        self._compare_mounts(mount_paths, runs)
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

    def _compare_mounts(self, mount_paths: dict[int, bytes], runs: list[EarlyRun]) -> None:
        """Handles count only for mounts that are, in the state too, where they were."""
        for mnt_id, path in self._mount_paths.items():
            if mount_paths.get(mnt_id, path) != path:
                raise Changed
            here = self._mounts_here.pop(mnt_id, -1) if mnt_id not in mount_paths else -1
            if here >= 0 and any(self.inodes[each].mount.mnt_id == here for run in runs for each in run.ids):
                raise Changed

    def _look(self, nodeid: int) -> tuple[int, int]:
        inode = self.inodes[nodeid]
        return inode.nlookup, inode.parent_id

    def finish(self, plan: Plan) -> None:
        """Drop what the state does not have, and take the counts of directories from it."""
        for nodeid in self.inodes.keys() - plan.ids:
            self.drop(nodeid)
        for nodeid, count in plan.counts.items():
            self.inodes[nodeid].nlookup = count
        if self._dropped:  # what came in their place stood behind them in the index
            for inode in self._fs.inodes:
                if inode.ino in self._dropped and not inode.state:
                    inode.mount.index.setdefault(inode.ino, inode)

    def drop(self, nodeid: int) -> None:
        """Forget one that is not as the state says; its children are somebody else's business."""
        inode = self.inodes.pop(nodeid)
        self._dropped.add(inode.ino)
        self._fs.fds.discard(inode)
        self._fs.inodes.remove(inode)

    def keep(self, record: InodeRecord) -> bool:
        """Whether what was found is what ``record``, of the state, says; then it has its count."""
        inode = self.inodes.get(record.id)
        if inode is None:
            return False
        if record.location == FILE_HANDLE:
            return self._keep_by_handle(inode, record)
        if record.location != PATH:
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

    def _keep_by_handle(self, inode: Inode, record: InodeRecord) -> bool:
        handle = record.handle
        if handle is None or pack_handle(handle.handle_type, handle.handle) != inode.handle:
            return False
        if self._mounts_here.get(handle.mnt_id) != inode.mount.mnt_id or inode.mount.fd < 0:
            return False
        inode.nlookup = record.refcount
        return True

    def give_way(self, nodeid: int) -> None:
        """One that the state does not look for any more; Changed if what was found beneath hangs on it."""
        if nodeid in self.inodes:
            if self.children.get(nodeid):
                raise Changed
            self.drop(nodeid)

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
