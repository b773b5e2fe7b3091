"""read, write, seek, sync: the calls on an open file's content."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FOPEN_NONSEEKABLE, FSYNC_FDATASYNC
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.cached_io import CachedIo
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.calls.transfer import Transfer
from vmsim.guest.state import OpenFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

OFFSET_MAX = (1 << 63) - 1


def flat(buffer: Buffer) -> memoryview:
    """A buffer as one run of bytes."""
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class FileIo:
    """The content of open files."""

    def __init__(self, ctx: ProcessContext, access: Access, transfer: Transfer, cached: CachedIo) -> None:
        self._ctx = ctx
        self._access = access
        self._transfer = transfer
        self._cached = cached

    # Reading

    def read(self, fd: int, n: int) -> bytes:
        """Up to ``n`` bytes from the file's offset, which moves on."""
        return self._collect(fd, n, None)

    def pread(self, fd: int, n: int, offset: int) -> bytes:
        """Up to ``n`` bytes from ``offset``."""
        return self._collect(fd, n, offset)

    def _collect(self, fd: int, n: int, offset: int | None) -> bytes:
        if n < 0:
            fail(errno.EINVAL)
        file = self._transfer.readable(fd)
        if not self._cached.is_cached(file):
            return self._collect_direct(file, n, offset)
        if n > 1 << 16:  # no need for a buffer beyond the end of the file
            begin = file.offset if offset is None else offset
            n = min(n, max(1 << 16, self._access.attr(file.nodeid, file.fh).size - begin))
        data = bytearray(n)
        got = self._read_some(fd, [memoryview(data)], offset)
        return bytes(data[:got]) if got < n else bytes(data)

    def _collect_direct(self, file: OpenFile, n: int, offset: int | None) -> bytes:
        """``_collect`` past the page cache: one copy, from the payload buffer."""
        if offset is not None and offset < 0:
            fail(errno.EINVAL)
        with self._ctx.held(file) as number:
            start = file.offset if offset is None else offset
            if self._ctx.kernel.pages is not None:
                self._cached.sync_range(number, start, n)
            data = self._transfer.read_bytes(number, start, n)
            if offset is None:
                self._ctx.kernel.state.files[number].offset = start + len(data)
        return data

    def readv(self, fd: int, buffers: Sequence[Buffer]) -> int:
        """Fill buffers from the file's offset; bytes read."""
        return self._read_some(fd, [flat(buffer) for buffer in buffers], None)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        """Fill buffers from ``offset``; bytes read. ``flags`` other than 0 are EOPNOTSUPP."""
        if flags:
            fail(errno.EOPNOTSUPP)
        return self._read_some(fd, [flat(buffer) for buffer in buffers], offset)

    def _read_some(self, fd: int, buffers: list[memoryview], offset: int | None) -> int:
        if offset is not None and offset < 0:
            fail(errno.EINVAL)
        with self._ctx.held(self._transfer.readable(fd)) as number:
            file = self._ctx.kernel.state.files[number]
            start = file.offset if offset is None else offset
            done = 0
            for buffer in buffers:
                got = self._read_one(number, start + done, buffer)
                done += got
                if got < len(buffer):
                    break
            if offset is None:
                self._ctx.kernel.state.files[number].offset = start + done
        return done

    def _read_one(self, number: int, offset: int, buffer: memoryview) -> int:
        if not len(buffer):
            return 0
        file = self._ctx.kernel.state.files[number]
        if self._cached.is_cached(file):
            return self._cached.read_cached(number, offset, buffer)
        if self._ctx.kernel.pages is not None:
            self._cached.sync_range(number, offset, len(buffer))
        return self._transfer.read_into(number, offset, buffer)

    # Writing

    def write(self, fd: int, data: Buffer) -> int:
        """Write at the file's offset (O_APPEND: at its end); bytes written."""
        return self._write_some(fd, [flat(data)], None)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at ``offset``; as on Linux, O_APPEND wins over it."""
        return self._write_some(fd, [flat(data)], offset)

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        """Write buffers at the file's offset; bytes written."""
        return self._write_some(fd, [flat(buffer) for buffer in buffers], None)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        """Write buffers at ``offset``; bytes written. ``flags`` other than 0 are EOPNOTSUPP."""
        if flags:
            fail(errno.EOPNOTSUPP)
        return self._write_some(fd, [flat(buffer) for buffer in buffers], offset)

    def _write_some(self, fd: int, buffers: list[memoryview], offset: int | None) -> int:
        if offset is not None and offset < 0:
            fail(errno.EINVAL)
        file = self._transfer.writable(fd)
        data = buffers[0] if len(buffers) == 1 else memoryview(b"".join(buffers))
        with self._ctx.held(file) as number:
            if not len(data):
                return 0
            start = self._transfer.write_start(file, offset)
            if start + len(data) > OFFSET_MAX:
                fail(errno.EFBIG)
            file = self._ctx.kernel.state.files[number]
            ours = self._cached.is_cached(file) and self._ctx.kernel.writeback
            self._access.remove_privs(file.nodeid, delegated=not ours)
            file = self._ctx.kernel.state.files[number]
            if self._cached.is_cached(file):
                done = self._cached.write_cached(number, start, data)
            else:
                self._cached.sync_range(number, start, len(data))
                done = self._transfer.write_from(number, start, data)
                self._transfer.wrote(number, start, done)
            if offset is None:
                self._ctx.kernel.state.files[number].offset = start + done
            if done and file.flags & (os.O_SYNC | os.O_DSYNC):
                self._sync_file(number, not file.flags & (os.O_SYNC & ~os.O_DSYNC))
        return done

    # The offset

    def lseek(self, fd: int, position: int, whence: int) -> int:
        """Move the offset: SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE; the new one."""
        file = self._ctx.usable(fd)
        number = file.id
        if file.open_flags & FOPEN_NONSEEKABLE:
            fail(errno.ESPIPE)
        if whence == os.SEEK_SET:
            new = position
        elif whence == os.SEEK_CUR:
            new = file.offset + position
        elif whence == os.SEEK_END:
            new = self._access.attr(file.nodeid, file.fh).size + position
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE) and not file.directory:
            new = self._seek_data(number, position, whence)
        else:
            fail(errno.EINVAL)
        if new < 0 or new > OFFSET_MAX:
            fail(errno.EINVAL if new < 0 else errno.EOVERFLOW)
        self._ctx.kernel.state.files[number].offset = new
        return new

    def _seek_data(self, number: int, position: int, whence: int) -> int:
        """LSEEK; without it the whole file counts as data."""
        file = self._ctx.kernel.state.files[number]
        nodeid, fh = file.nodeid, file.fh
        self._cached.write_out(nodeid)
        size = self._access.attr(nodeid, fh).size
        if position < 0 or position >= size:
            fail(errno.ENXIO)
        if op.LSEEK not in self._ctx.kernel.missing:
            try:
                request = self._ctx.call(op.LSEEK, nodeid, (fh, position, whence, 0))
                return int(self._ctx.record(op.LSEEK, request).offset)
            except OSError as error:
                if not self._ctx.lacks(op.LSEEK, error):
                    raise
        return position if whence == os.SEEK_DATA else size

    # Durability

    def fsync(self, fd: int) -> None:
        """Make content and attributes durable on the host."""
        with self._ctx.held(self._ctx.usable(fd)) as number:
            self._sync_file(number, False)

    def fdatasync(self, fd: int) -> None:
        """Make content durable on the host."""
        with self._ctx.held(self._ctx.usable(fd)) as number:
            self._sync_file(number, True)

    def _sync_file(self, number: int, data_only: bool) -> None:
        file = self._ctx.kernel.state.files[number]
        nodeid, fh, directory = file.nodeid, file.fh, file.directory
        if not directory:
            self._cached.write_out(nodeid)
        flags = FSYNC_FDATASYNC if data_only else 0
        self._ctx.optional(op.FSYNCDIR if directory else op.FSYNC, nodeid, (fh, flags, 0))
        self._report_error(number)

    def _report_error(self, number: int) -> None:
        """Raise a write-out failure that fsync has not told this open file yet; close then need not."""
        kernel = self._ctx.kernel
        file = kernel.state.files[number]
        error, file.error = file.error, 0
        node = kernel.nodes.nodes.get(file.nodeid)
        if node is not None:
            node.error = 0
        if error:
            fail(error)

    def sync(self) -> None:
        """Write out everything dirty in the guest, then SYNCFS."""
        kernel = self._ctx.running()
        if kernel.pages is not None:
            for nodeid in kernel.pages.dirty_nodes():
                self._cached.write_out(nodeid)
        try:
            self._ctx.optional(op.SYNCFS, 1, (0,))
        except OSError:
            pass  # sync(2) cannot fail
