"""Attributes: GETATTR, SETATTR, STATX, ACCESS, STATFS, SYNCFS, READLINK."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from vmsim.fuse.abi import flags as f
from vmsim.fuse.abi.requests import SetattrIn
from vmsim.fuse.filesystem import AttrReply, Context, FileSystem, StatfsReply, StatxReply, TryAgain

from .core import INVALID_ID, Core
from .inodes import HOT, OK, Inode
from .reach import Reach
from .xattr import drop_capability

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
STATX_ASKED: Final = 0xFFF
"""STATX_BASIC_STATS and STATX_BTIME: what the protocol has room for."""

LEASED: Final = "another process of the host holds a lease"
_OMIT: Final = (0, UTIME_OMIT)
_NOW: Final = (0, UTIME_NOW)


class AttrOps(FileSystem):
    """Attributes of nodes."""

    def __init__(self, core: Core, reach: Reach) -> None:
        self._core = core
        self._reach = reach

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> AttrReply:
        """GETATTR."""
        if fh is not None:
            handle = self._core.handles.get(fh)
            if handle is None or handle.inode_id != nodeid or handle.error:
                handle = self._core.handles.require(fh, nodeid)
            fd = handle.fd
        else:
            inode = self._core.inodes.get(nodeid)
            if inode is None or inode.state != OK:
                inode = self._core.require(nodeid)
            fd = inode.fd
            if fd >= 0:
                inode.hot |= HOT
            else:
                fd = self._reach.path_fd(inode)
        attr = self._core.fstat(fd)
        if self._core.translates:
            attr = self._core.guest_attr(nodeid, attr)
        return (self._core.validity_s, 0, 0, *attr)

    def _fd_of(self, nodeid: int, fh: int | None) -> int:
        """The handle's descriptor, or else the node's."""
        if fh is not None:
            return self._core.require_handle(fh, nodeid).fd
        return self._reach.path_fd(self._core.require(nodeid))

    def setattr(self, ctx: Context, nodeid: int, fh: int | None, attr: SetattrIn) -> AttrReply:
        """SETATTR: mode, owner, size, times, in this order (a change of owner clears mode bits)."""
        self._core.check_writable()
        valid = attr.valid
        inode = self._core.require(nodeid)
        if valid & f.FATTR_SIZE and not stat.S_ISREG(inode.mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EINVAL, "no size to set")
        if valid & f.FATTR_MODE:
            self._core.host.chmod(self._fd_of(nodeid, fh), attr.mode & 0o7777)
        if valid & (f.FATTR_UID | f.FATTR_GID):
            self._chown(self._fd_of(nodeid, fh), attr)
            if not stat.S_ISDIR(inode.mode):
                drop_capability(self._core, self._fd_of(nodeid, fh))
        if valid & f.FATTR_SIZE:
            self._truncate(nodeid, fh, attr.size)
            if valid & f.FATTR_KILL_SUIDGID:
                self._core.drop_set_ids(self._fd_of(nodeid, fh))
        if valid & (f.FATTR_ATIME | f.FATTR_MTIME):
            atime = _time(valid, f.FATTR_ATIME, f.FATTR_ATIME_NOW, attr.atime, attr.atimensec)
            mtime = _time(valid, f.FATTR_MTIME, f.FATTR_MTIME_NOW, attr.mtime, attr.mtimensec)
            self._core.host.utimens(self._fd_of(nodeid, fh), atime, mtime)
        return self.getattr(ctx, nodeid, fh)

    def _chown(self, fd: int, attr: SetattrIn) -> None:
        uid = gid = -1
        if attr.valid & f.FATTR_UID:
            uid = self._core.uids.to_host(attr.uid)
        if attr.valid & f.FATTR_GID:
            gid = self._core.gids.to_host(attr.gid)
        if INVALID_ID in (uid, gid):
            raise OSError(errno.EINVAL, "no such id")
        self._core.host.chown(fd, uid, gid)

    def _truncate(self, nodeid: int, fh: int | None, size: int) -> None:
        if size < 0 or size >> 63:
            raise OSError(errno.EINVAL, "no such size")
        if fh is not None:
            handle = self._core.require_handle(fh, nodeid)
            if handle.flags & os.O_ACCMODE != os.O_RDONLY:
                self._core.host.ftruncate(handle.fd, size)
                drop_capability(self._core, handle.fd)
                return
        fd = self._open_briefly(self._core.require(nodeid), os.O_WRONLY)
        try:
            self._core.host.ftruncate(fd, size)
            drop_capability(self._core, fd)
        finally:
            self._core.host.close(fd)

    def statx(self, ctx: Context, nodeid: int, fh: int | None, flags: int, mask: int) -> StatxReply:
        """STATX."""
        (
            mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
            atime, atimensec, btime, btimensec, ctime, ctimensec, mtime, mtimensec, *devices,
        ) = self._core.host.statx(self._fd_of(nodeid, fh), flags, mask & STATX_ASKED)  # fmt: skip
        if self._core.told:
            ino = self._core.told.number(nodeid, ino)
            ctime, ctimensec = self._core.told.ctime(nodeid, ctime, ctimensec)
            btime, btimensec = self._core.told.birth(nodeid, btime, btimensec)
        return (
            self._core.validity_s, 0, 0, b"", mask & STATX_ASKED, blksize, attributes, nlink,
            self._core.uids.to_guest(uid), self._core.gids.to_guest(gid), mode, 0, ino, size, blocks,
            attributes_mask,
            atime, atimensec, 0, btime, btimensec, 0, ctime, ctimensec, 0, mtime, mtimensec, 0, *devices, b"",
        )  # fmt: skip

    def access(self, ctx: Context, nodeid: int, mask: int) -> None:
        """ACCESS with the caller's ids; its supplementary groups are not known here."""
        if mask & ~(os.R_OK | os.W_OK | os.X_OK):
            raise OSError(errno.EINVAL, "no such access")
        inode = self._core.require(nodeid)
        if mask & os.W_OK and not stat.S_ISCHR(inode.mode):
            self._core.check_writable()
        fd = self._reach.path_fd(inode)
        self._core.as_caller(ctx, False, lambda: self._core.host.access(fd, mask))

    def statfs(self, ctx: Context, nodeid: int) -> StatfsReply:
        """STATFS."""
        return self._core.host.fstatvfs(self._reach.path_fd(self._core.require(nodeid)))

    def syncfs(self, ctx: Context, nodeid: int) -> None:
        """SYNCFS of the file system that the node lies in; only what can be opened can be synced."""
        inode = self._core.require(nodeid)
        if inode.mount.fd >= 0:
            self._core.host.syncfs(inode.mount.fd)
            return
        if not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode)):
            raise OSError(errno.EBADF, "special files are never opened")
        fd = self._open_briefly(inode, os.O_RDONLY)
        try:
            self._core.host.syncfs(fd)
        finally:
            self._core.host.close(fd)

    def _open_briefly(self, inode: Inode, access: int) -> int:
        try:
            return self._core.host.reopen(self._reach.path_fd(inode), access | os.O_NONBLOCK)
        except BlockingIOError:
            raise TryAgain(errno.EAGAIN, LEASED) from None

    def readlink(self, ctx: Context, nodeid: int) -> bytes:
        """READLINK."""
        inode = self._core.require(nodeid)
        if not stat.S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, "not a symlink")
        return self._core.host.readlink(self._reach.path_fd(inode))


def _time(valid: int, bit: int, now_bit: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if valid & now_bit:
        return _NOW
    return (seconds, nanoseconds) if valid & bit else _OMIT
