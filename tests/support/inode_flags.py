"""FS_IOC_GETFLAGS and FS_IOC_SETFLAGS on the host: what chattr and lsattr do."""

from __future__ import annotations

import array
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

GETFLAGS: Final = 0x80086601
SETFLAGS: Final = 0x40086602
IMMUTABLE: Final = 0x10
APPEND: Final = 0x20
NODUMP: Final = 0x40
NOATIME: Final = 0x80


def flags_of(path: Path) -> int:
    """The inode flags of a file."""
    value = array.array("i", [0])
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, GETFLAGS, value)
    finally:
        os.close(fd)
    return value[0]


def change_flags(path: Path, add: int = 0, remove: int = 0) -> None:
    """chattr."""
    value = array.array("i", [(flags_of(path) | add) & ~remove])
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, SETFLAGS, value)
    finally:
        os.close(fd)


@contextmanager
def flagged(path: Path, add: int) -> Iterator[None]:
    """``path`` has these flags while the block runs; the test skips where that is not possible."""
    try:
        change_flags(path, add)
    except OSError as error:
        pytest.skip(f"no inode flags here: {error.strerror}")
    try:
        yield
    finally:
        change_flags(path, remove=add)
