"""A guest program that only reads: for directories in which nothing may change.

    reader = Reader.start(fs, seed=1, files=200)
    reader.step(fs); reader = Reader(decode_reader(reader.encode())); reader.verify(fs)

It remembers what it saw first (size and a digest of each piece) and compares everything later with that.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
from typing import Final

import msgspec

from vmsim.errors import StreamError
from vmsim.workload.checks import Discrepancy, contents, contents_at
from vmsim.workload.fileapi import FileApi, OsFiles
from vmsim.workload.record import WorkloadError, differing

HANDLES: Final = 16
PIECE: Final = 65_536
COMPARED_BYTES_MAX: Final = 8 << 20


class SeenFile(msgspec.Struct):
    """A file of the share: its size, and the digests of the pieces that were read, by offset."""

    name: bytes
    size: int
    pieces: dict[int, bytes] = {}

    @property
    def path(self) -> str:
        """Its path as Python has it."""
        return os.fsdecode(self.name)


class ReadHandle(msgspec.Struct):
    """An open handle on file number ``file``."""

    fd: int
    file: int
    offset: int = 0


class ReaderState(msgspec.Struct):
    """Everything that the reader knows."""

    seed: int
    steps: int = 0
    files: list[SeenFile] = []
    handles: list[ReadHandle] = []
    listings: dict[bytes, list[bytes]] = {}


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(ReaderState)


def decode_reader(data: bytes) -> ReaderState:
    """A state that ``encode`` wrote; StreamError if it is none."""
    try:
        return _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise StreamError(f"a reader's state: {error}", field="workload") from error


class Reader:
    """Reads a piece, stats a file or lists a folder per step, and compares with what it saw before."""

    def __init__(self, state: ReaderState) -> None:
        self.state = state

    @classmethod
    def start(cls, fs: FileApi, seed: int, files: int = 200) -> Reader:
        """Find up to ``files`` regular files, folder by folder, and open some of them."""
        reader = cls(ReaderState(seed))
        folders = ["/"]
        while folders and len(reader.state.files) < files:
            reader._look_into(fs, folders.pop(0), folders, files)
        numbers = random.Random(f"{seed}/reader")
        chosen = list(enumerate(reader.state.files))
        for number, seen in numbers.sample(chosen, min(HANDLES, len(chosen))):
            reader.state.handles.append(ReadHandle(fs.open(seen.path, os.O_RDONLY), number))
        return reader

    def _look_into(self, fs: FileApi, folder: str, folders: list[str], limit: int) -> None:
        try:
            names = sorted(fs.listdir(folder))
        except OSError:
            return  # not for us, or gone already
        self.state.listings[os.fsencode(folder)] = [os.fsencode(name) for name in names]
        for name in names:
            if len(self.state.files) >= limit:
                return
            path = f"{folder.rstrip('/')}/{name}"
            try:
                attributes = fs.lstat(path)
            except OSError:
                continue
            if stat.S_ISDIR(attributes.st_mode):
                folders.append(path)
            elif stat.S_ISREG(attributes.st_mode) and _readable(fs, path):
                self.state.files.append(SeenFile(os.fsencode(path), attributes.st_size))

    def encode(self) -> bytes:
        """The state as bytes."""
        return _ENCODER.encode(self.state)

    def step(self, fs: FileApi) -> str:
        """Do one operation; its name. WorkloadError if the answer differs from what was seen before."""
        numbers = random.Random(f"{self.state.seed}/{self.state.steps}")
        self.state.steps += 1
        name = numbers.choice(("read", "read", "pread", "stat", "list"))
        if name == "list" or not self.state.handles:
            folder, names = numbers.choice(list(self.state.listings.items()))
            found = sorted(fs.listdir(os.fsdecode(folder)))
            self._expect(f"names in {os.fsdecode(folder)}", [os.fsdecode(name) for name in names], found)
            return "list"
        handle = numbers.choice(self.state.handles)
        seen = self.state.files[handle.file]
        if name == "stat":
            self._expect(f"size of {seen.path}", seen.size, fs.lstat(seen.path).st_size)
        elif name == "pread":
            offset = PIECE * numbers.randrange(seen.size // PIECE + 1)
            self._piece(seen, offset, fs.pread(handle.fd, PIECE, offset))
        else:
            data = fs.read(handle.fd, PIECE)
            self._piece(seen, handle.offset, data)
            handle.offset += len(data)
            if len(data) < PIECE:
                handle.offset = fs.lseek(handle.fd, 0, os.SEEK_SET)
        return name

    def _piece(self, seen: SeenFile, offset: int, data: bytes) -> None:
        length = max(0, min(PIECE, seen.size - offset))
        self._expect(f"bytes read of {seen.path} at {offset}", length, len(data))
        digest = hashlib.blake2b(data, digest_size=16).digest()
        self._expect(f"bytes of {seen.path} at {offset}", seen.pieces.setdefault(offset, digest), digest)

    def _expect(self, what: str, expected: object, found: object) -> None:
        if expected != found:
            before, now = differing(expected, found)
            raise WorkloadError(f"{what}: {now}, and it was {before}", step=self.state.steps)

    def counts(self) -> dict[str, int]:
        """What is alive, by kind."""
        state = self.state
        return {"files": len(state.files), "handles": len(state.handles), "directories": len(state.listings),
                "steps": state.steps}

    def verify(self, fs: FileApi, share_dir: str | None = None) -> list[Discrepancy]:
        """What differs from what was seen: offsets, sizes, bytes (with ``share_dir`` also of the host)."""
        found: list[Discrepancy] = []
        for handle in self.state.handles:
            seen = self.state.files[handle.file]
            try:
                self._verify_handle(fs, share_dir, handle, seen)
            except WorkloadError as error:
                found.append(Discrepancy(f"handle {handle.fd}", "what was seen before", error.message))
            except OSError as error:
                found.append(Discrepancy(f"handle {handle.fd} of {seen.path}", "success", str(error)))
        return found

    def _verify_handle(self, fs: FileApi, share_dir: str | None, handle: ReadHandle, seen: SeenFile) -> None:
        self._expect(f"offset of {seen.path}", handle.offset, fs.lseek(handle.fd, 0, os.SEEK_CUR))
        self._expect(f"size of {seen.path}", seen.size, fs.fstat(handle.fd).st_size)
        for offset in list(seen.pieces):
            self._piece(seen, offset, fs.pread(handle.fd, PIECE, offset))
        if share_dir is not None and seen.size <= COMPARED_BYTES_MAX:
            same = contents(fs, handle.fd) == contents_at(OsFiles(share_dir), seen.path)
            self._expect(f"{seen.path} against the host's file", True, same)

    def finish(self, fs: FileApi) -> None:
        """Close all handles."""
        for handle in self.state.handles:
            fs.close(handle.fd)
        self.state.handles.clear()


def _readable(fs: FileApi, path: str) -> bool:
    try:
        fs.close(fs.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True
