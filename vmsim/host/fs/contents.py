"""What is in files: data, allocation, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Sequence
from typing import Final

from vmsim.host.fs.libc import fail, libc

F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
FLOCK: Final = struct.Struct("hhxxxxqqixxxx")
"""struct flock: type, whence, start, len, pid."""


class LinuxContents:
    """Data in and out; see ``Contents`` of the seam."""

    preadv = staticmethod(os.preadv)
    pwritev = staticmethod(os.pwritev)
    ftruncate = staticmethod(os.ftruncate)
    lseek = staticmethod(os.lseek)

    def appendv(self, fd: int, views: Sequence[memoryview]) -> int:
        """Write at the end, wherever that is by now."""
        return os.pwritev(fd, views, 0, os.RWF_APPEND)

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
        if libc.fallocate(fd, mode, offset, length):
            fail("fallocate")

    def copy_file_range(self, fd_in: int, off_in: int, fd_out: int, off_out: int, length: int) -> int:
        """copy_file_range(2)."""
        return os.copy_file_range(fd_in, fd_out, length, off_in, off_out)

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
