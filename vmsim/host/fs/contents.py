"""What is in files: data, allocation, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable, Sequence
from resource import RLIM_INFINITY, RLIMIT_FSIZE, getrlimit
from typing import Final, ParamSpec, TypeVar

from vmsim.host.fs.libc import fail, libc
from vmsim.host.quiet import without_signal

F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
FLOCK: Final = struct.Struct("hhxxxxqqixxxx")
"""struct flock: type, whence, start, len, pid."""

P = ParamSpec("P")
T = TypeVar("T")


def _growing(call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """``call(*args)``, which may make a file larger than this process may: EFBIG, and not SIGXFSZ.

    The limit is looked at each time, since the program may set it at any time, and that is cheap.
    """
    if getrlimit(RLIMIT_FSIZE)[0] == RLIM_INFINITY:
        return call(*args, **more)
    return without_signal(call, *args, **more)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, offset, length):
        fail("fallocate")


class LinuxContents:
    """Data in and out; see ``Contents`` of the seam."""

    preadv = staticmethod(os.preadv)
    lseek = staticmethod(os.lseek)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Write at a place."""
        return _growing(os.pwritev, fd, views, offset)

    def appendv(self, fd: int, views: Sequence[memoryview]) -> int:
        """Write at the end, wherever that is by now."""
        return _growing(os.pwritev, fd, views, 0, os.RWF_APPEND)

    def ftruncate(self, fd: int, size: int) -> None:
        """Set the size."""
        _growing(os.ftruncate, fd, size)

    def fsync(self, fd: int, datasync: bool) -> None:
        """Write it to the disk."""
        if datasync:
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def flush(self, fd: int) -> None:
        """Close a duplicate."""
        os.close(os.dup(fd))

    def syncfs(self, fd: int) -> None:
        """Write the whole file system to the disk."""
        if libc.syncfs(fd):
            fail("syncfs")

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        if mode >= 1 << 31:
            raise OSError(errno.EOPNOTSUPP, "fallocate")
        _growing(_fallocate, fd, mode, offset, length)

    def copy_file_range(self, fd_in: int, off_in: int, fd_out: int, off_out: int, length: int) -> int:
        """copy_file_range(2)."""
        return _growing(os.copy_file_range, fd_in, fd_out, length, off_in, off_out)

    def ioctl(self, fd: int, cmd: int, data: bytes, size: int) -> tuple[int, bytes]:
        """The result, and the argument as the call left it."""
        buffer = bytearray(max(size, len(data)))
        buffer[: len(data)] = data
        result = fcntl.ioctl(fd, cmd, buffer, True)
        return result, bytes(buffer[:size])

    def poll(self, fd: int, events: int) -> int:
        """The events that are ready now."""
        poller = select.poll()
        poller.register(fd, events)
        return next((ready for _, ready in poller.poll(0)), 0)

    def flock(self, fd: int, operation: int) -> None:
        """flock(2), never waiting."""
        fcntl.flock(fd, operation | fcntl.LOCK_NB)

    def set_lock(self, fd: int, kind: int, start: int, length: int) -> None:
        """F_OFD_SETLK."""
        fcntl.fcntl(fd, F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))

    def get_lock(self, fd: int, kind: int, start: int, length: int) -> tuple[int, int, int, int] | None:
        """F_OFD_GETLK."""
        answer = fcntl.fcntl(fd, F_OFD_GETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        kind, _, start, length, pid = FLOCK.unpack(answer)
        return None if kind == fcntl.F_UNLCK else (kind, start, length, pid)
