"""Rings remember chains: the device what their bytes mean, the driver which are still written down."""

from __future__ import annotations

import pytest

from tests.support.ring_pair import DATA, RingPair
from vmsim.errors import RingViolation
from vmsim.virtio.constants import F_RING_PACKED

KINDS = pytest.mark.parametrize("features", [0, F_RING_PACKED], ids=["split", "packed"])


def once(pair, readable, writable):
    """One chain there and back; what the device saw of it."""
    pair.driver.add(readable, writable)
    pair.driver.publish()
    chain = pair.device.pop()
    seen = [bytes(view) for view in chain.readable], chain.write_ranges, chain.head
    pair.device.push(chain, 1)
    assert pair.driver.reap() == (chain.head, 1)
    return seen


@KINDS
def test_the_same_buffers_again_and_again(features):
    pair = RingPair(features, 8)
    for turn in range(40):
        pair.memory.write(DATA, bytes([turn]) * 4)
        data, ranges, _ = once(pair, [(DATA, 4)], [(DATA + 64, 8)])
        assert data == [bytes([turn]) * 4], "payload is never remembered"
        assert ranges == [(DATA + 64, 8)]


@KINDS
def test_every_field_of_a_descriptor_counts(features):
    pair = RingPair(features, 8)
    pair.memory.write(DATA, b"abcdefgh")
    shapes = [
        ([(DATA, 4)], [(DATA + 64, 8)]),
        ([(DATA, 4)], [(DATA + 64, 9)]),
        ([(DATA + 4, 4)], [(DATA + 64, 9)]),
        ([(DATA, 2), (DATA + 4, 2)], [(DATA + 64, 8)]),
        ([(DATA, 4), (DATA + 128, 1)], [(DATA + 64, 8)]),
        ([], [(DATA, 4), (DATA + 64, 8)]),
    ]
    for _ in range(20):
        for readable, writable in shapes:
            data, ranges, _ = once(pair, readable, writable)
            assert b"".join(data) == b"".join(pair.memory.read(*each) for each in readable)
            assert ranges == writable


@KINDS
def test_a_remembered_chain_cannot_be_in_flight_twice(features):
    pair = RingPair(features, 8)
    for _ in range(20):
        once(pair, [(DATA, 4)], [(DATA + 64, 8)])
    head = pair.driver.add([(DATA, 4)], [(DATA + 64, 8)])
    pair.driver.publish()
    assert pair.device.pop().head == head
    other = pair.driver
    if features:
        other._free.append(head)  # the driver gives the same id to another buffer
        other.add([(DATA, 4)], [(DATA + 64, 8)])
        other.publish()
    else:
        other._avail[2 + (other._next_avail & other._mask)] = head
        other._avail[1] = (other._next_avail + 1) & 0xFFFF
    with pytest.raises(RingViolation, match="flight"):
        pair.device.pop()


def test_descriptors_are_written_anew_when_others_have_used_them():
    pair = RingPair(0, 8)
    pair.memory.write(DATA, b"abcdefghijkl")
    message, reply = ((DATA, 4),), ((DATA + 64, 8),)
    shapes = [
        (message, reply),
        (((DATA + 4, 4), (DATA + 8, 2)), reply),
        (message, reply),
        ((), reply),
        (message, reply),
        (message, ()),
        (message, reply),
        (((DATA + 4, 4),), reply),
    ]
    for first in shapes:
        for second in shapes:
            pair.driver.add(*first)
            pair.driver.add(*second)
            pair.driver.publish()
            taken = [pair.device.pop(), pair.device.pop()]
            for chain, (readable, writable) in zip(taken, (first, second), strict=True):
                data = b"".join(bytes(view) for view in chain.readable)
                assert data == b"".join(pair.memory.read(*each) for each in readable)
                assert chain.write_ranges == list(writable)
            # Returned in the other order, so that the free descriptors are mixed.
            for chain in reversed(taken):
                pair.device.push(chain, 0)
            assert None not in (pair.driver.reap(), pair.driver.reap())
    assert pair.driver.free == 8


def test_a_restored_driver_writes_its_descriptors():
    pair = RingPair(0, 8)
    message, reply = ((DATA, 4),), ((DATA + 64, 8),)
    once(pair, message, reply)
    state = pair.driver.save()
    pair.memory.write(pair.config.desc, bytes(8 * 16))
    pair.driver.restore(state)
    assert once(pair, message, reply)[1] == list(reply)
