"""Rings that work: both formats, indirect tables, notifications, indices that wrap."""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.device import HIPRIO, REQUESTS, USUAL, RawDriver
from vmsim.check.outcome import NotOffered, fail, same
from vmsim.check.rigs import RingRig
from vmsim.fuse import opcodes as op
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.virtio.constants import (
    AVAIL_F_NO_INTERRUPT,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
)

CASES = Group("rings")
SPLIT = "virtio 1.3 section 2.7"
PACKED = "virtio 1.3 section 2.8"
PLAIN_RINGS = F_VERSION_1
PACKED_RINGS = USUAL | F_RING_PACKED
REPLY_BYTES = 120
"""Of GETATTR."""


def works(device: RawDriver, rounds: int = 1, **how: bool) -> None:
    """Requests on the request queue are answered, each once, with the right length."""
    for _ in range(rounds):
        request = device.request(op.GETATTR, 1, (0, 0, 0))
        reply = device.exchange([request[:40], request[40:]], [16, 104], **how)
        same(len(reply), REPLY_BYTES, "bytes of GETATTR's reply")
        same(device.decoded(op.GETATTR, reply).error, 0, "GETATTR's error")


def batch(device: RawDriver, count: int) -> None:
    """That many requests with one kick: each is answered once."""
    uniques = {}
    for _ in range(count):
        request = device.request(op.GETATTR, 1, (0, 0, 0))
        posted = device.post([request], [REPLY_BYTES], kick=False)
        uniques[posted.id] = (posted, device.unique)
    device.kick()
    for _ in range(count):
        found, length = device.used()
        if found not in uniques:
            fail("each buffer used once", f"buffer {found} was used again")
        posted, unique = uniques.pop(found)
        same(device.decoded(op.GETATTR, device.written(posted, length), unique=unique).error, 0, "error")


@CASES.case("split", SPLIT)
def split(rig: RingRig) -> None:
    """A split ring without any option: requests are answered, with the length written."""
    works(rig.device(features=PLAIN_RINGS), 20)


@CASES.case("split-indirect", "virtio 1.3 section 2.7.5.3")
def split_indirect(rig: RingRig) -> None:
    """Chains in indirect tables."""
    device = rig.device(features=PLAIN_RINGS | F_INDIRECT_DESC)
    if not device.features & F_INDIRECT_DESC:
        raise NotOffered("INDIRECT_DESC is not offered")
    works(device, 20, indirect=True)


@CASES.case("split-event-idx", "virtio 1.3 section 2.7.7")
def split_event_idx(rig: RingRig) -> None:
    """Notifications by event index: none is missing."""
    device = rig.device(features=PLAIN_RINGS | F_EVENT_IDX)
    if not device.features & F_EVENT_IDX:
        raise NotOffered("EVENT_IDX is not offered")
    works(device, 100)


@CASES.case("split-small", SPLIT)
def split_small(rig: RingRig) -> None:
    """A ring of 8 entries goes round many times."""
    works(rig.device(size=8), 100)


@CASES.case("split-large", SPLIT)
def split_large(rig: RingRig) -> None:
    """A ring of 1024 entries, 200 requests at once."""
    batch(rig.device(size=1024), 200)


@CASES.case("split-index-wraps", SPLIT)
def split_index_wraps(rig: RingRig) -> None:
    """Indices run past 65535: the ring starts a little below."""
    device = rig.idle_device(features=PLAIN_RINGS).start()
    device.init()
    start = 65530
    for index in range(device.count):
        device.stop_ring(index)
        ring = device.new_ring(index)
        config = device.config(index)
        device.memory.store_u16(config.driver + 2, start)
        device.memory.store_u16(config.device + 2, start)
        state = ring.save()
        state.next_avail = state.next_used = state.kicked = start
        ring.restore(state)
        device.start_ring(index, base=start)
        device.enable(index)
    works(device, 20)
    same(device.stop_ring(REQUESTS), (start + 20) % 65536, "the base after 20 requests")


@CASES.case("packed", PACKED)
def packed(rig: RingRig) -> None:
    """A packed ring goes round many times, and its wrap counters with it."""
    works(rig.device(features=PLAIN_RINGS | F_RING_PACKED, size=8), 50)


@CASES.case("packed-indirect", "virtio 1.3 section 2.8.7")
def packed_indirect(rig: RingRig) -> None:
    """Packed rings with indirect tables."""
    works(rig.device(features=PACKED_RINGS & ~F_EVENT_IDX), 20, indirect=True)


@CASES.case("packed-event-idx", "virtio 1.3 section 2.8.10")
def packed_event_idx(rig: RingRig) -> None:
    """Packed rings with event suppression."""
    works(rig.device(features=PACKED_RINGS), 100)


@CASES.case("packed-odd-size", "virtio 1.3 section 2.8.10.1")
def packed_odd_size(rig: RingRig) -> None:
    """A packed ring may have any size: 7 entries."""
    works(rig.device(features=PACKED_RINGS, size=7), 30)


@CASES.case("packed-batch", PACKED)
def packed_batch(rig: RingRig) -> None:
    """Many requests with one kick on a packed ring."""
    batch(rig.device(features=PACKED_RINGS), 30)


@CASES.case("batch", SPLIT)
def one_kick(rig: RingRig) -> None:
    """Many requests with one kick: each is answered once."""
    device = rig.device()
    for _ in range(3):
        batch(device, 30)


@CASES.case("scattered", SPLIT)
def scattered(rig: RingRig) -> None:
    """Header, arguments and reply in many small buffers, at odd places."""
    device = rig.device(features=PLAIN_RINGS)
    request = device.request(op.GETATTR, 1, (0, 0, 0))
    parts = [request[at : at + 7] for at in range(0, len(request), 7)]
    reply = device.exchange(parts, [5, 11, 1, 50, 53])
    same(device.decoded(op.GETATTR, reply).error, 0, "GETATTR's error")


@CASES.case("room-to-spare", "virtio 1.3 section 2.7.8")
def room_to_spare(rig: RingRig) -> None:
    """More room than the reply needs: the used length is the reply's, and the rest stays untouched."""
    device = rig.device()
    request = device.request(op.GETATTR, 1, (0, 0, 0))
    posted = device.post([request], [4096], kick=False)
    (gpa, _), = posted.writable
    device.memory.write(gpa, b"\xa5" * 4096)
    device.kick()
    same(device.used(), (posted.id, REPLY_BYTES), "used buffer and length")
    rest = 4096 - REPLY_BYTES
    same(device.memory.read(gpa + REPLY_BYTES, rest), b"\xa5" * rest, "the rest")


@CASES.case("hiprio-forget", "virtio 1.3 section 5.11.6.2")
def hiprio_forget(rig: RingRig) -> None:
    """FORGET on the hiprio queue is used with length 0."""
    device = rig.device()
    for _ in range(10):
        request = device.request(op.FORGET, 99999, (1,))
        posted = device.post([request], [], ring=HIPRIO)
        same(device.used(HIPRIO), (posted.id, 0), "used buffer and length")
    works(device)


@CASES.case("no-interrupts", "virtio 1.3 section 2.7.7")
def no_interrupts(rig: RingRig) -> None:
    """Who asks for no notifications (flag NO_INTERRUPT) gets none, and can poll."""
    device = rig.device(features=PLAIN_RINGS)
    config = device.config(REQUESTS)
    device.calls[REQUESTS].drain()
    request = device.request(op.GETATTR, 1, (0, 0, 0))
    device.memory.store_u16(config.driver, AVAIL_F_NO_INTERRUPT)
    before = device.memory.load_u16(config.device + 2)
    device.post([request], [REPLY_BYTES])
    device.poll_used_index(REQUESTS, before + 1)
    device.front.barrier()
    same(device.calls[REQUESTS].drain(), 0, "notifications")
    device.used()


@CASES.case("interrupts-suppressed", "virtio 1.3 section 2.7.7.1")
def interrupts_suppressed(rig: RingRig) -> None:
    """With EVENT_IDX one notification comes when used_event is passed, and none before."""
    device = rig.device(features=PLAIN_RINGS | F_EVENT_IDX)
    if not device.features & F_EVENT_IDX:
        raise NotOffered("EVENT_IDX is not offered")
    config = device.config(REQUESTS)
    used_event = config.driver + 4 + 2 * device.size
    before = device.memory.load_u16(config.device + 2)
    device.calls[REQUESTS].drain()
    for number in range(1, 4):
        device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES], kick=False)
        device.memory.store_u16(used_event, (before + 2) & 0xFFFF)
        device.kick()
        device.poll_used_index(REQUESTS, before + number)
        device.front.barrier()
        came = device.calls[REQUESTS].drain()
        same(bool(came), number == 3, f"a notification after buffer {number}, with used_event 2 further")


@CASES.case("polled", "vhost-user 'SET_VRING_CALL'")
def polled(rig: RingRig) -> None:
    """Without a call descriptor the used index still moves."""
    device = rig.device()
    device.front.done("SET_VRING_CALL", p.Number(REQUESTS | c.NO_FD))
    config = device.config(REQUESTS)
    before = device.memory.load_u16(config.device + 2)
    device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES])
    device.poll_used_index(REQUESTS, before + 1)
