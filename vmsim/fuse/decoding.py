"""Takes a request apart as its row says; nothing of it is believed."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vmsim.fuse.abi.headers import IN_HEADER
from vmsim.fuse.abi.init_flags import CREATE_SUPP_GROUP, SECURITY_CTX, SETXATTR_EXT
from vmsim.fuse.extensions import parse_extensions
from vmsim.fuse.filesystem import Context, Views
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.fuse.plans import Plan
from vmsim.fuse.request import Request
from vmsim.fuse.views import cut, gather
from vmsim.limits import FUSE_MAX_WRITE, FUSE_REQUEST_OVERHEAD

_HEADER_SIZE = IN_HEADER.size
_LENGTH_MAX = FUSE_MAX_WRITE + FUSE_REQUEST_OVERHEAD
_EXTENDED = CREATE_SUPP_GROUP | SECURITY_CTX
_MINOR_WITH_EXTLEN = 38


def check_length(length: int, available: int) -> None:
    """The header's length against what is there; OSError ENOMEM beyond the limit, EINVAL if it is cut."""
    if length > _LENGTH_MAX:
        raise OSError(errno.ENOMEM, f"a request of {length} bytes")
    if length < _HEADER_SIZE or length > available:
        raise OSError(errno.EINVAL, f"length {length} is not that of the request")


def decode(
    plan: Plan, ctx: Context, readable: Views, writable: Views, room: int,
    state: NegotiatedState, complete: Callable[[int], None],
) -> Request:  # fmt: skip
    """The request as its handler wants it; OSError EINVAL when bytes and row disagree.

    ``check_length`` has passed. Everything but a payload is copied out of guest memory once, so that it
    cannot change any more. More bytes than a row without names and tail knows are a later minor's, and are
    passed over.
    """
    row = plan.row
    if not state.flags & SETXATTR_EXT:
        plan = plan.compat
    args_size = plan.args_size
    size = ctx[0] - _HEADER_SIZE
    if size < args_size:
        raise OSError(errno.EINVAL, f"{row.name} is cut")
    views: Views = []
    if row.payload:
        body = gather(readable, _HEADER_SIZE, args_size)
        views = cut(readable, _HEADER_SIZE + args_size, size - args_size)
    else:
        body = gather(readable, _HEADER_SIZE, size)
    args = plan.unpack(body)
    names: list[bytes] = []
    rest = body[args_size:]
    if row.names:
        parts = rest.split(b"\0", row.names)
        if len(parts) <= row.names:
            raise OSError(errno.EINVAL, f"{row.name}: name without NUL")
        rest = parts.pop()
        names = parts
        if row.extensions:
            _extend(ctx, rest, state)
        elif rest and not row.tail:
            raise OSError(errno.EINVAL, f"{row.name}: NUL inside a name")
    return Request(plan, ctx, args, names, rest, views, writable, room, state.flags, complete)


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
