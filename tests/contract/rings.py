"""What every ring format does, both sides together. A new format passes every check_* here.

A check takes a :class:`RingPair`, fresh, and raises AssertionError when the contract is broken.
"""

from __future__ import annotations

import msgspec
import pytest

from tests.support.ring_pair import DATA, MEMORY_BYTES, RingPair, scatter
from vmsim.errors import StateError, StreamError, UsageError
from vmsim.memory import DirtyLog
from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NOTIFICATION_DATA,
    F_RING_PACKED,
    parse_notification,
)
from vmsim.virtio.rings import (
    DriverRingState,
    QueueFull,
    RingState,
    make_device_ring,
    make_driver_ring,
)


def check_empty(pair: RingPair) -> None:
    """Nothing comes out of a new ring, on either side."""
    assert pair.device.pop() is None
    assert pair.driver.reap() is None
    assert pair.driver.free == pair.config.size
    pair.driver.publish()
    assert pair.device.pop() is None


def check_round_trip(pair: RingPair) -> None:
    """Bytes go there and back; lengths and ids are right; nothing is visible before publish()."""
    for turn in range(3 * pair.config.size + 2):
        text = b"request %d" % turn
        writable = 1 if pair.config.size > 1 else 0
        buffer_id, ins = pair.offer(text, writable=writable)
        assert pair.device.pop() is None
        pair.driver.publish()
        assert pair.driver.outstanding == 1
        chain = pair.device.pop()
        assert b"".join(chain.readable) == text
        assert chain.readable_bytes == len(text)
        assert chain.writable_bytes == 64 * writable
        assert chain.write_ranges == ins
        assert pair.driver.reap() is None
        written = scatter(chain.writable, text.upper())
        pair.device.push(chain, written)
        assert pair.driver.reap() == (buffer_id, written)
        if writable:
            assert pair.memory.read(ins[0][0], written) == text.upper()
        assert pair.driver.reap() is None
        assert pair.driver.free == pair.config.size


def check_shapes(pair: RingPair) -> None:
    """Every number of readable and writable elements, wherever in the ring they start."""
    for turn in range(3):
        for readable in range(5):
            for writable in range(5):
                if not 0 < readable + writable <= pair.config.size:
                    continue
                text = bytes([65 + turn, 97 + readable, 48 + writable])
                buffer_id, _ = pair.offer(text, readable=readable, writable=writable)
                pair.driver.publish()
                chain = pair.device.pop()
                assert [bytes(view) for view in chain.readable] == [text] * readable
                assert [len(view) for view in chain.writable] == [64] * writable
                assert len(chain.descriptors) == readable + writable
                pair.device.push(chain, 64 * writable)
                assert pair.driver.reap() == (buffer_id, 64 * writable)


def check_merging(pair: RingPair) -> None:
    """Adjacent elements of one direction come out as one view; the ranges say the same."""
    if pair.config.size < 4:
        return
    pair.memory.write(DATA, b"abcdefgh")
    pair.driver.add([(DATA, 3), (DATA + 3, 5)], [(DATA + 8, 8), (DATA + 16, 8)])
    pair.driver.publish()
    chain = pair.device.pop()
    assert [bytes(view) for view in chain.readable] == [b"abcdefgh"]
    assert [len(view) for view in chain.writable] == [16]
    assert chain.write_ranges == [(DATA + 8, 16)]
    assert chain.park().descriptors == [
        (DATA, 3, False),
        (DATA + 3, 5, False),
        (DATA + 8, 8, True),
        (DATA + 16, 8, True),
    ]


def check_indirect(pair: RingPair) -> None:
    """A table takes one slot whatever its length; the negotiation is respected."""
    if not pair.config.features & F_INDIRECT_DESC:
        with pytest.raises(UsageError):
            pair.offer(indirect=True)
        return
    size = pair.config.size
    outs = pair.fit(2)
    ins = min(3, size - outs)
    ids = [pair.offer(b"%d" % turn, readable=outs, writable=ins, indirect=True)[0] for turn in range(size)]
    assert pair.driver.free == 0
    with pytest.raises(QueueFull):
        pair.offer(writable=0, indirect=True)
    pair.driver.publish()
    assert pair.echo() == size
    assert [pair.driver.reap()[0] for _ in range(size)] == ids
    assert pair.driver.free == size


def check_full_ring(pair: RingPair) -> None:
    """A full ring says QueueFull, changes nothing, and works on after a reap; more than fits is refused."""
    size = pair.config.size
    for _ in range(3):
        ids = [pair.offer(b"%d" % turn, writable=0)[0] for turn in range(size)]
        assert len(set(ids)) == size
        with pytest.raises(QueueFull):
            pair.offer(writable=0)
        with pytest.raises(UsageError):
            pair.driver.add([(DATA, 1)] * (size + 1), [])
        with pytest.raises(UsageError):
            pair.driver.add([], [])
        pair.driver.publish()
        assert pair.echo() == size
        assert [pair.driver.reap() for _ in range(size)] == [(each, 0) for each in ids]
        assert pair.driver.reap() is None


def check_out_of_order(pair: RingPair) -> None:
    """Chains may be returned in any order; under IN_ORDER the driver still sees the order of submission."""
    for turn in range(4):
        chains = []
        ids = [pair.offer(b"%d" % index)[0] for index in range(pair.config.size // 2)]
        pair.driver.publish()
        while (chain := pair.device.pop()) is not None:
            chains.append(chain)
        assert [chain.head for chain in chains] == ids
        assert pair.device.in_flight == chains
        order = chains[::-1] if turn % 2 else chains[1:] + chains[:1]
        for chain in order:
            pair.device.push(chain, chain.head % 8)
        expected = chains if pair.in_order else order
        for chain in expected:
            assert pair.driver.reap() == (chain.head, chain.head % 8)
        assert pair.driver.reap() is None
        assert pair.device.in_flight == []


def check_index_wrap(pair: RingPair) -> None:
    """Indices and wrap counters run through all their values, with chains that straddle the end."""
    turns = 66_000 // pair.config.size * pair.config.size if pair.config.size <= 8 else 9_000
    driver, device = pair.driver, pair.device
    elements = [(DATA, 8), (DATA + 64, 8), (DATA + 128, 8)]
    for turn in range(turns):
        count = 1 + turn % min(3, pair.config.size)
        buffer_id = driver.add(elements[:count], ())
        driver.publish()
        chain = device.pop()
        assert chain.head == buffer_id
        assert len(chain.readable) == count
        device.push(chain, 0)
        assert driver.reap() == (buffer_id, 0)


def check_kicks(pair: RingPair) -> None:
    """Kicks: wanted on an armed ring, unwanted on a suppressed one, work in between is not missed."""
    driver, device = pair.driver, pair.device
    assert not device.arm_kicks()
    for _ in range(3 * pair.config.size + 1):
        pair.offer(writable=0)
        driver.publish()
        assert driver.needs_kick()
        assert not driver.needs_kick()
        device.suppress_kicks()
        assert pair.echo() == 1
        assert driver.reap() is not None
        pair.offer(writable=0)
        driver.publish()
        assert not driver.needs_kick()
        assert device.arm_kicks()
        assert pair.echo() == 1
        assert driver.reap() is not None
        assert not device.arm_kicks()


def check_calls(pair: RingPair) -> None:
    """The same for interrupts."""
    driver, device = pair.driver, pair.device
    assert not driver.arm_interrupts()
    for _ in range(3 * pair.config.size + 1):
        pair.offer(writable=0)
        driver.publish()
        assert pair.echo() == 1
        assert device.needs_call()
        assert not device.needs_call()
        driver.suppress_interrupts()
        assert driver.reap() is not None
        pair.offer(writable=0)
        driver.publish()
        assert pair.echo() == 1
        assert not device.needs_call()
        assert driver.arm_interrupts()
        assert driver.reap() is not None
        assert not driver.arm_interrupts()


def check_batched_events(pair: RingPair) -> None:
    """One notification for a batch that contains the armed position; with EVENT_IDX none before it."""
    if pair.config.size < 4:
        return
    driver, device = pair.driver, pair.device
    for _ in range(2 * pair.config.size):
        device.arm_kicks()
        driver.arm_interrupts()
        for _ in range(3):
            pair.offer(writable=0)
        driver.publish()
        assert driver.needs_kick()
        assert pair.echo() == 3
        assert device.needs_call()
        if pair.config.features & F_EVENT_IDX:
            pair.offer(writable=0)
            driver.publish()
            assert not driver.needs_kick()  # not armed again since
            pair.echo()
            assert not device.needs_call()
            assert driver.reap() is not None
        for _ in range(3):
            assert driver.reap() is not None


def check_exact_events(pair: RingPair) -> None:
    """With EVENT_IDX the entry after the armed one asks for nothing."""
    if pair.config.size < 2 or not pair.config.features & F_EVENT_IDX:
        return
    driver, device = pair.driver, pair.device
    for _ in range(3 * pair.config.size):
        device.arm_kicks()
        driver.arm_interrupts()
        for wanted in (True, False):
            pair.offer(writable=0)
            driver.publish()
            assert driver.needs_kick() == wanted
            pair.echo()
            assert device.needs_call() == wanted
        while driver.reap() is not None:
            pass


def check_notification_data(pair: RingPair) -> None:
    """What the driver notifies with names the queue, and the next position with NOTIFICATION_DATA."""
    features, size = pair.config.features, pair.config.size
    for turn in range(1, 3 * size + 1):
        pair.offer(writable=0)
        pair.driver.publish()
        data = parse_notification(pair.driver.notification_data(), features)
        assert data.queue == 3
        if not features & F_NOTIFICATION_DATA:
            assert pair.driver.notification_data() == 3
        elif features & F_RING_PACKED:
            assert (data.next_off, data.next_wrap) == (turn % size, 1 - turn // size % 2)
        else:
            assert data.next_off == turn
        pair.echo()
        pair.driver.reap()


def check_save_restore(pair: RingPair) -> None:
    """Both sides go on from plain data in the middle of things; saving changes nothing."""
    size = pair.config.size
    for turn in range(2 * size + 3):
        ids = [pair.offer(b"%d" % n, writable=0)[0] for n in range(min(3, size))]
        pair.driver.publish()
        chains = [pair.device.pop() for _ in ids[:-1]]
        if chains and not pair.in_order and turn % 2:
            pair.device.push(chains.pop(0), 0)
            assert pair.driver.reap() == (ids.pop(0), 0)
        device_state, driver_state = pair.device.save(), pair.driver.save()
        assert pair.device.save() == device_state
        assert pair.driver.save() == driver_state
        wire = msgspec.msgpack.encode(device_state), msgspec.msgpack.encode(driver_state)
        assert msgspec.msgpack.decode(wire[0], type=RingState) == device_state
        driver_state = msgspec.msgpack.decode(wire[1], type=DriverRingState)
        pair.device = make_device_ring(pair.config, pair.memory, state=device_state)
        pair.driver = make_driver_ring(pair.config, pair.memory, state=driver_state)
        assert [chain.park() for chain in pair.device.in_flight] == [chain.park() for chain in chains]
        assert pair.device.save() == device_state
        assert pair.driver.save() == driver_state
        for chain in pair.device.in_flight:
            pair.device.push(chain, 0)
        assert pair.echo() == 1
        assert pair.device.needs_call()  # once, whatever the driver says
        assert [pair.driver.reap() for _ in ids] == [(each, 0) for each in ids]
        assert pair.driver.free == size


def check_base_word(pair: RingPair) -> None:
    """A drained ring goes on from vhost's base word alone."""
    for _ in range(2 * pair.config.size + 1):
        pair.offer(writable=1 if pair.config.size > 1 else 0)
        pair.driver.publish()
        assert pair.echo() == 1
        word = pair.device.base_word()
        pair.device = make_device_ring(pair.config, pair.memory)
        pair.device.set_base_word(word)
        assert pair.device.base_word() == word
        assert pair.driver.reap() is not None


def check_impossible_states(pair: RingPair) -> None:
    """A saved state that cannot be is a StreamError that names a field, and nothing else."""
    if pair.config.size < 2:
        return
    pair.offer(writable=0)
    pair.driver.publish()
    chain = pair.device.pop()
    good = pair.device.save()
    parked = chain.park()
    far = type(parked)(parked.head, parked.count, [(MEMORY_BYTES, 1, False)])
    for name, value in (
        ("next_avail", 1 << 16),
        ("next_avail", -1),
        ("next_used", 1 << 16),
        ("next_used", 1),
        ("in_flight", [parked, parked]),
        ("in_flight", [far]),
        ("in_flight", []),
        ("in_flight", [parked] * (pair.config.size + 1)),
        ("completed", [(999, 0)]),
        ("completed", [(chain.head, 1 << 20)]),
    ):
        bad = pair.device.save()
        setattr(bad, name, value)
        with pytest.raises(StreamError):
            make_device_ring(pair.config, pair.memory, state=bad)
    assert make_device_ring(pair.config, pair.memory, state=good).in_flight[0].park() == parked
    for name, value in (
        ("next_avail", 1 << 16),
        ("next_used", -1),
        ("next_used", 1 << 16),
        ("free", [0, 0]),
        ("free", []),
        ("free_slots", 0),
        ("outstanding", []),
        ("kicked", -1),
        ("batch", (9999, 1)),
    ):
        bad_driver = pair.driver.save()
        setattr(bad_driver, name, value)
        with pytest.raises(StreamError):
            make_driver_ring(pair.config, pair.memory, state=bad_driver)


def check_dirty(pair: RingPair) -> None:
    """Every byte that either side changes lies in a page that was marked."""
    log = DirtyLog(pair.memory)
    log.start()
    for turn in range(3 * pair.config.size):
        before = pair.memory.read(0, MEMORY_BYTES)
        log.harvest()
        if pair.config.size > 1:
            pair.offer(b"x%d" % turn)
        else:
            pair.offer(b"x%d" % turn, writable=0)
        pair.driver.publish()
        pair.driver.arm_interrupts()
        pair.device.suppress_kicks()
        pair.echo()
        pair.device.arm_kicks()
        pair.driver.reap()
        after = pair.memory.read(0, MEMORY_BYTES)
        marked = {page for gpa, size in log.harvest() for page in range(gpa >> 12, (gpa + size) >> 12)}
        changed = {
            page
            for page in range(MEMORY_BYTES >> 12)
            if before[page << 12 : (page + 1) << 12] != after[page << 12 : (page + 1) << 12]
        }
        assert changed <= marked
        assert len(marked) <= 8
    log.stop()


def check_log_used_flag(pair: RingPair) -> None:
    """The vhost log hears of payload always, of ring writes only when the ring's F_LOG flag is set."""

    class Recorder:
        def __init__(self) -> None:
            self.gpas = []

        def mark(self, gpa, size_bytes):
            self.gpas.append(gpa)

    if pair.config.size < 2:
        return
    for log_used in (False, True):
        recorder = Recorder()
        pair.device.log = recorder
        pair.device.log_used = log_used
        _, ins = pair.offer(b"abc")
        pair.driver.publish()
        assert pair.echo() == 1
        assert ins[0][0] in recorder.gpas
        assert any(gpa < DATA for gpa in recorder.gpas) == log_used
        pair.driver.reap()


def check_wrong_pushes(pair: RingPair) -> None:
    """A chain that is not in flight, or more bytes than it has room for, is our own bug and says so."""
    pair.offer(writable=0)
    pair.driver.publish()
    chain = pair.device.pop()
    for written in (-1, 1):
        with pytest.raises(StateError):
            pair.device.push(chain, written)
    pair.device.push(chain, 0)
    with pytest.raises(StateError):
        pair.device.push(chain, 0)


def check_reset(pair: RingPair) -> None:
    """After a ring reset both sides start afresh on the same memory, whatever was left in it."""
    for _ in range(pair.config.size + 1):
        pair.offer(writable=0)
        pair.driver.publish()
        if not pair.driver.free:
            pair.echo()
            while pair.driver.reap() is not None:
                pass
    pair.driver = make_driver_ring(pair.config, pair.memory)
    pair.driver.initialise()
    pair.device = make_device_ring(pair.config, pair.memory)
    check_empty(pair)
    check_round_trip(pair)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
