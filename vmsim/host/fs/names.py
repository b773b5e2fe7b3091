"""Changing and reading directories."""

from __future__ import annotations

import os
import stat
import struct
from typing import Any, Final

from vmsim.host.fs.libc import AT_FDCWD, AT_SYMLINK_FOLLOW, fail, ffi, libc
from vmsim.host.fs.making import LinuxMaking

DIRENT: Final = struct.Struct("<QqHB")
DIRENT_HEADER: Final = 19
DIRENTS_SIZE: Final = 32768


class LinuxNames(LinuxMaking):
    """Names in directories; see ``Names`` of the seam."""

    def __init__(self) -> None:
        self._dirents: Any = ffi.new("char[]", DIRENTS_SIZE)
        self._dirents_bytes = memoryview(ffi.buffer(self._dirents))

    def mkdir(self, dir_fd: int, name: bytes, mode: int, umask: int) -> None:
        """Make a directory."""
        first, mode = self.allowed(dir_fd, mode, umask)
        os.mkdir(name, first, dir_fd=dir_fd)
        self.complete_name(dir_fd, name, stat.S_IFDIR | mode, os.rmdir)

    def mknod(self, dir_fd: int, name: bytes, mode: int, rdev: int, umask: int) -> None:
        """Make a node."""
        device = os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00)
        mode = mode if stat.S_IFMT(mode) else stat.S_IFREG | mode
        first, mode = self.allowed(dir_fd, mode, umask)
        os.mknod(name, first, device, dir_fd=dir_fd)
        self.complete_name(dir_fd, name, mode, os.unlink)

    def symlink(self, target: bytes, dir_fd: int, name: bytes) -> None:
        """Make a symlink."""
        os.symlink(target, name, dir_fd=dir_fd)

    def link(self, fd: int, dir_fd: int, name: bytes) -> None:
        """Another name for what ``fd`` refers to."""
        if libc.linkat(AT_FDCWD, self._link % fd, dir_fd, name, AT_SYMLINK_FOLLOW):
            fail("linkat")

    def unlink(self, dir_fd: int, name: bytes) -> None:
        """Remove a name."""
        os.unlink(name, dir_fd=dir_fd)

    def rmdir(self, dir_fd: int, name: bytes) -> None:
        """Remove a directory."""
        os.rmdir(name, dir_fd=dir_fd)

    def rename(self, dir_fd: int, name: bytes, new_dir_fd: int, new_name: bytes, flags: int) -> None:
        """renameat2."""
        if libc.renameat2(dir_fd, name, new_dir_fd, new_name, flags):
            fail("renameat2")

    def readlink(self, fd: int) -> bytes:
        """The target of a symlink."""
        return os.readlink(b"", dir_fd=fd)

    def getdents(self, fd: int, position: int) -> list[tuple[int, int, int, bytes]]:
        """(ino, next position, DT_ type, name) of some entries."""
        if position >= 0:
            os.lseek(fd, position, os.SEEK_SET)
        size = libc.getdents64(fd, self._dirents, DIRENTS_SIZE)
        if size < 0:
            fail("getdents64")
        raw = bytes(self._dirents_bytes[:size])
        entries = []
        at = 0
        header = DIRENT.unpack_from
        while at < size:
            ino, following, length, kind = header(raw, at)
            name = at + DIRENT_HEADER
            entries.append((ino, following, kind, raw[name : raw.index(0, name)]))
            at += length
        return entries
