"""Packs directory entries into the reply of READDIR and READDIRPLUS."""

from __future__ import annotations

import errno
import struct

from vmsim.fuse.abi.headers import rec_align
from vmsim.fuse.abi.replies import DIRENT, ENTRY_OUT
from vmsim.fuse.filesystem import EntryReply
from vmsim.limits import FUSE_DIRENTS_MAX, FUSE_DIRENTS_PLUS_MAX

_DIRENT_SIZE = DIRENT.size
_PLUS_SIZE = ENTRY_OUT.size + DIRENT.size
_PADDING = (b"", *[bytes(n) for n in range(1, 8)])
_pack_dirent = DIRENT.pack
_pack_plus = struct.Struct(ENTRY_OUT.struct.format + DIRENT.struct.format[1:]).pack
"""An entry and its dirent in one: what there is one of for each name of a directory."""


def _full(count: int, limit: int) -> bool:
    """False: the next entry does not fit. EINVAL as getdents(2) if it is the first: no entry at all means
    the end of the directory."""
    if limit and not count:
        raise OSError(errno.EINVAL, f"no entry fits into {limit} bytes")
    return False


class DirentSink:
    """fuse_dirent after fuse_dirent, at most ``limit`` bytes."""

    __slots__ = ("buffer", "count", "limit")

    def __init__(self, limit: int) -> None:
        self.buffer = bytearray()
        self.limit = limit
        self.count = 0

    def add(self, ino: int, off: int, kind: int, name: bytes) -> bool:
        """See DirSink."""
        length = len(name)
        padding = -length & 7
        needed = len(self.buffer) + _DIRENT_SIZE + length + padding
        if needed > self.limit or self.count >= FUSE_DIRENTS_MAX:
            return _full(self.count, self.limit)
        self.buffer += _pack_dirent(ino, off, length, kind) + name + _PADDING[padding]
        self.count += 1
        return True


class DirentPlusSink:
    """fuse_direntplus after fuse_direntplus, at most ``limit`` bytes."""

    __slots__ = ("buffer", "count", "limit")

    def __init__(self, limit: int) -> None:
        self.buffer = bytearray()
        self.limit = limit
        self.count = 0

    def fits(self, name: bytes) -> bool:
        """See DirPlusSink."""
        needed = len(self.buffer) + rec_align(_PLUS_SIZE + len(name))
        if needed <= self.limit and self.count < FUSE_DIRENTS_PLUS_MAX:
            return True
        return _full(self.count, self.limit)

    def add(self, entry: EntryReply, off: int, kind: int, name: bytes) -> bool:
        """See DirPlusSink."""
        buffer, length = self.buffer, len(name)
        if len(buffer) + (_PLUS_SIZE + length + 7 & ~7) > self.limit or self.count >= FUSE_DIRENTS_PLUS_MAX:
            return _full(self.count, self.limit)
        buffer += _pack_plus(*entry, entry[6], off, length, kind) + name + _PADDING[-length & 7]
        self.count += 1
        return True
