"""Does everything still hold? Every handle, offset, lock, name and byte of a workload against its record."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from vmsim.workload.fileapi import FileApi, OsFiles
from vmsim.workload.record import (
    TOP,
    FileRecord,
    HandleRecord,
    described,
    differing,
    mass_data,
    mass_path,
)
from vmsim.workload.writer import Workload

MASS_SAMPLE_MAX: Final = 20_000
PIECE: Final = 65_536


class Discrepancy(NamedTuple):
    """Something that is not as the record says."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: {self.found} instead of {self.expected}"


class Checker:
    """Collects discrepancies; ``checked`` counts what was looked at, by kind.

    ``share_dir`` is the shared directory on the host: what is on it must be the same bytes. ``peer`` is the
    same mount as another process sees it: POSIX locks must keep it out. ``host_locks``: flocks must be
    visible on the host too.
    """

    def __init__(
        self, work: Workload, fs: FileApi, share_dir: str | None = None, *, peer: FileApi | None = None,
        host_locks: bool = False,
    ) -> None:
        self.found: list[Discrepancy] = []
        self.checked = dict.fromkeys(("handles", "offsets", "locks", "names", "bytes", "mass", "host"), 0)
        self._work = work
        self._state = work.state
        self._fs = fs
        self._host = OsFiles(share_dir) if share_dir is not None else None
        self._peer = peer
        self._host_locks = host_locks

    def run(self) -> list[Discrepancy]:
        """Look at everything; an operation that fails is a discrepancy too."""
        for handle in self._state.handles:
            self._guard(f"handle {handle.fd}", self._handle, handle)
        for number, record in self._state.files.items():
            self._guard(f"file {number}", self._file, number, record)
        for number in self._state.folders:
            self._guard(f"folder {number}", self._folder, number)
        for name, target in self._state.symlinks.items():
            self._guard(f"symlink {name}", self._symlink, name, target)
        self._guard("mass files", self._mass)
        for handle in self._state.handles:
            if handle.lock:
                self._guard(f"lock of handle {handle.fd}", self._lock, handle)
        return self.found

    def _guard(self, what: str, check: Callable[..., None], *arguments: object) -> None:
        try:
            check(*arguments)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            self.found.append(Discrepancy(what, "success", f"{name} ({error})"))

    def _same(self, kind: str, what: str, expected: object, found: object) -> None:
        self.checked[kind] += 1
        if expected != found:
            self.found.append(Discrepancy(what, *differing(expected, found)))

    def _handle(self, handle: HandleRecord) -> None:
        record = self._state.files[handle.file]
        what = f"handle {handle.fd} of file {handle.file}"
        attributes = self._fs.fstat(handle.fd)
        facts = described(attributes.st_mode, attributes.st_size, attributes.st_nlink)
        self._same("handles", f"fstat of {what}", _as_recorded(record), facts)
        self._same("offsets", f"offset of {what}", handle.offset, self._fs.lseek(handle.fd, 0, os.SEEK_CUR))
        if handle.readable:
            self._same("bytes", f"bytes of {what}", record.data, contents(self._fs, handle.fd))
        if handle.writable:
            self._fs.fsync(handle.fd)

    def _file(self, number: int, record: FileRecord) -> None:
        """All names of a file, and its bytes by name: unless opening and closing it drops a POSIX lock."""
        fragile = any(handle.file == number and handle.lock == "posix" for handle in self._state.handles)
        for place in record.names:
            path = self._work.path(place)
            attributes = self._fs.lstat(path)
            facts = described(attributes.st_mode, attributes.st_size, attributes.st_nlink)
            self._same("names", f"lstat of {path}", _as_recorded(record), facts)
            if fragile:
                continue
            self._same("bytes", f"bytes of {path}", record.data, contents_at(self._fs, path))
            if self._host is not None:
                self._same("host", f"bytes of {path} on the host", record.data, contents_at(self._host, path))

    def _folder(self, number: int) -> None:
        path, names = self._work.folder_path(number), self._work.names_in(number)
        self._same("names", f"names in {path}", names, sorted(self._fs.listdir(path)))
        if self._host is not None:
            self._same("host", f"names in {path} on the host", names, sorted(self._host.listdir(path)))

    def _symlink(self, name: str, target: str) -> None:
        path = self._work.path((TOP, name))
        self._same("names", f"target of {path}", target, self._fs.readlink(path))

    def _mass(self) -> None:
        step = max(1, self._state.mass // MASS_SAMPLE_MAX)
        for index in range(0, self._state.mass, step):
            path = mass_path(self._state.folder, index)
            attributes = self._fs.lstat(path)
            facts = described(0, attributes.st_size, attributes.st_nlink)
            self._same("mass", f"is {path} a file", True, stat.S_ISREG(attributes.st_mode))
            self._same("mass", f"lstat of {path}", described(0, len(mass_data(index)), 1), facts)
            if index % (step * 100) == 0:
                self._same("bytes", f"bytes of {path}", mass_data(index), contents_at(self._fs, path))

    def _lock(self, handle: HandleRecord) -> None:
        record, what = self._state.files[handle.file], f"{handle.lock} of handle {handle.fd}"
        if not record.names:
            return  # nobody else can open it
        path = self._work.path(record.names[0])
        if handle.lock == "flock":
            self._same("locks", what, "held", flock_state(self._fs, path))
            if self._host is not None and self._host_locks:
                self._same("locks", f"{what} on the host", "held", flock_state(self._host, path))
        elif self._peer is not None:
            self._same("locks", what, "held", posix_lock_state(self._peer, path))


def _as_recorded(record: FileRecord) -> str:
    return described(record.mode, len(record.data), len(record.names))


def verify(
    work: Workload, fs: FileApi, share_dir: str | None = None, *, peer: FileApi | None = None,
    host_locks: bool = False,
) -> list[Discrepancy]:
    """What is not as the record says; empty if everything held. See :class:`Checker`."""
    return Checker(work, fs, share_dir, peer=peer, host_locks=host_locks).run()


def contents(fs: FileApi, fd: int) -> bytes:
    """All bytes of a handle's file; the offset stays."""
    data = b""
    while piece := fs.pread(fd, PIECE, len(data)):
        data += piece
    return data


def contents_at(fs: FileApi, path: str) -> bytes:
    """All bytes of a named file."""
    fd = fs.open(path, os.O_RDONLY)
    try:
        return contents(fs, fd)
    finally:
        fs.close(fd)


def flock_state(fs: FileApi, path: str) -> str:
    """``held`` if another open file description has an exclusive flock, else ``free``."""
    fd = fs.open(path, os.O_RDONLY)
    try:
        fs.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    finally:
        fs.close(fd)
    return "free"


def posix_lock_state(fs: FileApi, path: str) -> str:
    """``held`` if another process has a POSIX lock on the file, else ``free``."""
    fd = fs.open(path, os.O_RDWR)
    try:
        fs.lockf(fd, os.F_TEST, 0)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return "held"
        raise
    finally:
        fs.close(fd)
    return "free"
