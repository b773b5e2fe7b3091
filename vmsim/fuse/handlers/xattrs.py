"""Handlers of requests on extended attributes."""

from __future__ import annotations

import errno

from vmsim.fuse.abi.replies import GETXATTR_OUT
from vmsim.fuse.filesystem import FileSystem
from vmsim.fuse.handlers.checks import check_xattr_name, invalid
from vmsim.fuse.request import Request
from vmsim.limits import FUSE_REPLY_BUFFER_MAX, XATTR_SIZE_MAX


def on_setxattr(fs: FileSystem, request: Request) -> None:
    """SETXATTR: the value's size must be what is there."""
    size, flags, *rest = request.args
    name = check_xattr_name(request.names[0])
    if size > XATTR_SIZE_MAX:
        raise OSError(errno.E2BIG, f"an attribute of {size} bytes")
    if size != len(request.tail) or flags > 3:
        raise invalid("setxattr size or flags")
    fs.setxattr(request.ctx, request.ctx.nodeid, name, request.tail, flags, rest[0] if rest else 0)


def on_getxattr(fs: FileSystem, request: Request) -> bytes:
    """GETXATTR."""
    name = check_xattr_name(request.names[0])
    size = _size(request)
    return _reply(fs.getxattr(request.ctx, request.ctx.nodeid, name, size), size)


def on_listxattr(fs: FileSystem, request: Request) -> bytes:
    """LISTXATTR."""
    size = _size(request)
    return _reply(fs.listxattr(request.ctx, request.ctx.nodeid, size), size)


def on_removexattr(fs: FileSystem, request: Request) -> None:
    """REMOVEXATTR."""
    fs.removexattr(request.ctx, request.ctx.nodeid, check_xattr_name(request.names[0]))


def _size(request: Request) -> int:
    """The size asked for; ENOMEM for more than 1 MiB or than the buffer takes."""
    size: int = request.args[0]
    if size > FUSE_REPLY_BUFFER_MAX:
        raise OSError(errno.ENOMEM, f"an attribute buffer of {size} bytes")
    request.need(size or GETXATTR_OUT.size)
    return size


def _reply(value: bytes | int, size: int) -> bytes:
    """The record for size 0, else the bytes; ERANGE if they are too many."""
    length = value if isinstance(value, int) else len(value)
    if not size:
        return GETXATTR_OUT.pack(length, 0)
    if isinstance(value, int) or length > size:
        raise OSError(errno.ERANGE, f"{length} bytes do not fit into {size}")
    return value
