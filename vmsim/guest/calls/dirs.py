"""Reading directories: getdents, listdir, scandir, walk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, Final

from vmsim.errors import PeerError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.client import decode_direntplus, decode_dirents
from vmsim.guest.calls.attrs import Attributes
from vmsim.guest.calls.context import Path, ProcessContext, fail, names_file
from vmsim.guest.calls.dir_entries import GuestDirEntry, GuestScandir
from vmsim.guest.calls.opening import Opening

DIRENTS_BYTES: Final = 32768
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Directories:
    """Directories' content."""

    def __init__(self, ctx: ProcessContext, opening: Opening, attrs: Attributes) -> None:
        self._ctx = ctx
        self._opening = opening
        self._attrs = attrs

    def getdents(
        self, fd: int, size: int = DIRENTS_BYTES, *, binary: bool = False, directory: Any = None
    ) -> list[GuestDirEntry]:
        """The next entries (with ``.`` and ``..``) from the offset on, which moves; [] at the end.

        The offset may be taken and set with ``lseek``; an entry's ``offset`` is the position behind it.
        """
        file = self._ctx.usable(fd)
        if not file.directory:
            fail(errno.ENOTDIR)
        with self._ctx.held(file) as number:
            entries = self._read_dir(number, min(size, self._ctx.kernel.max_read))
            where = fd if directory is None else directory
            found = [
                GuestDirEntry(self._attrs, where, name if binary else os.fsdecode(name), ino, kind, offset)
                for name, ino, kind, offset in entries
            ]
            if found:
                self._ctx.kernel.state.files[number].offset = found[-1].offset
        return found

    def _read_dir(self, number: int, size: int) -> list[tuple[bytes, int, int, int]]:
        """READDIR or READDIRPLUS at the directory's offset: (name, inode number, type, position behind)."""
        gpa, size = self._ctx.buffer(size)
        kernel = self._ctx.kernel
        file = kernel.state.files[number]
        plus = self._use_plus(kernel.state.session.flags, file.offset, file.readdir_plus)
        opcode = op.READDIRPLUS if plus else op.READDIR
        nodeid, args = file.nodeid, (file.fh, file.offset, size, 0, 0, file.flags, 0)
        version, names_version = kernel.state.attr_version, kernel.state.names_version
        request = self._ctx.call(opcode, nodeid, args, writes=[(gpa, size)], owned=[(gpa, size)])
        kernel = self._ctx.kernel
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
        if not flags & init_flags.DO_READDIRPLUS or self._ctx.kernel.dentries is None:
            return False
        return not flags & init_flags.READDIRPLUS_AUTO or offset == 0 or wanted

    def _take_plus(
        self, parent: int, body: bytes, version: int, names_version: int
    ) -> list[tuple[bytes, int, int, int]]:
        """Enter the nodes of a READDIRPLUS reply into the caches; every one counts as looked up."""
        kernel = self._ctx.kernel
        found = []
        for entry, dirent, name in decode_direntplus(body):
            found.append((name, dirent.ino, dirent.type, dirent.off))
            if not entry.nodeid or name in (b".", b".."):
                continue  # not looked up, whatever the server says of them
            try:
                node = kernel.inodes.apply_entry(parent, name, entry, version, names_version)
            except OSError:
                continue
            kernel.nodes.drop(node.id)
        return found

    @names_file
    def scandir(self, path: Path | int = ".") -> GuestScandir:
        """Iterate over a directory's entries, as ``os.scandir``."""
        if isinstance(path, int):
            return self._iterate(self._reopen(path), path, binary=False)
        directory = os.fspath(path)
        fd = self._opening.open(path, OPEN_DIRECTORY)
        return self._iterate(fd, directory, binary=isinstance(directory, bytes))

    def _iterate(self, fd: int, directory: Any, *, binary: bool) -> GuestScandir:
        """Over the entries behind ``fd``, which the iterator closes."""

        def read(fd: int) -> list[GuestDirEntry]:
            return self.getdents(fd, binary=binary, directory=directory)

        return GuestScandir(fd, read, self._opening.close)

    def _reopen(self, fd: int) -> int:
        """A descriptor of its own for an open directory, at the beginning."""
        file = self._ctx.usable(fd)
        if not file.directory:
            fail(errno.ENOTDIR)
        self._ctx.kernel.nodes.hold(file.nodeid)
        return self._opening.open_held(file.nodeid, OPEN_DIRECTORY)

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
