"""Reading any part of a file without holding it: what ``vmsim inspect`` looks at files of any size
through.
"""

from __future__ import annotations

import os
import stat
from typing import Self

from vmsim.errors import HostError, UsageError


class ReadableFile:
    """A regular file (or block device), read by place. UsageError if it is none, HostError as the system
    says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            self._fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise UsageError(f"cannot read {self.name}: {error.strerror}", hint="give a file") from error
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            self.close()
            raise UsageError(f"{self.name} is no file", hint="save a pipe's data in a file first")
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` bytes from ``offset`` on; fewer only at the end of the file."""
        parts = []
        while size_bytes > 0:
            try:
                data = os.pread(self._fd, size_bytes, offset)
            except OSError as error:
                raise HostError(f"cannot read {self.name}", errno=error.errno or 0) from error
            if not data:
                break
            parts.append(data)
            offset += len(data)
            size_bytes -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close it; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
