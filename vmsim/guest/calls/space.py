"""fallocate, copy_file_range, ioctl: calls on a file's space and what has no other place."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import IOCTL_DIR
from vmsim.fuse.abi.replies import IOCTL_OUT
from vmsim.guest.calls import permissions
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.cached_io import CachedIo
from vmsim.guest.calls.capabilities import CAP_LINUX_IMMUTABLE
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.calls.files import OFFSET_MAX
from vmsim.guest.calls.transfer import Transfer
from vmsim.guest.state import OpenFile
from vmsim.memory import PAGE_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 16
FALLOC_MODES: Final = (0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)  # fmt: skip
COPY_MAX: Final = 1 << 30
IOCTL_BYTES_MAX: Final = PAGE_SIZE
FS_FLAGS: Final = 0x30
"""FS_IMMUTABLE_FL and FS_APPEND_FL."""
FS_XFLAGS: Final = 0x18
"""FS_XFLAG_IMMUTABLE and FS_XFLAG_APPEND."""
FLAG_CHANGES: Final = {
    0x40086602: (0x80086601, 8, FS_FLAGS),  # FS_IOC_SETFLAGS, FS_IOC_GETFLAGS
    0x40046602: (0x80046601, 4, FS_FLAGS),  # the same for programs of 32 bits
    0x401C5820: (0x801C581F, 28, FS_XFLAGS),  # FS_IOC_FSSETXATTR, FS_IOC_FSGETXATTR
}
"""Requests that change flags: what asks for them, its bytes, the flags that are guarded."""


class Space:
    """Space, copies on the server, ioctl."""

    def __init__(self, ctx: ProcessContext, access: Access, transfer: Transfer, cached: CachedIo) -> None:
        self._ctx = ctx
        self._access = access
        self._transfer = transfer
        self._cached = cached

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve space; the file grows if it is shorter."""
        self.fallocate(fd, 0, offset, length)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2): modes 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE; others are EOPNOTSUPP."""
        file = self._transfer.writable(fd)
        if offset < 0 or length <= 0:
            fail(errno.EINVAL)
        if mode not in FALLOC_MODES:
            fail(errno.EOPNOTSUPP)
        if offset + length > OFFSET_MAX:
            fail(errno.EFBIG)
        self._ctx.require(op.FALLOCATE, errno.EOPNOTSUPP)
        with self._ctx.held(file) as number:
            nodeid = file.nodeid
            self._cached.write_out(nodeid)
            self._access.remove_privs(nodeid, delegated=False)
            try:
                self._ctx.call(op.FALLOCATE, nodeid, (file.fh, offset, length, mode, 0))
            except OSError as error:
                if self._ctx.lacks(op.FALLOCATE, error):
                    fail(errno.EOPNOTSUPP)
                raise
            self._changed_range(number, offset, length, not mode & FALLOC_FL_KEEP_SIZE)

    def _changed_range(self, number: int, offset: int, length: int, grows: bool) -> None:
        """The server changed a range behind the cache."""
        kernel = self._ctx.kernel
        node = kernel.nodes.get(kernel.state.files[number].nodeid)
        kernel.inodes.touch(node)
        node.pages_epoch += 1
        if grows:
            node.attr.size = max(node.attr.size, offset + length)
        if kernel.pages is not None:
            kernel.pages.drop_clean(node.id, offset // PAGE_SIZE, (offset + length - 1) // PAGE_SIZE)

    def copy_file_range(
        self, src: int, dst: int, count: int, offset_src: int | None = None, offset_dst: int | None = None
    ) -> int:
        """Copy between two open files on the server (or, if it cannot, through the guest); bytes copied."""
        if count < 0:
            raise ValueError("negative value for 'count' not allowed")
        source, target = self._ctx.usable(src), self._ctx.usable(dst)
        if source.directory or target.directory:
            fail(errno.EISDIR)
        if target.flags & os.O_APPEND or target.flags & 3 == os.O_RDONLY or source.flags & 3 == os.O_WRONLY:
            fail(errno.EBADF)
        count = min(count, COPY_MAX)
        least = min(offset_src or 0, offset_dst or 0)
        if least < 0:  # Linux adds without signs, and looks at the sum first
            fail(errno.EOVERFLOW if least + count >= 0 else errno.EINVAL)
        with self._ctx.held(source) as first, self._ctx.held(target) as second:
            begin = source.offset if offset_src is None else offset_src
            end = target.offset if offset_dst is None else offset_dst
            self._cached.write_out(source.nodeid)
            self._cached.write_out(target.nodeid)
            count = min(count, max(0, self._access.attr(source.nodeid, source.fh).size - begin))
            if source.nodeid == target.nodeid and begin < end + count and end < begin + count:
                fail(errno.EINVAL)
            if not count:
                return 0
            if end >= OFFSET_MAX:
                fail(errno.EFBIG)
            count = min(count, OFFSET_MAX - end)
            self._access.remove_privs(target.nodeid, delegated=False)
            copied = self._copy(first, second, begin, end, count)
            files = self._ctx.kernel.state.files
            if offset_src is None:
                files[first].offset = begin + copied
            if offset_dst is None:
                files[second].offset = end + copied
            if copied:
                self._changed_range(second, end, copied, True)
        return copied

    def _copy(self, first: int, second: int, begin: int, end: int, count: int) -> int:
        files = self._ctx.kernel.state.files
        source, target = files[first], files[second]
        if op.COPY_FILE_RANGE not in self._ctx.kernel.missing and count:
            args = (source.fh, begin, target.nodeid, target.fh, end, count, 0)
            try:
                copied = self._ctx.record(
                    op.COPY_FILE_RANGE, self._ctx.call(op.COPY_FILE_RANGE, source.nodeid, args)
                ).size
                return min(int(copied), count)
            except OSError as error:
                if not self._ctx.lacks(op.COPY_FILE_RANGE, error) and error.errno not in (
                    errno.EOPNOTSUPP,
                    errno.EXDEV,
                ):
                    raise
        piece = memoryview(bytearray(min(count, 1 << 20)))
        got = self._transfer.read_into(first, begin, piece)
        return self._transfer.write_from(second, end, piece[:got])

    def ioctl(self, fd: int, request: int, arg: int | Buffer = 0) -> int | bytes:
        """ioctl(2) with an int (its result is returned), or a buffer: the bytes that come back for it.

        The request's number says how many bytes go each way. ENOTTY where the server answers none.
        """
        file = self._ctx.usable(fd)
        self._ctx.require(op.IOCTL, errno.ENOTTY)
        if file.directory and not stat.S_ISDIR(self._ctx.node(file.nodeid).attr.mode):
            fail(errno.ENOTTY)
        size, direction = request >> 16 & 0x3FFF, request >> 30 & 3
        data = b"" if isinstance(arg, int) else bytes(arg)
        out_size = size if direction & 2 and not isinstance(arg, int) else 0
        if len(data) > IOCTL_BYTES_MAX or out_size > IOCTL_BYTES_MAX:
            fail(errno.EINVAL)
        sent = data[:size].ljust(size, b"\0") if direction & 1 and not isinstance(arg, int) else b""
        flags = IOCTL_DIR if file.directory else 0
        if request in FLAG_CHANGES and not isinstance(arg, int):
            self._may_change_flags(file, request, sent)
            file = self._ctx.usable(fd)
        value = arg if isinstance(arg, int) else 0
        args = (file.fh, flags, request & 0xFFFFFFFF, value & 0xFFFFFFFFFFFFFFFF, len(sent), out_size)
        return self._send_ioctl(file.nodeid, args, sent, out_size, isinstance(arg, int))

    def _may_change_flags(self, file: OpenFile, request: int, sent: bytes) -> None:
        """EPERM as fileattr_set_prepare: flags are the owner's, those that make a file immutable or
        append-only take CAP_LINUX_IMMUTABLE."""
        process, number, nodeid = self._ctx.process, file.id, file.nodeid
        permissions.check_owner(process, self._access.attr(nodeid, None if file.directory else file.fh))
        if permissions.capable(process, CAP_LINUX_IMMUTABLE) or len(sent) < 4:
            return
        asking, size, guarded = FLAG_CHANGES[request]
        file = self._ctx.kernel.state.files[number]
        args = (file.fh, IOCTL_DIR if file.directory else 0, asking, 0, 0, size)
        now = self._send_ioctl(nodeid, args, b"", size, False)
        assert isinstance(now, bytes)
        if (int.from_bytes(now[:4], "little") ^ int.from_bytes(sent[:4], "little")) & guarded:
            fail(errno.EPERM)

    def _send_ioctl(
        self, nodeid: int, args: tuple[int | None, ...], sent: bytes, out_size: int, plain: bool
    ) -> int | bytes:
        payload = [self._ctx.buffer(out_size)] if out_size else []
        writes = [(gpa, min(size, out_size)) for gpa, size in payload]
        try:
            request = self._ctx.call(
                op.IOCTL, nodeid, args, (), sent, writes=writes, owned=payload, room=IOCTL_OUT.size
            )
        except OSError as error:
            if self._ctx.lacks(op.IOCTL, error):
                fail(errno.ENOTTY)
            raise
        kernel = self._ctx.kernel
        if len(request.reply) < IOCTL_OUT.size:
            fail(errno.EIO)
        result = IOCTL_OUT.unpack(request.reply).result
        got = max(0, min(request.written - IOCTL_OUT.size, out_size))
        data = kernel.memory.read(payload[0][0], got) if payload else b""
        kernel.free_owned(request)
        if result < 0:
            fail(-result)
        return result if plain else data
