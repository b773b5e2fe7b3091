"""The extension records behind the names of creating requests (minor 36 and 38)."""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from vmsim.fuse.abi.flags import EXT_GROUPS, MAX_NR_SECCTX
from vmsim.fuse.abi.headers import EXT_HEADER, SECCTX, SUPP_GROUPS, rec_align
from vmsim.fuse.abi.init_flags import CREATE_SUPP_GROUP, SECURITY_CTX
from vmsim.limits import NAME_MAX, XATTR_SIZE_MAX


class Extensions(NamedTuple):
    """What was in the records."""

    groups: tuple[int, ...] = ()
    security: tuple[tuple[bytes, bytes], ...] = ()


def parse_extensions(data: bytes, flags: int) -> Extensions:
    """All records of ``data``. OSError EINVAL: cut, doubled, unknown, or not negotiated in ``flags``."""
    groups: tuple[int, ...] | None = None
    security: tuple[tuple[bytes, bytes], ...] | None = None
    position = 0
    while position < len(data):
        if len(data) - position < EXT_HEADER.size:
            raise OSError(errno.EINVAL, "an extension's header is cut")
        size, kind = EXT_HEADER.unpack_from(data, position)
        if size < EXT_HEADER.size or size > len(data) - position:
            raise OSError(errno.EINVAL, f"an extension of {size} bytes does not fit")
        body = data[position + EXT_HEADER.size : position + size]
        if kind <= MAX_NR_SECCTX and flags & SECURITY_CTX and security is None:
            security = _security(body, kind)
        elif kind == EXT_GROUPS and flags & CREATE_SUPP_GROUP and groups is None:
            groups = _groups(body)
        else:
            raise OSError(errno.EINVAL, f"extension type {kind} is doubled or was not negotiated")
        position += rec_align(size)
    return Extensions(groups or (), security or ())


def _groups(body: bytes) -> tuple[int, ...]:
    if len(body) < SUPP_GROUPS.size:
        raise OSError(errno.EINVAL, "fuse_supp_groups is cut")
    (count,) = SUPP_GROUPS.unpack_from(body)
    if count > (len(body) - SUPP_GROUPS.size) // 4:
        raise OSError(errno.EINVAL, f"{count} groups do not fit")
    return struct.unpack_from(f"<{count}I", body, SUPP_GROUPS.size)


def _security(body: bytes, count: int) -> tuple[tuple[bytes, bytes], ...]:
    """``count`` contexts: size, name and NUL, value, padding to 8."""
    contexts = []
    position = 0
    for _ in range(count):
        if len(body) - position < SECCTX.size:
            raise OSError(errno.EINVAL, "fuse_secctx is cut")
        size, _ = SECCTX.unpack_from(body, position)
        start = position + SECCTX.size
        end = body.find(b"\0", start, start + NAME_MAX + 1)
        if end <= start or size > XATTR_SIZE_MAX or size > len(body) - end - 1:
            raise OSError(errno.EINVAL, "fuse_secctx has a bad name or does not fit")
        contexts.append((body[start:end], body[end + 1 : end + 1 + size]))
        position += rec_align(end + 1 + size - position)
    return tuple(contexts)
