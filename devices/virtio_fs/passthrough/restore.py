"""Putting handles back after a migration; ``devices.virtio_fs.state`` has checked them."""

from __future__ import annotations

import errno
import os
import stat

from vmsim.errors import StateError

from .core import Core
from .files import KEPT_FLAGS, FileOps
from .handles import Handle
from .inodes import Inode


class RestoreOps:
    """The loading half of a migration; nothing here is reachable by requests."""

    def __init__(self, core: Core, files: FileOps) -> None:
        self._core = core
        self._files = files

    def restore_handle(self, fh: int, inode_id: int, flags: int, guest_flags: int | None = None) -> Handle:
        """Open a handle again with its effective ``flags``; it never creates or truncates.

        OSError if the host refuses (EBADF for what is neither file nor directory); StateError for an unknown
        inode or a taken fh. A handle that shall fail instead is made by ``restore_broken_handle``.
        """
        inode = self._handle_inode(inode_id)
        inode = self._core.require(inode.id)
        is_dir = stat.S_ISDIR(inode.mode)
        if not is_dir and not stat.S_ISREG(inode.mode):
            raise OSError(errno.EBADF, "special files are never opened")
        wanted = flags & KEPT_FLAGS & ~os.O_TRUNC
        guest = flags if guest_flags is None else guest_flags
        for asked in (wanted, guest):  # it may be opened with either, see open_inode
            if asked & os.O_ACCMODE == os.O_ACCMODE:
                raise OSError(errno.EINVAL, "no such access mode")
            if asked & os.O_ACCMODE != os.O_RDONLY:
                self._core.check_writable()
        if is_dir:
            wanted = wanted & ~os.O_ACCMODE | os.O_DIRECTORY
        self._core.handles.check_room()
        fd, effective = self._files.open_inode(inode, wanted, guest)
        try:
            return self._core.handles.restore(fh, inode, fd, effective, guest, is_dir)
        except StateError:
            self._core.host.close(fd)
            raise

    def restore_broken_handle(
        self, fh: int, inode_id: int, flags: int, error: int = errno.EIO, guest_flags: int | None = None
    ) -> Handle:
        """A handle whose every use fails with ``error``; only RELEASE works."""
        inode = self._handle_inode(inode_id)
        guest = flags if guest_flags is None else guest_flags
        handle = self._core.handles.restore(fh, inode, -1, flags, guest, bool(flags & os.O_DIRECTORY))
        handle.error = error
        return handle

    def _handle_inode(self, inode_id: int) -> Inode:
        inode = self._core.inodes.get(inode_id)
        if inode is None:
            raise StateError(f"a handle belongs to the unknown inode {inode_id}", hint="the state is damaged")
        return inode
