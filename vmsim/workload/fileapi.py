"""The part of Python's ``os`` that models and workloads drive, and the host's own ``os`` in that form."""

from __future__ import annotations

import fcntl
import os
from typing import Protocol


class StatResult(Protocol):
    """What is looked at in a stat result."""

    @property
    def st_mode(self) -> int:
        """Type and permissions."""
        ...

    @property
    def st_ino(self) -> int:
        """The inode number."""
        ...

    @property
    def st_size(self) -> int:
        """Bytes."""
        ...

    @property
    def st_nlink(self) -> int:
        """Names."""
        ...


class FileApi(Protocol):
    """Functions with the names and semantics of ``os``; paths are absolute within what is shared.

    ``flock`` is that of ``fcntl``. Failures are OSError.
    """

    def open(self, path: str, flags: int, mode: int = 0o777, /) -> int: ...  # noqa: D102
    def close(self, fd: int, /) -> None: ...  # noqa: D102
    def read(self, fd: int, n: int, /) -> bytes: ...  # noqa: D102
    def write(self, fd: int, data: bytes, /) -> int: ...  # noqa: D102
    def pread(self, fd: int, n: int, offset: int, /) -> bytes: ...  # noqa: D102
    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int: ...  # noqa: D102
    def lseek(self, fd: int, pos: int, how: int, /) -> int: ...  # noqa: D102
    def fstat(self, fd: int, /) -> StatResult: ...  # noqa: D102
    def stat(self, path: str, /) -> StatResult: ...  # noqa: D102
    def lstat(self, path: str, /) -> StatResult: ...  # noqa: D102
    def ftruncate(self, fd: int, length: int, /) -> None: ...  # noqa: D102
    def truncate(self, path: str, length: int, /) -> None: ...  # noqa: D102
    def fsync(self, fd: int, /) -> None: ...  # noqa: D102
    def mkdir(self, path: str, mode: int = 0o777, /) -> None: ...  # noqa: D102
    def rmdir(self, path: str, /) -> None: ...  # noqa: D102
    def unlink(self, path: str, /) -> None: ...  # noqa: D102
    def rename(self, src: str, dst: str, /) -> None: ...  # noqa: D102
    def link(self, src: str, dst: str, /) -> None: ...  # noqa: D102
    def symlink(self, src: str, dst: str, /) -> None: ...  # noqa: D102
    def readlink(self, path: str, /) -> str | bytes: ...  # noqa: D102
    def listdir(self, path: str, /) -> list[str]: ...  # noqa: D102
    def chmod(self, path: str, mode: int, /) -> None: ...  # noqa: D102
    def setxattr(self, path: str, attribute: str, value: bytes, /) -> None: ...  # noqa: D102
    def getxattr(self, path: str, attribute: str, /) -> bytes: ...  # noqa: D102
    def listxattr(self, path: str, /) -> list[str]: ...  # noqa: D102
    def removexattr(self, path: str, attribute: str, /) -> None: ...  # noqa: D102
    def lockf(self, fd: int, cmd: int, length: int, /) -> None: ...  # noqa: D102
    def flock(self, fd: int, operation: int, /) -> None: ...  # noqa: D102


class OsFiles:
    """The host's ``os`` beneath a directory: ``/a`` is ``root``/a."""

    close = staticmethod(os.close)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    lseek = staticmethod(os.lseek)
    fstat = staticmethod(os.fstat)
    ftruncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    lockf = staticmethod(os.lockf)
    flock = staticmethod(fcntl.flock)

    def __init__(self, root: str) -> None:
        self._root = root

    def _at(self, path: str) -> str:
        return self._root + path

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        """As of ``os``."""
        return os.open(self._at(path), flags, mode)

    def stat(self, path: str) -> os.stat_result:
        """As of ``os``."""
        return os.stat(self._at(path))

    def lstat(self, path: str) -> os.stat_result:
        """As of ``os``."""
        return os.lstat(self._at(path))

    def truncate(self, path: str, length: int) -> None:
        """As of ``os``."""
        os.truncate(self._at(path), length)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """As of ``os``."""
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        """As of ``os``."""
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        """As of ``os``."""
        os.unlink(self._at(path))

    def rename(self, src: str, dst: str) -> None:
        """As of ``os``."""
        os.rename(self._at(src), self._at(dst))

    def link(self, src: str, dst: str) -> None:
        """As of ``os``."""
        os.link(self._at(src), self._at(dst))

    def symlink(self, src: str, dst: str) -> None:
        """As of ``os``; the target stays as it is."""
        os.symlink(src, self._at(dst))

    def readlink(self, path: str) -> str:
        """As of ``os``."""
        return os.readlink(self._at(path))

    def listdir(self, path: str) -> list[str]:
        """As of ``os``."""
        return os.listdir(self._at(path))

    def chmod(self, path: str, mode: int) -> None:
        """As of ``os``."""
        os.chmod(self._at(path), mode)

    def setxattr(self, path: str, attribute: str, value: bytes) -> None:
        """As of ``os``."""
        os.setxattr(self._at(path), attribute, value)

    def getxattr(self, path: str, attribute: str) -> bytes:
        """As of ``os``."""
        return os.getxattr(self._at(path), attribute)

    def listxattr(self, path: str) -> list[str]:
        """As of ``os``."""
        return os.listxattr(self._at(path))

    def removexattr(self, path: str, attribute: str) -> None:
        """As of ``os``."""
        os.removexattr(self._at(path), attribute)
