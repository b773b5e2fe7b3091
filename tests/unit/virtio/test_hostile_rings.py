"""One row per violation: what is written into the ring, which row of the table must come out."""

from __future__ import annotations

import mmap
import os
import random
import struct

import msgspec
import pytest

from tests.support.ring_pair import DATA, MEMORY_BYTES, RingPair, make_config, make_memory
from vmsim.errors import Blame, RingViolation
from vmsim.memory import GuestMemory, Region
from vmsim.virtio.constants import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED
from vmsim.virtio.rings import make_device_ring, make_driver_ring
from vmsim.virtio.violations import ROWS, DeviceRingViolation

SIZE = 8
NEXT, WRITE, INDIRECT = 1, 2, 4
A = 0x80  # available in the first lap of a packed ring
TABLE = DATA + 0x10000
END = MEMORY_BYTES


def desc(*rows):
    return b"".join(struct.pack("<QIHH", *row) for row in rows)


def avail(idx, *heads):
    return struct.pack("<HH", 0, idx) + b"".join(struct.pack("<H", head) for head in heads)


def split(table=b"", ring=None, indirect=b"", features=F_INDIRECT_DESC):
    return features, {"desc": table, "driver": ring if ring is not None else avail(1, 0), "table": indirect}


def packed(ring, indirect=b"", features=F_INDIRECT_DESC):
    return F_RING_PACKED | features, {"desc": ring, "table": indirect}


OK = (DATA, 8, 0, 0)
SPLIT_ROWS = [
    ("split.avail_jump", split(ring=avail(9, 0))),
    ("split.avail_jump", split(ring=avail(0xFFFF, 0))),
    ("split.head_range", split(ring=avail(1, SIZE))),
    ("split.head_range", split(ring=avail(1, 0xFFFF))),
    ("split.head_in_flight", split(desc(OK), avail(2, 0, 0))),
    ("split.next_range", split(desc((DATA, 8, NEXT, SIZE)))),
    ("split.next_range", split(desc((DATA, 8, NEXT, 0xFFFF)))),
    ("split.next_range", split(desc(*[OK] * 7, (DATA, 8, NEXT, 8)), avail(1, 7))),
    ("split.chain_long", split(desc((DATA, 8, NEXT, 0)))),
    ("split.chain_long", split(desc((DATA, 8, NEXT, 1), (DATA, 8, NEXT, 0)))),
    ("split.chain_long", split(desc((DATA, 8, NEXT, 1), (DATA, 8, NEXT, 1)))),
    (
        "split.chain_long",
        split(
            desc((TABLE, 16 * 9, INDIRECT, 0)), indirect=desc(*[(DATA, 8, NEXT, n + 1) for n in range(8)], OK)
        ),
    ),
    (
        "split.chain_long",
        split(desc((TABLE, 32, INDIRECT, 0)), indirect=desc((DATA, 8, NEXT, 1), (DATA, 8, NEXT, 0))),
    ),
    (
        "split.chain_long",
        split(
            desc((DATA, 8, NEXT, 1), (TABLE, 16 * 8, INDIRECT, 0)),
            indirect=desc(*[(DATA, 8, NEXT, n + 1) for n in range(7)], OK),
        ),
    ),
    ("split.address", split(desc((END, 1, 0, 0)))),
    ("split.address", split(desc((END - 4, 8, 0, 0)))),
    ("split.address", split(desc(((1 << 64) - 4, 8, 0, 0)))),
    ("split.address", split(desc(((1 << 64) - 1, 0xFFFFFFFF, WRITE, 0)))),
    ("split.address", split(desc((0, 0xFFFFFFFF, WRITE, 0)))),
    ("split.address", split(desc((TABLE, 16, INDIRECT, 0)), indirect=desc((END, 8, 0, 0)))),
    ("split.zero_length", split(desc((DATA, 0, 0, 0)))),
    ("split.zero_length", split(desc((DATA, 8, NEXT, 1), (0, 0, WRITE, 0)))),
    ("split.write_order", split(desc((DATA, 8, NEXT | WRITE, 1), OK))),
    ("split.in_order_next", split(desc((DATA, 8, NEXT, 2), OK, OK), features=F_IN_ORDER)),
    ("split.indirect_feature", split(desc((TABLE, 16, INDIRECT, 0)), indirect=desc(OK), features=0)),
    ("split.indirect_next", split(desc((TABLE, 16, INDIRECT | NEXT, 1), OK), indirect=desc(OK))),
    ("split.indirect_nested", split(desc((TABLE, 16, INDIRECT, 0)), indirect=desc((TABLE, 16, INDIRECT, 0)))),
    ("split.indirect_length", split(desc((TABLE, 0, INDIRECT, 0)))),
    ("split.indirect_length", split(desc((TABLE, 15, INDIRECT, 0)))),
    ("split.indirect_length", split(desc((TABLE, 17, INDIRECT, 0)))),
    ("split.indirect_length", split(desc((TABLE, 0xFFFFFFF0, INDIRECT, 0)))),
    ("split.indirect_memory", split(desc((END - 8, 16, INDIRECT, 0)))),
    ("split.indirect_memory", split(desc(((1 << 64) - 16, 32, INDIRECT, 0)))),
    ("split.indirect_range", split(desc((TABLE, 32, INDIRECT, 0)), indirect=desc((DATA, 8, NEXT, 2), OK))),
    (
        "split.indirect_in_order",
        split(
            desc((TABLE, 48, INDIRECT, 0)),
            indirect=desc((DATA, 8, NEXT, 2), OK, OK),
            features=F_IN_ORDER | F_INDIRECT_DESC,
        ),
    ),
]
PACKED_ROWS = [
    ("packed.id_in_flight", packed(desc((DATA, 8, 5, A), (DATA, 8, 5, A)))),
    ("packed.chain_long", packed(desc(*[(DATA, 8, 0, A | NEXT)] * 8))),
    ("packed.chain_long", packed(desc((TABLE, 16 * 9, 0, A | INDIRECT)), desc(*[OK] * 9))),
    ("packed.unavailable", packed(desc((DATA, 8, 0, A | NEXT), (DATA, 8, 0, 0)))),
    ("packed.unavailable", packed(desc((DATA, 8, 0, A | NEXT), (DATA, 8, 0, 0x8080)))),
    ("packed.address", packed(desc((END, 1, 0, A)))),
    ("packed.address", packed(desc(((1 << 64) - 4, 8, 0, A | WRITE)))),
    ("packed.address", packed(desc((TABLE, 16, 0, A | INDIRECT)), desc((END - 1, 2, 0, 0)))),
    ("packed.zero_length", packed(desc((DATA, 0, 0, A)))),
    ("packed.write_order", packed(desc((DATA, 8, 0, A | WRITE | NEXT), (DATA, 8, 0, A)))),
    ("packed.indirect_feature", packed(desc((TABLE, 16, 0, A | INDIRECT)), desc(OK), features=0)),
    ("packed.indirect_mixed", packed(desc((TABLE, 16, 0, A | INDIRECT | NEXT), (DATA, 8, 0, A)), desc(OK))),
    ("packed.indirect_mixed", packed(desc((DATA, 8, 0, A | NEXT), (TABLE, 16, 0, A | INDIRECT)), desc(OK))),
    ("packed.indirect_length", packed(desc((TABLE, 0, 0, A | INDIRECT)))),
    ("packed.indirect_length", packed(desc((TABLE, 24, 0, A | INDIRECT)))),
    ("packed.indirect_length", packed(desc((TABLE, 0xFFFFFFF0, 0, A | INDIRECT)))),
    ("packed.indirect_memory", packed(desc((END - 8, 16, 0, A | INDIRECT)))),
]
HOSTILE = SPLIT_ROWS + PACKED_ROWS


def set_up(case, policy="strict"):
    features, writes = case
    memory = make_memory()
    config = make_config(features, SIZE, policy)
    places = {"desc": config.desc, "driver": config.driver, "device": config.device, "table": TABLE}
    for part, data in writes.items():
        memory.write(places[part], data)
    return memory, make_device_ring(config, memory)


def drain(ring):
    chains = []
    while (chain := ring.pop()) is not None:
        chains.append(chain)
    return chains


@pytest.mark.parametrize(("key", "case"), HOSTILE, ids=[f"{key}-{n}" for n, (key, _) in enumerate(HOSTILE)])
def test_violation(key, case):
    memory, ring = set_up(case)
    before = memory.read(0, MEMORY_BYTES)
    with pytest.raises(RingViolation) as caught:
        drain(ring)
    error = caught.value
    assert error.details["violation"] == key
    assert error.spec == f"virtio 1.3 section {ROWS[key].section}"
    assert error.blame is Blame.GUEST
    assert ring.broken is not None
    # It stays broken, forgets what was in flight, and writes nothing more.
    for _ in range(2):
        with pytest.raises(RingViolation, match=r"\[virtio 1\.3"):
            ring.pop()
    assert ring.in_flight == []
    ring.suppress_kicks()
    assert ring.arm_kicks() is False
    assert memory.read(0, MEMORY_BYTES) == before


LENIENT = [(key, case) for key, case in HOSTILE if ROWS[key].lenient]


@pytest.mark.parametrize(("key", "case"), LENIENT, ids=[f"{key}-{n}" for n, (key, _) in enumerate(LENIENT)])
def test_lenient_rows_are_tolerated(key, case):
    _, ring = set_up(case, "lenient")
    for chain in drain(ring):
        ring.push(chain, chain.writable_bytes)
    assert ring.broken is None


@pytest.mark.parametrize(
    ("key", "case"),
    [
        row
        for row in HOSTILE
        if not ROWS[row[0]].lenient and row[0] not in ("split.chain_long", "packed.chain_long")
    ],
)
def test_lenient_rings_still_refuse_the_rest(key, case):
    _, ring = set_up(case, "lenient")
    with pytest.raises(RingViolation) as caught:
        drain(ring)
    assert caught.value.details["violation"] == key


def test_lenient_rings_take_long_tables_but_no_loops():
    rows = [(DATA, 8, NEXT, n + 1) for n in range(20)] + [OK]
    _, ring = set_up(split(desc((TABLE, 16 * 21, INDIRECT, 0)), indirect=desc(*rows)), "lenient")
    assert ring.pop().readable_bytes == 21 * 8
    _, ring = set_up(packed(desc((TABLE, 16 * 21, 0, A | INDIRECT)), desc(*[OK] * 21)), "lenient")
    assert ring.pop().readable_bytes == 21 * 8
    rows[-1] = (DATA, 8, NEXT, 0)
    _, ring = set_up(split(desc((TABLE, 16 * 21, INDIRECT, 0)), indirect=desc(*rows)), "lenient")
    with pytest.raises(RingViolation, match="loops"):
        ring.pop()


def test_write_flag_on_an_indirect_descriptor_is_ignored_2_7_5_3_2():
    _, ring = set_up(split(desc((TABLE, 16, INDIRECT | WRITE, 0)), indirect=desc(OK)))
    assert ring.pop().readable_bytes == 8
    _, ring = set_up(packed(desc((TABLE, 16, 0, A | INDIRECT | WRITE)), desc((DATA, 8, 7, NEXT | INDIRECT))))
    assert ring.pop().readable_bytes == 8


def test_direct_descriptors_before_one_indirect_2_7_5_3_2():
    _, ring = set_up(
        split(
            desc((DATA, 8, NEXT, 3), OK, OK, (TABLE, 32, INDIRECT, 0)),
            indirect=desc((DATA + 64, 4, NEXT | WRITE, 1), (DATA + 128, 5, WRITE, 0)),
        )
    )
    chain = ring.pop()
    assert (chain.readable_bytes, chain.writable_bytes, chain.count) == (8, 9, 2)


def test_a_chain_of_more_than_4_gib():
    # 4 GiB of memory is not needed: the same megabytes are named again and again.
    size = 2048
    for features, first in ((0, "split.chain_bytes"), (F_RING_PACKED, "packed.chain_bytes")):
        memory = make_memory()
        config = make_config(features, size)
        big = MEMORY_BYTES
        rows = []
        for index in range(1026):
            last = index == 1025
            if features:
                rows.append((0, big, 0, A | (0 if last else NEXT)))
            else:
                rows.append((0, big, 0 if last else NEXT, 0 if last else index + 1))
        memory.write(config.desc, desc(*rows))
        if not features:
            memory.write(config.driver, avail(1, 0))
        with pytest.raises(RingViolation) as caught:
            make_device_ring(config, memory).pop()
        assert caught.value.details["violation"] == first


@pytest.mark.parametrize("features", [0, F_RING_PACKED, F_INDIRECT_DESC])
def test_two_descriptors_of_more_than_4_gib(features):
    """In a guest that has so much memory, the shortest chains can be too long in bytes."""
    fd = os.memfd_create("big")
    os.ftruncate(fd, 8 << 30)
    memory = GuestMemory([Region("ram", 0, 8 << 30, memoryview(mmap.mmap(fd, 8 << 30)))])
    os.close(fd)
    config = make_config(features, SIZE)
    low, half = 1 << 30, 1 << 31
    for spare in (0, 1):
        rows = [(low, half, 0, A | NEXT), (low + half, half + spare, 0, A)]
        if not features & F_RING_PACKED:
            rows = [(low, half, NEXT, 1), (low + half, half + spare, 0, 0)]
            memory.write(config.driver, avail(1, 0))
        if features & F_INDIRECT_DESC:
            memory.write(TABLE, desc(*rows))
            rows = [(TABLE, 32, INDIRECT, 0)]
        memory.write(config.desc, desc(*rows))
        ring = make_device_ring(config, memory)
        if not spare:
            assert ring.pop().readable_bytes == 1 << 32
            continue
        with pytest.raises(RingViolation) as caught:
            ring.pop()
        assert caught.value.details["violation"].endswith("chain_bytes")


@pytest.mark.parametrize("features", [0, F_RING_PACKED])
def test_holes_and_borders_of_several_regions(features):
    """A chain may cross into the next region; below, between and behind regions there is nothing."""
    low, size = 0x10000, 0x40000
    regions = [
        Region(str(n), gpa, size, memoryview(bytearray([n]) * size))
        for n, gpa in enumerate((low, low + size, low + 3 * size))
    ]
    memory = GuestMemory(regions)
    config = make_config(features, SIZE)

    def pop(gpa, length):
        memory.write(config.desc, bytes(16 * SIZE))
        memory.write(config.desc, desc((gpa, length, 0, A if features else 0)))
        if not features:
            memory.write(config.driver, avail(1, 0))
        return make_device_ring(config, memory).pop()

    border = low + size
    assert [bytes(view) for view in pop(border - 2, 4).readable] == [b"\0\0", b"\1\1"]
    assert bytes(pop(low + 3 * size, 3).readable[0]) == b"\2\2\2"
    assert bytes(pop(border + 8, 3).readable[0]) == b"\1\1\1"
    for gpa, length in (
        (low - 8, 8),
        (low - 8, 16),
        (0, 4),
        (low + 2 * size - 4, 8),
        (low + 2 * size, 4),
        (low + 3 * size - 4, 8),
        (low + 4 * size - 4, 8),
        (low, 3 * size),
    ):
        with pytest.raises(RingViolation) as caught:
            pop(gpa, length)
        assert caught.value.details["violation"].endswith(".address")


def test_packed_overrun():
    """Eight descriptors in flight, and the driver flips the bits of a slot that was never given back."""
    memory, ring = set_up(packed(desc(*[(DATA, 8, n, A) for n in range(8)])))
    assert len(drain(ring)) == 8
    memory.write(ring.config.desc, desc((DATA, 8, 99, 0x8000)))
    with pytest.raises(RingViolation) as caught:
        ring.pop()
    assert caught.value.details["violation"] == "packed.overrun"


CONFIGS = [
    ("split.size", 0, {"size": 0}),
    ("split.size", 0, {"size": 3}),
    ("split.size", 0, {"size": 65536}),
    ("packed.size", F_RING_PACKED, {"size": 0}),
    ("packed.size", F_RING_PACKED, {"size": 32769}),
    ("split.align", 0, {"desc": 0x10008}),
    ("split.align", 0, {"driver": 0x10001}),
    ("split.align", 0, {"device": 0x10002}),
    ("packed.align", F_RING_PACKED, {"desc": 0x10004}),
    ("packed.align", F_RING_PACKED, {"driver": 0x10002}),
    ("packed.align", F_RING_PACKED, {"device": 0x10001}),
    ("split.memory", 0, {"desc": END - 64}),
    ("split.memory", 0, {"driver": END}),
    ("split.memory", 0, {"device": (1 << 64) - 4}),
    ("packed.memory", F_RING_PACKED, {"desc": END - 64}),
    ("packed.memory", F_RING_PACKED, {"driver": END}),
    ("packed.memory", F_RING_PACKED, {"device": 1 << 63}),
]


@pytest.mark.parametrize(("key", "features", "change"), CONFIGS)
def test_illegal_queue_set_up(key, features, change):
    config = msgspec.structs.replace(make_config(features, SIZE), **change)
    with pytest.raises(RingViolation) as caught:
        make_device_ring(config, make_memory())
    assert caught.value.details["violation"] == key


def used(idx, *elements):
    return struct.pack("<HH", 0, idx) + b"".join(struct.pack("<II", *each) for each in elements)


DEVICE_ROWS = [
    ("split.used_jump", 0, "device", lambda b: used(2, (b, 0), (b, 0))),
    ("split.used_jump", F_IN_ORDER, "device", lambda b: used(0xFFFF, (b, 0))),
    ("split.used_id", 0, "device", lambda b: used(1, (b + 1, 0))),
    ("split.used_id", F_IN_ORDER, "device", lambda b: used(1, (0xFFFFFFFF, 0))),
    ("split.used_length", 0, "device", lambda b: used(1, (b, 65))),
    ("split.used_length", F_IN_ORDER, "device", lambda b: used(1, (b, 65))),
    ("packed.used_id", F_RING_PACKED, "desc", lambda b: desc((0, 0, b + 1, 0x8080))),
    ("packed.used_id", F_RING_PACKED | F_IN_ORDER, "desc", lambda b: desc((0, 0, b + 1, 0x8080))),
    ("packed.used_length", F_RING_PACKED, "desc", lambda b: desc((0, 65, b, 0x8082))),
    ("packed.used_length", F_RING_PACKED | F_IN_ORDER, "desc", lambda b: desc((0, 65, b, 0x8082))),
]


@pytest.mark.parametrize(("key", "features", "part", "data"), DEVICE_ROWS)
def test_device_violation(key, features, part, data):
    pair = RingPair(features, SIZE)
    buffer_id, _ = pair.offer()
    pair.driver.publish()
    pair.memory.write(getattr(pair.config, part), data(buffer_id))
    for _ in range(2):
        with pytest.raises(DeviceRingViolation) as caught:
            pair.driver.reap()
        assert caught.value.details["violation"] == key
        assert caught.value.blame is Blame.PEER
    with pytest.raises(DeviceRingViolation):
        pair.offer()


def test_every_row_of_the_table_has_a_test():
    tested = {key for key, *_ in HOSTILE + CONFIGS + DEVICE_ROWS}
    tested |= {"split.chain_bytes", "packed.chain_bytes", "packed.overrun"}
    assert tested == set(ROWS)


def weird(rng):
    """16 bytes that look like a descriptor more often than chance would have it."""
    if rng.random() < 0.2:
        return rng.randbytes(16)
    gpa = rng.choice([DATA, TABLE, 0x10000, END - 8, END, (1 << 64) - 8, rng.getrandbits(22)])
    length = rng.choice([0, 1, 16, 32, 160, 16 * 64, rng.getrandbits(12), rng.getrandbits(32)])
    wrap = rng.choice([0x80, 0x8000, 0, 0x8080])
    third, fourth = rng.choice([rng.randrange(10), rng.getrandbits(16)]), rng.getrandbits(3)
    return (
        struct.pack("<QIHH", gpa, length, third, wrap | fourth)
        if rng.random() < 0.5
        else struct.pack("<QIHH", gpa, length, fourth | wrap, third)
    )


@pytest.mark.parametrize("policy", ["strict", "lenient"])
@pytest.mark.parametrize("features", [0, F_RING_PACKED], ids=["split", "packed"])
def test_random_ring_memory(features, policy):
    """Whatever lies in memory: chains or a RingViolation, in bounded time, both sides."""
    rng = random.Random(f"{features} {policy}")
    violations = popped = 0
    for _ in range(1500):
        size = rng.choice([1, 2, 4, 8, 16] if not features else [1, 3, 5, 8, 13])
        extra = rng.choice([0, F_INDIRECT_DESC, F_IN_ORDER, F_EVENT_IDX | F_INDIRECT_DESC | F_IN_ORDER])
        memory = make_memory()
        config = make_config(features | extra, size, policy)
        driver = make_driver_ring(config, memory)
        memory.write(config.desc, b"".join(weird(rng) for _ in range(size)))
        memory.write(TABLE, b"".join(weird(rng) for _ in range(16)))
        memory.write(
            config.driver, rng.choice([avail(rng.randrange(size + 2), *range(size)), rng.randbytes(20)])
        )
        ring = make_device_ring(config, memory)
        try:
            for _ in range(4 * size):
                chain = ring.pop()
                if chain is None:
                    break
                popped += 1
                assert sum(map(len, chain.readable)) == chain.readable_bytes
                assert sum(map(len, chain.writable)) == chain.writable_bytes
                ring.push(chain, rng.randrange(min(chain.writable_bytes, 64) + 1))
                ring.needs_call()
                ring.arm_kicks()
        except RingViolation:
            violations += 1
        try:
            driver.add([(DATA, 1)], [])
            driver.publish()
            memory.write(config.desc if features else config.device, rng.randbytes(16))
            for _ in range(4):
                driver.needs_kick()
                driver.reap()
                driver.arm_interrupts()
        except DeviceRingViolation:
            pass
    assert violations > 100
    assert popped > 20
