"""The back-end's own picture of guest memory: what the front-end's messages told it to map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vmsim.limits import MEMORY_REGIONS_MAX
from vmsim.memory import GuestMemory, Region
from vmsim.vhost.messages import SPEC, MessageError
from vmsim.vhost.payloads import MemoryRegion
from vmsim.vhost.seams import BackendIo

ADDRESS_LIMIT = 1 << 64


class Slot(NamedTuple):
    """One mapped region: the message's numbers, the mapping, and the piece of guest memory over it."""

    region: MemoryRegion
    view: memoryview
    piece: Region


class BackendMemory:
    """Maps regions and offers them as one ``GuestMemory``; they overlap in neither address space.

    ``memory`` is replaced by every change, the mappings of unchanged regions stay.
    """

    def __init__(self, io: BackendIo) -> None:
        self._io = io
        self._slots: list[Slot] = []
        self.memory = GuestMemory(())

    def add(self, region: MemoryRegion, fd: int) -> None:
        """Map one more region of the file ``fd`` (the caller keeps it)."""
        if len(self._slots) >= MEMORY_REGIONS_MAX:
            raise MessageError(f"no memory slot left of {MEMORY_REGIONS_MAX}", spec=SPEC)
        _check(region, [slot.region for slot in self._slots])
        slot = self._map(region, fd)
        try:
            self._use([*self._slots, slot])
        except BaseException:
            self._unmap(slot)
            raise

    def remove(self, region: MemoryRegion) -> None:
        """Unmap the region with the same guest address, user address and size."""
        for slot in self._slots:
            known = slot.region
            if known[:3] == region[:3]:
                self._use([other for other in self._slots if other is not slot])
                self._unmap(slot)
                return
        raise MessageError(
            f"no memory region at {region.guest_addr:#x} of {region.size_bytes:#x} bytes", spec=SPEC
        )

    def replace(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Map exactly these regions (SET_MEM_TABLE); the former ones stay if one of them is refused."""
        if len(regions) != len(fds):
            raise MessageError(f"{len(regions)} memory regions with {len(fds)} descriptors", spec=SPEC)
        slots: list[Slot] = []
        try:
            for region, fd in zip(regions, fds, strict=True):
                _check(region, [slot.region for slot in slots])
                slots.append(self._map(region, fd))
        except BaseException:
            for slot in slots:
                self._unmap(slot)
            raise
        former = self._slots
        self._use(slots)
        for slot in former:
            self._unmap(slot)

    def close(self) -> None:
        """Unmap everything."""
        slots, self._slots = self._slots, []
        self.memory = GuestMemory(())
        for slot in slots:
            self._unmap(slot)

    def _map(self, region: MemoryRegion, fd: int) -> Slot:
        view = self._io.map(fd, region.size_bytes, region.mmap_offset)
        try:
            name = f"slot at {region.guest_addr:#x}"
            piece = Region(name, region.guest_addr, region.size_bytes, view[:], user_addr=region.user_addr)
        except BaseException:
            self._io.unmap(view)
            raise
        return Slot(region, view, piece)

    def _unmap(self, slot: Slot) -> None:
        slot.piece.release()
        self._io.unmap(slot.view)

    def _use(self, slots: list[Slot]) -> None:
        memory = GuestMemory(slot.piece for slot in slots)
        memory.dirty = self.memory.dirty
        self._slots = slots
        self.memory = memory


def _check(region: MemoryRegion, others: Sequence[MemoryRegion]) -> None:
    size = region.size_bytes
    if not size or max(region.guest_addr, region.user_addr, region.mmap_offset) + size > ADDRESS_LIMIT:
        raise MessageError(f"memory region at {region.guest_addr:#x} of {size:#x} bytes", spec=SPEC)
    for other in others:
        for mine, theirs in ((region.guest_addr, other.guest_addr), (region.user_addr, other.user_addr)):
            if mine < theirs + other.size_bytes and theirs < mine + size:
                raise MessageError(
                    f"memory region at {region.guest_addr:#x} overlaps the one at {other.guest_addr:#x}",
                    spec=SPEC,
                )
