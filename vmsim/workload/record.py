"""What the workload knows, as plain data, and the steps that keep it true."""

from __future__ import annotations

import os
import random
from typing import Final

import msgspec

from vmsim.errors import StreamError, VmsimError
from vmsim.workload.fileapi import FileApi

FILE_BYTES_MAX: Final = 16_384
FILES_MAX: Final = 40
HANDLES_MAX: Final = 24
FOLDERS_MAX: Final = 8
MASS_PER_FOLDER: Final = 1000
NAMES_SHOWN: Final = 5
BYTES_SHOWN: Final = 12
"""Of values that differ."""
TOP: Final = 0
"""The number of the scratch folder itself."""


class WorkloadError(VmsimError):
    """An operation of the workload was answered otherwise than its own record says."""


class FileRecord(msgspec.Struct):
    """A file: its bytes and its names as [folder number, name]; no names: unlinked but open."""

    data: bytes
    mode: int
    names: list[tuple[int, str]]
    renamed: int = 0


class HandleRecord(msgspec.Struct):
    """An open handle; ``pinned`` ones stay open, ``lock`` is "", "flock" or "posix"."""

    fd: int
    file: int
    flags: int
    offset: int = 0
    lock: str = ""
    pinned: bool = False

    @property
    def readable(self) -> bool:
        """Whether it may be read from."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        """Whether it may be written to."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class WorkloadState(msgspec.Struct):
    """Everything that the workload knows. ``mass`` files hold a text that their number determines.

    With ``keep_names`` no name is ever removed: for servers that lose unlinked files when they move.
    """

    seed: int
    folder: str
    mass: int = 0
    steps: int = 0
    next_number: int = 1
    files: dict[int, FileRecord] = {}
    handles: list[HandleRecord] = []
    folders: dict[int, str] = {}
    symlinks: dict[str, str] = {}
    keep_names: bool = False


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(WorkloadState)


def decode_state(data: bytes) -> WorkloadState:
    """A state that ``encode`` wrote; StreamError if it is none."""
    try:
        return _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise StreamError(f"a workload's state: {error}", field="workload") from error


def mass_path(folder: str, index: int) -> str:
    """Where the mass file ``index`` is."""
    return f"{folder}/mass{index // MASS_PER_FOLDER}/{index}"


def mass_data(index: int) -> bytes:
    """What it holds."""
    return b"inode %d\n" % index


def patched(data: bytes, offset: int, piece: bytes) -> bytes:
    """``data`` with ``piece`` at ``offset``, zeros in a gap."""
    return data[:offset].ljust(offset, b"\0") + piece + data[offset + len(piece) :]


def described(mode: int, size_bytes: int, links: int) -> str:
    """A file's attributes, to be compared and to be read."""
    return f"mode {mode & 0o7777:04o}, {size_bytes} bytes, {links} link{'s' if links != 1 else ''}"


def differing(expected: object, found: object) -> tuple[str, str]:
    """Both values for a message: of lists what is in one of them only, of bytes where they part."""
    if isinstance(expected, bytes) and isinstance(found, bytes):
        pairs = enumerate(zip(expected, found, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(len(expected), len(found)))
        return _bytes_at(expected, at), _bytes_at(found, at)
    if isinstance(expected, list) and isinstance(found, list):
        lost = [each for each in expected if each not in found]
        new = [each for each in found if each not in expected]
        if lost or new:
            return _listing(lost, len(expected)), _listing(new, len(found))
    return brief(expected), brief(found)


def _bytes_at(data: bytes, at: int) -> str:
    here = data[at : at + BYTES_SHOWN]
    return f"{len(data)} bytes, " + (f"{here!r} at {at}" if here else f"the end at {at}")


def _listing(values: list[object], of: int) -> str:
    shown = ", ".join(map(repr, values[:NAMES_SHOWN]))
    more = f" and {len(values) - NAMES_SHOWN} more" if len(values) > NAMES_SHOWN else ""
    return f"{of} names" + (f" with {shown}{more}" if values else "")


def brief(value: object) -> str:
    """A value for a message."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes {value[:12].hex()}...>"
    return value if isinstance(value, str) else repr(value)


class Bookkeeping:
    """Operations that act on the files and keep the record in step with them."""

    def __init__(self, state: WorkloadState) -> None:
        self.state = state

    def encode(self) -> bytes:
        """The state as bytes."""
        return _ENCODER.encode(self.state)

    def path(self, place: tuple[int, str]) -> str:
        """The path of a name; the scratch folder is number 0."""
        folder, name = place
        middle = "" if folder == TOP else f"/{self.state.folders[folder]}"
        return f"{self.state.folder}{middle}/{name}"

    def folder_path(self, number: int) -> str:
        """The path of a folder."""
        return self.state.folder if number == TOP else f"{self.state.folder}/{self.state.folders[number]}"

    def names_in(self, number: int) -> list[str]:
        """What a folder has to list, sorted."""
        places = [place for record in self.state.files.values() for place in record.names]
        names = [name for folder, name in places if folder == number]
        if number == TOP:
            names += [name for folder, name in self.state.folders.items() if folder != TOP]
            names += self.state.symlinks
            names += [f"mass{number}" for number in range(-(-self.state.mass // MASS_PER_FOLDER))]
        return sorted(names)

    def number(self) -> int:
        """A number that nothing else has."""
        number = self.state.next_number
        self.state.next_number += 1
        return number

    def expect(self, what: str, expected: object, found: object) -> None:
        """WorkloadError unless the answer is the one of the record."""
        if expected != found:
            recorded, answered = differing(expected, found)
            raise WorkloadError(
                f"{what} answered {answered}, and the record says {recorded}",
                seed=self.state.seed, step=self.state.steps,
            )

    def handle(self, numbers: random.Random, **wanted: bool) -> HandleRecord | None:
        """One of the handles with these attributes, if there is one."""
        fitting = [
            handle for handle in self.state.handles
            if all(getattr(handle, name) == value for name, value in wanted.items())
        ]
        return numbers.choice(fitting) if fitting else None

    def file(self, numbers: random.Random) -> int | None:
        """A file with a name. POSIX locks are lost when any handle of their file is closed: not those."""
        fragile = {handle.file for handle in self.state.handles if handle.lock == "posix"}
        named = [number for number, record in self.state.files.items() if record.names]
        fitting = [number for number in named if number not in fragile]
        return numbers.choice(fitting) if fitting else None

    def create(self, fs: FileApi, numbers: random.Random, flags: int = 0) -> HandleRecord:
        """Make a file with an open handle."""
        number = self.number()
        place = (numbers.choice(list(self.state.folders)), f"f{number}")
        flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL
        fd = fs.open(self.path(place), flags, 0o640)
        self.state.files[number] = FileRecord(b"", 0o640, [place])
        handle = HandleRecord(fd, number, flags)
        self.state.handles.append(handle)
        return handle

    def write(self, fs: FileApi, handle: HandleRecord, data: bytes) -> None:
        """Write at the handle's offset."""
        record = self.state.files[handle.file]
        if handle.flags & os.O_APPEND:
            handle.offset = len(record.data)
        self.expect(f"write to {handle.fd}", len(data), fs.write(handle.fd, data))
        record.data = patched(record.data, handle.offset, data)
        handle.offset += len(data)

    def shrink(self, fs: FileApi, handle: HandleRecord, length: int) -> None:
        """Truncate to ``length`` and go to its end."""
        fs.ftruncate(handle.fd, length)
        record = self.state.files[handle.file]
        record.data = record.data[:length].ljust(length, b"\0")
        handle.offset = fs.lseek(handle.fd, length, os.SEEK_SET)

    def drop(self, number: int) -> None:
        """Forget a file that has neither a name nor a handle."""
        if not self.state.files[number].names and all(h.file != number for h in self.state.handles):
            del self.state.files[number]

    def rename_file(self, fs: FileApi, numbers: random.Random, number: int) -> None:
        """Rename its first name to a new one, perhaps in another folder."""
        record = self.state.files[number]
        place = (numbers.choice(list(self.state.folders)), f"r{self.number()}")
        fs.rename(self.path(record.names[0]), self.path(place))
        record.names[0] = place
        record.renamed += 1

    def link(self, fs: FileApi, numbers: random.Random, number: int) -> None:
        """Give it another name."""
        record = self.state.files[number]
        place = (numbers.choice(list(self.state.folders)), f"l{self.number()}")
        fs.link(self.path(record.names[0]), self.path(place))
        record.names.append(place)

    def unlink(self, fs: FileApi, number: int, which: int) -> None:
        """Remove one of its names."""
        fs.unlink(self.path(self.state.files[number].names[which]))
        del self.state.files[number].names[which]
        self.drop(number)

    def rename_folder(self, fs: FileApi, numbers: random.Random) -> None:
        """Rename one of the folders, with all that is in it."""
        choices = [number for number in self.state.folders if number != TOP]
        if choices:
            number, name = numbers.choice(choices), f"e{self.number()}"
            fs.rename(self.folder_path(number), f"{self.state.folder}/{name}")
            self.state.folders[number] = name

    def symlink(self, fs: FileApi, numbers: random.Random) -> None:
        """Make one more symlink."""
        if len(self.state.symlinks) < FOLDERS_MAX:
            name, target = f"s{self.number()}", f"../{numbers.randrange(1 << 30)}"
            fs.symlink(target, f"{self.state.folder}/{name}")
            self.state.symlinks[name] = target
