"""Reading and writing in place: for programs that bring their own guest pages."""

from __future__ import annotations

import errno

from vmsim.guest.calls.access import Access
from vmsim.guest.calls.cached_io import CachedIo
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.calls.transfer import Transfer
from vmsim.guest.state import Segments


class GuestPages:
    """Zero-copy calls."""

    def __init__(self, ctx: ProcessContext, access: Access, transfer: Transfer, cached: CachedIo) -> None:
        self._ctx = ctx
        self._access = access
        self._transfer = transfer
        self._cached = cached

    def alloc_guest(self, size: int) -> int:
        """Page-aligned guest memory of ``size`` bytes for zero-copy calls; ENOMEM if there is none."""
        gpa = self._ctx.running().allocator.allocate(size)
        return gpa if gpa is not None else fail(errno.ENOMEM)

    def free_guest(self, gpa: int, size: int) -> None:
        """Give back what ``alloc_guest(size)`` returned."""
        self._ctx.running().allocator.free(gpa, size)

    def pread_guest(self, fd: int, segments: Segments, offset: int) -> int:
        """READ into (address, bytes) pieces of guest memory, past any cache; bytes read."""
        with self._ctx.held(self._transfer.readable(fd)) as number:
            self._cached.sync_range(number, offset, sum(size for _, size in segments))
            return self._transfer.read_pages(number, offset, list(segments))

    def pwrite_guest(self, fd: int, segments: Segments, offset: int) -> int:
        """WRITE from (address, bytes) pieces of guest memory, past any cache; bytes written."""
        with self._ctx.held(self._transfer.writable(fd)) as number:
            total = sum(size for _, size in segments)
            self._access.remove_privs(self._ctx.kernel.state.files[number].nodeid)
            self._cached.sync_range(number, offset, total)
            offset = self._transfer.write_start(self._ctx.kernel.state.files[number], offset)
            done = self._transfer.write_pages(number, offset, list(segments))
            self._transfer.wrote(number, offset, done)
            return done
