"""Open files: OPEN, READ, WRITE, FLUSH, RELEASE, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE, IOCTL, POLL."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from vmsim.fuse.abi import flags as f
from vmsim.fuse.filesystem import Context, Deferred, FileSystem, OpenReply, TryAgain, Views
from vmsim.limits import FUSE_COPY_MAX

from .attrs import LEASED
from .core import INVALID_ID, Core
from .inodes import Inode
from .locks import LockOps
from .reach import NO_MORE_FDS, Reach
from .xattr import drop_capability

IOV_MAX: Final = 1024
"""Pieces of one transfer (UIO_MAXIOV of Linux)."""

Transfer: TypeAlias = Callable[[int, Sequence[memoryview], int], int]

KEPT_FLAGS: Final = (
    os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NONBLOCK | os.O_NOATIME | os.O_DIRECT
)
"""The guest's open flags that reach the host. O_APPEND does not, unless nothing else opens the file: see
``write`` and ``open_inode``."""


class Ioctl(NamedTuple):
    """A request that is passed on: number, bytes that go in and come out, whether it changes things."""

    cmd: int
    size_in: int
    size_out: int
    changes: bool


IOCTLS: Final = {
    row.cmd: row
    for row in (
        Ioctl(0x80086601, 0, 4, False),  # FS_IOC_GETFLAGS; it says long and means int
        Ioctl(0x40086602, 4, 0, True),  # FS_IOC_SETFLAGS
        Ioctl(0x80046601, 0, 4, False),  # FS_IOC32_GETFLAGS
        Ioctl(0x40046602, 4, 0, True),  # FS_IOC32_SETFLAGS
        Ioctl(0x801C581F, 0, 28, False),  # FS_IOC_FSGETXATTR
        Ioctl(0x401C5820, 28, 0, True),  # FS_IOC_FSSETXATTR
        Ioctl(0x80087601, 0, 8, False),  # FS_IOC_GETVERSION
        Ioctl(0x80047601, 0, 4, False),  # FS_IOC32_GETVERSION
    )
}
"""What the host file system may be asked for; everything else is ENOTTY."""


class FileOps(FileSystem):
    """Handles of regular files."""

    def __init__(self, core: Core, reach: Reach, locking: LockOps) -> None:
        self._core = core
        self._reach = reach
        self._locking = locking

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> OpenReply:
        """OPEN; special files are never opened (EBADF)."""
        inode = self._core.require(nodeid)
        if not stat.S_ISREG(inode.mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(inode.mode) else errno.EBADF, "not a regular file")
        self._core.handles.check_room()
        wanted = self.effective_flags(flags)
        if wanted & os.O_TRUNC:
            self._core.check_emptying(inode)
        fd, effective = self.open_inode(inode, wanted, flags)
        if wanted & os.O_TRUNC:
            try:
                if self._truncation_kills(ctx, open_flags):
                    self._core.drop_set_ids(fd)
                drop_capability(self._core, fd)
            except BaseException:
                self._core.host.close(fd)
                raise
        handle = self._core.handles.add(inode, fd, effective & ~os.O_TRUNC, flags, False)
        reply_flags = self.open_reply_flags(False)
        if effective & os.O_APPEND:
            reply_flags = reply_flags & ~f.FOPEN_KEEP_CACHE | f.FOPEN_DIRECT_IO
        return handle.id, reply_flags, 0

    def _truncation_kills(self, ctx: Context, open_flags: int) -> bool:
        """Whether set-id bits go with the content.

        With HANDLE_KILLPRIV_V2 Linux says so; without, it leaves all of an O_TRUNC to us, and then they go
        where somebody known who is not user 0 asks for it.
        """
        if open_flags & f.OPEN_KILL_SUIDGID:
            return True
        return not self._core.killpriv and ctx.uid not in (0, INVALID_ID)

    def effective_flags(self, flags: int) -> int:
        """The flags for the host: the writeback cache reads through handles that are open for writing."""
        access = flags & os.O_ACCMODE
        if access == os.O_ACCMODE:
            raise OSError(errno.EINVAL, "no such access mode")
        if access != os.O_RDONLY or flags & os.O_TRUNC:
            self._core.check_writable()
        flags &= KEPT_FLAGS
        if not self._core.options.preserve_noatime:
            flags &= ~os.O_NOATIME
        if not self._core.options.direct_io:
            flags &= ~os.O_DIRECT
        if self._core.writeback and access == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags

    def open_inode(self, inode: Inode, wanted: int, guest_flags: int) -> tuple[int, int]:
        """Open a regular file or directory again; the descriptor and the flags that it really got.

        What is tried where the host refuses is what the guest asked for, where we would have liked it
        otherwise: no O_RDWR for the writeback cache, and O_APPEND, without which a file that may only be
        appended to (chattr +a) opens to nobody. Such a handle bypasses the guest's cache, whose pages would
        be appended whole.
        """
        path_fd = self._reach.path_fd(inode)
        try:
            return self._reopen(path_fd, wanted), wanted
        except PermissionError as error:
            refused = error
        plain = wanted & ~os.O_ACCMODE | guest_flags & os.O_ACCMODE
        for flags in (plain, wanted | guest_flags & os.O_APPEND, plain | guest_flags & os.O_APPEND):
            if flags == wanted:
                continue
            try:
                return self._reopen(path_fd, flags), flags
            except PermissionError:
                pass
        raise refused

    def _reopen(self, path_fd: int, flags: int) -> int:
        try:
            return self._core.host.reopen(path_fd, flags)
        except BlockingIOError:
            if flags & os.O_NONBLOCK:
                raise
            raise TryAgain(errno.EAGAIN, LEASED) from None
        except OSError as error:
            if error.errno not in NO_MORE_FDS:
                raise
            raise OSError(errno.ENFILE, "too many open files") from None

    def open_reply_flags(self, is_dir: bool) -> int:
        """FOPEN_ flags by cache policy."""
        cache = self._core.options.cache
        if is_dir:
            return f.FOPEN_CACHE_DIR | f.FOPEN_KEEP_CACHE if cache in ("metadata", "always") else 0
        if cache in ("never", "metadata"):
            return f.FOPEN_DIRECT_IO
        return f.FOPEN_KEEP_CACHE if cache == "always" else 0

    # -- data ------------------------------------------------------------------------------------

    def read(
        self, ctx: Context, nodeid: int, fh: int, offset: int, views: Views,
        flags: int, lock_owner: int | None,
    ) -> int:  # fmt: skip
        """READ."""
        handle = self._core.handles.get(fh)
        if handle is None or handle.inode_id != nodeid or handle.error:
            handle = self._core.require_handle(fh, nodeid)
        try:
            if len(views) <= IOV_MAX:
                return self._core.host.preadv(handle.fd, views, offset)
            return _in_parts(self._core.host.preadv, handle.fd, views, offset)
        except OverflowError:
            raise OSError(errno.EINVAL, "offset out of range") from None

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, views: Views, size: int,
        write_flags: int, flags: int, lock_owner: int | None,
    ) -> int:  # fmt: skip
        """WRITE.

        An O_APPEND of the guest is honoured write by write, and never for pages of its cache: a descriptor
        that was opened with it would append whatever is written anywhere. WRITE_KILL_SUIDGID counts whatever
        was negotiated: Linux says it of direct writes always, and leaves these to us alone.
        """
        handle = self._core.handles.get(fh)
        if handle is None or handle.inode_id != nodeid or handle.error:
            handle = self._core.require_handle(fh, nodeid)
        fd = handle.fd
        call: Transfer = self._core.host.pwritev
        if handle.flags & os.O_APPEND:
            if write_flags & f.WRITE_CACHE:
                raise OSError(errno.EPERM, "the file may only be appended to")
        elif flags & os.O_APPEND and not write_flags & f.WRITE_CACHE and not self._core.writeback:
            call = self._append
        try:
            if handle.flags & os.O_ACCMODE != os.O_RDONLY:
                if write_flags & f.WRITE_KILL_SUIDGID:
                    self._core.drop_set_ids(fd)
                if self._core.mapped_capability is not None:
                    drop_capability(self._core, fd)
            return call(fd, views, offset) if len(views) <= IOV_MAX else _in_parts(call, fd, views, offset)
        except OverflowError:
            raise OSError(errno.EINVAL, "offset out of range") from None

    def _append(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        return self._core.host.appendv(fd, views)

    def flush(self, ctx: Context, nodeid: int, fh: int, lock_owner: int) -> None:
        """FLUSH: the owner's POSIX locks end, and errors of a close are told."""
        handle = self._core.require_handle(fh, nodeid)
        self._locking.release_locks(handle.inode, lock_owner)
        self._core.host.flush(handle.fd)

    def release(
        self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int
    ) -> None:
        """RELEASE: the descriptor is closed, and with it its flock ends."""
        handle = self._core.handles.get(fh)
        if handle is None or handle.inode_id != nodeid:
            raise OSError(errno.EBADF, "no such handle of this node")
        self._core.handles.remove(handle)
        self._locking.end_handle_locks(handle)
        if handle.fd >= 0:
            inode = self._core.inodes.get(nodeid)
            if inode is not None and inode.fd >= 0:
                self._core.host.close(handle.fd)  # not the last one, so nothing is freed
            else:
                self._core.close_file(handle.fd)
        self._locking.retry_stale()

    # -- the rest --------------------------------------------------------------------------------

    def fsync(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        """FSYNC."""
        self._core.host.fsync(self._core.require_handle(fh, nodeid).fd, datasync)

    def fallocate(self, ctx: Context, nodeid: int, fh: int, offset: int, length: int, mode: int) -> None:
        """FALLOCATE."""
        fd = self._core.require_handle(fh, nodeid).fd
        try:
            self._core.host.fallocate(fd, mode, offset, length)
        except OverflowError:
            raise OSError(errno.EFBIG, "out of range") from None
        self._changed(ctx, fd)

    def _changed(self, ctx: Context, fd: int) -> None:
        """The content was changed by a request that cannot say what becomes of set-id bits.

        With HANDLE_KILLPRIV_V2 Linux leaves them to us all the same. Of the caller's capabilities we know
        only that user 0 has them, and where id-mapped mounts are allowed not even who it is.
        """
        if self._core.killpriv and ctx.uid:
            self._core.drop_set_ids(fd)
        drop_capability(self._core, fd)

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """LSEEK; a directory's position belongs to READDIR (EINVAL)."""
        handle = self._core.require_handle(fh, nodeid)
        if handle.is_dir:
            raise OSError(errno.EINVAL, "a directory")
        try:
            return self._core.host.lseek(handle.fd, offset, whence)
        except OverflowError:
            raise OSError(errno.EINVAL, "out of range") from None

    def copy_file_range(
        self, ctx: Context, nodeid_in: int, fh_in: int, off_in: int,
        nodeid_out: int, fh_out: int, off_out: int, length: int, flags: int,
    ) -> int:  # fmt: skip
        """COPY_FILE_RANGE."""
        if flags:
            raise OSError(errno.EINVAL, "no flags are defined")
        source = self._core.require_handle(fh_in, nodeid_in)
        target = self._core.require_handle(fh_out, nodeid_out)
        try:
            length = min(length, FUSE_COPY_MAX)  # in one turn; whoever wants more asks again
            copied = self._core.host.copy_file_range(source.fd, off_in, target.fd, off_out, length)
        except OverflowError:
            raise OSError(errno.EINVAL, "offset out of range") from None
        self._changed(ctx, target.fd)
        return copied

    def ioctl(
        self, ctx: Context, nodeid: int, fh: int, flags: int, cmd: int, arg: int, data: bytes, out_size: int
    ) -> tuple[int, bytes]:
        """IOCTL: those of IOCTLS."""
        handle = self._core.require_handle(fh, nodeid)
        row = IOCTLS.get(cmd)
        if row is None or flags & f.IOCTL_UNRESTRICTED:
            raise OSError(errno.ENOTTY, "not passed on")
        if row.changes:
            self._core.check_writable()
        if len(data) < row.size_in or out_size < row.size_out:
            raise OSError(errno.EINVAL, "too short")
        return self._core.host.ioctl(handle.fd, cmd, data[: row.size_in], row.size_out)

    def poll(
        self, ctx: Context, nodeid: int, fh: int, kh: int, flags: int, events: int,
        done: Callable[[int | OSError], None],
    ) -> int | Deferred:  # fmt: skip
        """POLL: regular files and directories are always ready, so nothing waits."""
        return self._core.host.poll(self._core.require_handle(fh, nodeid).fd, events & 0xFFFF)


def _in_parts(call: Transfer, fd: int, views: Views, offset: int) -> int:
    """One transfer of more pieces than the kernel takes at once; it ends where the kernel stops early."""
    done = 0
    for at in range(0, len(views), IOV_MAX):
        part = views[at : at + IOV_MAX]
        count = call(fd, part, offset + done)
        done += count
        if count < sum(map(len, part)):
            break
    return done
