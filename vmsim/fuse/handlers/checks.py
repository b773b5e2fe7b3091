"""What the session checks about arguments before any file system sees them."""

from __future__ import annotations

import errno
from typing import Final

from vmsim.limits import NAME_MAX, PATH_MAX

OFFSET_MAX: Final = (1 << 63) - 1
"""Largest file offset (loff_t)."""

INT_MAX: Final = (1 << 31) - 1
"""Largest C int; flags of host calls beyond it mean nothing."""

NSEC_MAX: Final = 999_999_999


def invalid(what: str) -> OSError:
    """EINVAL."""
    return OSError(errno.EINVAL, what)


def check_name(name: bytes) -> bytes:
    """One component that a directory entry may have; EINVAL or ENAMETOOLONG."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    if not name or b"/" in name or name == b"." or name == b"..":
        raise invalid("not a file name")
    return name


def check_target(target: bytes) -> bytes:
    """A symlink's target; ENOENT or ENAMETOOLONG as symlink(2)."""
    if not target:
        raise OSError(errno.ENOENT, "empty target")
    if len(target) >= PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, "target too long")
    return target


def check_xattr_name(name: bytes) -> bytes:
    """ERANGE as setxattr(2)."""
    if not 0 < len(name) <= NAME_MAX:
        raise OSError(errno.ERANGE, "attribute name too long or empty")
    return name


def check_range(offset: int, size_bytes: int) -> None:
    """EINVAL unless both are within loff_t, and their sum."""
    if offset + size_bytes > OFFSET_MAX:
        raise invalid(f"offset {offset} + {size_bytes} is beyond 2^63-1")


def check_int(value: int) -> int:
    """EINVAL unless it is a C int of 0 or more."""
    if value > INT_MAX:
        raise invalid(f"{value:#x} is not an int")
    return value


def check_mode(mode: int) -> int:
    """EINVAL unless it has file type and permission bits only."""
    if mode > 0o177777:
        raise invalid(f"mode {mode:#o}")
    return mode
