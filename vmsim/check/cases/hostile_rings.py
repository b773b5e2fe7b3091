"""Rings that no honest driver makes. The back-end gives the ring up and lives on; a reset brings it back."""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.device import MEMORY_BYTES, RAW, REQUESTS, USUAL, RawDriver
from vmsim.check.rigs import RingRig
from vmsim.fuse import opcodes as op
from vmsim.virtio.constants import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
)
from vmsim.virtio.driver_ring import DESC

CASES = Group("hostile")
SPLIT = "virtio 1.3 section 2.7.5"
INDIRECT = "virtio 1.3 section 2.7.5.3"
AVAIL = "virtio 1.3 section 2.7.6"
PACKED = "virtio 1.3 section 2.8"
FAR = 1 << 40
"""Outside memory."""
NEXT, WRITE, TABLE = DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT


def good(device: RawDriver) -> tuple[int, int]:
    """A request in memory: (address, length)."""
    return device.place(device.request(op.GETATTR, 1, (0, 0, 0)))


def broken(rig: RingRig, *descriptors: tuple[int, int, int, int], packed: bool = False) -> None:
    """A chain of these descriptors after ``good``'s, then the aftermath."""
    device = rig.device(features=USUAL | F_RING_PACKED if packed else USUAL)
    address, length = good(device)
    first = (address, length, NEXT, 0 if packed else RAW + 1)
    device.raw_chain([first, *descriptors])
    device.aftermath()


def broken_table(rig: RingRig, rows: list[tuple[int, int, int, int]], *, size: int = 0, at: int = 0,
                 flags: int = TABLE, packed: bool = False) -> None:  # fmt: skip
    """A chain that is an indirect table of these rows, of ``size`` bytes, ``at`` an address."""
    features = F_VERSION_1 | F_INDIRECT_DESC | (F_RING_PACKED if packed else 0)
    device = rig.device(features=features)
    address, length = good(device)
    content = DESC.pack(address, length, *((0, NEXT) if packed else (NEXT, 1)))
    content += b"".join(DESC.pack(*row) for row in rows)
    table, full = device.place(content)
    device.raw_chain([(at or table, size or full, flags, 0)])
    device.aftermath()


@CASES.case("descriptor-loop", SPLIT)
def descriptor_loop(rig: RingRig) -> None:
    """A chain whose descriptors go round in a circle."""
    broken(rig, (0x100000, 16, NEXT, RAW))


@CASES.case("address-outside-memory", SPLIT)
def address_outside_memory(rig: RingRig) -> None:
    """A buffer where there is no memory."""
    broken(rig, (FAR, 120, WRITE, 0))


@CASES.case("address-wraps", SPLIT)
def address_wraps(rig: RingRig) -> None:
    """A buffer that passes the end of the address space."""
    broken(rig, ((1 << 64) - 8, 120, WRITE, 0))


@CASES.case("length-crosses-end", SPLIT)
def length_crosses_end(rig: RingRig) -> None:
    """A buffer that passes the end of the memory region."""
    broken(rig, (MEMORY_BYTES - 64, 120, WRITE, 0))


@CASES.case("length-4-gib", SPLIT)
def length_4_gib(rig: RingRig) -> None:
    """A buffer of 2^32 - 1 bytes."""
    broken(rig, (0x100000, 0xFFFFFFFF, WRITE, 0))


@CASES.case("next-out-of-range", SPLIT)
def next_out_of_range(rig: RingRig) -> None:
    """A chain that goes on beyond the descriptor table."""
    broken(rig, (0x100000, 16, NEXT, 5000))


@CASES.case("head-out-of-range", AVAIL)
def head_out_of_range(rig: RingRig) -> None:
    """A head beyond the descriptor table in the available ring."""
    device = rig.device()
    device.raw_chain([(0x100000, 16, 0, 0)], head=5000)
    device.aftermath()


@CASES.case("available-index-jumps", AVAIL)
def available_index_jumps(rig: RingRig) -> None:
    """An available index further ahead than the ring is large."""
    device = rig.device()
    address, length = good(device)
    device.raw_chain([(address, length, 0, 0)], ahead=5000)
    device.aftermath()


@CASES.case("available-index-goes-back", AVAIL)
def available_index_goes_back(rig: RingRig) -> None:
    """An available index that goes back by one."""
    device = rig.device()
    address, length = good(device)
    device.raw_chain([(address, length, 0, 0)], ahead=-1)
    device.aftermath()


@CASES.case("writable-first", SPLIT)
def writable_first(rig: RingRig) -> None:
    """A writable buffer before a readable one: refused or tolerated."""
    device = rig.device()
    address, length = good(device)
    device.raw_chain([(0x100000, 120, WRITE | NEXT, RAW + 1), (address, length, 0, 0)])
    device.aftermath()


@CASES.case("empty-buffer", "virtio 1.3 section 2.7.4")
def empty_buffer(rig: RingRig) -> None:
    """A buffer of length 0 in a chain: refused or tolerated."""
    broken(rig, (0x100000, 0, NEXT, RAW + 2), (0x100000, 120, WRITE, 0))


@CASES.case("table-odd-size", INDIRECT)
def table_odd_size(rig: RingRig) -> None:
    """An indirect table whose length is no multiple of 16."""
    broken_table(rig, [(0x100000, 120, WRITE, 0)], size=30)


@CASES.case("table-nested", INDIRECT)
def table_nested(rig: RingRig) -> None:
    """An indirect table in an indirect table."""
    broken_table(rig, [(0x100000, 32, TABLE, 0)])


@CASES.case("table-outside-memory", INDIRECT)
def table_outside_memory(rig: RingRig) -> None:
    """An indirect table where there is no memory."""
    broken_table(rig, [], at=FAR, size=32)


@CASES.case("table-empty", INDIRECT)
def table_empty(rig: RingRig) -> None:
    """An indirect table of no descriptors."""
    device = rig.device(features=F_VERSION_1 | F_INDIRECT_DESC)
    device.raw_chain([(0x100000, 0, TABLE, 0)])
    device.aftermath()


@CASES.case("table-huge", INDIRECT)
def table_huge(rig: RingRig) -> None:
    """An indirect table of 4 GiB."""
    broken_table(rig, [(0x100000, 120, WRITE, 0)], size=0xFFFFFFF0)


@CASES.case("table-next-out-of-range", INDIRECT)
def table_next_out_of_range(rig: RingRig) -> None:
    """A descriptor of an indirect table that goes on beyond the table."""
    broken_table(rig, [(0x100000, 16, NEXT, 700)])


@CASES.case("table-loop", INDIRECT)
def table_loop(rig: RingRig) -> None:
    """Descriptors of an indirect table that go round in a circle."""
    broken_table(rig, [(0x100000, 16, NEXT, 0)])


@CASES.case("table-and-next", INDIRECT)
def table_and_next(rig: RingRig) -> None:
    """A descriptor that is an indirect table and has a next one."""
    broken_table(rig, [(0x100000, 120, WRITE, 0)], flags=TABLE | NEXT)


@CASES.case("table-not-negotiated", INDIRECT)
def table_not_negotiated(rig: RingRig) -> None:
    """An indirect table although INDIRECT_DESC was not accepted."""
    device = rig.device(features=F_VERSION_1)
    address, length = good(device)
    table, size = device.place(DESC.pack(address, length, NEXT, 1) + DESC.pack(0x100000, 120, WRITE, 0))
    device.raw_chain([(table, size, TABLE, 0)])
    device.aftermath()


@CASES.case("packed-outside-memory", PACKED)
def packed_outside_memory(rig: RingRig) -> None:
    """Packed: a buffer where there is no memory."""
    broken(rig, (FAR, 120, WRITE, 0), packed=True)


@CASES.case("packed-length-4-gib", PACKED)
def packed_length_4_gib(rig: RingRig) -> None:
    """Packed: a buffer of 2^32 - 1 bytes."""
    broken(rig, (0x100000, 0xFFFFFFFF, WRITE, 0), packed=True)


@CASES.case("packed-endless", PACKED)
def packed_endless(rig: RingRig) -> None:
    """Packed: a chain of all slots that goes on."""
    device = rig.device(features=USUAL | F_RING_PACKED)
    at = device.rings[REQUESTS].save().next_avail
    device.raw_chain([(0x100000, 16, NEXT, 0)] * (device.size - at))
    device.aftermath()


@CASES.case("packed-id", PACKED)
def packed_id(rig: RingRig) -> None:
    """Packed: a buffer id beyond the ring's size: refused, or handed back as it is."""
    broken(rig, (0x100000, 120, WRITE, 60000), packed=True)


@CASES.case("packed-table-odd-size", "virtio 1.3 section 2.8.7")
def packed_table_odd_size(rig: RingRig) -> None:
    """Packed: an indirect table whose length is no multiple of 16."""
    broken_table(rig, [(0x100000, 120, 0, WRITE)], size=30, packed=True)


@CASES.case("packed-table-nested", "virtio 1.3 section 2.8.7")
def packed_table_nested(rig: RingRig) -> None:
    """Packed: an indirect table in an indirect table."""
    broken_table(rig, [(0x100000, 32, 0, TABLE)], packed=True)


@CASES.case("packed-table-outside-memory", "virtio 1.3 section 2.8.7")
def packed_table_outside_memory(rig: RingRig) -> None:
    """Packed: an indirect table where there is no memory."""
    broken_table(rig, [], at=FAR, size=32, packed=True)


@CASES.case("ring-of-noise", "virtio 1.3 sections 2.7 and 2.8")
def ring_of_noise(rig: RingRig) -> None:
    """A descriptor table full of random bytes, with every head made available."""
    device = rig.device()
    config = device.config(REQUESTS)
    device.memory.write(config.desc, rig.random.randbytes(16 * device.size))
    index = device.memory.load_u16(config.driver + 2)
    for number in range(device.size):
        device.memory.store_u16(config.driver + 4 + 2 * ((index + number) % device.size), number)
    device.memory.store_u16(config.driver + 2, (index + device.size) & 0xFFFF)
    device.kick()
    device.aftermath()
