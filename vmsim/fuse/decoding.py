"""Takes a request apart as its row says; nothing of it is believed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from vmsim.fuse.abi.headers import IN_HEADER
from vmsim.fuse.abi.init_flags import CREATE_SUPP_GROUP, SECURITY_CTX, SETXATTR_EXT
from vmsim.fuse.extensions import parse_extensions
from vmsim.fuse.filesystem import Context, Views
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.fuse.opcodes import Opcode
from vmsim.fuse.request import Request
from vmsim.fuse.views import cut, gather
from vmsim.limits import FUSE_MAX_WRITE, FUSE_REQUEST_OVERHEAD

_HEADER_SIZE = IN_HEADER.size
_LENGTH_MAX = FUSE_MAX_WRITE + FUSE_REQUEST_OVERHEAD
_EXTENDED = CREATE_SUPP_GROUP | SECURITY_CTX
_MINOR_WITH_EXTLEN = 38


def request_length(ctx: Context, readable: Sequence[memoryview]) -> int:
    """The header's length in bytes; OSError: ENOMEM beyond the limit, EINVAL if it is not all there."""
    length = ctx.len
    if length > _LENGTH_MAX:
        raise OSError(errno.ENOMEM, f"a request of {length} bytes")
    if length < _HEADER_SIZE or length > sum(map(len, readable)):
        raise OSError(errno.EINVAL, f"length {length} is not that of the request")
    return length


def decode(
    row: Opcode, ctx: Context, readable: Views, length: int, writable: Views, room: int,
    state: NegotiatedState, complete: Callable[[int], None],
) -> Request:  # fmt: skip
    """The request as its handler wants it; OSError EINVAL when bytes and row disagree.

    Everything but a payload is copied out of guest memory once, so that it cannot change any more. More
    bytes than a row without names and tail knows are a later minor's, and are passed over.
    """
    layout = row.args
    if row.compat_args is not None and not state.flags & SETXATTR_EXT:
        layout = row.compat_args
    args_size = layout.size if layout is not None else 0
    if length < _HEADER_SIZE + args_size:
        raise OSError(errno.EINVAL, f"{row.name} is cut")
    if row.payload:
        body = gather(readable, _HEADER_SIZE, args_size)
        views = cut(readable, _HEADER_SIZE + args_size, length - _HEADER_SIZE - args_size)
    else:
        body = gather(readable, _HEADER_SIZE, length - _HEADER_SIZE)
        views = []
    args = layout.unpack_from(body) if layout is not None else ()
    names: list[bytes] = []
    rest = body[args_size:]
    if row.names:
        names, rest = _split_names(rest, row)
        if row.extensions:
            _extend(ctx, rest, state)
        elif rest and not row.tail:
            raise OSError(errno.EINVAL, f"{row.name}: NUL inside a name")
    return Request(row, ctx, args, names, rest, views, writable, room, state.flags, complete)


def _split_names(data: bytes, row: Opcode) -> tuple[list[bytes], bytes]:
    """The row's names without their NULs, and what follows."""
    parts = data.split(b"\0", row.names)
    if len(parts) <= row.names:
        raise OSError(errno.EINVAL, f"{row.name}: name without NUL")
    return parts[:-1], parts[-1]


def _extend(ctx: Context, data: bytes, state: NegotiatedState) -> None:
    """Put the extension records into the context; before minor 38 their length is not in the header."""
    stated = ctx.total_extlen * 8 if state.minor >= _MINOR_WITH_EXTLEN else 0
    if stated and stated != len(data):
        raise OSError(errno.EINVAL, f"extensions of {stated} bytes, {len(data)} are there")
    if not data:
        return
    if not state.flags & _EXTENDED:
        raise OSError(errno.EINVAL, "NUL inside a name, or extensions that were not negotiated")
    found = parse_extensions(data, state.flags)
    ctx.groups, ctx.security = found.groups, found.security
