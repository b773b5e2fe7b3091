"""What files are: stat, statx, statvfs, owners, modes, times, access, extended attributes."""

from __future__ import annotations

import operator
import os
import platform
import struct
from collections.abc import Callable
from typing import Any, Final

from vmsim.host.fs.libc import AT_EACCESS, AT_EMPTY_PATH, FACCESSAT2, fail, ffi, libc, syscall

STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000
STATX_ATTR_MOUNT_ROOT: Final = 0x2000
STATX_FLAGS: Final = 0x6000
"""AT_STATX_FORCE_SYNC and AT_STATX_DONT_SYNC."""

AT_NAME: Final = 0x900
"""AT_SYMLINK_NOFOLLOW and AT_NO_AUTOMOUNT."""

STATX_TYPE: Final = 0x001
STATX_INO: Final = 0x100
STATX_IDENTITY: Final = struct.Struct("<28xH2xQ96xIIQ")
"""Of struct statx only mode, ino, dev and mnt_id."""

STATX: Final = struct.Struct("<IIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIIIQ")
STAT_X86_64: Final = struct.Struct("<QQQIIIII4xQqqqqqqqq")
"""struct stat: dev, ino, nlink, mode, uid, gid, padding (0), half of rdev, size, blksize, blocks, times.

The low half of rdev is what the kernel's new_encode_dev makes, and the padding serves as fuse_attr's flags.
"""

_unpack_stat = STAT_X86_64.unpack_from
_unpack_statx = STATX.unpack_from
_makedev = os.makedev
_attr_order: Callable[[tuple[int, ...]], tuple[int, ...]] = operator.itemgetter(
    1, 8, 10, 11, 13, 15, 12, 14, 16, 3, 2, 4, 5, 7, 9, 6
)
_fstat = libc.fstat
_statx = libc.statx

_faccessat2 = syscall("faccessat2")


class LinuxAttributes:
    """Reads and changes attributes; see ``Attributes`` of the seam."""

    fstat: Callable[[int], tuple[int, ...]]
    """The attributes in the order of fuse_attr."""

    _link: bytes
    """The symbolic link of a descriptor: ``_link % fd``."""

    def __init__(self) -> None:
        self._stat: Any = ffi.new("char[256]")
        self._stat_bytes = memoryview(ffi.buffer(self._stat))
        self._times: Any = ffi.new("long long[4]")
        # struct stat differs between machines; struct statx does not, but costs a little more.
        self.fstat = self._fstat_x86_64 if platform.machine() == "x86_64" else self._fstat_any

    def _fstat_any(self, fd: int) -> tuple[int, ...]:
        return self.identify(fd)[0]

    def _fstat_x86_64(self, fd: int) -> tuple[int, ...]:
        if _fstat(fd, self._stat):
            fail("fstat")
        return _attr_order(_unpack_stat(self._stat_bytes))

    def identify(self, fd: int) -> tuple[tuple[int, ...], int, int, bool]:
        """(attributes, dev, mnt_id, is_mount_root) of an open file."""
        if _statx(fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID, self._stat):
            fail("statx")
        return self._identity()

    def identify_name(self, dir_fd: int, name: bytes) -> tuple[tuple[int, ...], int, int, bool]:
        """(attributes, dev, mnt_id, is_mount_root) of a name."""
        if _statx(dir_fd, name, AT_NAME, STATX_BASIC_STATS | STATX_MNT_ID, self._stat):
            fail("statx")
        return self._identity()

    def _identity(self) -> tuple[tuple[int, ...], int, int, bool]:
        (
            _, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, _, atime, atimensec, _, _,
            ctime, ctimensec, mtime, mtimensec, rdev_major, rdev_minor, dev_major, dev_minor, mnt_id,
        ) = _unpack_statx(self._stat_bytes)  # fmt: skip
        rdev = 0
        if rdev_major or rdev_minor:
            rdev = ((rdev_minor & 0xFF) | rdev_major << 8 | (rdev_minor & ~0xFF) << 12) & 0xFFFFFFFF
        return (
            ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid,
            rdev, blksize, 0,
        ), _makedev(dev_major, dev_minor), mnt_id, attributes & STATX_ATTR_MOUNT_ROOT != 0  # fmt: skip

    def identify_at(self, dir_fd: int, name: bytes) -> tuple[int, int, int, int]:
        """(dev, ino, mnt_id, mode) of a name."""
        if _statx(dir_fd, name, AT_NAME, STATX_TYPE | STATX_INO | STATX_MNT_ID, self._stat):
            fail("statx")
        mode, ino, dev_major, dev_minor, mnt_id = STATX_IDENTITY.unpack_from(self._stat_bytes)
        return os.makedev(dev_major, dev_minor), ino, mnt_id, mode

    def birth(self, fd: int) -> tuple[int, int]:
        """The birth time in (s, ns) of an open file."""
        return self._birth(fd, b"", AT_EMPTY_PATH)

    def birth_at(self, dir_fd: int, name: bytes) -> tuple[int, int]:
        """The birth time in (s, ns) of a name."""
        return self._birth(dir_fd, name, AT_NAME)

    def _birth(self, fd: int, name: bytes, flags: int) -> tuple[int, int]:
        if _statx(fd, name, flags, STATX_BTIME, self._stat):
            fail("statx")
        values = STATX.unpack_from(self._stat_bytes)
        return (values[13], values[14]) if values[0] & STATX_BTIME else (0, 0)

    def statx(self, fd: int, flags: int, mask: int) -> tuple[int, ...]:
        """mask .. dev_minor."""
        if _statx(fd, b"", AT_EMPTY_PATH | flags & STATX_FLAGS, mask & 0x7FFFFFFF, self._stat):
            fail("statx")
        return STATX.unpack_from(self._stat_bytes)[:-1]

    def fstatvfs(self, fd: int) -> tuple[int, ...]:
        """blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
        s = os.fstatvfs(fd)
        return (
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax, s.f_frsize,
        )  # fmt: skip

    def chmod(self, fd: int, mode: int) -> None:
        """Change the mode of what ``fd`` refers to."""
        os.chmod(self._link % fd, mode)

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """Change the owner; -1 leaves it."""
        if libc.fchownat(fd, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, AT_EMPTY_PATH):
            fail("fchownat")

    def utimens(self, fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        """Set the times."""
        times = self._times
        times[0], times[1] = atime
        times[2], times[3] = mtime
        if libc.utimensat(fd, b"", times, AT_EMPTY_PATH):
            fail("utimensat")

    def access(self, fd: int, mask: int) -> None:
        """EACCES unless the effective ids may do ``mask``."""
        if _faccessat2(FACCESSAT2, fd, b"", mask, AT_EACCESS | AT_EMPTY_PATH):
            fail("faccessat2")

    def getxattr(self, fd: int, name: bytes) -> bytes:
        """An extended attribute; the path keeps it working on what must not be opened."""
        return os.getxattr(self._link % fd, name)

    def setxattr(self, fd: int, name: bytes, value: bytes, flags: int) -> None:
        """Set it."""
        os.setxattr(self._link % fd, name, value, flags)

    def listxattr(self, fd: int) -> list[bytes]:
        """All names."""
        return [os.fsencode(name) for name in os.listxattr(self._link % fd)]

    def removexattr(self, fd: int, name: bytes) -> None:
        """Remove it."""
        os.removexattr(self._link % fd, name)
