"""FUSE over virtqueues: sending requests, taking replies, what becomes of requests without a caller.

Nothing in here waits: :mod:`vmsim.guest.calls.context` does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from vmsim.errors import PeerError, RingViolation, StateError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.headers import IN_HEADER
from vmsim.fuse.abi.requests import BATCH_FORGET_IN, FORGET_ONE
from vmsim.fuse.client import REQUEST_STRUCTS, UNKNOWN_REQUEST, decode_direntplus, encode
from vmsim.guest.driver.alloc import PageAllocator
from vmsim.guest.driver.queue import SLOT_IN, RequestQueue
from vmsim.guest.driver.virtio import VirtioDriver
from vmsim.guest.kernel.dentries import DentryCache
from vmsim.guest.kernel.inode_cache import InodeCache
from vmsim.guest.kernel.nodes import NodeTable
from vmsim.guest.kernel.page_cache import PageCache
from vmsim.guest.state import DONE, IN_FLIGHT, QUEUED, KernelState, Process, Request, Segments
from vmsim.host.forks import Birthplace
from vmsim.memory import PAGE_SIZE, GuestMemory
from vmsim.schedule import Schedule
from vmsim.virtio.constants import F_INDIRECT_DESC

NONE: Final[Segments] = []
HIPRIO: Final = 0
NO_REPLY: Final = -1
REPLY_ROOM: Final = {
    row.number: NO_REPLY
    if row.reply is op.Reply.NONE
    else row.record_size
    if row.reply is op.Reply.RECORD
    else 0
    for row in op.OPCODES
}
"""Bytes of reply arguments by opcode; what varies goes to payload buffers."""
INTERRUPT_BIT: Final = 1
SEGMENT_OVERHEAD: Final = 4
_FORGET_LIMIT: Final = (SLOT_IN - IN_HEADER.size - BATCH_FORGET_IN.size) // FORGET_ONE.size
_ENTRY_REPLIES: Final = frozenset((op.LOOKUP, op.MKNOD, op.MKDIR, op.SYMLINK, op.LINK, op.CREATE, op.TMPFILE))
_OPEN_REPLIES: Final = frozenset((op.OPEN, op.OPENDIR, op.CREATE, op.TMPFILE))
_GIVES_BACK: Final = frozenset((op.RELEASE, op.RELEASEDIR, op.FLUSH))
"""Requests that are sent whatever becomes of who asked: the server would keep something for nobody."""
_CHANGES: Final = frozenset((
    op.UNLINK, op.RMDIR, op.RENAME, op.RENAME2, op.MKNOD, op.MKDIR, op.SYMLINK, op.LINK, op.CREATE, op.OPEN,
    op.SETATTR, op.WRITE, op.FALLOCATE, op.COPY_FILE_RANGE, op.SETXATTR, op.REMOVEXATTR, op.IOCTL,
))  # fmt: skip
"""Requests after which caches are out of date (OPEN truncates)."""


class _Closed(list[RequestQueue]):
    """The queues of a kernel whose machine is closed."""

    def __getitem__(self, index: object) -> NoReturn:
        raise StateError("the machine is closed")


class FuseRequests:
    """The requests of one guest; ``state`` is all that lasts, everything else is found again from it."""

    def __init__(
        self, memory: GuestMemory, driver: VirtioDriver, schedule: Schedule, state: KernelState
    ) -> None:
        self.memory = memory
        self.schedule = schedule
        self.driver = driver
        self.paused = False
        self.birthplace = Birthplace()
        self.here = self.birthplace.here
        """``here[0]`` is 0 in a forked child, which shares the guest's memory and must leave it alone."""
        self._attach(state)

    def _attach(
        self, state: KernelState, pages: PageCache | None = None, dentries: DentryCache | None = None
    ) -> None:
        """Make ``state`` the live state; indices that are not given are rebuilt from it and guest memory."""
        self.state = state
        self.config = state.config
        self.allocator = PageAllocator(state.allocator)
        self.nodes = NodeTable(state)
        self.requests = state.requests
        self.queues: list[RequestQueue] = []
        for queue in state.queues:
            ring = self.driver.attach_ring(queue, state.features, self.memory)
            indirect = self.config.indirect and bool(state.features & F_INDIRECT_DESC)
            self.queues.append(
                RequestQueue(
                    queue, ring, self.memory, self.allocator, state.requests,
                    indirect=indirect, split=self.config.linux_chains,
                )
            )  # fmt: skip
        if pages is None and state.pages.entries:
            pages = PageCache(self.memory, state.pages)
        if dentries is None and state.dentries.entries:
            dentries = DentryCache(self.memory, state.dentries)
        self.pages, self.dentries = pages, dentries
        self.inodes = InodeCache(self.memory, self.schedule, state, self.nodes, pages, dentries)
        self.writeback = bool(self.pages and state.session.flags & init_flags.WRITEBACK_CACHE)
        self.missing = set(state.missing)
        self.nodes.gone = self.pages.drop if self.pages is not None else None
        self._bound()

    def close(self) -> None:
        """Let go of guest memory; a program that still calls us gets StateError."""
        self.queues = _Closed()
        self.pages = self.dentries = self.inodes.pages = self.inodes.dentries = None
        self.paused = False  # nobody is to wait for a machine that does not come back

    # Requests

    def submit(
        self, opcode: int, nodeid: int, args: Sequence[Any] = (), names: Sequence[bytes] = (),
        data: bytes = b"", *,
        process: Process | None = None, room: int = 0, reads: Segments = NONE, writes: Segments = NONE,
        owned: Segments = NONE, extensions: bytes = b"", compat: bool = False,
    ) -> Request:  # fmt: skip
        """Send a request for ``process`` (None: the kernel itself) and look for its reply at once.

        ``data`` travels behind the arguments, ``reads`` and ``writes`` are payload in place; ``room`` is for
        reply arguments (0: as the opcode's row says). ``owned`` buffers are freed with the request. A full
        ring queues the request. EIO while the device needs a reset.
        """
        state = self.state
        if state.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unique = state.next_unique
        state.next_unique = unique + 2
        payload = 0
        for _, size in reads:
            payload += size
        if process is None:
            pid = uid = gid = 0
        else:
            pid, uid, gid = process.pid, process.uid, process.gid
        if names or data or extensions or compat:
            message = encode(
                opcode, unique, nodeid, uid, gid, pid, args, names, data,
                data_size=payload, extensions=extensions, compat=compat,
            )  # fmt: skip
        else:
            fixed = REQUEST_STRUCTS.get(opcode, UNKNOWN_REQUEST)
            message = fixed.pack(fixed.size + payload, opcode, unique, nodeid, uid, gid, pid, 0, 0, *args)
        index = 1 + pid % (len(self.queues) - 1)
        room = room or REPLY_ROOM.get(opcode, 0)
        request = Request(unique, opcode, nodeid, pid, index, message, room, reads, writes, owned)
        self.requests[unique] = request
        self._send(request)
        return request

    def ask(self, opcode: int, nodeid: int, args: tuple[Any, ...], process: Process) -> Request:
        """``submit`` for what carries no name and no payload either way."""
        state = self.state
        pid = process.pid
        index = 1 + pid % (len(self.queues) - 1)
        queue = self.queues[index]
        unique = state.next_unique
        message = REQUEST_STRUCTS[opcode]
        request = Request(
            unique,
            opcode,
            nodeid,
            pid,
            index,
            b"",
            REPLY_ROOM[opcode],
            NONE,
            NONE,
            NONE,
            IN_FLIGHT,
            -1,
            0,
            b"",
            0,
            NONE,
        )
        fields = (message.size, opcode, unique, nodeid, process.uid, process.gid, pid, 0, 0, *args)
        if state.broken or not queue.ask(request, message, fields):
            return self.submit(opcode, nodeid, args, process=process)
        state.next_unique = unique + 2
        self.requests[unique] = request
        ring = queue.ring
        ring.publish()
        if ring.needs_kick():
            self.driver.notify(ring)
        if request.status != DONE:
            self._reap(queue)
        return request

    def _send(self, request: Request) -> None:
        queue = self.queues[request.queue]
        if queue.submit(request):
            ring = queue.ring
            ring.publish()
            if ring.needs_kick():
                self.driver.notify(ring)
        self._reap(queue)

    def _reap(self, queue: RequestQueue) -> None:
        try:
            ended = queue.reap()
        except RingViolation:
            self._device_failed()
            return
        for request in ended:
            if request.orphan:
                self._discard(request)
        if queue.state.backlog and queue.dispatch_backlog():
            queue.ring.publish()
            if queue.ring.needs_kick():
                self.driver.notify(queue.ring)

    def poll(self) -> None:
        """Take whatever the device has used."""
        for queue in self.queues:
            if queue.state.in_flight or queue.state.backlog:
                self._reap(queue)

    def ended(self, unique: int) -> bool:
        """Whether the reply has come (or never will)."""
        request = self.requests.get(unique)
        if request is None or request.status == DONE:
            return True
        self.poll()
        if request.status == DONE:
            return True
        self.arm_interrupts()
        return request.status == DONE

    def arm_interrupts(self) -> None:
        """Somebody is about to wait: ask for interrupts, and look once more."""
        for queue in self.queues:
            while queue.state.in_flight and not queue.armed:
                queue.armed = True
                if queue.ring.arm_interrupts():
                    queue.armed = False  # the event index that we asked for is passed already
                    self._reap(queue)

    def interrupt(self) -> None:
        """The device's interrupt line: acknowledge, take used buffers, see whether the device gave up."""
        if self.paused:
            return
        for queue in self.queues:
            if queue.armed:
                queue.armed = False
                queue.ring.suppress_interrupts()
        if self.driver.take_interrupt():
            self._device_failed()
        self.poll()

    def pause(self) -> None:
        """Stop at the next request or wake-up of every program."""
        self.paused = True

    def resume(self) -> None:
        """Go on; what the device did meanwhile is looked at first."""
        self.paused = False
        if self.state.booted and not self.state.broken:
            self.interrupt()
            self.arm_interrupts()

    def _device_failed(self) -> None:
        """DEVICE_NEEDS_RESET: nothing in flight will ever come back, so it all fails with EIO."""
        self.state.broken = True
        for queue in self.queues:
            for request in queue.fail_all():
                if request.orphan:
                    self._discard(request)

    def reset_queue(self, index: int) -> None:
        """Reset one queue and enable it again (virtio 1.3 section 2.6.1); its requests fail with EIO.

        UsageError unless VIRTIO_F_RING_RESET was negotiated.
        """
        queue = self.queues[index]
        self.driver.reset_queue(queue.state, self.state.features)
        for request in queue.fail_all():
            if request.orphan:
                self._discard(request)
        queue.state.ring = b""
        self.driver.clear_ring(queue.state, self.state.features, self.memory)
        queue.ring = self.driver.attach_ring(queue.state, self.state.features, self.memory)
        self.driver.enable_queue(queue.state)

    # Requests without a caller

    def abandon(self, unique: int) -> None:
        """The caller has gone away: drop the request if it was not sent, else its result when it comes."""
        request = self.requests.get(unique)
        if request is None:
            return
        request.orphan = True
        if request.status == DONE or self._cancel(request):
            self._discard(request)
        elif request.opcode == op.SETLKW and not request.interrupted:
            self._interrupt(request)  # or it might be granted when its owner's last FLUSH is past

    def _cancel(self, request: Request) -> bool:
        """Take a request out of the backlog, unless it gives something back; whether that was done."""
        return request.opcode not in _GIVES_BACK and self.queues[request.queue].cancel(request)

    def abandon_all(self) -> None:
        """All programs are gone (a snapshot was restored without their stacks)."""
        for unique in list(self.requests):
            self.abandon(unique)
        for node in self.state.nodes.values():
            node.truncating = 0
        if self.pages is not None:
            self.abandon_frames(self.pages.under_way())

    def abandon_frames(self, frames: Sequence[int]) -> None:
        """Whoever filled or wrote out these frames is gone; those that a request still uses wait for its
        reply."""
        if self.pages is None or not frames:
            return
        parts = [part for request in self.requests.values() for part in (*request.reads, *request.writes)]
        for gpa in map(self.pages.gpa, frames):
            if not any(at <= gpa < at + size for at, size in parts):
                self.pages.abandon(gpa, PAGE_SIZE)

    def _discard(self, request: Request) -> None:
        self.requests.pop(request.unique, None)
        self.give_back(request)
        self.free_owned(request)
        if self.pages is not None:
            for gpa, size in (*request.reads, *request.writes):
                self.pages.abandon(gpa, size)
        if request.opcode in _CHANGES:
            self.inodes.distrust()

    def give_back(self, request: Request) -> None:
        """Undo what a successful reply handed to a caller who is gone or cannot use it: lookups, handles."""
        if request.opcode == op.READDIRPLUS and not request.error:
            self._forget_listed(request)
        row = op.BY_NUMBER.get(request.opcode)  # None: of a newer kernel than ours
        if request.error or row is None or row.record is None or len(request.reply) < row.record.size:
            return
        record = row.record.unpack(request.reply)
        if request.opcode in _ENTRY_REPLIES and record.nodeid:
            self.state.forgets.append((record.nodeid, 1))
        if request.opcode in _OPEN_REPLIES and not self.state.broken:
            nodeid = record.nodeid if request.opcode in _ENTRY_REPLIES else request.nodeid
            self.release(nodeid, (record.fh, 0, 0, 0), request.opcode == op.OPENDIR)

    def release(self, nodeid: int, args: Sequence[Any], directory: bool = False) -> None:
        """Give a file handle back to the server; nobody waits for that."""
        if self.queues:
            opcode = op.RELEASEDIR if directory else op.RELEASE
            self.abandon(self.submit(opcode, nodeid, args).unique)

    def _forget_listed(self, request: Request) -> None:
        """READDIRPLUS has looked up each entry that it names, except the directory itself and its parent."""
        gpa, size = request.writes[0]
        body = self.memory.read(gpa, min(request.written, size))
        with suppress(PeerError):  # what follows a malformed entry cannot be told
            for entry, _, name in decode_direntplus(body):
                if entry.nodeid and name not in (b".", b".."):
                    self.state.forgets.append((entry.nodeid, 1))

    def free_owned(self, request: Request) -> None:
        """Give back a request's payload buffers."""
        if request.owned:
            for gpa, size in request.owned:
                self.allocator.free(gpa, size)
            request.owned = []

    def send_interrupt(self, pid: int) -> int:
        """Have the server end what requests of ``pid`` wait for (INTERRUPT, hiprio); how many were asked."""
        asked = 0
        for request in list(self.requests.values()):
            if request.pid != pid or request.status == DONE or request.interrupted:
                continue
            if request.status == QUEUED and request.opcode in _GIVES_BACK:
                continue
            asked += 1
            if self._cancel(request):
                request.interrupted = True
                request.error = errno.EINTR
            else:
                self._interrupt(request)
        return asked

    def _interrupt(self, request: Request) -> None:
        request.interrupted = True
        self._send_hiprio(op.INTERRUPT, 0, (request.unique,), unique=request.unique | INTERRUPT_BIT)

    def interrupt_local(self, pid: int) -> int:
        """Interrupt what ``pid`` waits for inside the guest (local locks); 1 if there is such a process."""
        if pid not in self.state.processes:
            return 0
        counts = self.state.interrupts
        counts[pid] = counts.get(pid, 0) + 1
        return 1

    def flush_forgets(self) -> None:
        """Send all owed FORGETs on the hiprio queue: single ones or BATCH_FORGETs, no writable part."""
        state = self.state
        owed, state.forgets = state.forgets, []
        if state.broken or not owed:
            return
        counts: dict[int, int] = {}
        for nodeid, nlookup in owed:
            counts[nodeid] = counts.get(nodeid, 0) + nlookup
        items = list(counts.items())
        step = _FORGET_LIMIT if self.config.batch_forget else 1
        for start in range(0, len(items), step):
            part = items[start : start + step]
            if len(part) == 1:
                self._send_hiprio(op.FORGET, part[0][0], (part[0][1],))
            else:
                body = b"".join(FORGET_ONE.pack(*item) for item in part)
                self._send_hiprio(op.BATCH_FORGET, 0, (len(part), 0), body)

    def _send_hiprio(
        self, opcode: int, nodeid: int, args: Sequence[int], data: bytes = b"", unique: int = 0
    ) -> None:
        if not unique:
            unique = self.state.next_unique
            self.state.next_unique += 2
        message = encode(opcode, unique, nodeid, 0, 0, 0, args, (), data)
        request = Request(unique, opcode, nodeid, 0, HIPRIO, message, NO_REPLY, orphan=True)
        self.requests[unique] = request
        self._send(request)

    # Bounds

    def _bound(self) -> None:
        """Set the bounds of one request, once the session is known.

        Descriptors of payload (``max_segments``) are bounded as Linux does it: ring size less overhead. The
        others are bytes of one READ and of one WRITE.
        """
        session = self.state.session
        room = self.queues[1].state.size - SEGMENT_OVERHEAD if len(self.queues) > 1 else 0
        self.max_segments = max(1, min(session.max_pages, room))
        self.max_read = min(self.config.max_transfer, session.max_pages * PAGE_SIZE)
        self.max_write = min(self.max_read, session.max_write)
