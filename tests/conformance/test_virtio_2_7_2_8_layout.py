"""virtio 1.3 sections 2.7 (split) and 2.8 (packed): what lies where in memory, byte for byte."""

from __future__ import annotations

import struct

from tests.support.ring_pair import DATA, RingPair
from vmsim.virtio.constants import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED
from vmsim.virtio.rings import ring_areas


def raw(pair, area, size):
    return pair.memory.read(getattr(pair.config, area), size)


def test_area_sizes_and_alignments_2_7_and_2_8_10_1():
    assert [area[1:] for area in ring_areas(8, 0)] == [(16, 128), (2, 22), (4, 70)]
    assert [area[1:] for area in ring_areas(8, F_RING_PACKED)] == [(16, 128), (4, 4), (4, 4)]


def test_split_descriptors_available_and_used_2_7_5_2_7_6_2_7_8():
    pair = RingPair(F_EVENT_IDX, 4)
    head = pair.driver.add([(DATA, 40), (DATA + 0x1000, 16)], [(DATA + 0x2000, 120)])
    assert head == 0
    assert raw(pair, "desc", 48) == (
        struct.pack("<QIHH", DATA, 40, 1, 1)
        + struct.pack("<QIHH", DATA + 0x1000, 16, 1, 2)
        + struct.pack("<QIHH", DATA + 0x2000, 120, 2, 0)
    )
    assert raw(pair, "driver", 14) == struct.pack("<7H", 0, 0, 0, 0, 0, 0, 0)
    pair.driver.publish()
    assert raw(pair, "driver", 14) == struct.pack("<7H", 0, 1, 0, 0, 0, 0, 0)
    chain = pair.device.pop()
    pair.device.push(chain, 77)
    assert raw(pair, "device", 38) == struct.pack("<HH8IH", 0, 1, 0, 77, 0, 0, 0, 0, 0, 0, 0)
    assert pair.driver.reap() == (0, 77)
    pair.driver.arm_interrupts()
    pair.device.arm_kicks()
    assert raw(pair, "driver", 14)[-2:] == b"\1\0"  # used_event
    assert raw(pair, "device", 38)[-2:] == b"\1\0"  # avail_event
    assert raw(pair, "driver", 2) == raw(pair, "device", 2) == b"\0\0"


def test_split_flags_without_event_idx_2_7_7_2_7_10():
    pair = RingPair(0, 4)
    pair.driver.suppress_interrupts()
    pair.device.suppress_kicks()
    assert raw(pair, "driver", 2) == raw(pair, "device", 2) == b"\1\0"
    pair.driver.arm_interrupts()
    pair.device.arm_kicks()
    assert raw(pair, "driver", 2) == raw(pair, "device", 2) == b"\0\0"


def test_split_indirect_table_2_7_5_3():
    pair = RingPair(F_INDIRECT_DESC, 4)
    pair.driver.add([(DATA, 1)], [(DATA + 16, 2)], (DATA + 0x100, 64))
    assert raw(pair, "desc", 16) == struct.pack("<QIHH", DATA + 0x100, 32, 4, 0)
    assert pair.memory.read(DATA + 0x100, 32) == (
        struct.pack("<QIHH", DATA, 1, 1, 1) + struct.pack("<QIHH", DATA + 16, 2, 2, 0)
    )


def test_split_in_order_takes_descriptors_in_ring_order_2_7_5_2():
    pair = RingPair(F_IN_ORDER, 4)
    for heads in (0, 3, 2, 1):
        head = pair.driver.add([(DATA, 1)], [(DATA + 16, 2), (DATA + 32, 2)])
        assert head == heads
        last = (head + 1) % 4
        link = struct.unpack_from("<H", raw(pair, "desc", 64), 16 * head + 14)[0]
        assert link == last
        pair.driver.publish()
        pair.echo()
        pair.driver.reap()


def test_split_in_order_batch_is_one_element_2_7_9():
    pair = RingPair(F_IN_ORDER, 4)
    ids = [pair.driver.add([], [(DATA + 64 * n, 8)]) for n in range(3)]
    pair.driver.publish()
    chains = [pair.device.pop() for _ in ids]
    for chain in (chains[1], chains[2]):
        pair.device.push(chain, 8)
    assert pair.memory.load_u16(pair.config.device + 2) == 0
    pair.device.push(chains[0], 8)
    assert raw(pair, "device", 28) == struct.pack("<HH6I", 0, 3, ids[2], 8, 0, 0, 0, 0)
    assert [pair.driver.reap() for _ in ids] == [(each, 8) for each in ids]


def test_in_order_batch_ends_at_a_buffer_that_was_not_filled_2_7_9_2_8_8():
    for features in (F_IN_ORDER, F_IN_ORDER | F_RING_PACKED):
        pair = RingPair(features, 8)
        ids = [pair.driver.add([], [(DATA + 64 * n, 8)]) for n in range(5)]
        pair.driver.publish()
        chains = [pair.device.pop() for _ in ids]
        lengths = [8, 3, 8, 8, 1]
        for index in (1, 2, 3, 4, 0):
            pair.device.push(chains[index], lengths[index])
        assert [pair.driver.reap() for _ in ids] == list(zip(ids, lengths, strict=True))


def test_packed_descriptors_available_and_used_2_8_13():
    pair = RingPair(F_RING_PACKED | F_EVENT_IDX, 3)
    first = pair.driver.add([(DATA, 40)], [(DATA + 0x2000, 120)])
    assert raw(pair, "desc", 48)[14:16] == b"\0\0"  # hidden until published (section 2.8.6)
    pair.driver.publish()
    assert raw(pair, "desc", 48) == (
        struct.pack("<QIHH", DATA, 40, first, 0x0081)
        + struct.pack("<QIHH", DATA + 0x2000, 120, first, 0x0082)
        + bytes(16)
    )
    pair.device.push(pair.device.pop(), 77)
    assert raw(pair, "desc", 16) == struct.pack("<QIHH", DATA, 77, first, 0x8082)
    assert pair.driver.reap() == (first, 77)
    second = pair.driver.add([(DATA, 40)], [(DATA + 0x2000, 120)])
    pair.driver.publish()
    assert raw(pair, "desc", 48)[32:] == struct.pack("<QIHH", DATA, 40, second, 0x0081)
    assert raw(pair, "desc", 48)[:16] == struct.pack("<QIHH", DATA + 0x2000, 120, second, 0x8002)
    assert pair.driver.notification_data() == 3
    pair.device.push(pair.device.pop(), 0)
    assert raw(pair, "desc", 48)[32:] == struct.pack("<QIHH", DATA, 0, second, 0x8080)
    assert pair.driver.reap() == (second, 0)
    pair.driver.arm_interrupts()
    pair.device.arm_kicks()
    assert raw(pair, "driver", 4) == raw(pair, "device", 4) == struct.pack("<HH", 1, 2)
    assert pair.device.base_word() == 0x0001_0001


def test_packed_event_flags_2_8_14():
    pair = RingPair(F_RING_PACKED, 3)
    pair.driver.suppress_interrupts()
    pair.device.suppress_kicks()
    assert raw(pair, "driver", 4) == raw(pair, "device", 4) == struct.pack("<HH", 0, 1)
    pair.driver.arm_interrupts()
    pair.device.arm_kicks()
    assert raw(pair, "driver", 4) == raw(pair, "device", 4) == bytes(4)


def test_packed_indirect_table_2_8_7():
    pair = RingPair(F_RING_PACKED | F_INDIRECT_DESC, 4)
    head = pair.driver.add([(DATA, 1)], [(DATA + 16, 2)], (DATA + 0x100, 64))
    pair.driver.publish()
    assert raw(pair, "desc", 16) == struct.pack("<QIHH", DATA + 0x100, 32, head, 0x0084)
    assert pair.memory.read(DATA + 0x100, 32) == (
        struct.pack("<QIHH", DATA, 1, 0, 0) + struct.pack("<QIHH", DATA + 16, 2, 0, 2)
    )


def test_packed_in_order_batch_is_one_descriptor_2_8_8():
    pair = RingPair(F_RING_PACKED | F_IN_ORDER, 4)
    ids = [pair.driver.add([], [(DATA + 64 * n, 8)]) for n in range(3)]
    pair.driver.publish()
    chains = [pair.device.pop() for _ in ids]
    for chain in reversed(chains):
        pair.device.push(chain, 8)
    assert raw(pair, "desc", 16) == struct.pack("<QIHH", DATA, 8, ids[2], 0x8082)
    assert raw(pair, "desc", 32)[30:] == struct.pack("<H", 0x0082)
    assert [pair.driver.reap() for _ in ids] == [(each, 8) for each in ids]


def test_packed_buffer_id_is_the_one_of_the_last_descriptor_2_8_6():
    pair = RingPair(F_RING_PACKED, 4)
    pair.memory.write(
        pair.config.desc,
        struct.pack("<QIHH", DATA, 8, 0xAAAA, 0x0081) + struct.pack("<QIHH", DATA, 8, 0xBEEF, 0x0080),
    )
    chain = pair.device.pop()
    assert (chain.head, chain.count) == (0xBEEF, 2)


def test_vhost_base_words():
    pair = RingPair(F_RING_PACKED, 4)
    assert pair.device.base_word() == 0x8000_8000
    pair.device.set_base_word(0x0002_8001)
    assert pair.device.base_word() == 0x0002_8001
    state = pair.device.save()
    assert (state.next_avail, state.avail_wrap, state.next_used, state.used_wrap) == (1, 1, 2, 0)
    pair = RingPair(0, 4)
    pair.memory.store_u16(pair.config.device + 2, 0xFFFE)
    pair.device.set_base_word(0xFFFF)
    assert pair.device.base_word() == 0xFFFF
    assert pair.device.save().next_used == 0xFFFE
