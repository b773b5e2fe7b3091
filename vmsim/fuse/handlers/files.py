"""Handlers of requests on open files."""

from __future__ import annotations

import errno
from typing import Any, TypeAlias

from vmsim.fuse.abi.flags import FSYNC_FDATASYNC, READ_LOCKOWNER, WRITE_LOCKOWNER
from vmsim.fuse.abi.replies import IOCTL_OUT
from vmsim.fuse.filesystem import Context, Deferred, FileSystem, OpenReply
from vmsim.fuse.handlers.checks import check_int, check_mode, check_name, check_range, invalid
from vmsim.fuse.request import OUT_HEADER_SIZE, Request
from vmsim.fuse.views import cut

Args: TypeAlias = Any

_COPY_MAX = 0xFFFFF000
"""The reply has 32 bits for the bytes that were copied."""


def on_open(fs: FileSystem, ctx: Context, args: Args) -> OpenReply:
    """OPEN."""
    return fs.open(ctx, ctx.nodeid, check_int(args[0]), args[1])


def on_create(fs: FileSystem, request: Request) -> tuple[int, ...]:
    """CREATE."""
    flags, mode, umask, open_flags = request.args
    entry, opened = fs.create(
        request.ctx, request.ctx.nodeid, check_name(request.names[0]),
        check_int(flags), check_mode(mode), umask & 0o777, open_flags,
    )  # fmt: skip
    return (*entry, *opened)


def on_tmpfile(fs: FileSystem, request: Request) -> tuple[int, ...]:
    """TMPFILE: Linux sends '/' as the name."""
    flags, mode, umask, open_flags = request.args
    ctx = request.ctx
    entry, opened = fs.tmpfile(
        ctx, ctx.nodeid, check_int(flags), check_mode(mode), umask & 0o777, open_flags
    )
    return (*entry, *opened)


def on_read(fs: FileSystem, request: Request) -> int:
    """READ: clamped to the buffer; the data go where the reply's body lies."""
    fh, offset, size, read_flags, lock_owner, flags, _ = request.args
    size = min(size, request.room)
    check_range(offset, size)
    views = cut(request.writable, OUT_HEADER_SIZE, size)
    ctx = request.ctx
    count = fs.read(
        ctx, ctx[3], fh, offset, views, flags, lock_owner if read_flags & READ_LOCKOWNER else None
    )
    if not 0 <= count <= size:
        raise OSError(errno.EIO, f"{count} bytes read into {size}")
    return count


def on_write(fs: FileSystem, request: Request) -> tuple[int, int]:
    """WRITE: as many bytes as are announced and there."""
    fh, offset, size, write_flags, lock_owner, flags, _ = request.args
    size = min(size, request.ctx[0] - 80)
    check_range(offset, size)
    views = cut(request.views, 0, size)
    ctx = request.ctx
    owner = lock_owner if write_flags & WRITE_LOCKOWNER else None
    count = fs.write(ctx, ctx[3], fh, offset, views, size, write_flags, flags, owner)
    return (count, 0)


def on_flush(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """FLUSH."""
    fs.flush(ctx, ctx.nodeid, args[0], args[3])
    return ()


def on_release(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """RELEASE."""
    fh, flags, release_flags, lock_owner = args
    fs.release(ctx, ctx.nodeid, fh, flags, release_flags, lock_owner)
    return ()


def on_fsync(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """FSYNC."""
    fs.fsync(ctx, ctx.nodeid, args[0], bool(args[1] & FSYNC_FDATASYNC))
    return ()


def on_fallocate(fs: FileSystem, ctx: Context, args: Args) -> tuple[()]:
    """FALLOCATE."""
    fh, offset, length, mode, _ = args
    check_range(offset, length)
    fs.fallocate(ctx, ctx.nodeid, fh, offset, length, check_int(mode))
    return ()


def on_lseek(fs: FileSystem, ctx: Context, args: Args) -> tuple[int]:
    """LSEEK."""
    fh, offset, whence, _ = args
    if whence > 4:
        raise invalid("whence")
    return (fs.lseek(ctx, ctx.nodeid, fh, offset, whence),)


def on_copy_file_range(fs: FileSystem, ctx: Context, args: Args) -> tuple[int, int]:
    """COPY_FILE_RANGE; no flags are defined."""
    fh_in, off_in, nodeid_out, fh_out, off_out, length, flags = args
    length = min(length, _COPY_MAX)
    check_range(off_in, length)
    check_range(off_out, length)
    if flags:
        raise invalid("copy_file_range flags")
    count = fs.copy_file_range(ctx, ctx.nodeid, fh_in, off_in, nodeid_out, fh_out, off_out, length, flags)
    return (count, 0)


def on_ioctl(fs: FileSystem, request: Request) -> bytes:
    """IOCTL."""
    fh, flags, cmd, arg, in_size, out_size = request.args
    if in_size > len(request.tail):
        raise invalid("ioctl in_size")
    request.need(IOCTL_OUT.size + out_size)
    ctx = request.ctx
    result, data = fs.ioctl(ctx, ctx.nodeid, fh, flags, cmd, arg, request.tail[:in_size], out_size)
    if len(data) > out_size:
        raise OSError(errno.EIO, f"ioctl gave {len(data)} bytes for {out_size}")
    return IOCTL_OUT.pack(result, 0, 0, 0) + data


def on_poll(fs: FileSystem, request: Request) -> tuple[int, int] | Deferred:
    """POLL."""
    fh, kh, flags, events = request.args

    def done(revents: int | OSError) -> None:
        request.done(revents if isinstance(revents, OSError) else (revents, 0))

    ready = fs.poll(request.ctx, request.ctx.nodeid, fh, kh, flags, events, done)
    return ready if isinstance(ready, Deferred) else (ready, 0)


def on_notify_reply(fs: FileSystem, request: Request) -> None:
    """NOTIFY_REPLY."""
    _, offset, size, _, _, _ = request.args
    size = min(size, request.ctx[0] - 80)
    check_range(offset, size)
    views = cut(request.views, 0, size)
    fs.notify_reply(request.ctx, request.ctx.unique, request.ctx.nodeid, offset, views, size)
