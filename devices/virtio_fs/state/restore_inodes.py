"""Finding the inodes of a state again: by place, by path, by file handle, or made anew."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ..passthrough.core import BIRTH
from ..passthrough.inodes import INVALID, NOWHERE, PINNED, STALE, Inode, Mount, pack_handle
from .extension import Anonymous
from .records import FILE_HANDLE, FULL_PATH, PATH, ROOT, FileHandle, InodeRecord
from .restore_content import recreate, set_attributes

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs

MODE = 9
NLINK = 10
BIRTH_EVIDENCE = pack_handle(BIRTH, b"")
"""Asks for evidence of this sort, where the file system has no file handles."""


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
        self._mount_fds: dict[int, int] = {}
        self._mounts: dict[tuple[int, int], Mount] = {}
        self._share = b""
        self._made: list[Anonymous] = []
        self.unproven: dict[tuple[int, int, int], Inode] = {}
        """Inodes opened by handle of which it is not known that they are in the share."""

    def close(self) -> None:
        """Close the descriptors that were only needed meanwhile."""
        while self._mount_fds:
            self._host.close(self._mount_fds.popitem()[1])

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
        inode.parent_id = record.parent
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
        handle = record.handle
        if handle is None:
            raise OSError(errno.EINVAL, "no file handle")
        host = self._host
        mount_fd = self._mount_fds.get(handle.mnt_id, -1)
        if mount_fd < 0:
            mount_fd = self._open_mount(handle.mnt_id)
        fd = host.open_handle(mount_fd, handle.handle_type, handle.handle, os.O_PATH | os.O_NOFOLLOW)
        kept = False
        try:
            attr, dev, mnt_id, _ = host.identify(fd)
            in_share = host.path_of(fd).startswith(self._share)
            mode = attr[MODE]
            linked = attr[NLINK] > 0
            if not in_share and not linked:
                raise OSError(errno.EXDEV, "it was unlinked outside of the shared directory")
            mount = self._mounts.get((dev, mnt_id))
            if mount is None:
                mount = self._mounts[dev, mnt_id] = self._fs.mount_of(dev, mnt_id, fd, mode)
            inode = self._table.restore(record.id, mount, attr[0], mode & 0o170000)
            inode.nlookup = record.refcount
            inode.handle = pack_handle(handle.handle_type, handle.handle)
            # What has a name is opened by handle again whenever it is needed; what has none dies unless held.
            kept = not linked or not self._fs.by_handle or mount.fd < 0
            if kept:
                self._own(inode, fd, pinned=not linked)
        finally:
            if not kept:
                host.close(fd)
        if not in_share:
            self.unproven[inode.key] = inode

    def _open_mount(self, mnt_id: int) -> int:
        path = self._mount_paths.get(mnt_id)
        if path is None:
            raise OSError(errno.ENOENT, f"the source did not say where its mount {mnt_id} is")
        fs = self._fs
        flags = os.O_RDONLY | os.O_DIRECTORY
        root_fd = fs.path_fd(fs.root)
        if not self._share:
            self._share = self._host.path_of(root_fd).rstrip(b"/") + b"/"
        if path == b".":
            fd = self._host.reopen(root_fd, flags)
        else:
            fd = self._host.open_beneath(root_fd, path, flags)
        self._mount_fds[mnt_id] = fd
        return fd

    def anonymous(self, record: InodeRecord, file: Anonymous) -> None:
        """An unlinked file whose contents came along; ``finish`` gives it its attributes."""
        self._keep(record, recreate(self._fs, file, self._notes), pinned=True)
        self._made.append(file)

    def finish(self) -> None:
        """Owner, mode and the rest of what was made anew, now that all handles are open.

        Its mode may be one that lets nobody open it again: a descriptor outlives that, opening does not.
        """
        for file in self._made:
            inode = self._inode_of(file.id)
            if inode is not None and inode.fd >= 0:
                set_attributes(self._host, inode.fd, file, self._notes)
