"""Reading directories: getdents, listdir, scandir, walk."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

from vmsim.errors import PeerError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.client import decode_direntplus, decode_dirents
from vmsim.guest.calls.attrs import AttrCalls
from vmsim.guest.calls.context import Path, fail, names_file

DIRENTS_BYTES: Final = 32768
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_S_IFMT_SHIFT: Final = 12


class GuestDirEntry:
    """One entry, as ``os.DirEntry``; ``offset`` is the directory position behind it."""

    __slots__ = ("_directory", "_fs", "_ino", "_kind", "_lstat", "_stat", "name", "offset", "path")

    def __init__(
        self, fs: DirCalls, directory: Any, name: str | bytes, ino: int, kind: int, offset: int,
    ) -> None:  # fmt: skip
        self._fs = fs
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
        return self._fs.stat(self.path, dir_fd=dir_fd, follow_symlinks=follow)

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

    def __init__(self, fs: DirCalls, fd: int, directory: Any, binary: bool) -> None:
        self._fs = fs
        self._fd = fd
        self._directory = directory
        self._binary = binary
        self._entries: deque[GuestDirEntry] = deque()

    def __iter__(self) -> GuestScandir:
        return self

    def __next__(self) -> GuestDirEntry:
        while not self._entries:
            if self._fd < 0:
                raise StopIteration
            batch = self._fs.getdents(self._fd, binary=self._binary, directory=self._directory)
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
            self._fs.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DirCalls(AttrCalls):
    """Directories' content."""

    def getdents(
        self, fd: int, size: int = DIRENTS_BYTES, *, binary: bool = False, directory: Any = None
    ) -> list[GuestDirEntry]:
        """The next entries (with ``.`` and ``..``) from the offset on, which moves; [] at the end.

        The offset may be taken and set with ``lseek``; an entry's ``offset`` is the position behind it.
        """
        file = self._usable(fd)
        if not file.directory:
            fail(errno.ENOTDIR)
        with self._held(file) as number:
            entries = self._read_dir(number, min(size, self.kernel.max_read))
            where = fd if directory is None else directory
            found = [
                GuestDirEntry(self, where, name if binary else os.fsdecode(name), ino, kind, offset)
                for name, ino, kind, offset in entries
            ]
            if found:
                self.kernel.state.files[number].offset = found[-1].offset
        return found

    def _read_dir(self, number: int, size: int) -> list[tuple[bytes, int, int, int]]:
        """READDIR or READDIRPLUS at the directory's offset: (name, inode number, type, position behind)."""
        gpa, size = self._buffer(size)
        kernel = self.kernel
        file = kernel.state.files[number]
        plus = self._use_plus(kernel.state.session.flags, file.offset, file.readdir_plus)
        opcode = op.READDIRPLUS if plus else op.READDIR
        nodeid, args = file.nodeid, (file.fh, file.offset, size, 0, 0, file.flags, 0)
        version, names_version = kernel.state.attr_version, kernel.state.names_version
        request = self._call(opcode, nodeid, args, writes=[(gpa, size)], owned=[(gpa, size)])
        kernel = self.kernel
        body = kernel.memory.read(gpa, min(request.written, size))
        kernel.free_owned(request)
        kernel.state.files[number].readdir_plus = False
        try:
            if plus:
                return self._take_plus(nodeid, body, version, names_version)
            return [(name, dirent.ino, dirent.type, dirent.off) for dirent, name in decode_dirents(body)]
        except PeerError:
            fail(errno.EIO)

    def _use_plus(self, flags: int, offset: int, wanted: bool) -> bool:
        """Whether attributes are asked for as well: always, or (AUTO) in the first part of a listing."""
        if not flags & init_flags.DO_READDIRPLUS or self.kernel.dentries is None:
            return False
        return not flags & init_flags.READDIRPLUS_AUTO or offset == 0 or wanted

    def _take_plus(
        self, parent: int, body: bytes, version: int, names_version: int
    ) -> list[tuple[bytes, int, int, int]]:
        """Enter the nodes of a READDIRPLUS reply into the caches; every one counts as looked up."""
        kernel = self.kernel
        found = []
        for entry, dirent, name in decode_direntplus(body):
            found.append((name, dirent.ino, dirent.type, dirent.off))
            if not entry.nodeid:
                continue
            try:
                node = kernel.apply_entry(parent, name, entry, version, names_version)
            except OSError:
                continue
            kernel.nodes.drop(node.id)
        return found

    @names_file
    def scandir(self, path: Path | int = ".") -> GuestScandir:
        """Iterate over a directory's entries, as ``os.scandir``."""
        if isinstance(path, int):
            return GuestScandir(self, self._reopen(path), path, False)
        directory = os.fspath(path)
        return GuestScandir(self, self.open(path, OPEN_DIRECTORY), directory, isinstance(directory, bytes))

    def _reopen(self, fd: int) -> int:
        """A descriptor of its own for an open directory, at the beginning."""
        file = self._usable(fd)
        if not file.directory:
            fail(errno.ENOTDIR)
        self.kernel.nodes.hold(file.nodeid)
        return self._open_held(file.nodeid, OPEN_DIRECTORY)

    def listdir(self, path: Path | int = ".") -> list[Any]:
        """The names in a directory, of the type of ``path``."""
        with self.scandir(path) as entries:
            return [entry.name for entry in entries]

    def walk(
        self, top: Path, topdown: bool = True, onerror: Any = None, followlinks: bool = False
    ) -> Iterator[tuple[Any, list[Any], list[Any]]]:
        """Walk a tree as ``os.walk``: (directory, names of directories, names of others)."""
        path: Any = os.fspath(top)
        try:
            with self.scandir(path) as listing:
                entries = list(listing)
        except OSError as error:
            if onerror is not None:
                onerror(error)
            return
        dirs = [entry.name for entry in entries if entry.is_dir()]
        others = [entry.name for entry in entries if not entry.is_dir()]
        links = {entry.name for entry in entries if entry.is_symlink()}
        if topdown:
            yield path, dirs, others
        for name in dirs:
            if followlinks or name not in links:
                yield from self.walk(os.path.join(path, name), topdown, onerror, followlinks)
        if not topdown:
            yield path, dirs, others
