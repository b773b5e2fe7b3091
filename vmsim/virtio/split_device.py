"""The device's side of a split virtqueue (virtio 1.3 section 2.7).

Three areas of guest memory, each written by one side only: descriptors and the available ring by the driver,
the used ring by the device. So nothing is locked; everything rests on who writes what before what.

* **Indices run free.** ``avail.idx`` and ``used.idx`` count modulo 2^16, whatever the ring's size, and the
  slot is the index modulo the size. Their difference is therefore the number of entries even after they have
  wrapped, and an index that is more than ``size`` ahead is a lie, not a lot of work.
* **The index is written last** (2.7.6, 2.7.8). Whoever sees the new index may read the entry: so the entry is
  stored first, and the reader loads the index before the entry. One thread, and x86's store order beneath
  it, give that here without a barrier. What they do not give is a load that stays behind an earlier store
  *of our own*: that is what ``fence`` is for, wherever a side says "tell me" and then looks once more.
* **Say, fence, look.** A device that goes to sleep first asks for notifications, then looks whether something
  has come meanwhile (``arm_kicks``); a driver that publishes looks at that wish after its index is out.
  Without the fence between, each may miss the other's word, and both wait for ever.
* **EVENT_IDX** (2.7.7.2, 2.7.10): instead of a flag each side names the index at which it wants to hear. The
  other one, which has moved from ``old`` to ``new``, notifies if the named index lies in between:
  ``new - event - 1 < new - old``, all modulo 2^16, which asks "is the distance from the event to the newest
  entry smaller than what is new?" and is right across the wrap. To want nothing is to name the index just
  passed: 2^16 - 1 entries from here.
* **Nothing is believed.** A descriptor may change between two looks, so each is copied once and only the copy
  counts; what was checked is what is used. A chain ends after ``size`` descriptors whatever its links say, a
  head may not be in flight twice, and a violation ends the ring with its section of the specification.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmsim.errors import StreamError
from vmsim.limits import QUEUE_SIZE_MAX
from vmsim.virtio.chain import Chain, Descriptor, ParkedChain, scan_chain
from vmsim.virtio.constants import (
    AVAIL_F_NO_INTERRUPT,
    DESC_BYTES,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    USED_F_NO_NOTIFY,
)
from vmsim.virtio.device_ring import DeviceRingBase, Used
from vmsim.virtio.ring_types import Fence, RingConfig, RingState

if TYPE_CHECKING:
    from vmsim.memory import DirtySink, GuestMemory

_DESC = struct.Struct("<QIHH")  # addr, len, flags, next
_ROWS = struct.Struct("<QIH2x")  # the same without next
_WINDOW = 6 * DESC_BYTES  # the fast path reads this much behind a head in one snapshot
_TABLE_INDICES = (1, 2, 3, 4, 5)
_LINKS = [
    struct.Struct("<" + "14xH" * count) for count in range(6)
]  # next of the first descriptors of a window


class SplitDeviceRing(DeviceRingBase):
    """Pops chains from the available ring, pushes them to the used ring; see DeviceRing for the contract."""

    __slots__ = (
        "_avail",
        "_cache",
        "_desc",
        "_indices",
        "_mask",
        "_next_avail",
        "_next_used",
        "_signalled",
        "_used",
        "_used_elements",
    )

    def __init__(
        self,
        config: RingConfig,
        memory: GuestMemory,
        *,
        log: DirtySink | None = None,
        log_used: bool = False,
        fence: Fence | None = None,
    ) -> None:
        super().__init__(config, memory, "split", log=log, log_used=log_used, fence=fence)
        size = config.size
        self._mask = size - 1
        self._desc = memory.view(config.desc, DESC_BYTES * size)
        # [flags, idx, ring[size], used_event] and [flags, idx, elements as 4 halves each, avail_event]
        self._avail = memory.words(config.driver, 3 + size, "H")
        self._used = memory.words(config.device, 3 + 4 * size, "H")
        self._used_elements = memory.words(config.device + 4, 2 * size, "I")
        self._indices = tuple(range(size + 1))
        self._next_avail = 0
        self._next_used = 0
        self._signalled: int | None = 0
        # Per head: the exact bytes of its last chain, and the chain that they mean. Nothing but those bytes
        # decides what a chain is, so equal bytes need no second look.
        self._cache: list[tuple[bytes, Chain] | None] = [None] * size

    def pop(self) -> Chain | None:
        """The next available chain, or None if there is none. RingViolation on anything malformed."""
        if self.broken is not None:
            self._raise_broken()
        next_avail = self._next_avail
        avail = self._avail
        idx = avail[1]
        if idx == next_avail:
            return None
        # The entry below is loaded after the index that vouches for it.
        if (idx - next_avail) & 0xFFFF > self.size:
            pending = (idx - next_avail) & 0xFFFF
            self._break("split.avail_jump", idx=idx, pending=pending, next_avail=next_avail, size=self.size)
        head = avail[2 + (next_avail & self._mask)]
        if head > self._mask:
            self._break("split.head_range", head=head, size=self.size)
        window = self._desc[head << 4 : (head << 4) + _WINDOW].tobytes()
        cached = self._cache[head]
        if head in self._in_flight:
            self._break("split.head_in_flight", head=head)
        if cached is not None and window.startswith(cached[0]):
            chain = cached[1]
            self._in_flight[head] = chain
        else:
            chain = self._read_chain(head, window)
        self._next_avail = (next_avail + 1) & 0xFFFF
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain whose first ``written`` writable bytes were written; marks them dirty.

        StateError if the chain is not in flight. Nothing happens on a broken ring.
        """
        head = chain.head
        in_flight = self._in_flight
        if self._careful or in_flight.get(head) is not chain or not 0 <= written <= chain.writable_bytes:
            self._push_slow(chain, written)
            return
        del in_flight[head]
        next_used = self._next_used
        slot = (next_used & self._mask) << 1
        elements = self._used_elements
        # Element first, index last: seeing the index, the driver reads it and uses the descriptors again.
        elements[slot] = head
        elements[slot + 1] = written
        self._next_used = self._used[1] = (next_used + 1) & 0xFFFF
        if self.log is not None or self._memory.dirty is not None:
            self._mark_payload(chain, written)
            self._mark_used(slot)

    def needs_call(self) -> bool:
        """After pushes: does the driver want a notification (section 2.7.7.2)? Counts as having notified."""
        if self._fence is not None:
            self._fence()
        new = self._next_used
        old = self._signalled
        self._signalled = new
        if old is None:
            return True  # after a restore nobody knows what was told: once too often is harmless
        if self._event_idx:
            return (new - self._avail[2 + self.size] - 1) & 0xFFFF < (new - old) & 0xFFFF
        return new != old and not self._avail[0] & AVAIL_F_NO_INTERRUPT

    def suppress_kicks(self) -> None:
        """Ask the driver for no notifications (section 2.7.10.2)."""
        if self.broken is not None:
            return
        if self._event_idx:
            self._store_used(2 + 4 * self.size, (self._next_avail - 1) & 0xFFFF)
        else:
            self._store_used(0, USED_F_NO_NOTIFY)

    def arm_kicks(self) -> bool:
        """Ask for notifications again. True: chains arrived meanwhile, so look before you wait."""
        if self.broken is not None:
            return False
        word, value = (2 + 4 * self.size, self._next_avail) if self._event_idx else (0, 0)
        if self.log is None and self._memory.dirty is None:
            self._used[word] = value
        else:
            self._store_used(word, value)
        if self._fence is not None:
            self._fence()
        waiting: bool = self._avail[1] != self._next_avail
        return waiting

    @property
    def used_index(self) -> int:
        """The used index as guest memory has it."""
        index: int = self._used[1]
        return index

    def chain_of(self, head: int) -> ParkedChain:
        """The chain that begins at ``head``, as the table has it now. RingViolation if it is malformed."""
        descriptors, count = self._walk(head)
        return ParkedChain(head, count, descriptors)

    def base_word(self) -> int:
        """The next available index, as vhost's GET_VRING_BASE reports it."""
        return self._next_avail

    def set_base_word(self, word: int) -> None:
        """Start at available index ``word``; the used index is the one in memory. Nothing is in flight."""
        self._in_flight.clear()
        self._completed.clear()
        self._seek(RingState(next_avail=word & 0xFFFF, next_used=self._used[1]))

    def _read_chain(self, head: int, window: bytes) -> Chain:
        """Take the chain of ``head`` up as in flight; ``window`` is the snapshot that begins with it."""
        if window[12] == DESC_F_INDIRECT and not window[13] and self._indirect:
            gpa, length, _ = _ROWS.unpack_from(window)
            return self._read_indirect(head, self._read_table(head, gpa, length))
        plain = scan_chain(self._memory, _ROWS, window, DESC_F_INDIRECT, 0)
        if plain is not None:
            count = plain.count
            if _LINKS[count - 1].unpack_from(window) == self._indices[head + 1 : head + count]:
                plain.head = head
                self._in_flight[head] = plain
                self._cache[head] = (window[: count << 4], plain)
                return plain
        descriptors, count = self._walk(head)
        self._check_elements(head, descriptors)
        return self._admit(head, count, descriptors)

    def _read_indirect(self, head: int, table: bytes) -> Chain:
        """The most usual indirect chain: one descriptor for a table that is short and in order."""
        if len(table) <= _WINDOW and len(table) >> 4 <= self.size:
            plain = scan_chain(self._memory, _ROWS, table, DESC_F_INDIRECT, 0)
            if plain is not None:
                count = plain.count
                if _LINKS[count - 1].unpack_from(table) == _TABLE_INDICES[: count - 1]:
                    plain.head = head
                    plain.count = 1
                    self._in_flight[head] = plain
                    return plain
        descriptors: list[Descriptor] = []
        self._walk_table(head, table, descriptors)
        self._check_elements(head, descriptors)
        return self._admit(head, 1, descriptors)

    def _walk(self, head: int) -> tuple[list[Descriptor], int]:
        """Follow a chain through the table, each descriptor read once; (elements, table slots taken)."""
        descriptors: list[Descriptor] = []
        index = head
        size = self.size
        for count in range(1, size + 1):
            gpa, length, flags, link = _DESC.unpack_from(self._desc, index << 4)
            if flags & DESC_F_INDIRECT:
                if not self._indirect:
                    self._tolerate("split.indirect_feature", head=head)
                if flags & DESC_F_NEXT:
                    self._break("split.indirect_next", head=head)
                self._walk_table(head, self._read_table(head, gpa, length), descriptors)
                return descriptors, count
            descriptors.append((gpa, length, bool(flags & DESC_F_WRITE)))
            if not flags & DESC_F_NEXT:
                return descriptors, count
            if link >= size:
                self._break("split.next_range", head=head, index=index, next=link, size=size)
            if self._in_order and link != (index + 1) % size:
                self._tolerate("split.in_order_next", head=head, index=index, next=link)
            index = link
        self._break("split.chain_long", head=head, limit=size)

    def _walk_table(self, head: int, table: bytes, descriptors: list[Descriptor]) -> None:
        """Append the elements of an indirect table (section 2.7.5.3)."""
        rows = list(_DESC.iter_unpack(table))
        # Lenient: QEMU and virtiofsd bound a chain by its table, not by the queue.
        limit = max(self.size, min(len(rows), QUEUE_SIZE_MAX)) if self._lenient else self.size
        index = 0
        steps = 0
        while len(descriptors) < limit and steps < len(rows):
            gpa, length, flags, link = rows[index]
            if flags & DESC_F_INDIRECT:
                self._break("split.indirect_nested", head=head)
            descriptors.append((gpa, length, bool(flags & DESC_F_WRITE)))
            if not flags & DESC_F_NEXT:
                return
            if link >= len(rows):
                self._break("split.indirect_range", head=head, index=index, next=link, size=len(rows))
            if self._in_order and link != index + 1:
                self._tolerate("split.indirect_in_order", head=head, index=index, next=link)
            index = link
            steps += 1
        self._break("split.chain_long", head=head, limit=limit)

    def _write_used(self, batch: list[Used]) -> None:
        """One used element for the last chain of ``batch``; the index moves over all of them."""
        chain, written = batch[-1]
        slot = (self._next_used & self._mask) << 1
        self._used_elements[slot] = chain.head
        self._used_elements[slot + 1] = written
        self._next_used = self._used[1] = (self._next_used + len(batch)) & 0xFFFF
        if self.log is not None or self._memory.dirty is not None:
            for each, filled in batch:
                self._mark_payload(each, filled)
            self._mark_used(slot)

    def _mark_used(self, slot: int) -> None:
        self._mark_ring(self.config.device + 4 + 4 * slot, 8)
        self._mark_ring(self.config.device, 4)

    def _store_used(self, word: int, value: int) -> None:
        self._used[word] = value
        self._mark_ring(self.config.device + 2 * word, 2)

    def _check_parked(self, parked: ParkedChain) -> None:
        if not 0 <= parked.head < self.size:
            self._break("split.head_range", head=parked.head, size=self.size)

    def _taken(self, state: RingState) -> int:
        return ((state.next_avail - state.next_used) & 0xFFFF) - len(state.in_flight)

    def position(self) -> RingState:
        """Where the ring stands, without what is in flight."""
        return RingState(next_avail=self._next_avail, next_used=self._next_used)

    def _seek(self, state: RingState) -> None:
        for name in ("next_avail", "next_used"):
            if not 0 <= getattr(state, name) <= 0xFFFF:
                raise StreamError(f"index {getattr(state, name)} has more than 16 bits", field=name)
        self._next_avail = state.next_avail
        self._next_used = state.next_used
        self._signalled = None
