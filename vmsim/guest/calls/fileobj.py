"""``open_file``: Python file objects over guest descriptors."""

from __future__ import annotations

import errno
import io
import os
from typing import IO, TYPE_CHECKING, Any, Final

from vmsim.guest.calls.attrs import Attributes
from vmsim.guest.calls.context import Path, ProcessContext, fail
from vmsim.guest.calls.files import FileIo
from vmsim.guest.calls.opening import Opening

if TYPE_CHECKING:
    from typing_extensions import Buffer

BUFFER_BYTES: Final = 1 << 16
_MODES: Final = {
    "r": 0,
    "w": os.O_CREAT | os.O_TRUNC,
    "a": os.O_CREAT | os.O_APPEND,
    "x": os.O_CREAT | os.O_EXCL,
}


class GuestRawFile(io.RawIOBase):
    """A raw file object over a descriptor of a guest process, as ``io.FileIO`` over one of the host."""

    def __init__(self, calls: FileObjects, fd: int, mode: str, closefd: bool = True) -> None:
        self._calls = calls
        self._fd = fd
        self._closefd = closefd
        self._reads = "r" in mode or "+" in mode
        self._writes = "r" not in mode or "+" in mode
        self.mode = mode
        self.name: Any = fd

    def fileno(self) -> int:
        """The guest's descriptor (it means nothing to the host)."""
        self._check()
        return self._fd

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def readable(self) -> bool:
        """Whether the file was opened for reading."""
        self._check()
        return self._reads

    def writable(self) -> bool:
        """Whether the file was opened for writing."""
        self._check()
        return self._writes

    def seekable(self) -> bool:
        """Regular files always are."""
        self._check()
        return True

    def isatty(self) -> bool:
        """Never."""
        self._check()
        return False

    def readinto(self, buffer: Buffer) -> int:
        """Fill ``buffer`` from the file's offset; bytes read."""
        self._check()
        if not self._reads:
            raise io.UnsupportedOperation("not readable")
        return self._calls.files.readv(self._fd, [buffer])

    def write(self, data: Buffer) -> int:
        """Write at the file's offset; bytes written."""
        self._check()
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        return self._calls.files.write(self._fd, data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the offset; the new one."""
        self._check()
        return self._calls.files.lseek(self._fd, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        """Change the file's size (to the offset unless given); the new one."""
        self._check()
        if not self._writes:
            raise io.UnsupportedOperation("truncate")
        size = self.tell() if size is None else size
        self._calls.attrs.ftruncate(self._fd, size)
        return size

    def close(self) -> None:
        """Close the descriptor; may be called again."""
        if self.closed:
            return
        try:
            super().close()
        finally:
            if self._closefd:
                self._calls.opening.close(self._fd)


class FileObjects:
    """The built-in ``open``, for guest files."""

    def __init__(self, ctx: ProcessContext, opening: Opening, files: FileIo, attrs: Attributes) -> None:
        self._ctx = ctx
        self.opening = opening
        self.files = files
        self.attrs = attrs

    def open_file(
        self, path: Path | int, mode: str = "r", buffering: int = -1, encoding: str | None = None,
        errors: str | None = None, newline: str | None = None, closefd: bool = True,
    ) -> IO[Any]:  # fmt: skip
        """Open a file as a Python file object; arguments and results as those of the built-in ``open``."""
        kinds = [letter for letter in mode if letter in _MODES]
        if len(kinds) != 1 or set(mode) - set("rwxabt+") or len(set(mode)) != len(mode):
            raise ValueError(f"invalid mode: {mode!r}")
        binary = "b" in mode
        if binary and ("t" in mode or encoding is not None or errors is not None or newline is not None):
            raise ValueError("binary mode takes no text arguments")
        if buffering == 0 and not binary:
            raise ValueError("can't have unbuffered text I/O")
        raw = self._open_raw(path, kinds[0], "+" in mode, mode, closefd)
        try:
            return self._wrap(raw, "+" in mode, binary, buffering, encoding, errors, newline)
        except BaseException:
            raw.close()
            raise

    def _open_raw(self, path: Path | int, kind: str, update: bool, mode: str, closefd: bool) -> GuestRawFile:
        access = os.O_RDWR if update else os.O_RDONLY if kind == "r" else os.O_WRONLY
        if isinstance(path, int):
            if self._ctx.usable(path).directory:
                fail(errno.EISDIR)
            return GuestRawFile(self, path, mode, closefd)
        if not closefd:
            raise ValueError("Cannot use closefd=False with file name")
        fd = self.opening.open(path, access | _MODES[kind] | os.O_CLOEXEC, 0o666)
        if self._ctx.file(fd).directory:
            self.opening.close(fd)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raw = GuestRawFile(self, fd, mode)
        raw.name = path
        if kind == "a":
            self.files.lseek(fd, 0, os.SEEK_END)
        return raw

    def _wrap(
        self, raw: GuestRawFile, update: bool, binary: bool, buffering: int, encoding: str | None,
        errors: str | None, newline: str | None,
    ) -> IO[Any]:  # fmt: skip
        if buffering == 0:
            return raw  # type: ignore[return-value]
        size = buffering if buffering > 1 else BUFFER_BYTES
        buffered: Any
        if update:
            buffered = io.BufferedRandom(raw, size)
        elif raw.writable():
            buffered = io.BufferedWriter(raw, size)
        else:
            buffered = io.BufferedReader(raw, size)
        if binary:
            result: IO[Any] = buffered
            return result
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
