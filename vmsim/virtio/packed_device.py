"""The device's side of a packed virtqueue (virtio 1.3 section 2.8)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NoReturn

from vmsim.errors import StreamError
from vmsim.virtio.chain import Chain, Descriptor, ParkedChain, scan_chain
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
from vmsim.virtio.device_ring import DeviceRingBase, Used
from vmsim.virtio.ring_types import Fence, RingConfig, RingState, event_passed

if TYPE_CHECKING:
    from vmsim.memory import DirtySink, GuestMemory

_DESC = struct.Struct("<QIHH")  # addr, len, id, flags
_ROWS = struct.Struct("<QI2xH")  # the same without id
_WINDOW = 6 * DESC_BYTES  # the fast path reads this much from a head on in one snapshot
_NOTHING = (bytes(_WINDOW + 1), Chain())  # longer than any window, so that none begins with it
_WRAP_BITS = DESC_F_AVAIL | DESC_F_USED
_FAST_MASK = _WRAP_BITS | DESC_F_INDIRECT
_AVAILABLE = (DESC_F_USED, DESC_F_AVAIL)  # by wrap counter: AVAIL equals it, USED does not (section 2.8.1)
_USED = (0, DESC_F_AVAIL | DESC_F_USED)  # by wrap counter: both equal it


class PackedDeviceRing(DeviceRingBase):
    """Takes available descriptors, overwrites them with used ones; see DeviceRing for the contract."""

    __slots__ = (
        "_avail_wrap",
        "_cache",
        "_desc",
        "_desc_flags",
        "_desc_ids",
        "_desc_words",
        "_device_event",
        "_driver_event",
        "_next_avail",
        "_next_used",
        "_slots",
        "_unsignalled",
        "_used_wrap",
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
        super().__init__(config, memory, "packed", log=log, log_used=log_used, fence=fence)
        size = config.size
        self._desc = memory.view(config.desc, DESC_BYTES * size)
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
        self._slots = 0  # ring slots of what is in flight
        self._unsignalled = 0  # slots used since the driver was last notified; negative: notify in any case
        # The exact bytes of chains, and what they mean: equal bytes need no second look. An entry is chosen
        # by the low byte of the first descriptor's id and the wrap counter; another choice would do as well.
        self._cache: list[tuple[bytes, Chain]] = [_NOTHING] * 512

    def pop(self) -> Chain | None:
        """The next available chain, or None if there is none. RingViolation on anything malformed."""
        if self.broken is not None:
            self._raise_broken()
        slot = self._next_avail
        available = _AVAILABLE[self._avail_wrap]
        # The flags are looked at first, alone: whatever else is in the descriptor was written before them.
        if self._desc_flags[slot] & _WRAP_BITS != available:
            return None
        window = self._desc[slot << 4 : (slot << 4) + _WINDOW].tobytes()
        entry = window[12] << 1 | self._avail_wrap
        source, chain = self._cache[entry]
        if not window.startswith(source):
            chain = self._scan(window, available, entry) or self._read_chain(slot, available)
        elif chain.head in self._in_flight or self._slots + chain.count > self.size:
            self._refuse(chain.head, chain.count)
        else:
            self._in_flight[chain.head] = chain
            self._slots += chain.count
        slot += chain.count
        if slot >= self.size:
            slot -= self.size
            self._avail_wrap ^= 1
        self._next_avail = slot
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
        slot = self._next_used
        self._desc_words[4 * slot + 2] = written
        self._desc_ids[slot] = head
        # Flags last (section 2.8.22): they are what the driver polls.
        self._desc_flags[slot] = _USED[self._used_wrap] | (DESC_F_WRITE if written else 0)
        self._advance_used(chain.count)
        if self.log is not None or self._memory.dirty is not None:
            self._mark_payload(chain, written)
            self._mark_ring(self.config.desc + (slot << 4), DESC_BYTES)

    def needs_call(self) -> bool:
        """After pushes: does the driver want a notification (section 2.8.10)? Counts as having notified."""
        if self._fence is not None:
            self._fence()
        fresh = self._unsignalled
        self._unsignalled = 0
        if fresh <= 0:
            return fresh < 0
        flags = self._driver_event[1] & 3
        if flags == RING_EVENT_FLAGS_DISABLE:
            return False
        if flags != RING_EVENT_FLAGS_DESC or not self._event_idx:
            return True
        return event_passed(self._driver_event[0], self._next_used, self._used_wrap, fresh, self.size)

    def suppress_kicks(self) -> None:
        """Ask the driver for no notifications (section 2.8.10)."""
        if self.broken is None:
            self._store_event(RING_EVENT_FLAGS_DISABLE)

    def arm_kicks(self) -> bool:
        """Ask for notifications again. True: chains arrived meanwhile, so look before you wait."""
        if self.broken is not None:
            return False
        if self._event_idx:
            self._device_event[0] = self._next_avail | self._avail_wrap << 15
            self._store_event(RING_EVENT_FLAGS_DESC)
        else:
            self._store_event(RING_EVENT_FLAGS_ENABLE)
        if self._fence is not None:
            self._fence()
        return bool(self._desc_flags[self._next_avail] & _WRAP_BITS == _AVAILABLE[self._avail_wrap])

    def slots_of(self, chain: Chain) -> list[tuple[int, int, int, int]]:
        """The ring slots (gpa, bytes, buffer id, flags) of the chain that was popped last."""
        first = self._next_avail - chain.count
        return [
            _DESC.unpack_from(self._desc, ((first + step) % self.size) << 4) for step in range(chain.count)
        ]

    def shown(self) -> list[int]:
        """The flags of all descriptors, as guest memory has them."""
        return self._desc_flags.tolist()

    def chain_of(self, slots: list[tuple[int, int, int, int]]) -> ParkedChain:
        """The chain that these slots meant when it was taken. RingViolation if it is malformed."""
        gpa, size_bytes, head, flags = slots[-1]
        if flags & DESC_F_INDIRECT:
            return ParkedChain(head, len(slots), self._table(head, gpa, size_bytes))
        elements = [(gpa, size_bytes, bool(flags & DESC_F_WRITE)) for gpa, size_bytes, _, flags in slots]
        return ParkedChain(head, len(slots), elements)

    def base_word(self) -> int:
        """Both positions with their wrap counters, as vhost's GET_VRING_BASE reports them."""
        low = self._next_avail | self._avail_wrap << 15
        return low | (self._next_used | self._used_wrap << 15) << 16

    def set_base_word(self, word: int) -> None:
        """Start at the positions of ``word``; StreamError if they lie past the ring. Nothing is in flight."""
        self._in_flight.clear()
        self._completed.clear()
        self._seek(
            RingState(
                next_avail=word & 0x7FFF,
                avail_wrap=word >> 15 & 1,
                next_used=word >> 16 & 0x7FFF,
                used_wrap=word >> 31 & 1,
            )
        )

    def _scan(self, window: bytes, available: int, entry: int) -> Chain | None:
        """Take up a chain that the fast path understands; None for all others."""
        chain = scan_chain(self._memory, _ROWS, window, _FAST_MASK, available)
        if chain is None:
            return None
        count = chain.count
        chain.head = head = window[(count << 4) - 4] | window[(count << 4) - 3] << 8  # that of the last one
        if head in self._in_flight or self._slots + count > self.size:
            self._refuse(head, count)
        self._in_flight[head] = chain
        self._slots += count
        self._cache[entry] = (window[: count << 4], chain)
        return chain

    def _read_chain(self, slot: int, available: int) -> Chain:
        """The unusual lists: longer than the window, around the end, indirect, odd or malformed ones."""
        descriptors: list[Descriptor] = []
        first = slot
        size = self.size
        for count in range(1, size + 1):
            gpa, length, head, flags = _DESC.unpack_from(self._desc, slot << 4)
            if flags & _WRAP_BITS != available:
                self._tolerate("packed.unavailable", index=count - 1, slot=first)
            if flags & DESC_F_INDIRECT:
                if not self._indirect:
                    self._tolerate("packed.indirect_feature", slot=first)
                if count > 1 or flags & DESC_F_NEXT:
                    self._break("packed.indirect_mixed", slot=first)
                descriptors = self._table(head, gpa, length)
                break
            descriptors.append((gpa, length, bool(flags & DESC_F_WRITE)))
            if not flags & DESC_F_NEXT:
                break
            slot += 1
            if slot == size:
                slot = 0
                available ^= _WRAP_BITS
        else:
            self._break("packed.chain_long", slot=first, limit=size)
        if head in self._in_flight or self._slots + count > size:
            self._refuse(head, count)
        self._check_elements(head, descriptors)
        chain = self._admit(head, count, descriptors)
        self._slots += count
        return chain

    def _table(self, head: int, gpa: int, size_bytes: int) -> list[Descriptor]:
        """The elements of an indirect table: all of it, in order; only WRITE counts (section 2.8.7)."""
        table = self._read_table(head, gpa, size_bytes)
        if len(table) > self.size * DESC_BYTES and not self._lenient:
            self._break("packed.chain_long", slot=self._next_avail, limit=self.size)
        return [(gpa, length, bool(flags & DESC_F_WRITE)) for gpa, length, flags in _ROWS.iter_unpack(table)]

    def _refuse(self, head: int, count: int) -> NoReturn:
        if head in self._in_flight:
            self._break("packed.id_in_flight", head=head)
        self._break("packed.overrun", head=head, count=count, size=self.size)

    def _write_used(self, batch: list[Used]) -> None:
        """One used descriptor for the last chain of ``batch``, where the first one lay; skip all of them."""
        chain, written = batch[-1]
        slot = self._next_used
        self._desc_words[4 * slot + 2] = written
        self._desc_ids[slot] = chain.head
        self._desc_flags[slot] = _USED[self._used_wrap] | (DESC_F_WRITE if written else 0)
        self._advance_used(sum(each.count for each, _ in batch))
        if self.log is not None or self._memory.dirty is not None:
            for each, filled in batch:
                self._mark_payload(each, filled)
            self._mark_ring(self.config.desc + (slot << 4), DESC_BYTES)

    def _advance_used(self, count: int) -> None:
        self._slots -= count
        if self._unsignalled >= 0:
            self._unsignalled += count
        slot = self._next_used + count
        if slot >= self.size:
            slot -= self.size
            self._used_wrap ^= 1
        self._next_used = slot

    def _store_event(self, flags: int) -> None:
        self._device_event[1] = flags
        self._mark_ring(self.config.device, 4)

    def _check_parked(self, parked: ParkedChain) -> None:
        if not 0 <= parked.head <= 0xFFFF or not parked.count >= 1 or self._slots + parked.count > self.size:
            self._break("packed.overrun", head=parked.head, count=parked.count, size=self.size)
        self._slots += parked.count

    def _taken(self, state: RingState) -> int:
        lap = (state.avail_wrap ^ state.used_wrap) * self.size
        return state.next_avail - state.next_used + lap - sum(parked.count for parked in state.in_flight)

    def position(self) -> RingState:
        """Where the ring stands, without what is in flight."""
        return RingState(
            next_avail=self._next_avail,
            next_used=self._next_used,
            avail_wrap=self._avail_wrap,
            used_wrap=self._used_wrap,
        )

    def _seek(self, state: RingState) -> None:
        for name in ("next_avail", "next_used"):
            if not 0 <= getattr(state, name) < self.size:
                raise StreamError(f"slot {getattr(state, name)} in a ring of {self.size}", field=name)
        for name in ("avail_wrap", "used_wrap"):
            if getattr(state, name) not in (0, 1):
                raise StreamError(f"wrap counter {getattr(state, name)}", field=name)
        self._next_avail = state.next_avail
        self._next_used = state.next_used
        self._avail_wrap = state.avail_wrap
        self._used_wrap = state.used_wrap
        self._slots = 0
        self._unsignalled = -1
