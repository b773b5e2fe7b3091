"""What a step of the workload can be: one function and one row of OPERATIONS each.

An operation that finds nothing to do it to does nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable
from typing import Final

from vmsim.workload.fileapi import FileApi
from vmsim.workload.record import (
    FILE_BYTES_MAX,
    FILES_MAX,
    FOLDERS_MAX,
    HANDLES_MAX,
    TOP,
    Bookkeeping,
    HandleRecord,
    described,
    mass_data,
    mass_path,
    patched,
)


def do_create(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """A new file with a handle."""
    if len(work.state.files) < FILES_MAX and len(work.state.handles) < HANDLES_MAX:
        work.create(fs, numbers, numbers.choice((0, 0, os.O_APPEND)))


def do_open(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Another handle on a file."""
    number = work.file(numbers)
    if number is not None and len(work.state.handles) < HANDLES_MAX:
        flags = numbers.choice((os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND))
        fd = fs.open(work.path(work.state.files[number].names[-1]), flags)
        work.state.handles.append(HandleRecord(fd, number, flags))


def do_close(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Close a handle; the last one of an unlinked file ends that file."""
    handle = work.handle(numbers, pinned=False)
    if handle is not None:
        fs.close(handle.fd)
        work.state.handles.remove(handle)
        work.drop(handle.file)


def do_write(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Write at a handle's offset, or at the end with O_APPEND."""
    handle = work.handle(numbers, writable=True)
    if handle is None:
        return
    if max(handle.offset, len(work.state.files[handle.file].data)) > FILE_BYTES_MAX:
        work.shrink(fs, handle, numbers.randrange(2000))
    work.write(fs, handle, numbers.randbytes(numbers.randrange(1, 3000)))


def do_pwrite(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Write anywhere."""
    handle = work.handle(numbers, writable=True)
    if handle is not None and not handle.flags & os.O_APPEND:
        record = work.state.files[handle.file]
        data, offset = numbers.randbytes(numbers.randrange(1, 2000)), numbers.randrange(FILE_BYTES_MAX)
        work.expect(f"pwrite to {handle.fd}", len(data), fs.pwrite(handle.fd, data, offset))
        record.data = patched(record.data, offset, data)


def do_truncate(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Make a file shorter or longer."""
    handle = work.handle(numbers, writable=True)
    if handle is not None:
        work.shrink(fs, handle, numbers.randrange(FILE_BYTES_MAX))


def do_read(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Read from a handle's offset."""
    handle = work.handle(numbers, readable=True)
    if handle is not None:
        data, size = work.state.files[handle.file].data, numbers.randrange(4000)
        expected = data[handle.offset : handle.offset + size]
        work.expect(f"read from {handle.fd}", expected, fs.read(handle.fd, size))
        handle.offset += len(expected)


def do_pread(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Read anywhere."""
    handle = work.handle(numbers, readable=True)
    if handle is not None:
        size, offset = numbers.randrange(6000), numbers.randrange(9000)
        expected = work.state.files[handle.file].data[offset : offset + size]
        work.expect(f"pread from {handle.fd}", expected, fs.pread(handle.fd, size, offset))


def do_seek(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Move a handle's offset."""
    handle = work.handle(numbers)
    if handle is not None:
        handle.offset = numbers.randrange(9000)
        work.expect(f"lseek of {handle.fd}", handle.offset, fs.lseek(handle.fd, handle.offset, os.SEEK_SET))


def do_fsync(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Write a file back."""
    handle = work.handle(numbers)
    if handle is not None:
        fs.fsync(handle.fd)


def do_rename(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Rename a file."""
    number = work.file(numbers)
    if number is not None:
        work.rename_file(fs, numbers, number)


def do_replace(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Rename one file onto another, which is unlinked by that."""
    number, victim = work.file(numbers), work.file(numbers)
    if number is None or victim is None or number == victim:
        return
    source, target = work.state.files[number], work.state.files[victim]
    fs.rename(work.path(source.names[0]), work.path(target.names[-1]))
    source.names[0] = target.names.pop()
    source.renamed += 1
    work.drop(victim)


def do_link(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Another hard link."""
    number = work.file(numbers)
    if number is not None and len(work.state.files[number].names) < 4:
        work.link(fs, numbers, number)


def do_unlink(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Remove a name."""
    number = work.file(numbers)
    if number is not None:
        work.unlink(fs, number, numbers.randrange(len(work.state.files[number].names)))


def do_mkdir(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """A new folder."""
    if len(work.state.folders) < FOLDERS_MAX:
        number = work.number()
        fs.mkdir(f"{work.state.folder}/d{number}", 0o755)
        work.state.folders[number] = f"d{number}"


def do_rmdir(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Remove a folder, or be refused because it has something in it."""
    choices = [number for number in work.state.folders if number != TOP]
    if len(choices) < 2:
        return
    number = numbers.choice(choices)
    used = any(place[0] == number for record in work.state.files.values() for place in record.names)
    answer = 0
    try:
        fs.rmdir(work.folder_path(number))
    except OSError as error:
        answer = error.errno or 0
    work.expect(f"rmdir of {work.folder_path(number)}", errno.ENOTEMPTY if used else 0, answer)
    if not used:
        del work.state.folders[number]


def do_lock(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Take or give back an exclusive flock; at most one handle of a file has one."""
    handle = work.handle(numbers, pinned=False)
    if handle is None:
        return
    if handle.lock:
        fs.flock(handle.fd, fcntl.LOCK_UN)
        handle.lock = ""
    elif not any(other.lock for other in work.state.handles if other.file == handle.file):
        fs.flock(handle.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        handle.lock = "flock"


def do_chmod(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Change permissions."""
    number = work.file(numbers)
    if number is not None:
        record = work.state.files[number]
        record.mode = 0o600 | numbers.choice((0, 0o40, 0o44, 0o66))
        fs.chmod(work.path(record.names[0]), record.mode)


def do_stat(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Compare a file's attributes."""
    number = work.file(numbers)
    if number is not None:
        record = work.state.files[number]
        found = fs.lstat(work.path(record.names[-1]))
        facts = described(found.st_mode, found.st_size, found.st_nlink)
        recorded = described(record.mode, len(record.data), len(record.names))
        work.expect(f"lstat of file {number}", recorded, facts)


def do_mass(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Look one of the many up."""
    if work.state.mass:
        index = numbers.randrange(work.state.mass)
        found = fs.stat(mass_path(work.state.folder, index))
        work.expect(f"size of mass file {index}", len(mass_data(index)), found.st_size)


def do_list(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Compare a folder's names."""
    number = numbers.choice(list(work.state.folders))
    found = sorted(fs.listdir(work.folder_path(number)))
    work.expect(f"names in {work.folder_path(number)}", work.names_in(number), found)


def do_rename_folder(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """Rename a folder with everything in it."""
    work.rename_folder(fs, numbers)


def do_symlink(work: Bookkeeping, fs: FileApi, numbers: random.Random) -> None:
    """A new symlink."""
    if len(work.state.symlinks) < FOLDERS_MAX:
        work.symlink(fs, numbers)


Operate = Callable[[Bookkeeping, FileApi, random.Random], None]

OPERATIONS: Final[dict[str, tuple[int, Operate]]] = {
    "create": (4, do_create), "open": (4, do_open), "close": (4, do_close), "write": (10, do_write),
    "pwrite": (6, do_pwrite), "truncate": (2, do_truncate), "read": (8, do_read), "pread": (6, do_pread),
    "seek": (3, do_seek), "fsync": (1, do_fsync), "rename": (4, do_rename), "replace": (1, do_replace),
    "link": (2, do_link), "unlink": (3, do_unlink), "mkdir": (1, do_mkdir), "rmdir": (1, do_rmdir),
    "rename folder": (1, do_rename_folder), "symlink": (1, do_symlink), "lock": (3, do_lock),
    "chmod": (1, do_chmod), "stat": (4, do_stat), "mass": (4, do_mass), "list": (2, do_list),
}
"""How often each operation is drawn, and what does it."""

REMOVING: Final = ("replace", "unlink", "rmdir")
"""Those that remove names."""
