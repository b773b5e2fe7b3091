"""Putting inodes and handles back after a migration; ``devices.virtio_fs.state`` has checked them."""

from __future__ import annotations

import errno
import os
import stat

from vmsim.errors import StateError

from .core import MODE
from .files import KEPT_FLAGS, FileOps
from .handles import Handle
from .inodes import INVALID, NOWHERE, ROOT_ID, Inode


class RestoreOps(FileOps):
    """The loading half of a migration; nothing here is reachable by requests."""

    def restore_inode(
        self, nodeid: int, nlookup: int, fd: int | None, parent_id: int = 0, name: bytes | None = None
    ) -> Inode:
        """An inode with its old nodeid; ``fd`` (O_PATH, ours from now on) refers to it, None: it is invalid.

        The root exists already and only gets its count. StateError if the nodeid is taken; OSError from the
        host.
        """
        if nodeid == ROOT_ID:
            if fd is not None:
                self.host.close(fd)
            self.root.nlookup = nlookup
            return self.root
        if fd is None:
            inode = self.inodes.restore(nodeid, NOWHERE, 0, 0)
            inode.state = INVALID
        else:
            inode = self._restore_valid(nodeid, fd)
        inode.nlookup = nlookup
        inode.parent_id = parent_id
        inode.name = name
        return inode

    def _restore_valid(self, nodeid: int, fd: int) -> Inode:
        try:
            attr, dev, mnt_id, _ = self.host.identify(fd)
            mode = stat.S_IFMT(attr[MODE])
            inode = self.inodes.restore(nodeid, self.mount_of(dev, mnt_id, fd, mode), attr[0], mode)
        except BaseException:
            self.host.close(fd)
            raise
        try:
            self.fds.insert(inode, fd)
        except OSError:
            self.inodes.remove(inode)
            raise
        return inode

    def restore_handle(self, fh: int, inode_id: int, flags: int, guest_flags: int | None = None) -> Handle:
        """Open a handle again with its effective ``flags``; it never creates or truncates.

        OSError if the host refuses (EBADF for what is neither file nor directory); StateError for an unknown
        inode or a taken fh. A handle that shall fail instead is made by ``restore_broken_handle``.
        """
        inode = self._handle_inode(inode_id)
        inode = self.require(inode.id)
        is_dir = stat.S_ISDIR(inode.mode)
        if not is_dir and not stat.S_ISREG(inode.mode):
            raise OSError(errno.EBADF, "special files are never opened")
        wanted = flags & KEPT_FLAGS & ~os.O_TRUNC
        if wanted & os.O_ACCMODE == os.O_ACCMODE:
            raise OSError(errno.EINVAL, "no such access mode")
        if wanted & os.O_ACCMODE != os.O_RDONLY:
            self.check_writable()
        if is_dir:
            wanted = wanted & ~os.O_ACCMODE | os.O_DIRECTORY
        self.handles.check_room()
        guest = flags if guest_flags is None else guest_flags
        fd, effective = self.open_inode(inode, wanted, guest)
        try:
            return self.handles.restore(fh, inode, fd, effective, guest, is_dir)
        except StateError:
            self.host.close(fd)
            raise

    def restore_broken_handle(
        self, fh: int, inode_id: int, flags: int, error: int = errno.EIO, guest_flags: int | None = None
    ) -> Handle:
        """A handle whose every use fails with ``error``; only RELEASE works."""
        inode = self._handle_inode(inode_id)
        guest = flags if guest_flags is None else guest_flags
        handle = self.handles.restore(fh, inode, -1, flags, guest, bool(flags & os.O_DIRECTORY))
        handle.error = error
        return handle

    def _handle_inode(self, inode_id: int) -> Inode:
        inode = self.inodes.get(inode_id)
        if inode is None:
            raise StateError(f"a handle belongs to the unknown inode {inode_id}", hint="the state is damaged")
        return inode
