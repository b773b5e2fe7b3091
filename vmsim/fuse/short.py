"""The short ways of the requests that guests make most and that are not simple rows: READ, WRITE, LOOKUP.

A short way decodes, serves and answers in one go what comes in the shape that drivers use: header and fixed
arguments in one view or in one each, the reply's header in a view of its own or before a record that fits.
It returns the bytes written; or 0, having done nothing, and the general way takes the request apart anew.
So it refuses nothing itself: whatever is odd about a request, ``decoding`` and the handlers say. What is read
of guest memory is read once, as it may change at any time.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from vmsim.fuse.abi.flags import READ_LOCKOWNER, WRITE_LOCKOWNER
from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.fuse.abi.replies import ENTRY_OUT, WRITE_OUT
from vmsim.fuse.abi.requests import READ_IN, WRITE_IN
from vmsim.fuse.filesystem import Context, FileSystem, Views
from vmsim.fuse.handlers.checks import OFFSET_MAX
from vmsim.fuse.opcodes import LOOKUP, READ, WRITE
from vmsim.fuse.views import cut
from vmsim.limits import FUSE_MAX_WRITE, NAME_MAX

Header: TypeAlias = tuple[Any, ...]
ShortWay: TypeAlias = Callable[[Header, memoryview, Views, Views], int]
"""Called with the request's header, the view that it begins in, all of its views, and those for the reply."""

_HEAD: Final = IN_HEADER.size
_OUT: Final = OUT_HEADER.size
_ARGS_END: Final = _HEAD + READ_IN.size
"""READ's and WRITE's arguments have the same size."""
_DOTS: Final = (b"", b".", b"..")

_context = tuple.__new__
_header_into = OUT_HEADER.struct.pack_into
_unpack_read = READ_IN.struct.unpack_from
_unpack_write = WRITE_IN.struct.unpack_from


def _whole(record: struct.Struct) -> struct.Struct:
    """A reply's header and record in one."""
    return struct.Struct(OUT_HEADER.struct.format + record.format[1:])


def read_way(fs: FileSystem) -> ShortWay:
    """READ: the data go where the reply's body lies."""
    read = fs.read

    def serve(header: Header, first: memoryview, readable: Views, writable: Views) -> int:
        if header[0] != _ARGS_END or len(writable) < 2 or len(writable[0]) != _OUT:
            return 0
        if len(first) >= _ARGS_END:
            fh, offset, size, read_flags, lock_owner, flags, _ = _unpack_read(first, _HEAD)
        elif len(first) == _HEAD and len(readable) > 1 and len(readable[1]) >= READ_IN.size:
            fh, offset, size, read_flags, lock_owner, flags, _ = _unpack_read(readable[1])
        else:
            return 0
        views = writable[1:]
        room = len(views[0]) if len(views) == 1 else sum(map(len, views))
        if size >= room:
            size = room
        else:
            views = cut(views, 0, size)
        if not size or offset + size > OFFSET_MAX:
            return 0
        owner = lock_owner if read_flags & READ_LOCKOWNER else None
        count = read(_context(Context, header), header[3], fh, offset, views, flags, owner)
        if not 0 <= count <= size:
            raise OSError(errno.EIO, f"{count} bytes read into {size}")
        count += _OUT
        _header_into(writable[0], 0, count, 0, header[2])
        return count

    return serve


def write_way(fs: FileSystem) -> ShortWay:
    """WRITE: as many bytes as are announced, and there."""
    write = fs.write
    whole = _whole(WRITE_OUT.struct)
    record_into, reply_size = whole.pack_into, whole.size

    def serve(header: Header, first: memoryview, readable: Views, writable: Views) -> int:
        if not writable or len(writable[0]) < reply_size:
            return 0
        if len(first) >= _ARGS_END:
            fh, offset, size, write_flags, lock_owner, flags, _ = _unpack_write(first, _HEAD)
            views = readable[1:] if len(first) == _ARGS_END else [first[_ARGS_END:], *readable[1:]]
        elif len(first) == _HEAD and len(readable) > 1 and len(readable[1]) == WRITE_IN.size:
            fh, offset, size, write_flags, lock_owner, flags, _ = _unpack_write(readable[1])
            views = readable[2:]
        else:
            return 0
        there = len(views[0]) if len(views) == 1 else sum(map(len, views))
        if header[0] != _ARGS_END + size or size > FUSE_MAX_WRITE or there < size:
            return 0
        if offset + size > OFFSET_MAX:
            return 0
        if there > size:
            views = cut(views, 0, size)
        owner = lock_owner if write_flags & WRITE_LOCKOWNER else None
        ctx = _context(Context, header)
        count = write(ctx, header[3], fh, offset, views, size, write_flags, flags, owner)
        record_into(writable[0], 0, reply_size, 0, header[2], count, 0)
        return reply_size

    return serve


def lookup_way(fs: FileSystem) -> ShortWay:
    """LOOKUP of a usual name."""
    lookup = fs.lookup
    whole = _whole(ENTRY_OUT.struct)
    record_into, reply_size = whole.pack_into, whole.size

    def serve(header: Header, first: memoryview, readable: Views, writable: Views) -> int:
        size = header[0]
        if not writable or len(writable[0]) < reply_size or not _HEAD < size <= _HEAD + NAME_MAX + 1:
            return 0
        if len(first) >= size:
            name = bytes(first[_HEAD:size])
        elif len(first) == _HEAD and len(readable) > 1 and len(readable[1]) >= size - _HEAD:
            name = bytes(readable[1][: size - _HEAD])
        else:
            return 0
        if name.find(0) != len(name) - 1 or b"/" in name or (name := name[:-1]) in _DOTS:
            return 0
        reply = lookup(_context(Context, header), header[3], name)
        record_into(writable[0], 0, reply_size, 0, header[2], *reply)
        return reply_size

    return serve


SHORT_WAYS: Final[dict[int, Callable[[FileSystem], ShortWay]]] = {
    READ: read_way, WRITE: write_way, LOOKUP: lookup_way,
}  # fmt: skip
