"""The in-flight buffer: its bytes, hostile contents, and back-ends that die at every step."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import dying
from tests.support.dying import OPTIONS, boot, reap_all
from tests.support.leaks import Held
from tests.support.vhost_rig import BASIC, PACKED, EchoDevice, Rig
from vmsim.errors import VmsimError
from vmsim.host.shm import SharedMemory
from vmsim.vhost import payloads as p
from vmsim.vhost.backend import VhostBackend
from vmsim.vhost.inflight import PackedRegion, SplitRegion, region_bytes, region_of
from vmsim.vhost.messages import MessageError, Request
from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_RING_RESET,
    F_VERSION_1,
    STATUS_DEVICE_NEEDS_RESET,
)

FORMATS = {
    "split": F_VERSION_1, "split, event index": F_VERSION_1 | F_EVENT_IDX,
    "split, in order": F_VERSION_1 | F_IN_ORDER, "packed": PACKED,
    "packed, in order, event index": PACKED | F_IN_ORDER | F_EVENT_IDX,
}


def test_split_layout():
    """Header {u64 features, u16 version, desc_num, last_batch_head, used_idx}; entries of 16 bytes."""
    view = memoryview(bytearray(16 + 16 * 4))
    region = SplitRegion(view, 4)
    region.prepare(7)
    assert not region.used_before
    region.announce()
    assert region.used_before
    assert view[:16] == struct.pack("=QHHHH", 0, 1, 4, 0, 7)
    region.taken(2)
    region.taken(3)
    assert view[48:64] == struct.pack("=B5xHQ", 1, 0, 0)
    assert view[64:80] == struct.pack("=B5xHQ", 1, 0, 1)
    region.giving([3])
    assert view[64:80] == struct.pack("=B5xHQ", 1, 0, 1)
    assert view[:16] == struct.pack("=QHHHH", 0, 1, 4, 3, 7)
    region.given([3], 8)
    assert view[64:80] == struct.pack("=B5xHQ", 0, 0, 1)
    assert view[:16] == struct.pack("=QHHHH", 0, 1, 4, 3, 8)
    assert SplitRegion(view, 4).recover(8) == [2]


def test_packed_layout():
    """Header of 32 bytes; entries {u8 inflight, pad, u16 next, last, num, u64 counter, descriptor}."""
    view = memoryview(bytearray(32 + 32 * 4))
    region = PackedRegion(view, 4)
    region.prepare(1, 1)
    region.announce()
    head = struct.Struct("=QHHHHHHBB7x3x")
    assert view[:32] == head.pack(0, 1, 4, 0, 0, 1, 1, 1, 1)
    assert region.taken([(0x1000, 10, 5, 1), (0x2000, 20, 5, 2)]) == 0
    entry = struct.Struct("=BxHHHQHHIQ")
    assert view[32:64] == entry.pack(1, 1, 1, 2, 0, 5, 1, 10, 0x1000)
    assert view[64:96] == entry.pack(0, 2, 0, 0, 0, 5, 2, 20, 0x2000)
    assert view[:32] == head.pack(0, 1, 4, 2, 2, 1, 1, 1, 1)
    region.giving([0], 3, 1)
    assert view[:32] == head.pack(0, 1, 4, 0, 2, 3, 1, 1, 1)
    assert view[32] == 1
    region.given([0])
    assert view[:32] == head.pack(0, 1, 4, 0, 0, 3, 3, 1, 1)
    assert PackedRegion(view, 4).recover([0] * 4) == (3, 1, {})


def test_sizes():
    assert region_bytes(128, packed=False) == 2112
    assert region_bytes(128, packed=True) == 4160
    assert p.INFLIGHT.size_max == 24
    part = region_of(memoryview(bytearray(4096)), 1, 2)
    assert len(part) == 2048
    with pytest.raises(MessageError, match="a ring of 128 needs 2064"):
        SplitRegion(part, 128)
    with pytest.raises(MessageError, match="8 for each"):
        region_of(memoryview(bytearray(16)), 1, 2)


def die(rig):
    """A killed back-end, and the next one connected."""
    dying.die(rig)
    rig.attach_again()


@pytest.mark.parametrize("features", FORMATS.values(), ids=FORMATS)
def test_what_was_in_flight_is_answered_by_the_next(features):
    before = Held()
    with boot(features) as rig:
        for number in range(300):
            assert rig.driver.call(b"warm %d" % number) == (b"warm %d" % number)[::-1]
        rig.echo.defer.add(1)
        for slot in range(5):
            rig.driver.send(b"waits %d" % slot, slot=slot)
        rig.echo.waiting = rig.echo.waiting[3:] + rig.echo.waiting[:3]
        ring, chain, complete = rig.echo.waiting.pop(0)
        complete(chain, rig.echo.echo(ring, chain))
        del chain, complete
        answered = 0 if features & F_IN_ORDER else 1
        die(rig)
        answers = reap_all(rig)
        assert len(answers) == 5, "each is answered, and once"
        assert sum(data.startswith(b"waits") for _, data in rig.echo.served) == 6 - answered
        assert rig.driver.call(b"and on") == b"no dna"
        rig.device.pause()
        rig.device.resume()
        assert rig.driver.call(b"and on") == b"no dna"
    assert before.more() == []


def test_a_stopped_ring_starts_where_the_front_end_says():
    with boot(F_VERSION_1) as rig:
        for _ in range(3):
            rig.driver.call(b"x")
        rig.device.pause()
        assert rig.device.virtio.queues[1].base == 3
        die_paused(rig)
        rig.device.resume()
        assert rig.driver.call(b"y") == b"y"


def die_paused(rig):
    rig.transport.close()
    rig.device.detach()
    rig.backend = VhostBackend(rig.echo, rig.host, rig.schedule, rig.dialect, OPTIONS)
    rig.attach(reset=False)


def test_a_reset_forgets_what_was_in_flight():
    for features in (F_VERSION_1, PACKED):
        with boot(features) as rig:
            rig.echo.defer.add(1)
            rig.driver.send(b"gone")
            rig.boot(features)
            rig.echo.defer.clear()
            assert rig.driver.call(b"new") == b"wen"
            assert [data for _, data in rig.echo.served] == [b"new"]


def test_parked_requests_are_taken_up_once():
    for features in (F_VERSION_1, PACKED):
        with boot(features) as rig:
            rig.echo.defer.add(1)
            rig.driver.send(b"parked")
            rig.device.pause()
            rig.device.resume()
            rig.echo.finish()
            assert len(reap_all(rig)) == 1
            assert rig.echo.served == [(1, b"parked")]
            die(rig)
            assert reap_all(rig) == []


@pytest.mark.parametrize("features", FORMATS.values(), ids=FORMATS)
def test_a_queue_reset_with_requests_in_flight(features):
    """The queue starts anew, on the same connection: what was in flight is nobody's any more."""
    features |= F_RING_RESET
    with boot(features) as rig:
        rig.driver.call(b"x")
        rig.echo.defer.add(1)
        rig.driver.send(b"gone")
        rig.echo.defer.clear()
        write = rig.device.registers.write
        write(0x30, 4, 1)
        write(0xC0, 4, 1)
        rig.driver.rings[1] = rig.driver.make(1, features)
        rig.driver.ready(1)
        assert rig.driver.call(b"new") == b"wen"
        assert [data for _, data in rig.echo.served] == [b"x", b"new"]
        rig.echo.defer.add(1)
        rig.driver.send(b"waits")
        die(rig)
        assert len(reap_all(rig)) == 1


def test_the_buffer_may_come_before_the_features():
    """Which format the rings have is decided when they start; a buffer too small for it is refused then."""
    for size_bytes, works in ((8320, True), (2 * 2112, False)):
        with Rig(echo=EchoDevice(BASIC | PACKED), backend=OPTIONS) as rig:
            buffer = SharedMemory("inflight", size_bytes)
            area = p.Inflight(size_bytes, 0, 2, 128)
            request = Request(rig.dialect.messages["SET_INFLIGHT_FD"], area, (buffer.fd,), True)
            assert rig.transport.request(request).payload.value == 0
            buffer.close()
            rig.device.frontend.inflight = None
            rig.boot(PACKED)
            rig.driver.send(b"x")
            assert (rig.driver.reap() is not None) == works
            assert bool(rig.device.virtio.status & STATUS_DEVICE_NEEDS_RESET) != works


BAD = [
    p.Inflight(*area)
    for area in (
        (0, 0, 2, 128), (4096, 0, 0, 128), (8192, 0, 3, 128), (8192, 0, 2, 0), (32, 0, 2, 128),
        (1 << 40, 0, 2, 128), (8192, 1 << 63, 2, 128), (4128 + 2, 0, 2, 128),
    )
]


@pytest.mark.parametrize("area", BAD)
def test_bad_areas(area):
    with Rig(backend=OPTIONS) as rig:
        before = Held()
        request = Request(rig.dialect.messages["SET_INFLIGHT_FD"], area, (rig.ram.fd,), True)
        assert rig.transport.request(request).payload.value
        assert before.more() == []


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=600), st.integers(0, 600), st.booleans())
def test_any_content(content, at, packed):
    """A front-end that scribbles into the buffer harms its own rings at most."""
    features = PACKED if packed else F_VERSION_1
    with boot(features) as rig:
        rig.driver.call(b"x")
        rig.echo.defer.add(1)
        rig.driver.send(b"waits")
        view = rig.backend._inflight_view
        start = len(view) // 2 + (12 if at % 3 else 0)
        part = content[: len(view) - start]
        view[start : start + len(part)] = part
        rig.echo.finish()
        die(rig)
        try:
            rig.driver.send(b"more", slot=1)
            reap_all(rig)
        except VmsimError:
            pass


@pytest.mark.parametrize("counter", [2**63, 2**64 - 2, 2**64 - 1])
@pytest.mark.parametrize("features", [F_VERSION_1, PACKED], ids=["split", "packed"])
def test_a_counter_at_its_end(features, counter):
    """No back-end ever counted that far: those to come could not be counted on from there."""
    with boot(features) as rig:
        rig.driver.call(b"x")
        rig.echo.defer.add(1)
        rig.driver.send(b"waits")
        view = rig.backend._inflight_view
        region = region_of(view, 1, 2)
        kind, head = (PackedRegion, 32) if features == PACKED else (SplitRegion, 16)
        entry = next(at for at in range(head, len(region), kind.ENTRY) if region[at])
        struct.pack_into("<Q", region, entry + kind.COUNTER_AT, counter)
        del view, region
        die(rig)
        for slot in range(1, 4):
            rig.driver.send(b"more", slot=slot)
        assert rig.device.virtio.status & STATUS_DEVICE_NEEDS_RESET
