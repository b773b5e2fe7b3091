"""Handlers of requests on open directories."""

from __future__ import annotations

import errno
from typing import Any, TypeAlias

from vmsim.fuse.abi.flags import FSYNC_FDATASYNC
from vmsim.fuse.dirsink import DirentPlusSink, DirentSink
from vmsim.fuse.filesystem import Context, FileSystem, OpenReply
from vmsim.fuse.handlers.checks import check_int, check_range
from vmsim.fuse.request import Request
from vmsim.limits import FUSE_REPLY_BUFFER_MAX

Args: TypeAlias = Any


def on_opendir(fs: FileSystem, ctx: Context, args: Args) -> OpenReply:
    """OPENDIR."""
    return fs.opendir(ctx, ctx.nodeid, check_int(args[0]))


def on_readdir(fs: FileSystem, request: Request) -> bytearray:
    """READDIR."""
    fh, offset, size = _arguments(request)
    sink = DirentSink(size)
    try:
        fs.readdir(request.ctx, request.ctx.nodeid, fh, offset, sink)
    except OSError:
        if not sink.count:
            raise
    return sink.buffer


def on_readdirplus(fs: FileSystem, request: Request) -> bytearray:
    """READDIRPLUS: what was counted goes out, even if the next entry failed."""
    fh, offset, size = _arguments(request)
    sink = DirentPlusSink(size)
    try:
        fs.readdirplus(request.ctx, request.ctx.nodeid, fh, offset, sink)
    except OSError:
        if not sink.count:
            raise
    return sink.buffer


def _arguments(request: Request) -> tuple[int, int, int]:
    """fh, offset, size; ENOMEM for more than 1 MiB or than the buffer takes."""
    fh, offset, size = request.args[:3]
    if size > FUSE_REPLY_BUFFER_MAX:
        raise OSError(errno.ENOMEM, f"a directory buffer of {size} bytes")
    request.need(size)
    check_range(offset, 0)
    return fh, offset, size


def on_releasedir(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """RELEASEDIR."""
    fs.releasedir(ctx, ctx.nodeid, args[0], args[1])
    return ()


def on_fsyncdir(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """FSYNCDIR."""
    fs.fsyncdir(ctx, ctx.nodeid, args[0], bool(args[1] & FSYNC_FDATASYNC))
    return ()
