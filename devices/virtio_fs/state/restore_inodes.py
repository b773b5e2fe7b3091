"""Finding the inodes of a state again: by place, by path, by file handle, or made anew."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ..passthrough.core import BIRTH
from ..passthrough.host_calls import CTIME, CTIME_NS, MODE, NLINK, SECOND, HostAttr
from ..passthrough.inodes import INVALID, NOWHERE, PINNED, STALE, Inode, Mount, pack_handle
from ..passthrough.told import Told
from .collect_content import ContentBudget
from .extension import Anonymous
from .records import FILE_HANDLE, FULL_PATH, PATH, ROOT, FileHandle, InodeRecord
from .restore_content import recreate, set_attributes
from .restore_proof import Proof, Way

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs

BIRTH_EVIDENCE = pack_handle(BIRTH, b"")
"""Asks for evidence of this sort, where the file system has no file handles."""
OUTSIDE = "its file handle leads out of the shared directory"
NO_NAME = "it is unlinked, and nothing tells that it was in the shared directory"


class Impostor(Exception):
    """The root is not what the source says that it was; no policy gets around that."""


class InodeRestorer:
    """Restores inodes into the tables of a fresh ``fs``, one at a time, parents first.

    A record's ``refcount`` is the guest's lookup count here. ``one`` raises OSError when the inode cannot be
    found. ``notes`` takes what is worth telling. The
    descriptors that are opened belong to the tables of ``fs``, apart from those that ``close`` closes.
    """

    def __init__(self, fs: PassthroughFs, mount_paths: dict[int, bytes], notes: list[str]) -> None:
        self._fs = fs
        self._host = fs.host
        self._identify_at = fs.host.identify_at
        self._file_handle_at = fs.host.file_handle_at
        self._table = fs.inodes
        self._inode_of = fs.inodes.get
        self._notes = notes
        self._mount_paths = mount_paths
        self._proof: Proof | None = None
        self._mounts: dict[tuple[int, int], Mount] = {}
        self._made: list[Anonymous] = []
        self._touched = False
        """Whether something was made in the share's root."""
        self._space = ContentBudget()
        self.unproven: dict[tuple[int, int, int], list[Inode]] = {}
        """Inodes opened by handle of which it is not known that they are in the share."""

    def close(self) -> None:
        """Close the descriptors that were only needed meanwhile."""
        if self._proof is not None:
            self._proof.close()

    def one(self, record: InodeRecord) -> None:
        """Restore one inode; OSError if it is not to be found."""
        location = record.location
        if location == PATH:
            self._path(record)
        elif location == FILE_HANDLE:
            self._by_handle(record)
        elif location == ROOT:
            self._root(record)
        elif location == FULL_PATH:
            self._full_path(self._fs.path_fd(self._fs.root), record)
        else:
            raise OSError(errno.EIO, "the source did not know where it is")

    def invalid(self, record: InodeRecord, *, stale: bool = False) -> None:
        """The guest keeps a node whose every use is EIO, or ESTALE if it was gone at the source already."""
        inode = self._table.restore(record.id, NOWHERE, 0, 0)
        inode.nlookup = record.refcount
        inode.state = STALE if stale else INVALID

    # -- by place --------------------------------------------------------------------------------

    def _root(self, record: InodeRecord) -> None:
        fs = self._fs
        if record.file_handle is not None:
            self._verify(record.file_handle, self._host.file_handle(fs.path_fd(fs.root)), root=True)
        # virtiofsd's root has one reference more than ours to begin with.
        fs.root.nlookup = max(record.refcount - 1, 1)

    def _path(self, record: InodeRecord) -> None:
        """(parent, name): nothing is opened, only looked at."""
        parent = self._inode_of(record.parent)
        if parent is None or parent.state:
            raise OSError(errno.EIO, "its parent did not survive")
        dir_fd = parent.fd
        if dir_fd < 0:
            dir_fd = self._fs.path_fd(parent)
        name = record.name
        if b"/" in name:
            self._full_path(dir_fd, record)
            return
        dev, ino, mnt_id, mode = self._identify_at(dir_fd, name)
        mount = self._mounts.get((dev, mnt_id))
        if mount is None:
            mount = self._mount_at(dir_fd, name, dev, mnt_id, mode)
        try:
            found = self._file_handle_at(dir_fd, name)
            evidence = pack_handle(found[1], found[2])
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EOVERFLOW) or record.file_handle is not None:
                raise
            evidence = self._fs.evidence_at(dir_fd, name, BIRTH_EVIDENCE)
        else:
            if record.file_handle is not None:
                self._verify(record.file_handle, found)
        inode = self._table.restore(record.id, mount, ino, mode & 0o170000)
        inode.nlookup = record.refcount
        inode.parent_id = parent.id  # the int that is there already
        inode.name = name
        inode.handle = evidence

    def _verify(self, expected: FileHandle, found: tuple[int, int, bytes], *, root: bool = False) -> None:
        """The file handle must be the one that the source saw; the mount id may differ."""
        if (expected.handle_type, expected.handle) != found[1:]:
            if root:
                raise Impostor("the shared directory is not the one of the source")
            raise OSError(errno.ESTALE, "another file has taken its place (file handle)")

    def _mount_at(self, dir_fd: int, name: bytes, dev: int, mnt_id: int, mode: int) -> Mount:
        """The record of a mount that is met for the first time."""
        fs = self._fs
        if stat.S_ISDIR(mode):
            fd = self._host.open_beneath(dir_fd, name, os.O_PATH | os.O_DIRECTORY)
            try:
                mount = fs.mount_of(dev, mnt_id, fd, mode)
            finally:
                self._host.close(fd)
        else:
            mount = self._table.mount(dev, mnt_id)
        self._mounts[dev, mnt_id] = mount
        return mount

    def _full_path(self, dir_fd: int, record: InodeRecord) -> None:
        """A path of several components, strictly beneath ``dir_fd``; its inode keeps the descriptor."""
        fd = self._host.open_beneath(dir_fd, record.name, os.O_PATH)
        try:
            if record.file_handle is not None:
                self._verify(record.file_handle, self._host.file_handle(fd))
        except OSError:
            self._host.close(fd)
            raise
        self._keep(record, fd)

    def _keep(self, record: InodeRecord, fd: int, *, pinned: bool = False) -> None:
        """An inode that owns ``fd``, since nothing else finds it again."""
        try:
            attr, dev, mnt_id, _ = self._host.identify(fd)
            mode = attr[MODE]
            mount = self._fs.mount_of(dev, mnt_id, fd, mode)
            inode = self._table.restore(record.id, mount, attr[0], mode & 0o170000)
        except BaseException:
            self._host.close(fd)
            raise
        inode.nlookup = record.refcount
        self._own(inode, fd, pinned=pinned)

    def _own(self, inode: Inode, fd: int, *, pinned: bool) -> None:
        """Give ``inode`` its descriptor; when there is no room, both go and the OSError stays."""
        try:
            self._fs.fds.insert(inode, fd)
        except OSError:
            self._table.remove(inode)
            raise
        if pinned:
            inode.hot = PINNED

    # -- by handle and anew ------------------------------------------------------------------------

    def _by_handle(self, record: InodeRecord) -> None:
        """What a file handle leads to; what is not known to be in the share then is ``unproven``."""
        handle = record.handle
        if handle is None:
            raise OSError(errno.EINVAL, "no file handle")
        host = self._host
        way = self._way(handle.mnt_id)
        flags = os.O_PATH | os.O_NOFOLLOW
        fd = host.open_handle(way.through, handle.handle_type, handle.handle, flags)
        try:
            attr, dev, mnt_id, _ = host.identify(fd)
            mode = attr[MODE]
            assert self._proof is not None
            in_share = self._proof.holds(way, fd, (dev, attr[0], mnt_id), mode)
            linked = attr[NLINK] > 0
            if not in_share and (not linked or stat.S_ISDIR(mode)):
                # It has no name by which it could be found, or no way up.
                raise OSError(errno.EXDEV, OUTSIDE if linked else NO_NAME)
            # A handle can be made such that it fits a later file with this number as well.
            _, kind, raw = host.file_handle(fd)
            mount = self._mounts.get((dev, way.mnt_id))
            if mount is None:
                mount = self._fs.mount_of(dev, way.mnt_id, way.fd, stat.S_IFDIR)
                self._mounts[dev, way.mnt_id] = mount
            inode = self._table.restore(record.id, mount, attr[0], mode & 0o170000)
        finally:
            host.close(fd)
        inode.nlookup = record.refcount
        inode.handle = pack_handle(kind, raw)
        if not in_share:
            self.unproven.setdefault(inode.key, []).append(inode)
        # What has a name is opened by handle again whenever it is needed; what has none dies unless held.
        if not linked or not self._fs.by_handle or mount.fd < 0:
            self._own(inode, host.open_handle(way.fd, kind, raw, flags), pinned=not linked)

    def mount_here(self, mnt_id: int) -> int:
        """The id here of what the source calls its mount ``mnt_id``; OSError if there is none."""
        return self._way(mnt_id).mnt_id

    def _way(self, mnt_id: int) -> Way:
        path = self._mount_paths.get(mnt_id)
        if path is None:
            raise OSError(errno.ENOENT, f"the source did not say where its mount {mnt_id} is")
        if self._proof is None:
            self._proof = Proof(self._host, self._fs.path_fd(self._fs.root))
        return self._proof.way(path)

    def anonymous(self, record: InodeRecord, file: Anonymous) -> None:
        """An unlinked file whose contents came along; ``finish`` gives it its attributes."""
        self._touched = self._touched or not stat.S_ISREG(file.mode)
        self._keep(record, recreate(self._fs, file, self._notes), pinned=True)
        self._made.append(file)

    def finish(self) -> None:
        """Owner, mode and the rest of what was made anew, now that all handles are open.

        Its mode may be one that lets nobody open it again: a descriptor outlives that, opening does not.
        """
        for file in self._made:
            inode = self._inode_of(file.id)
            if inode is not None and inode.fd >= 0:
                set_attributes(self._host, inode.fd, file, self._space, self._notes)
                if file.ino:
                    attr = self._host.fstat(inode.fd)
                    since_ns = attr[CTIME] * SECOND + attr[CTIME_NS]
                    self._fs.tell(file.id, Told(file.ino, since_ns, file.ctime_ns, file.birth_ns))

    def hide_change(self, before: HostAttr) -> None:
        """The guest is told the ctime that the share's root had ``before`` something was made in it."""
        if self._touched:
            self._fs.keep_root_ctime(before)
