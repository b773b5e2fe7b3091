"""Reading and writing through the page cache: write-through, and writeback as Linux does it.

Nothing is locked across a wait. Instead every look at the cache after a wait is a new look, and pages that
were read while the file changed under them (``Node.pages_epoch``) are not entered.
"""

from __future__ import annotations

import errno
import os

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_CTIME, FATTR_FH, FATTR_MTIME, FOPEN_DIRECT_IO
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.context import O_ACCMODE, ProcessContext, fail
from vmsim.guest.calls.transfer import Transfer, merge_segments
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.guest.kernel.nodes import NSEC
from vmsim.guest.state import Node, OpenFile
from vmsim.memory import PAGE_SIZE

FILL_TRIES = 16


class CachedIo:
    """The page cache in use."""

    def __init__(self, ctx: ProcessContext, access: Access, transfer: Transfer) -> None:
        self._ctx = ctx
        self._access = access
        self._transfer = transfer

    def is_cached(self, file: OpenFile) -> bool:
        """Whether reads and writes of the description go through the cache."""
        direct = file.open_flags & FOPEN_DIRECT_IO or file.flags & os.O_DIRECT
        return self._ctx.kernel.pages is not None and not direct

    # Frames

    def _reserve(self) -> int:
        """A frame to fill, at the price of writing out somebody's dirty pages, or of waiting."""
        while True:
            kernel = self._ctx.running()
            assert kernel.pages is not None
            frame = kernel.pages.reserve()
            if frame is not None:
                return frame
            victim = kernel.pages.oldest_dirty()
            if victim is not None:
                self.write_out(victim)
                continue
            if not kernel.requests:
                fail(errno.ENOMEM)
            self._ctx.wait_until(_frame_free, "a page frame")

    def _fill(self, number: int, first: int, count: int) -> bool:
        """READ pages first to first + count - 1 into the cache; False if the file changed meanwhile.

        A short READ is the end of the file (Linux: fuse_short_read), so that pages behind it do not come
        into being. If the guest owns the size, what is missing is a hole before data that the server does
        not have yet, and reads as zeros.
        """
        frames = []
        try:
            for _ in range(count):
                frames.append(self._reserve())
                if count > 1 and len(frames) >= self._most_frames():
                    break
            kernel = self._ctx.running()
            assert kernel.pages is not None
            node = kernel.nodes.get(kernel.state.files[number].nodeid)
            epoch, nodeid, version = node.pages_epoch, node.id, kernel.state.attr_version
            pages = merge_segments([(kernel.pages.gpa(frame), PAGE_SIZE) for frame in frames])
            got = self._transfer.read_pages(number, first * PAGE_SIZE, pages)
            kernel = self._ctx.kernel
            assert kernel.pages is not None
            node = kernel.nodes.get(nodeid)
            if node.pages_epoch != epoch:
                return False
            owned = node.dirty_size
            short = got < sum(size for _, size in pages)
            if short and not owned and not self._ends_at(node, first * PAGE_SIZE + got, version):
                return False
            while frames:
                start = (len(frames) - 1) * PAGE_SIZE
                frame = frames.pop()
                index = first + start // PAGE_SIZE
                if kernel.pages.find(nodeid, index) is not None or (start >= got and not owned):
                    kernel.pages.release(frame)
                    continue
                missing = min(PAGE_SIZE, max(0, start + PAGE_SIZE - got))
                if missing:
                    kernel.memory.write(kernel.pages.gpa(frame) + PAGE_SIZE - missing, bytes(missing))
                kernel.pages.enter(frame, nodeid, index)
            return True
        finally:
            self._ctx.cell.kernel.abandon_frames(frames)

    def _ends_at(self, node: Node, size: int, version: int) -> bool:
        """A READ that was sent at ``version`` found the end of the file; False if that is out of date."""
        if size >= node.attr.size:
            return True
        if node.attr_version > version or node.truncating:
            return False
        kernel = self._ctx.kernel
        assert kernel.pages is not None
        kernel.inodes.touch(node)
        node.attr.size = size
        kernel.pages.drop_clean(node.id, -(-size // PAGE_SIZE))
        kernel.inodes.zero_tail(node.id, size)
        return True

    def _most_frames(self) -> int:
        return max(1, self._ctx.kernel.state.pages.entries // 4)

    # Reading

    def read_cached(self, number: int, offset: int, out: memoryview) -> int:
        """read(2) through the cache; bytes read."""
        file = self._ctx.kernel.state.files[number]
        size = self._access.attr(file.nodeid, file.fh).size
        out = out[: max(0, size - offset)]
        done = tries = 0
        while done < len(out):
            kernel = self._ctx.running()
            assert kernel.pages is not None
            file = kernel.state.files[number]
            position = offset + done
            out = out[: max(done, kernel.nodes.get(file.nodeid).attr.size - offset)]
            if done == len(out):
                break
            index, inside = divmod(position, PAGE_SIZE)
            frame = kernel.pages.find(file.nodeid, index)
            if frame is None:
                last = (offset + len(out) - 1) // PAGE_SIZE
                if tries < FILL_TRIES and self._fill(number, index, self._run(file, index, last)):
                    tries = 0
                    node = self._ctx.kernel.nodes.get(self._ctx.kernel.state.files[number].nodeid)
                    out = out[: max(done, node.attr.size - offset)]
                    continue
                tries += 1
                if tries > FILL_TRIES:
                    return done + self._transfer.read_into(number, position, out[done:])
                continue
            length = min(PAGE_SIZE - inside, len(out) - done)
            out[done : done + length] = kernel.memory.view(kernel.pages.gpa(frame) + inside, length)
            done += length
            file.next_page = index + 1
        return done

    def _run(self, file: OpenFile, index: int, last: int) -> int:
        """How many pages from ``index`` on to READ at once: what is wanted and missing, and read-ahead."""
        kernel = self._ctx.kernel
        assert kernel.pages is not None
        node = kernel.nodes.get(file.nodeid)
        ahead = kernel.config.readahead_pages if index in (0, file.next_page) else 0
        ahead = min(ahead, kernel.state.session.max_readahead // PAGE_SIZE)
        end = max(last, min(index + ahead - 1, (node.attr.size - 1) // PAGE_SIZE))
        most = min(end - index + 1, max(1, kernel.max_read // PAGE_SIZE))
        count = 1
        while count < most and kernel.pages.find(node.id, index + count) is None:
            count += 1
        return count

    # Writing

    def write_cached(self, number: int, offset: int, data: memoryview) -> int:
        """write(2) through the cache; bytes taken."""
        if self._ctx.kernel.writeback:
            return self._write_back(number, offset, data)
        file = self._ctx.kernel.state.files[number]
        node = self._ctx.node(file.nodeid)
        node.pages_epoch += 1
        done = self._transfer.write_from(number, offset, data)
        kernel = self._ctx.kernel
        node = kernel.nodes.get(file.nodeid)
        if done:
            kernel.inodes.touch(node)
            node.pages_epoch += 1
            node.attr.size = max(node.attr.size, offset + done)
            self._update_pages(kernel, node, offset, data[:done])
        return done

    def _update_pages(self, kernel: GuestKernel, node: Node, offset: int, data: memoryview) -> None:
        """Cached pages follow a WRITE; whole pages that were not cached are entered."""
        pages = kernel.pages
        assert pages is not None
        done = 0
        while done < len(data):
            index, inside = divmod(offset + done, PAGE_SIZE)
            length = min(PAGE_SIZE - inside, len(data) - done)
            frame = pages.find(node.id, index)
            if frame is None and length == PAGE_SIZE:
                frame = pages.reserve()
                if frame is not None:
                    pages.enter(frame, node.id, index)
            if frame is not None:
                kernel.memory.write(pages.gpa(frame) + inside, data[done : done + length])
            done += length

    def _write_back(self, number: int, offset: int, data: memoryview) -> int:
        """Put the data into dirty pages; nothing is sent except to fill partly overwritten pages."""
        done = tries = 0
        while done < len(data):
            index, inside = divmod(offset + done, PAGE_SIZE)
            length = min(PAGE_SIZE - inside, len(data) - done)
            piece = data[done : done + length]
            kernel = self._ctx.running()
            assert kernel.pages is not None
            nodeid = kernel.state.files[number].nodeid
            node = kernel.nodes.get(nodeid)
            frame = kernel.pages.find(nodeid, index)
            if frame is None:
                whole = length == PAGE_SIZE or (not inside and offset + done + length >= node.attr.size)
                if whole or index * PAGE_SIZE >= node.attr.size:
                    fresh = self._reserve()
                    frame = self._enter_zeroed(fresh, nodeid, index, length == PAGE_SIZE)
                else:
                    if not self._fill(number, index, 1) and (tries := tries + 1) > FILL_TRIES:
                        fail(errno.EIO)
                    continue
            self._dirty(nodeid, frame, inside, piece, offset + done + length)
            done += length
        return done

    def _enter_zeroed(self, frame: int, nodeid: int, index: int, whole: bool) -> int:
        """Enter a reserved frame as a page of zeros, unless the page turned up meanwhile."""
        kernel = self._ctx.kernel
        pages = kernel.pages
        assert pages is not None
        there = pages.find(nodeid, index)
        if there is not None:
            pages.release(frame)
            return there
        if not whole:
            kernel.memory.write(pages.gpa(frame), bytes(PAGE_SIZE))
        pages.enter(frame, nodeid, index)
        return frame

    def _dirty(self, nodeid: int, frame: int, inside: int, piece: memoryview, end: int) -> None:
        kernel = self._ctx.kernel
        assert kernel.pages is not None
        node = kernel.nodes.get(nodeid)
        kernel.memory.write(kernel.pages.gpa(frame) + inside, piece)
        kernel.pages.set_dirty(frame)
        kernel.inodes.touch(node)
        node.attr.size = max(node.attr.size, end)
        seconds, nsec = divmod(kernel.inodes.realtime_ns(), NSEC)
        node.attr.mtime = node.attr.ctime = seconds
        node.attr.mtimensec = node.attr.ctimensec = nsec
        node.dirty_size = node.dirty_mtime = True

    # Write-out

    def write_out(self, nodeid: int) -> None:
        """Send the node's dirty pages and times; a failure is kept for the next fsync or close."""
        if self._ctx.kernel.pages is None:
            return
        what = f"the write-out of node {nodeid}"
        while True:
            kernel = self._ctx.running()
            assert kernel.pages is not None
            dirty = kernel.pages.dirty_pages(nodeid)
            if not dirty:
                break
            number = self._writer(kernel, nodeid)
            if number is None:  # whoever wrote is gone without having closed the file
                kernel.pages.drop(nodeid)
                break
            if not self._write_run(number, nodeid, dirty):
                self._ctx.wait_until(lambda kernel: _may_write(kernel, nodeid), what)
        self._ctx.wait_until(lambda kernel: _settled(kernel, nodeid), what)
        node = self._ctx.kernel.nodes.nodes.get(nodeid)
        if node is not None and node.dirty_mtime:
            self._write_times(nodeid)

    def sync_range(self, number: int, offset: int, size: int) -> None:
        """Before direct I/O: dirty pages of the file reach the server first."""
        self.write_out(self._ctx.kernel.state.files[number].nodeid)

    def _writer(self, kernel: GuestKernel, nodeid: int) -> int | None:
        """An open file through which the node can be written; rather not one that bypasses the cache."""
        past = None
        for number, file in kernel.state.files.items():
            if file.nodeid == nodeid and file.fh is not None and file.flags & O_ACCMODE != os.O_RDONLY:
                if not file.open_flags & FOPEN_DIRECT_IO:
                    return number
                past = number
        return past

    def _write_run(self, number: int, nodeid: int, dirty: list[int]) -> bool:
        """WRITE the first run of adjacent dirty pages; False if now is not the time for it."""
        kernel = self._ctx.kernel
        assert kernel.pages is not None
        node = kernel.nodes.get(nodeid)
        if node.truncating:
            return False
        first, frames = dirty[0], []
        for at, index in enumerate(dirty[: max(1, kernel.max_write // PAGE_SIZE)]):
            frame = kernel.pages.find(nodeid, index)
            if index != first + at or frame is None or kernel.pages.is_writing(frame):
                break
            frames.append(frame)
        if not frames:
            return False
        start, end = first * PAGE_SIZE, min((first + len(frames)) * PAGE_SIZE, node.attr.size)
        if end <= start:
            kernel.pages.drop(nodeid, first)
            return True
        segments = [(kernel.pages.gpa(frame), PAGE_SIZE) for frame in frames]
        cut = (first + len(frames)) * PAGE_SIZE - end
        if cut > 0:
            segments[-1] = (segments[-1][0], PAGE_SIZE - cut)
        for frame in frames:
            kernel.pages.begin_write(frame)
        error = 0
        try:
            with self._ctx.held(kernel.state.files[number]):
                self._transfer.write_pages(number, start, merge_segments(segments), cached=True)
        except OSError as refused:
            error = refused.errno or errno.EIO
        except BaseException:  # a program is killed, not the data that it wrote
            self._ctx.cell.kernel.abandon_frames(frames)
            raise
        kernel = self._ctx.cell.kernel
        if kernel.pages is not None:
            for at, frame in enumerate(frames):
                kernel.pages.end_write(frame, nodeid, first + at)
        left = kernel.nodes.nodes.get(nodeid)
        if left is not None:
            kernel.inodes.touch(left)
            _remember(kernel, left, error)
            if kernel.pages is not None and not kernel.pages.dirty_pages(nodeid):
                left.dirty_size = False
        return True

    def _write_times(self, nodeid: int) -> None:
        """SETATTR of the modification time that the guest kept."""
        kernel = self._ctx.kernel
        number = self._writer(kernel, nodeid)
        if number is None:
            self._send_times(nodeid, None)
            return
        with self._ctx.held(kernel.state.files[number]):  # somebody else's: it must not be closed meanwhile
            self._send_times(nodeid, kernel.state.files[number].fh)

    def _send_times(self, nodeid: int, fh: int | None) -> None:
        kernel = self._ctx.kernel
        node = kernel.nodes.get(nodeid)
        valid = FATTR_MTIME | FATTR_CTIME | (FATTR_FH if fh is not None else 0)
        attr = node.attr
        times = (0, attr.mtime, attr.ctime, 0, attr.mtimensec, attr.ctimensec)
        args = (valid, 0, fh or 0, 0, 0, *times, 0, 0, 0, 0, 0)
        node.dirty_mtime = False
        version = kernel.state.attr_version
        try:
            request = self._ctx.call(op.SETATTR, nodeid, args)
        except OSError as error:
            _remember(self._ctx.kernel, self._ctx.kernel.nodes.get(nodeid), error.errno or errno.EIO)
            return
        except BaseException:
            left = self._ctx.cell.kernel.nodes.nodes.get(nodeid)
            if left is not None:
                left.dirty_mtime = True
            raise
        self._access.take_attr(nodeid, request.reply, version)

    def before_truncate(self, nodeid: int) -> None:
        """Wait for what is under write-out: it must not reach the server after the truncation."""
        if self._ctx.kernel.pages is not None:
            self._ctx.wait_until(lambda kernel: _settled(kernel, nodeid), f"the write-out of node {nodeid}")


def _remember(kernel: GuestKernel, node: Node, error: int) -> None:
    """A write-out failed: the next close tells it, or the next fsync of each open file."""
    if not error:
        return
    node.error = error
    for file in kernel.state.files.values():
        if file.nodeid == node.id:
            file.error = error


def _settled(kernel: GuestKernel, nodeid: int) -> bool:
    kernel.poll()
    return kernel.pages is None or not kernel.pages.writing(nodeid)


def _may_write(kernel: GuestKernel, nodeid: int) -> bool:
    node = kernel.nodes.nodes.get(nodeid)
    return _settled(kernel, nodeid) and (node is None or not node.truncating)


def _frame_free(kernel: GuestKernel) -> bool:
    kernel.poll()
    pages = kernel.pages
    return pages is None or not kernel.requests or pages.has_room()
