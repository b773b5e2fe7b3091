"""What listing a directory gives: entries as ``os.DirEntry``, and the iterator over them."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from vmsim.guest.calls.attrs import Attributes

_S_IFMT_SHIFT: Final = 12


class GuestDirEntry:
    """One entry, as ``os.DirEntry``; ``offset`` is the directory position behind it."""

    __slots__ = ("_attrs", "_directory", "_ino", "_kind", "_lstat", "_stat", "name", "offset", "path")

    def __init__(
        self, attrs: Attributes, directory: Any, name: str | bytes, ino: int, kind: int, offset: int,
    ) -> None:  # fmt: skip
        self._attrs = attrs
        self._directory = directory
        self._ino = ino
        self._kind = kind
        self._stat: os.stat_result | None = None
        self._lstat: os.stat_result | None = None
        self.name = name
        self.offset = offset
        self.path: Any = name if isinstance(directory, int) else os.path.join(directory, name)

    def inode(self) -> int:
        """The inode number."""
        return self._ino

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The attributes, asked for once."""
        if not follow_symlinks or not self.is_symlink():
            if self._lstat is None:
                self._lstat = self._ask(False)
            return self._lstat
        if self._stat is None:
            self._stat = self._ask(True)
        return self._stat

    def _ask(self, follow: bool) -> os.stat_result:
        dir_fd = self._directory if isinstance(self._directory, int) else None
        return self._attrs.stat(self.path, dir_fd=dir_fd, follow_symlinks=follow)

    def _is(self, kind: int, follow_symlinks: bool) -> bool:
        own = self._kind << _S_IFMT_SHIFT or stat.S_IFMT(self.stat(follow_symlinks=False).st_mode)
        if own != stat.S_IFLNK or not follow_symlinks:
            return own == kind
        try:
            return stat.S_IFMT(self.stat().st_mode) == kind
        except FileNotFoundError:
            return False

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory (or leads to one)."""
        return self._is(stat.S_IFDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file (or leads to one)."""
        return self._is(stat.S_IFREG, follow_symlinks)

    def is_symlink(self) -> bool:
        """Whether it is a symlink."""
        kind = self._kind << _S_IFMT_SHIFT
        if not kind:
            self._lstat = self._lstat or self._ask(False)
            kind = stat.S_IFMT(self._lstat.st_mode)
        return kind == stat.S_IFLNK

    def __fspath__(self) -> str | bytes:
        path: str | bytes = self.path
        return path

    def __repr__(self) -> str:
        return f"<GuestDirEntry {self.name!r}>"


class GuestScandir:
    """The iterator of ``scandir``: entries without ``.`` and ``..``; closes itself at the end."""

    def __init__(
        self, fd: int, read: Callable[[int], list[GuestDirEntry]], close: Callable[[int], object]
    ) -> None:
        self._fd = fd
        self._read = read
        self._close = close
        self._entries: deque[GuestDirEntry] = deque()

    def __iter__(self) -> GuestScandir:
        return self

    def __next__(self) -> GuestDirEntry:
        while not self._entries:
            if self._fd < 0:
                raise StopIteration
            batch = self._read(self._fd)
            if not batch:
                self.close()
                raise StopIteration
            self._entries.extend(entry for entry in batch if entry.name not in (".", "..", b".", b".."))
        return self._entries.popleft()

    def close(self) -> None:
        """Close the directory; may be called again."""
        fd, self._fd = self._fd, -1
        self._entries.clear()
        if fd >= 0:
            self._close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
