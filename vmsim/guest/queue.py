"""One virtqueue of the driver: message slots, the ring, and a backlog for when either is full.

A slot holds a message's header and arguments and the reply's header and arguments in memory that was set
aside at start, so the usual request allocates nothing::

    slot:  0 ............ 1024 ............ 1536 ......... 2048
           in header+args      out header+args    indirect table
"""

from __future__ import annotations

import errno
from typing import Final

from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.guest.alloc import PageAllocator
from vmsim.guest.state import DONE, IN_FLIGHT, QUEUED, QueueState, Request, Segments
from vmsim.memory import GuestMemory
from vmsim.virtio.rings import DriverRing

SLOT_IN: Final = 1024
SLOT_OUT: Final = 512
SLOT_INDIRECT: Final = 512
SLOT_BYTES: Final = SLOT_IN + SLOT_OUT + SLOT_INDIRECT
IN_BYTES: Final = IN_HEADER.size
OUT_BYTES: Final = OUT_HEADER.size
DESCRIPTOR_BYTES: Final = 16
INDIRECT_ENTRIES: Final = SLOT_INDIRECT // DESCRIPTOR_BYTES


class RequestQueue:
    """Sends requests through one ring and takes their replies; all that lasts is in ``state``."""

    __slots__ = (
        "_allocator",
        "_heads",
        "_indirect",
        "_memory",
        "_offset",
        "_requests",
        "_unpack_out",
        "_view",
        "ring",
        "state",
    )

    def __init__(
        self,
        state: QueueState,
        ring: DriverRing,
        memory: GuestMemory,
        allocator: PageAllocator,
        requests: dict[int, Request],
        indirect: bool,
    ) -> None:
        self.state = state
        self.ring = ring
        self._memory = memory
        self._allocator = allocator
        self._requests = requests
        self._indirect = indirect
        self._view = memory.view(state.slots_gpa, state.slot_count * SLOT_BYTES)
        self._heads = state.in_flight
        self._unpack_out = OUT_HEADER.unpack_from

    def submit(self, request: Request) -> bool:
        """Put the request into the ring, or behind those that wait for room; True if it went in."""
        if not self.state.backlog and self._post(request):
            return True
        self.state.backlog.append(request.unique)
        return False

    def dispatch_backlog(self) -> bool:
        """Move waiting requests into the ring while there is room; True if any went in."""
        backlog = self.state.backlog
        moved = False
        while backlog and self._post(self._requests[backlog[0]]):
            del backlog[0]
            moved = True
        return moved

    def _post(self, request: Request) -> bool:
        state = self.state
        if not state.free_slots:
            return False
        slot = state.free_slots[-1]
        offset = slot * SLOT_BYTES
        base = state.slots_gpa + offset
        message = request.message
        length = len(message)
        at = base
        if length <= SLOT_IN:
            self._view[offset : offset + length] = message
            if self._memory.dirty is not None:
                self._memory.dirty.mark(base, length)
        else:
            large = self._spill(request, length)
            if large is None:
                return False
            at = large
            self._memory.write(at, message)
        readable = [(at, IN_BYTES)]
        if length > IN_BYTES:
            readable.append((at + IN_BYTES, length - IN_BYTES))
        if request.reads:
            readable.extend(request.reads)
        room = request.out_bytes
        writable = [] if room < 0 else [(base + SLOT_IN, OUT_BYTES)]
        if room > 0:
            writable.append((base + SLOT_IN + OUT_BYTES, room))
        if request.writes:
            writable.extend(request.writes)
        head = self._add(request, readable, writable, base)
        if head < 0:
            return False
        state.free_slots.pop()
        request.slot = slot
        request.status = IN_FLIGHT
        request.message = b""
        self._heads[head] = request.unique
        return True

    def _add(self, request: Request, readable: Segments, writable: Segments, base: int) -> int:
        """The ring's buffer id, or -1 when the ring (or memory for a long table) is full."""
        count = len(readable) + len(writable)
        free = self.ring.free
        if self._indirect and count > 1:
            if not free:
                return -1
            table, entries = base + SLOT_IN + SLOT_OUT, INDIRECT_ENTRIES
            if count > entries:
                spill = self._spill(request, count * DESCRIPTOR_BYTES)
                if spill is None:
                    return -1
                table, entries = spill, count
            return self.ring.add(readable, writable, (table, entries * DESCRIPTOR_BYTES))
        if free < count:
            return -1
        return self.ring.add(readable, writable)

    def _spill(self, request: Request, size: int) -> int | None:
        for gpa, have in request.spill:
            if have == size:
                return gpa
        fresh = self._allocator.allocate(size)
        if fresh is not None:
            request.spill = [*request.spill, (fresh, size)]
        return fresh

    def reap(self) -> list[Request]:
        """Take the used buffers; the requests that they end, in the device's order."""
        used = self.ring.reap()
        if used is None:
            return []
        ended = []
        while used is not None:
            unique = self._heads.pop(used[0], None)
            if unique is not None:
                request = self._requests[unique]
                self._finish(request, used[1])
                ended.append(request)
            used = self.ring.reap()
        return ended

    def _finish(self, request: Request, used_bytes: int) -> None:
        """Copy the reply out of the slot and free it; a malformed reply is EIO (the device's fault)."""
        slot = request.slot
        room = request.out_bytes
        if room >= 0:
            at = slot * SLOT_BYTES + SLOT_IN
            length, error, unique = self._unpack_out(self._view, at)
            if unique != request.unique or not OUT_BYTES <= length <= used_bytes or not -4096 < error <= 0:
                request.error = errno.EIO
            elif error:
                request.error = -error
            else:
                written = length - OUT_BYTES
                request.written = written
                if room:
                    start = at + OUT_BYTES
                    request.reply = bytes(self._view[start : start + min(written, room)])
        self._release(request)

    def _release(self, request: Request) -> None:
        self.state.free_slots.append(request.slot)
        request.slot = -1
        request.status = DONE
        self.free_spill(request)

    def free_spill(self, request: Request) -> None:
        """Give back the buffers that a request needed besides its slot."""
        if request.spill:
            for gpa, size in request.spill:
                self._allocator.free(gpa, size)
            request.spill = []

    def fail_all(self) -> list[Request]:
        """End everything in flight and in the backlog with EIO (device reset); the requests."""
        state = self.state
        failed = [self._requests[unique] for unique in (*state.in_flight.values(), *state.backlog)]
        for request in failed:
            request.error = errno.EIO
            request.message = b""
            if request.status == QUEUED:
                request.status = DONE
                self.free_spill(request)
            else:
                self._release(request)
        state.in_flight.clear()
        state.backlog.clear()
        return failed

    def cancel(self, request: Request) -> bool:
        """Take a request that has not reached the ring out of the backlog; True if it was there."""
        if request.unique not in self.state.backlog:
            return False
        self.state.backlog.remove(request.unique)
        self.free_spill(request)
        request.status = DONE
        return True
