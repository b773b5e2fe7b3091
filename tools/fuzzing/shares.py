"""Directories to serve: small, new for each input, and removed whatever was done to them."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Final

FS_IOC_SETFLAGS: Final = 0x40086602
MEMORY: Final = "/dev/shm"

NAMES: Final = (
    b"a",
    b"b",
    b"d",
    b"l",
    b"p",
    b"new",
    b"x",
    b"",
    b".",
    b"..",
    b"a/b",
    b"y" * 255,
    b"y" * 256,
    b"d\xff",
)


class Share:
    """A directory with a few files of each kind, made anew by ``renew``."""

    def __init__(self) -> None:
        where = MEMORY if os.access(MEMORY, os.W_OK) else None
        self._base = Path(tempfile.mkdtemp(prefix="vmsim-fuzz-", dir=where))
        self._number = 0
        self.path = ""

    def renew(self) -> str:
        """The path of a new one; what was made of the former is gone."""
        if self.path:
            self._remove(Path(self.path))
        self._number += 1
        path = self.path = f"{self._base}/{self._number}"
        for folder in ("", "/d", "/d/e"):
            os.mkdir(path + folder)
        for name, content in ((b"a", b"0123456789" * 1000), (b"b", b""), (b"d/f", b"f")):
            fd = os.open(os.path.join(os.fsencode(path), name), os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, content)
            os.close(fd)
        os.symlink("a", path + "/l")
        os.mkfifo(path + "/p")
        return path

    def close(self) -> None:
        """Remove everything."""
        self._remove(self._base)

    @staticmethod
    def _remove(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        for folder, _, files in os.walk(path):  # something is immutable, or may not be entered
            os.chmod(folder, 0o700)
            for name in ["", *files]:
                _make_mutable(os.path.join(folder, name))
        shutil.rmtree(path, ignore_errors=True)


def _make_mutable(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", 0))
    except OSError:
        pass
    finally:
        os.close(fd)
