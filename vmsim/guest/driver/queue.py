"""One virtqueue of the driver: message slots, the ring, and a backlog for when either is full.

A slot holds a message's header and arguments and the reply's header and arguments in memory that was set
aside at start, so the usual request allocates nothing::

    slot:  0 ............ 1024 ............ 1536 ......... 2048
           in header+args      out header+args    indirect table
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from struct import Struct
from typing import Final

from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.guest.driver.alloc import PageAllocator
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

PLAIN_MAX: Final = 4
_NOTHING: Final[list[Request]] = []
_unpack_out: Final = OUT_HEADER.unpack_from


def _split_chain(request: Request, at: int, length: int, out: int) -> tuple[Segments, Segments]:
    """Headers and arguments in descriptors of their own, as Linux' driver lays a request out."""
    readable = [(at, IN_BYTES)]
    if length > IN_BYTES:
        readable.append((at + IN_BYTES, length - IN_BYTES))
    writable = []
    if request.out_bytes >= 0:
        writable.append((out, OUT_BYTES))
    if request.out_bytes > 0:
        writable.append((out + OUT_BYTES, request.out_bytes))
    return readable, writable


class RequestQueue:
    """Sends requests through one ring and takes their replies; all that lasts is in ``state``."""

    __slots__ = (
        "_allocator", "_heads", "_memory", "_requests", "_scarce", "_split", "_table_max", "_view", "armed",
        "ring", "state",
    )  # fmt: skip

    def __init__(
        self, state: QueueState, ring: DriverRing, memory: GuestMemory, allocator: PageAllocator,
        requests: dict[int, Request], *, indirect: bool, split: bool,
    ) -> None:  # fmt: skip
        self.state = state
        self.ring = ring
        self.armed = False
        self._memory = memory
        self._allocator = allocator
        self._requests = requests
        # Descriptors of a chain that still goes into the ring itself while there is room (0: all do). Linux'
        # driver has every chain in a table.
        self._table_max = (1 if split else PLAIN_MAX) if indirect else 0
        self._scarce = max(2, state.size // 2)
        self._split = split
        self._view = memory.view(state.slots_gpa, state.slot_count * SLOT_BYTES)
        self._heads = state.in_flight

    def submit(self, request: Request) -> bool:
        """Put the request into the ring, or behind those that wait for room; True if it went in."""
        if not self.state.backlog and self._post(request):
            return True
        self.state.backlog.append(request.unique)
        return False

    def ask(self, request: Request, message: Struct, fields: Sequence[int]) -> bool:
        """``submit`` for a fixed message without payload, packed right into its slot: the shortest way.

        False, with nothing done, when this is not the time for it: then ``submit`` is to be used.
        """
        state = self.state
        slots, ring = state.free_slots, self.ring
        if not slots or state.backlog or self._split or ring.free < self._scarce:
            return False
        slot = slots.pop()
        offset = slot * SLOT_BYTES
        base = state.slots_gpa + offset
        length = message.size
        message.pack_into(self._view, offset, *fields)
        if self._memory.dirty is not None:
            self._memory.dirty.mark(base, length)
        request.slot = slot
        head = ring.add(((base, length),), ((base + SLOT_IN, OUT_BYTES + request.out_bytes),))
        self._heads[head] = request.unique
        return True

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
        room = request.out_bytes
        if self._split:
            readable, writable = _split_chain(request, at, length, base + SLOT_IN)
        else:
            readable = [(at, length)]
            writable = [(base + SLOT_IN, OUT_BYTES + room)] if room >= 0 else []
        if request.reads:
            readable += request.reads
        if request.writes:
            writable += request.writes
        count = len(readable) + len(writable)
        free = self.ring.free
        if free and self._table_max and (count > self._table_max or (count > 1 and free < self._scarce)):
            head = self._add_indirect(request, readable, writable, count, base)
            if head < 0:
                return False
        elif free >= count:
            head = self.ring.add(readable, writable)
        else:
            return False
        state.free_slots.pop()
        request.slot = slot
        request.status = IN_FLIGHT
        request.message = b""
        self._heads[head] = request.unique
        return True

    def _add_indirect(
        self, request: Request, readable: Segments, writable: Segments, count: int, base: int
    ) -> int:
        """The buffer id of a chain in an indirect table, or -1 when memory for a long table is short."""
        table = base + SLOT_IN + SLOT_OUT
        if count > INDIRECT_ENTRIES:
            spill = self._spill(request, count * DESCRIPTOR_BYTES)
            if spill is None:
                return -1
            table = spill
        return self.ring.add(readable, writable, (table, max(count, INDIRECT_ENTRIES) * DESCRIPTOR_BYTES))

    def _spill(self, request: Request, size: int) -> int | None:
        for gpa, have in request.spill:
            if have == size:
                return gpa
        fresh = self._allocator.allocate(size)
        if fresh is not None:
            request.spill = [*request.spill, (fresh, size)]
        return fresh

    def reap(self) -> list[Request]:
        """Take the used buffers and copy the replies out of their slots; the ended requests, in order.

        A malformed reply is EIO: the device's fault.
        """
        used = self.ring.reap()
        if used is None:
            return _NOTHING
        ended = []
        heads = self._heads
        while used is not None:
            unique = heads.pop(used[0], None)
            if unique is not None:
                request = self._requests[unique]
                room = request.out_bytes
                if room >= 0:
                    at = request.slot * SLOT_BYTES + SLOT_IN
                    length, error, answered = _unpack_out(self._view, at)
                    if answered != unique or not OUT_BYTES <= length <= used[1] or not -4096 < error <= 0:
                        request.error = errno.EIO
                    elif error:
                        request.error = -error
                    else:
                        written = length - OUT_BYTES
                        request.written = written
                        if room:
                            start = at + OUT_BYTES
                            end = start + min(written, room)
                            request.reply = self._view[start:end].tobytes()
                self._release(request)
                ended.append(request)
            if not heads:
                break
            used = self.ring.reap()
        return ended

    def _release(self, request: Request) -> None:
        self.state.free_slots.append(request.slot)
        request.slot = -1
        request.status = DONE
        if request.spill:
            self.free_spill(request)

    def free_spill(self, request: Request) -> None:
        """Give back the buffers that a request needed besides its slot."""
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
