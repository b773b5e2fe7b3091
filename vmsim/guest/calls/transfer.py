"""READ and WRITE between the server and guest memory, and between guest memory and the program's bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import WRITE_CACHE, WRITE_KILL_SUIDGID
from vmsim.guest.calls import permissions
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.capabilities import CAP_FSETID
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.state import OpenFile, Request, Segments

READ_CHUNK: Final = 1 << 20


def split_segments(segments: Segments, count: int, size: int) -> tuple[Segments, Segments]:
    """The first ``size`` bytes of at most ``count`` segments, and the rest."""
    head: Segments = []
    for at, (gpa, length) in enumerate(segments):
        if len(head) == count or not size:
            return head, segments[at:]
        if length > size:
            return [*head, (gpa, size)], [(gpa + size, length - size), *segments[at + 1 :]]
        head.append((gpa, length))
        size -= length
    return head, []


def merge_segments(segments: Sequence[tuple[int, int]]) -> Segments:
    """Adjacent segments made one."""
    merged: Segments = []
    for gpa, size in segments:
        if merged and sum(merged[-1]) == gpa:
            merged[-1] = (merged[-1][0], merged[-1][1] + size)
        else:
            merged.append((gpa, size))
    return merged


class Transfer:
    """Payload in place (zero copy) and payload copied."""

    def __init__(self, ctx: ProcessContext, access: Access) -> None:
        self._ctx = ctx
        self._access = access

    def read_pages(self, number: int, offset: int, segments: Segments) -> int:
        """READ straight into guest memory; bytes read, short only at the end of the file."""
        done = 0
        while segments:
            kernel = self._ctx.running()
            file = kernel.state.files[number]
            part, segments = split_segments(segments, kernel.max_segments, kernel.max_read)
            size = sum(length for _, length in part)
            args = (file.fh, offset + done, size, 0, 0, file.flags, 0)
            got = min(self._ctx.call(op.READ, file.nodeid, args, writes=part).written, size)
            done += got
            if got < size:
                break
        return done

    def write_pages(self, number: int, offset: int, segments: Segments, cached: bool = False) -> int:
        """WRITE straight from guest memory; bytes taken.

        Pages of the cache go out whole, or their error is known: where the server took a part, the rest is
        sent again. For a program an error after some bytes is left to the next call, as write(2) does.
        """
        done = 0
        while segments:
            kernel = self._ctx.running()
            file = kernel.state.files[number]
            part, segments = split_segments(segments, kernel.max_segments, kernel.max_write)
            size = sum(length for _, length in part)
            args = (
                file.fh,
                offset + done,
                size,
                self.write_flags(cached),
                0,
                0 if cached else file.flags,
                0,
            )
            try:
                reply = self._ctx.record(op.WRITE, self._ctx.call(op.WRITE, file.nodeid, args, reads=part))
            except OSError:
                if done and not cached:
                    break
                raise
            if reply.size > size or (cached and not reply.size):
                fail(errno.EIO)
            done += reply.size
            if reply.size < size:
                if not cached:
                    break
                segments = split_segments(part, len(part), reply.size)[1] + segments
        return done

    def write_flags(self, cached: bool) -> int:
        """Of a direct write Linux always says whether set-id bits go, KILLPRIV_V2 or not."""
        if cached:
            return WRITE_CACHE
        return 0 if permissions.capable(self._ctx.process, CAP_FSETID) else WRITE_KILL_SUIDGID

    def read_into(self, number: int, offset: int, out: memoryview) -> int:
        """READ through payload buffers into ``out``; bytes read."""
        done = 0
        for request, size in self._read_pieces(number, offset, len(out)):
            kernel = self._ctx.kernel
            at = 0
            for view in kernel.memory.views(request.writes[0][0], size):
                out[done + at : done + at + len(view)] = view
                at += len(view)
            done += size
        return done

    def read_bytes(self, number: int, offset: int, size: int) -> bytes:
        """READ through payload buffers; the bytes."""
        pieces: list[bytes] = []
        while size > 0:
            data, ended = self._read_once(number, offset, size)
            size -= len(data)
            if ended or not size:
                if not pieces:
                    return data
                size = 0
            offset += len(data)
            pieces.append(data)
        return b"".join(pieces)

    def _read_once(self, number: int, offset: int, size: int) -> tuple[bytes, bool]:
        """One READ of at most ``size`` bytes: these, and whether it met the end of the file."""
        gpa, room = self._ctx.buffer(min(size, self._ctx.running().max_read))
        file = self._ctx.kernel.state.files[number]
        args = (file.fh, offset, room, 0, 0, file.flags, 0)
        request = self._ctx.call(op.READ, file.nodeid, args, writes=[(gpa, room)], owned=[(gpa, room)])
        kernel = self._ctx.cell.kernel
        got = min(request.written, room)
        data = kernel.memory.read(gpa, got)
        kernel.free_owned(request)
        return data, got < room

    def _read_pieces(self, number: int, offset: int, size: int) -> Iterator[tuple[Request, int]]:
        """READ ``size`` bytes in as many requests as it takes; each with its (non-zero) bytes.

        The request's buffer is freed when the next piece is asked for.
        """
        while size > 0:
            kernel = self._ctx.running()
            gpa, room = self._ctx.buffer(min(size, kernel.max_read))
            file = self._ctx.kernel.state.files[number]
            args = (file.fh, offset, room, 0, 0, file.flags, 0)
            request = self._ctx.call(op.READ, file.nodeid, args, writes=[(gpa, room)], owned=[(gpa, room)])
            got = min(request.written, room)
            try:
                if got:
                    yield request, got
            finally:
                self._ctx.cell.kernel.free_owned(request)
            if got < room:
                break
            offset += got
            size -= got

    def write_from(self, number: int, offset: int, data: memoryview) -> int:
        """Copy ``data`` to payload buffers and WRITE it; bytes taken. An error after some bytes is left to
        the next call, as write(2) does."""
        done = 0
        while done < len(data):
            kernel = self._ctx.running()
            gpa, size = self._ctx.buffer(min(len(data) - done, kernel.max_write))
            kernel = self._ctx.kernel
            kernel.memory.write(gpa, data[done : done + size])
            file = kernel.state.files[number]
            args = (file.fh, offset + done, size, self.write_flags(False), 0, file.flags, 0)
            try:
                buffer = [(gpa, size)]
                request = self._ctx.call(op.WRITE, file.nodeid, args, reads=buffer, owned=list(buffer))
            except OSError:
                if done:
                    break
                raise
            self._ctx.kernel.free_owned(request)
            taken = self._ctx.record(op.WRITE, request).size
            if taken > size:
                fail(errno.EIO)
            done += taken
            if taken < size:
                break
        return done

    def write_start(self, file: OpenFile, offset: int | None) -> int:
        """Where a write goes: O_APPEND wins over ``offset``, None is the file's own."""
        if file.flags & os.O_APPEND:
            return self._access.attr(file.nodeid, file.fh).size
        return file.offset if offset is None else offset

    def readable(self, fd: int) -> OpenFile:
        """The description, if it may be read: EBADF or EISDIR."""
        file = self._ctx.usable(fd)
        if file.directory:
            fail(errno.EISDIR)
        if file.flags & 3 == 1:
            fail(errno.EBADF)
        return file

    def writable(self, fd: int) -> OpenFile:
        """The description, if it may be written: EBADF."""
        file = self._ctx.usable(fd)
        if file.directory or file.flags & 3 == 0:
            fail(errno.EBADF)
        return file

    def wrote(self, number: int, offset: int, size: int) -> None:
        """The file grew to at least offset + size by a write past the cache; its cached pages are stale."""
        if not size:
            return
        kernel = self._ctx.kernel
        node = kernel.nodes.get(kernel.state.files[number].nodeid)
        kernel.inodes.touch(node)
        node.attr.size = max(node.attr.size, offset + size)
        if kernel.pages is not None:
            node.pages_epoch += 1
            kernel.pages.drop_clean(node.id, offset // 4096, (offset + size - 1) // 4096)
