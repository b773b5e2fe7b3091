"""Handlers of requests on locks."""

from __future__ import annotations

from typing import Any, TypeAlias

from vmsim.fuse.abi.flags import F_RDLCK, F_UNLCK, F_WRLCK
from vmsim.fuse.abi.replies import FileLock
from vmsim.fuse.filesystem import Context, Deferred, FileSystem, LockReply
from vmsim.fuse.handlers.checks import OFFSET_MAX, invalid
from vmsim.fuse.request import Request

Args: TypeAlias = Any

_TYPES = (F_RDLCK, F_WRLCK, F_UNLCK)


def _lock(args: Args) -> tuple[int, int, FileLock, int]:
    """fh, owner, the lock, lk_flags; EINVAL for ranges and types that are none."""
    fh, owner, start, end, kind, pid, lk_flags, _ = args
    if not start <= end <= OFFSET_MAX or kind not in _TYPES:
        raise invalid("lock range or type")
    return fh, owner, FileLock(start, end, kind, pid), lk_flags


def on_getlk(fs: FileSystem, ctx: Context, args: Args) -> LockReply:
    """GETLK."""
    return fs.getlk(ctx, ctx.nodeid, *_lock(args))


def on_setlk(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """SETLK."""
    fs.setlk(ctx, ctx.nodeid, *_lock(args), None)
    return ()


def on_setlkw(fs: FileSystem, request: Request) -> Deferred | None:
    """SETLKW."""
    return fs.setlk(request.ctx, request.ctx.nodeid, *_lock(request.args), request.done)
