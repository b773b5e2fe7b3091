"""One ring's in-flight region at work: what is taken and given goes in, what it holds is taken up."""

from __future__ import annotations

import struct
from collections.abc import Callable

from vmsim.errors import VmsimError
from vmsim.vhost.inflight import SPEC, PackedRegion, Slot, SplitRegion
from vmsim.vhost.messages import MessageError
from vmsim.virtio.chain import Chain, ParkedChain
from vmsim.virtio.constants import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from vmsim.virtio.packed_device import PackedDeviceRing
from vmsim.virtio.ring_types import DeviceRing, RingState
from vmsim.virtio.split_device import SplitDeviceRing


class SplitTracking:
    """Implements ``UsedWitness`` for a split ring."""

    def __init__(self, ring: SplitDeviceRing, view: memoryview) -> None:
        self.region = SplitRegion(view, ring.size)
        self.attach(ring)

    def attach(self, ring: DeviceRing) -> None:
        """The ring was made anew, at the same position."""
        assert isinstance(ring, SplitDeviceRing)
        self._ring = ring
        ring.witness = self

    def detach(self) -> None:
        """The ring is given up: nothing of the memory in which it lies is kept mapped."""
        self._ring.witness = None

    def begin(self) -> None:
        """The ring has its position, and what is in flight."""
        self._used = self._ring.position().next_used
        self.region.prepare(self._used)
        for chain in self._ring.in_flight:
            self.taken(chain)
        self.region.announce()

    def recover(self) -> RingState | None:
        """Where the ring of a back-end that died goes on, and what was in flight; None if there was none."""
        if not self.region.used_before:
            return None
        used = self._used = self._ring.used_index
        parked = [self._ring.chain_of(head) for head in self.region.recover(used)]
        return RingState(next_avail=(used + len(parked)) & 0xFFFF, next_used=used, in_flight=parked)

    def records(self, state: RingState) -> bool:
        """Whether the region says that the ring stands there, with the same requests in flight."""
        return _records(self.recover, state)

    def taken(self, chain: Chain) -> None:
        """The ring popped this chain."""
        self.region.taken(chain.head)

    def giving(self, chains: list[Chain]) -> None:
        """See ``UsedWitness``."""
        self.region.giving([chain.head for chain in chains])

    def given(self, chains: list[Chain]) -> None:
        """See ``UsedWitness``."""
        self._used = (self._used + len(chains)) & 0xFFFF
        self.region.given([chain.head for chain in chains], self._used)


class PackedTracking:
    """Implements ``UsedWitness`` for a packed ring; ``_entries`` says which entry stands for a buffer id."""

    def __init__(self, ring: PackedDeviceRing, view: memoryview) -> None:
        self.region = PackedRegion(view, ring.size)
        self._entries: dict[int, int] = {}
        self.attach(ring)

    def attach(self, ring: DeviceRing) -> None:
        """The ring was made anew, at the same position."""
        assert isinstance(ring, PackedDeviceRing)
        self._ring = ring
        ring.witness = self

    def detach(self) -> None:
        """The ring is given up: nothing of the memory in which it lies is kept mapped."""
        self._ring.witness = None

    def begin(self) -> None:
        """The ring has its position, and what is in flight."""
        self._entries.clear()
        state = self._ring.position()
        self._used, self._wrap = state.next_used, state.used_wrap
        self.region.prepare(self._used, self._wrap)
        for chain in self._ring.in_flight:
            self._take(chain, _slots_of(chain.park()))
        self.region.announce()

    def recover(self) -> RingState | None:
        """Where the ring of a back-end that died goes on, and what was in flight; None if there was none."""
        if not self.region.used_before:
            return None
        used, wrap, lists = self.region.recover(self._ring.shown())
        self._used, self._wrap = used, wrap
        self._entries.clear()
        parked = []
        for entry, slots in lists.items():
            chain = self._ring.chain_of(slots)
            self._entries[chain.head] = entry
            parked.append(chain)
        avail = used + sum(chain.count for chain in parked)
        lap, slot = divmod(avail, self._ring.size)
        return RingState(
            next_avail=slot, next_used=used, avail_wrap=wrap ^ lap & 1, used_wrap=wrap, in_flight=parked
        )

    def records(self, state: RingState) -> bool:
        """Whether the region says that the ring stands there, with the same requests in flight."""
        return _records(self.recover, state)

    def taken(self, chain: Chain) -> None:
        """The ring popped this chain."""
        self._take(chain, self._ring.slots_of(chain))

    def _take(self, chain: Chain, slots: list[Slot]) -> None:
        try:
            self._entries[chain.head] = self.region.taken(slots)
        except (struct.error, IndexError) as error:
            raise _astray(error) from error

    def giving(self, chains: list[Chain]) -> None:
        """See ``UsedWitness``."""
        slot = self._used + sum([chain.count for chain in chains])
        if slot >= self._ring.size:
            slot -= self._ring.size
            self._wrap ^= 1
        self._used = slot
        entries = [self._entries[chain.head] for chain in chains]
        try:
            self.region.giving(entries, slot, self._wrap)
        except (struct.error, IndexError) as error:
            raise _astray(error) from error

    def given(self, chains: list[Chain]) -> None:
        """See ``UsedWitness``."""
        self.region.given([self._entries.pop(chain.head) for chain in chains])


Tracking = SplitTracking | PackedTracking


def _records(recover: Callable[[], RingState | None], state: RingState) -> bool:
    try:
        found = recover()
    except VmsimError:
        return False
    if found is None or not found.same_place(state):
        return False
    return [parked.head for parked in found.in_flight] == [parked.head for parked in state.in_flight]


def track(ring: DeviceRing, view: memoryview) -> Tracking:
    """Keep ``ring``'s requests in flight in ``view``, from ``begin`` or ``recover`` on."""
    if isinstance(ring, PackedDeviceRing):
        return PackedTracking(ring, view)
    assert isinstance(ring, SplitDeviceRing)
    return SplitTracking(ring, view)


def _slots_of(parked: ParkedChain) -> list[Slot]:
    """Ring slots that mean a chain which came with a saved state, and whose own slots may be overwritten.

    Where its indirect table lay nobody knows any more: such a chain is recorded as one that cannot be taken
    up again.
    """
    if len(parked.descriptors) != parked.count:
        return [(0, 0, parked.head, DESC_F_INDIRECT)] * parked.count
    flags = [DESC_F_NEXT] * (parked.count - 1) + [0]
    return [
        (gpa, size_bytes, parked.head, flag | (DESC_F_WRITE if is_write else 0))
        for flag, (gpa, size_bytes, is_write) in zip(flags, parked.descriptors, strict=True)
    ]


def _astray(error: Exception) -> MessageError:
    """The region, which the front-end can write to, leads out of itself."""
    return MessageError(f"in-flight region: {error}", spec=SPEC)
