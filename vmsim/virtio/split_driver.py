"""The driver's side of a split virtqueue (virtio 1.3 section 2.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmsim.errors import StreamError
from vmsim.virtio.constants import (
    AVAIL_F_NO_INTERRUPT,
    DESC_BYTES,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    USED_F_NO_NOTIFY,
)
from vmsim.virtio.driver_ring import DESC, DriverRingBase, Element
from vmsim.virtio.ring_types import DriverRingState, Fence, Outstanding, RingConfig

if TYPE_CHECKING:
    from vmsim.memory import GuestMemory


_Pair = tuple[Sequence[Element], Sequence[Element], list[int], int]
"""One readable and one writable element, the descriptors that describe them, writable bytes."""


class SplitDriverRing(DriverRingBase):
    """Adds buffers to the available ring, reaps the used ring; see DriverRing for the contract."""

    __slots__ = (
        "_avail",
        "_desc",
        "_kicked",
        "_mask",
        "_next_avail",
        "_next_used",
        "_pairs",
        "_published",
        "_used",
        "_used_elements",
    )

    def __init__(self, config: RingConfig, memory: GuestMemory, *, fence: Fence | None = None) -> None:
        super().__init__(config, memory, "split", fence=fence)
        size = config.size
        self._mask = size - 1
        self._desc = memory.view(config.desc, DESC_BYTES * size)
        # [flags, idx, ring[size], used_event] and [flags, idx, elements as 4 halves each, avail_event]
        self._avail = memory.words(config.driver, 3 + size, "H")
        self._used = memory.words(config.device, 3 + 4 * size, "H")
        self._used_elements = memory.words(config.device + 4, 2 * size, "I")
        self._next_avail = 0
        self._published = 0
        self._next_used = 0
        self._kicked = 0
        # Which (readable, writable) element a free descriptor still describes, as the last to be written
        # there: message slots are used again and again, and need not be written anew.
        self._pairs: list[_Pair | None] = [None] * config.size

    @property
    def free(self) -> int:
        """Free descriptors."""
        return len(self._free)

    def add(
        self, readable: Sequence[Element], writable: Sequence[Element], indirect: Element | None = None
    ) -> int:
        """Offer one buffer; its id (the head). The device sees it after publish().

        QueueFull if the ring has no room now; UsageError if it never will.
        """
        free = self._free
        pair = self._pairs[free[-1]] if len(free) > 1 else None
        if (
            pair is not None
            and pair[0] == readable
            and pair[1] == writable
            and self._pairs[free[-2]] is pair
            and pair[2][0] == free[-1]
            and indirect is None
            and self.broken is None
        ):
            slots, capacity = pair[2], pair[3]
            del free[-2:]
        else:
            slots, capacity = self._write(readable, writable, indirect)
        head = slots[0]
        self._outstanding[head] = (slots, capacity)
        next_avail = self._next_avail
        self._avail[2 + (next_avail & self._mask)] = head
        self._next_avail = (next_avail + 1) & 0xFFFF
        if self._memory.dirty is not None:
            for index in slots:
                self._memory.dirty.mark(self.config.desc + (index << 4), DESC_BYTES)
            self._memory.dirty.mark(self.config.driver + 4 + 2 * (next_avail & self._mask), 2)
        return head

    def initialise(self) -> None:
        """Zero the three areas (section 2.7.10.1)."""
        super().initialise()
        self._pairs = [None] * self.size

    def _write(
        self, readable: Sequence[Element], writable: Sequence[Element], indirect: Element | None
    ) -> tuple[list[int], int]:
        """Write a chain into free descriptors: (these, writable bytes)."""
        if indirect is None:
            count = len(readable) + len(writable)
            elements, flags = readable, 0
        else:
            count = 1
            elements, flags = [self._write_table(indirect, readable, writable)], DESC_F_INDIRECT
        free = self._free
        if self.broken is not None or not 0 < count <= len(free):
            self._refuse(count, len(free))
        slots = free[: -count - 1 : -1]
        del free[-count:]
        desc = self._desc
        pack_into = DESC.pack_into
        position = 0
        capacity = 0
        # A free descriptor is not published, so pack_into is allowed here.
        for gpa, length in elements:
            slot = slots[position] << 4
            position += 1
            if position < count:
                pack_into(desc, slot, gpa, length, DESC_F_NEXT, slots[position])
            else:
                pack_into(desc, slot, gpa, length, flags, 0)
        for gpa, length in writable:
            capacity += length
            if indirect is not None:
                continue
            slot = slots[position] << 4
            position += 1
            if position < count:
                pack_into(desc, slot, gpa, length, DESC_F_WRITE | DESC_F_NEXT, slots[position])
            else:
                pack_into(desc, slot, gpa, length, DESC_F_WRITE, 0)
        pair: _Pair | None = None
        if count == 2 and len(writable) == 1 and type(readable) is type(writable) is tuple:
            pair = readable, writable, slots, capacity
        for slot in slots:
            self._pairs[slot] = pair
        return slots, capacity

    def publish(self) -> None:
        """Make all added buffers available to the device (section 2.7.13.3)."""
        self._avail[1] = self._published = self._next_avail
        if self._memory.dirty is not None:
            self._memory.dirty.mark(self.config.driver, 4)

    def needs_kick(self) -> bool:
        """After publish(): does the device want a notification (section 2.7.10.1)? Counts as notified."""
        if self._fence is not None:
            self._fence()
        new = self._published
        old = self._kicked
        self._kicked = new
        if self._event_idx:
            return (new - self._used[2 + 4 * self.size] - 1) & 0xFFFF < (new - old) & 0xFFFF
        return new != old and not self._used[0] & USED_F_NO_NOTIFY

    def reap(self) -> tuple[int, int] | None:
        """The next used buffer: (id, bytes written), or None.

        DeviceRingViolation if the device used what was not outstanding, or claims too many bytes.
        """
        next_used = self._next_used
        idx = self._used[1]
        if self._batch is None and idx == next_used:
            return None
        if self._in_order or self.broken is not None or (idx - next_used) & 0xFFFF > len(self._outstanding):
            head, written = self._reap_slow(idx)
        else:
            slot = (next_used & self._mask) << 1
            elements = self._used_elements
            head = elements[slot]
            written = elements[slot + 1]
        taken = self._outstanding.pop(head, None)
        if taken is None:
            self._break("split.used_id", id=head)
        slots, capacity = taken
        if written > capacity:
            self._break("split.used_length", id=head, written=written, capacity=capacity)
        self._next_used = (next_used + 1) & 0xFFFF
        if self._in_order:
            self._free[:0] = slots[::-1]
        else:
            self._free += slots[::-1]
        return head, written

    def suppress_interrupts(self) -> None:
        """Ask the device for no notifications (section 2.7.7.1)."""
        if self._event_idx:
            self._store_avail(2 + self.size, (self._next_used - 1) & 0xFFFF)
        else:
            self._store_avail(0, AVAIL_F_NO_INTERRUPT)

    def arm_interrupts(self) -> bool:
        """Ask for notifications again. True: used buffers arrived meanwhile, so look before you wait."""
        if self._event_idx:
            self._store_avail(2 + self.size, self._next_used)
        else:
            self._store_avail(0, 0)
        if self._fence is not None:
            self._fence()
        waiting: bool = self._batch is not None or self._used[1] != self._next_used
        return waiting

    def _reap_slow(self, idx: int) -> tuple[int, int]:
        if self.broken is not None:
            raise self.broken
        pending = (idx - self._next_used) & 0xFFFF
        if pending > len(self._outstanding):
            self._break(
                "split.used_jump",
                idx=idx,
                pending=pending,
                next_used=self._next_used,
                outstanding=len(self._outstanding),
            )
        if self._batch is None:
            slot = (self._next_used & self._mask) << 1
            self._start_batch(self._used_elements[slot], self._used_elements[slot + 1])
        return self._next_of_batch()

    def _store_avail(self, word: int, value: int) -> None:
        self._avail[word] = value
        if self._memory.dirty is not None:
            self._memory.dirty.mark(self.config.driver + 2 * word, 2)

    def _next_offset(self) -> int:
        return self._published

    def _unpublished(self) -> bool:
        return self._published != self._next_avail

    def _entries(self, item: Outstanding) -> list[int]:
        if item.slots[:1] != [item.id]:
            raise StreamError(f"buffer {item.id} does not begin with its head", field="outstanding")
        return item.slots

    def _slots_of(self, item: Outstanding) -> Sequence[int]:
        return list(item.slots)

    def _position(self) -> DriverRingState:
        return DriverRingState(
            next_avail=self._next_avail,
            next_used=self._next_used,
            avail_wrap=1,
            used_wrap=1,
            free=[],
            free_slots=len(self._free),
            kicked=self._kicked,
            outstanding=[],
        )

    def _seek(self, state: DriverRingState) -> None:
        for name in ("next_avail", "next_used", "kicked"):
            if not 0 <= getattr(state, name) <= 0xFFFF:
                raise StreamError(f"index {getattr(state, name)} has more than 16 bits", field=name)
        if (state.next_avail - state.next_used) & 0xFFFF != len(state.outstanding):
            raise StreamError("the indices do not match the outstanding buffers", field="outstanding")
        if state.free_slots != len(state.free):
            raise StreamError(f"{state.free_slots} free slots, {len(state.free)} listed", field="free_slots")
        self._next_avail = self._published = state.next_avail
        self._next_used = state.next_used
        self._kicked = state.kicked
        self._pairs = [None] * self.size
