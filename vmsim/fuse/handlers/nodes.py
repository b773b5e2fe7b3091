"""Handlers of requests about nodes and names."""

from __future__ import annotations

from typing import Any, TypeAlias

from vmsim.fuse.abi.flags import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_CTIME,
    FATTR_FH,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FUSE_INVALID_UIDGID,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
)
from vmsim.fuse.abi.init_flags import EXPORT_SUPPORT
from vmsim.fuse.abi.requests import FORGET_ONE, REMOVEMAPPING_ONE, SetattrIn
from vmsim.fuse.filesystem import AttrReply, Context, EntryReply, FileSystem, StatxReply
from vmsim.fuse.handlers.checks import (
    NSEC_MAX,
    OFFSET_MAX,
    check_mode,
    check_name,
    check_target,
    invalid,
)
from vmsim.fuse.request import Request

Args: TypeAlias = Any

_DOTS = (b".", b"..")
_RENAME_FLAGS = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT


def on_lookup(fs: FileSystem, request: Request) -> EntryReply:
    """LOOKUP."""
    name = request.names[0]
    if not (name in _DOTS and request.flags & EXPORT_SUPPORT):
        check_name(name)
    ctx = request.ctx
    return fs.lookup(ctx, ctx[3], name)


def on_forget(fs: FileSystem, request: Request) -> None:
    """FORGET."""
    fs.forget(request.ctx.nodeid, request.args[0])


def on_batch_forget(fs: FileSystem, request: Request) -> None:
    """BATCH_FORGET; a count beyond the data drops the whole request."""
    size = request.args[0] * FORGET_ONE.size
    if size > len(request.tail):
        raise invalid("fuse_batch_forget_in counts more than there is")
    for nodeid, nlookup in FORGET_ONE.struct.iter_unpack(request.tail[:size]):
        fs.forget(nodeid, nlookup)


def on_getattr(fs: FileSystem, ctx: Context, args: Args) -> AttrReply:
    """GETATTR."""
    return fs.getattr(ctx, ctx[3], args[2] if args[0] & 1 else None)


def on_setattr(fs: FileSystem, ctx: Context, args: Args) -> AttrReply:
    """SETATTR."""
    attr = SetattrIn._make(args)
    valid = attr.valid
    if valid & FATTR_SIZE and attr.size > OFFSET_MAX:
        raise invalid("size")
    if valid & FATTR_MODE:
        check_mode(attr.mode)
    if valid & FATTR_UID and attr.uid == FUSE_INVALID_UIDGID:
        raise invalid("uid")
    if valid & FATTR_GID and attr.gid == FUSE_INVALID_UIDGID:
        raise invalid("gid")
    for bit, now, nsec in (
        (FATTR_ATIME, FATTR_ATIME_NOW, attr.atimensec),
        (FATTR_MTIME, FATTR_MTIME_NOW, attr.mtimensec),
        (FATTR_CTIME, 0, attr.ctimensec),
    ):
        if valid & bit and not valid & now and nsec > NSEC_MAX:
            raise invalid("nanoseconds")
    return fs.setattr(ctx, ctx.nodeid, attr.fh if valid & FATTR_FH else None, attr)


def on_statx(fs: FileSystem, ctx: Context, args: Args) -> StatxReply:
    """STATX."""
    getattr_flags, _, fh, sx_flags, sx_mask = args
    return fs.statx(ctx, ctx.nodeid, fh if getattr_flags & 1 else None, sx_flags, sx_mask)


def on_readlink(fs: FileSystem, request: Request) -> bytes:
    """READLINK."""
    return fs.readlink(request.ctx, request.ctx.nodeid)


def on_symlink(fs: FileSystem, request: Request) -> EntryReply:
    """SYMLINK: the new name comes first."""
    name, target = request.names
    return fs.symlink(request.ctx, request.ctx.nodeid, check_name(name), check_target(target))


def on_mknod(fs: FileSystem, request: Request) -> EntryReply:
    """MKNOD."""
    mode, rdev, umask, _ = request.args
    name = check_name(request.names[0])
    return fs.mknod(request.ctx, request.ctx.nodeid, name, check_mode(mode), rdev, umask & 0o777)


def on_mkdir(fs: FileSystem, request: Request) -> EntryReply:
    """MKDIR."""
    mode, umask = request.args
    name = check_name(request.names[0])
    return fs.mkdir(request.ctx, request.ctx.nodeid, name, check_mode(mode), umask & 0o777)


def on_unlink(fs: FileSystem, request: Request) -> None:
    """UNLINK."""
    fs.unlink(request.ctx, request.ctx.nodeid, check_name(request.names[0]))


def on_rmdir(fs: FileSystem, request: Request) -> None:
    """RMDIR."""
    fs.rmdir(request.ctx, request.ctx.nodeid, check_name(request.names[0]))


def on_rename(fs: FileSystem, request: Request) -> None:
    """RENAME."""
    _rename(fs, request, 0)


def on_rename2(fs: FileSystem, request: Request) -> None:
    """RENAME2."""
    flags = request.args[1]
    if flags & ~_RENAME_FLAGS:
        raise invalid("rename flags")
    _rename(fs, request, flags)


def _rename(fs: FileSystem, request: Request, flags: int) -> None:
    name, newname = map(check_name, request.names)
    fs.rename(request.ctx, request.ctx.nodeid, name, request.args[0], newname, flags)


def on_link(fs: FileSystem, request: Request) -> EntryReply:
    """LINK."""
    return fs.link(request.ctx, request.args[0], request.ctx.nodeid, check_name(request.names[0]))


def on_access(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """ACCESS."""
    if args[0] > 7:
        raise invalid("access mask")
    fs.access(ctx, ctx.nodeid, args[0])
    return ()


def on_statfs(fs: FileSystem, ctx: Context, _args: Args) -> StatxReply:
    """STATFS."""
    return (*fs.statfs(ctx, ctx.nodeid), 0, b"")


def on_syncfs(fs: FileSystem, ctx: Context, _args: Args) -> tuple[()]:
    """SYNCFS."""
    fs.syncfs(ctx, ctx.nodeid)
    return ()


def on_bmap(fs: FileSystem, ctx: Context, args: Args) -> tuple[int]:
    """BMAP."""
    return (fs.bmap(ctx, ctx.nodeid, args[0], args[1]),)


def on_setupmapping(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """SETUPMAPPING."""
    fh, foffset, length, flags, moffset = args
    if max(foffset + length, moffset + length) > OFFSET_MAX or flags & ~3:
        raise invalid("mapping")
    fs.setupmapping(ctx, ctx.nodeid, fh, foffset, length, flags, moffset)
    return ()


def on_removemapping(fs: FileSystem, request: Request) -> None:
    """REMOVEMAPPING."""
    size = request.args[0] * REMOVEMAPPING_ONE.size
    if size > len(request.tail):
        raise invalid("fuse_removemapping_in counts more than there is")
    ranges = list(REMOVEMAPPING_ONE.struct.iter_unpack(request.tail[:size]))
    fs.removemapping(request.ctx, request.ctx.nodeid, ranges)
