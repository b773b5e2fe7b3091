"""The driver's side of a packed virtqueue (virtio 1.3 section 2.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmsim.errors import StreamError
from vmsim.virtio.constants import (
    DESC_BYTES,
    DESC_F_AVAIL,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_USED,
    DESC_F_WRITE,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
)
from vmsim.virtio.driver_ring import DESC, DriverRingBase, Element
from vmsim.virtio.ring_types import DriverRingState, Fence, Outstanding, RingConfig, event_passed

if TYPE_CHECKING:
    from vmsim.memory import GuestMemory

_WRAP_BITS = DESC_F_AVAIL | DESC_F_USED
_AVAILABLE = (DESC_F_USED, DESC_F_AVAIL)  # by wrap counter (section 2.8.1)
_USED = (0, DESC_F_AVAIL | DESC_F_USED)


class PackedDriverRing(DriverRingBase):
    """Writes available descriptors, reaps used ones; see DriverRing for the contract."""

    __slots__ = (
        "_avail_wrap",
        "_desc",
        "_desc_addresses",
        "_desc_flags",
        "_desc_ids",
        "_desc_words",
        "_device_event",
        "_driver_event",
        "_next_avail",
        "_next_used",
        "_pending",
        "_slots",
        "_unkicked",
        "_unpublished_slots",
        "_used_wrap",
    )

    def __init__(self, config: RingConfig, memory: GuestMemory, *, fence: Fence | None = None) -> None:
        super().__init__(config, memory, "packed", fence=fence)
        size = config.size
        self._desc = memory.view(config.desc, DESC_BYTES * size)
        self._desc_addresses = memory.words(config.desc, 2 * size, "Q")[::2]
        self._desc_words = memory.words(config.desc, 4 * size, "I")  # len is word 4 * slot + 2
        halves = memory.words(config.desc, 8 * size, "H")
        self._desc_ids = halves[6::8]
        self._desc_flags = halves[7::8]
        self._driver_event = memory.words(config.driver, 2, "H")  # offset and wrap, flags
        self._device_event = memory.words(config.device, 2, "H")
        self._next_avail = 0
        self._next_used = 0
        self._avail_wrap = 1
        self._used_wrap = 1
        self._slots = size  # free ring slots
        self._pending: tuple[int, int] | None = None  # slot and flags that publish() will store
        self._unpublished_slots = 0
        self._unkicked = 0  # slots made available since the device was last notified

    @property
    def free(self) -> int:
        """Free ring slots."""
        return self._slots

    def add(
        self, readable: Sequence[Element], writable: Sequence[Element], indirect: Element | None = None
    ) -> int:
        """Offer one buffer; its id. The device sees it after publish().

        QueueFull if the ring has no room now; UsageError if it never will.
        """
        capacity = 0
        for _, length in writable:
            capacity += length
        flags = 0
        if indirect is not None:
            readable = [self._write_table(indirect, readable, writable)]
            writable = ()
            flags = DESC_F_INDIRECT
        count = len(readable) + len(writable)
        if self.broken is not None or not 0 < count <= self._slots:
            self._refuse(count, self._slots)
        buffer_id = self._free.pop()
        first = slot = self._next_avail
        flags |= _AVAILABLE[self._avail_wrap] | (DESC_F_NEXT if count > 1 else 0)
        # The first descriptor keeps its old flags until the rest is written (section 2.8.6), so its other
        # fields are stored as words: pack_into would zero the flags on the way.
        gpa, length = readable[0] if readable else writable[0]
        if not readable:
            flags |= DESC_F_WRITE
        self._desc_addresses[slot] = gpa
        self._desc_words[4 * slot + 2] = length
        self._desc_ids[slot] = buffer_id
        if count == 2 and len(writable) == 1 and slot + 2 < self.size:
            gpa, length = writable[0]
            rest = _AVAILABLE[self._avail_wrap] | DESC_F_WRITE
            DESC.pack_into(self._desc, (slot + 1) << 4, gpa, length, buffer_id, rest)
            self._next_avail = slot + 2
        elif count > 1:
            self._write_rest(readable, writable, buffer_id, count)
        elif slot + 1 == self.size:
            self._next_avail = 0
            self._avail_wrap ^= 1
        else:
            self._next_avail = slot + 1
        if self._pending is None:
            self._pending = (first, flags)
        else:
            self._desc_flags[first] = flags  # still hidden behind the pending descriptor
        self._slots -= count
        self._unpublished_slots += count
        self._outstanding[buffer_id] = (range(first, first + count), capacity)
        if self._memory.dirty is not None:
            for each in range(first, first + count):
                self._memory.dirty.mark(self.config.desc + (each % self.size << 4), DESC_BYTES)
        return buffer_id

    def publish(self) -> None:
        """Make all added buffers available to the device (section 2.8.21.1)."""
        if self._pending is None:
            return
        slot, flags = self._pending
        self._pending = None
        self._desc_flags[slot] = flags
        self._unkicked += self._unpublished_slots
        self._unpublished_slots = 0
        if self._memory.dirty is not None:
            self._memory.dirty.mark(self.config.desc + (slot << 4), DESC_BYTES)

    def needs_kick(self) -> bool:
        """After publish(): does the device want a notification (section 2.8.10)? Counts as notified."""
        if self._fence is not None:
            self._fence()
        fresh = self._unkicked
        self._unkicked = 0
        if not fresh:
            return False
        flags = self._device_event[1] & 3
        if flags == RING_EVENT_FLAGS_DISABLE:
            return False
        if flags != RING_EVENT_FLAGS_DESC or not self._event_idx:
            return True
        return event_passed(self._device_event[0], self._next_avail, self._avail_wrap, fresh, self.size)

    def reap(self) -> tuple[int, int] | None:
        """The next used buffer: (id, bytes written), or None.

        DeviceRingViolation if the device used what was not outstanding, or claims too many bytes.
        """
        if self.broken is not None:
            raise self.broken
        slot = self._next_used
        if self._batch is not None:
            buffer_id, written = self._next_of_batch()
        else:
            flags = self._desc_flags[slot]
            if flags & _WRAP_BITS != _USED[self._used_wrap]:
                return None
            buffer_id = self._desc_ids[slot]
            written = self._desc_words[4 * slot + 2] if flags & DESC_F_WRITE else 0
            if self._in_order:
                self._start_batch(buffer_id, written)
                buffer_id, written = self._next_of_batch()
        taken = self._outstanding.pop(buffer_id, None)
        if taken is None:
            self._break("packed.used_id", id=buffer_id)
        slots, capacity = taken
        if written > capacity:
            self._break("packed.used_length", id=buffer_id, written=written, capacity=capacity)
        count = len(slots)
        self._slots += count
        slot += count
        if slot >= self.size:
            slot -= self.size
            self._used_wrap ^= 1
        self._next_used = slot
        if self._in_order:
            self._free.insert(0, buffer_id)
        else:
            self._free.append(buffer_id)
        return buffer_id, written

    def suppress_interrupts(self) -> None:
        """Ask the device for no notifications (section 2.8.10)."""
        self._store_event(RING_EVENT_FLAGS_DISABLE)

    def arm_interrupts(self) -> bool:
        """Ask for notifications again. True: used buffers arrived meanwhile, so look before you wait."""
        if self._event_idx:
            self._driver_event[0] = self._next_used | self._used_wrap << 15
            self._store_event(RING_EVENT_FLAGS_DESC)
        else:
            self._store_event(RING_EVENT_FLAGS_ENABLE)
        if self._fence is not None:
            self._fence()
        flags = self._desc_flags[self._next_used]
        return self._batch is not None or flags & _WRAP_BITS == _USED[self._used_wrap]

    def _write_rest(
        self, readable: Sequence[Element], writable: Sequence[Element], buffer_id: int, count: int
    ) -> None:
        """Write the descriptors after the first, whose flags nobody looks at before the first one's."""
        desc = self._desc
        pack_into = DESC.pack_into
        size = self.size
        slot = self._next_avail
        available = _AVAILABLE[self._avail_wrap]
        left = count
        flags = available | DESC_F_NEXT
        for elements in (readable, writable):
            for gpa, length in elements:
                if left != count:
                    if left == 1:
                        flags &= ~DESC_F_NEXT
                    pack_into(desc, slot << 4, gpa, length, buffer_id, flags)
                left -= 1
                slot += 1
                if slot == size:
                    slot = 0
                    self._avail_wrap ^= 1
                    flags ^= _WRAP_BITS
            flags |= DESC_F_WRITE
        self._next_avail = slot

    def _store_event(self, flags: int) -> None:
        self._driver_event[1] = flags
        if self._memory.dirty is not None:
            self._memory.dirty.mark(self.config.driver, 4)

    def _next_offset(self) -> int:
        return self._next_avail | self._avail_wrap << 15

    def _unpublished(self) -> bool:
        return self._pending is not None

    def _entries(self, item: Outstanding) -> list[int]:
        return [item.id]

    def _slots_of(self, item: Outstanding) -> Sequence[int]:
        slots = range(item.slots[0], item.slots[0] + len(item.slots))
        if [slot % self.size for slot in slots] != item.slots:
            raise StreamError(f"buffer {item.id} lies in {item.slots}", field="outstanding")
        return slots

    def _position(self) -> DriverRingState:
        return DriverRingState(
            next_avail=self._next_avail,
            next_used=self._next_used,
            avail_wrap=self._avail_wrap,
            used_wrap=self._used_wrap,
            free=[],
            free_slots=self._slots,
            kicked=self._unkicked,
            outstanding=[],
        )

    def _seek(self, state: DriverRingState) -> None:
        for name in ("next_avail", "next_used"):
            if not 0 <= getattr(state, name) < self.size:
                raise StreamError(f"slot {getattr(state, name)} in a ring of {self.size}", field=name)
        for name in ("avail_wrap", "used_wrap"):
            if getattr(state, name) not in (0, 1):
                raise StreamError(f"wrap counter {getattr(state, name)}", field=name)
        taken = sum(len(item.slots) for item in state.outstanding)
        lap = (state.avail_wrap ^ state.used_wrap) * self.size
        if state.next_avail - state.next_used + lap != taken:
            raise StreamError("the positions do not match the outstanding buffers", field="outstanding")
        if state.free_slots != self.size - taken:
            raise StreamError(f"{state.free_slots} free slots, {taken} taken", field="free_slots")
        if state.kicked < 0:
            raise StreamError(f"{state.kicked} slots since the last notification", field="kicked")
        self._next_avail = state.next_avail
        self._next_used = state.next_used
        self._avail_wrap = state.avail_wrap
        self._used_wrap = state.used_wrap
        self._slots = state.free_slots
        self._unkicked = state.kicked
        self._pending = None
        self._unpublished_slots = 0
