"""Rings that start, stop, are enabled and disabled, and go on where they were."""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.cases.rings import PACKED_RINGS, REPLY_BYTES, works
from vmsim.check.device import HIPRIO, LOOK_S, REQUESTS, USUAL, RawDriver
from vmsim.check.outcome import check, fail, same
from vmsim.check.rigs import BareRig, RingRig
from vmsim.fuse import opcodes as op
from vmsim.host.eventfd import EventFd
from vmsim.host.vhost_user.transport import PeerSilent
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.virtio.constants import F_EVENT_IDX

CASES = Group("rings")
STATES = "vhost-user 'Ring states'"
FORGETS = 60_000
"""In one request of nearly 1 MiB: milliseconds of work."""
ATTEMPTS = 10
"""At stopping a ring at a given point, while the machine has other work."""


def silent(device: RawDriver, why: str, ring: int = REQUESTS) -> None:
    """Fail if a buffer is used although ``why``."""
    device.front.barrier()
    try:
        device.used(ring, timeout_s=LOOK_S)
    except PeerSilent:
        return
    fail(f"nothing is used: {why}", "a buffer was used")


def getattr_posted(device: RawDriver, **how: bool) -> None:
    """Make a GETATTR available."""
    device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES], **how)


def stop_and_go(device: RawDriver) -> None:
    """Stop both rings and start them again where they were."""
    bases = [device.stop_ring(index) for index in range(device.count)]
    for index, base in enumerate(bases):
        device.start_ring(index, base)


@CASES.case("base-split", "vhost-user 'GET_VRING_BASE'")
def base_split(rig: RingRig) -> None:
    """GET_VRING_BASE gives the next available index: INIT and 7 requests are 8."""
    device = rig.device()
    works(device, 7)
    same(device.stop_ring(REQUESTS), 8, "the base")


@CASES.case("base-packed", "vhost-user 'GET_VRING_BASE'")
def base_packed(rig: RingRig) -> None:
    """A packed base has both positions with their wrap counters: 10 of 16 slots, and 4 in the next round."""
    device = rig.device(features=PACKED_RINGS, size=16)
    works(device, 2, indirect=True)
    same(device.stop_ring(REQUESTS), 0x8004_8004, "the base after INIT (2 slots) and 2 indirect requests")
    device.start_ring(REQUESTS, 0x8004_8004)
    works(device, 14, indirect=True)
    same(device.stop_ring(REQUESTS), 0x0002_0002, "the base after 14 more")


@CASES.case("stop-and-continue", STATES)
def stop_and_continue(rig: RingRig) -> None:
    """Stopped and started again, the ring goes on, and with it the FUSE session."""
    device = rig.device()
    fh = device.ok(op.OPENDIR, 1, (0, 0)).fh
    for _ in range(3):
        works(device, 5)
        stop_and_go(device)
    works(device)
    device.ok(op.RELEASEDIR, 1, (fh, 0, 0, 0))


@CASES.case("stop-and-continue-packed", STATES)
def stop_and_continue_packed(rig: RingRig) -> None:
    """The same with packed rings."""
    device = rig.device(features=PACKED_RINGS, size=16)
    for _ in range(3):
        works(device, 5)
        stop_and_go(device)
    works(device, 5)


@CASES.case("enable-remembered", STATES)
def enable_remembered(rig: RingRig) -> None:
    """A ring that was enabled is so after a stop, without another SET_VRING_ENABLE."""
    device = rig.device()
    stop_and_go(device)
    works(device)


@CASES.case("disabled", STATES)
def disabled(rig: RingRig) -> None:
    """A disabled ring answers no request; enabled again it finds it."""
    device = rig.device()
    device.enable(REQUESTS, 0)
    getattr_posted(device)
    silent(device, "the ring is disabled")
    device.enable(REQUESTS, 1)
    device.kick()
    device.used()


@CASES.case("disabled-from-the-start", STATES)
def disabled_from_the_start(rig: RingRig) -> None:
    """With protocol features a ring starts disabled."""
    device = rig.idle_device().start(enable=False)
    device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES])
    silent(device, "the ring was never enabled")
    device.enable(REQUESTS)
    device.kick()
    device.used()


@CASES.case("enabled-without-protocol-features", STATES)
def enabled_without_protocol_features(rig: BareRig) -> None:
    """SET_FEATURES without bit 30 enables all rings at once."""
    rig.wire.features = rig.wire.number("GET_FEATURES") & ~c.VHOST_USER_F_PROTOCOL_FEATURES
    rig.wire.send("SET_OWNER")
    device = rig.driver(rig.wire, features=USUAL, count=2)
    device.start().init()
    works(device)


@CASES.case("suspended", STATES)
def suspended(rig: RingRig) -> None:
    """With all rings stopped nothing is used, no memory written, nobody called; messages are answered."""
    device = rig.device()
    works(device)
    for index in range(device.count):
        device.stop_ring(index)
    device.calls[REQUESTS].drain()
    getattr_posted(device)
    before = bytes(device.memory.view(0, 0x100000))
    silent(device, "all rings are stopped")
    used_area = device.config(REQUESTS).device
    same(device.memory.read(used_area, 1024), before[used_area : used_area + 1024], "the used ring")
    same(device.calls[REQUESTS].drain(), 0, "calls")


@CASES.case("found-after-start", STATES)
def found_after_start(rig: RingRig) -> None:
    """What was made available while the ring stood is found with the first kick."""
    device = rig.device()
    base = device.stop_ring(REQUESTS)
    getattr_posted(device, kick=False)
    device.start_ring(REQUESTS, base)
    device.kick()
    device.used()
    works(device)


@CASES.case("stop-drains", STATES)
def stop_drains(rig: RingRig) -> None:
    """When GET_VRING_BASE is answered, everything that the back-end took has been used, and stays so."""
    device = rig.device()
    config = device.config(REQUESTS)
    for _ in range(30):
        getattr_posted(device, kick=False)
    device.kick()
    device.used()  # the back-end is at work; stopped before that it is another case: kick-read-stop
    base = device.stop_ring(REQUESTS)
    used = device.memory.load_u16(config.device + 2)
    same(used, base, "the used index when the ring stopped, compared with its base")
    device.front.barrier()
    same(device.memory.load_u16(config.device + 2), used, "the used index afterwards")
    device.start_ring(REQUESTS, base)
    device.kick()
    for _ in range(29):
        device.used()


@CASES.case("kick-read-stop", STATES)
def kick_read_stop(rig: RingRig) -> None:
    """A ring stopped between the reading of its kick and the first look at it goes on after a start."""
    device = rig.device(features=USUAL & ~F_EVENT_IDX)
    forgets = device.place(device.request(op.BATCH_FORGET, 0, (FORGETS, 0), data=bytes(16 * FORGETS)))
    for _ in range(ATTEMPTS):
        if stopped_in_between(device, forgets):
            break


def stopped_in_between(device: RawDriver, forgets: tuple[int, int]) -> bool:
    """Kick and stop the ring of requests, start it again; whether the stop came where it was to come.

    So that it does, the kicks of both rings wait while the back-end is at the first FORGETs, it reads them
    together, and the stop comes while it is at the second FORGETs. It must not have EVENT_IDX, with which its
    first turn takes up the second FORGETs too.
    """
    used_index, half = device.config(HIPRIO).device + 2, device.size // 2
    start = device.memory.load_u16(used_index)

    def forgotten() -> int:
        return device.memory.load_u16(used_index) - start & 0xFFFF

    for before in (0, half):
        for _ in range(half):
            device.rings[HIPRIO].add([forgets], [])
        device.rings[HIPRIO].publish()
        device.kick(HIPRIO)
        if before:
            getattr_posted(device)
            together = forgotten() < half
        device.poll(lambda: forgotten() > before, "no FORGET is used")  # noqa: B023
    base = device.stop_ring(REQUESTS)
    between = together and forgotten() < 2 * half
    for _ in range(2 * half):
        device.used(HIPRIO)
    device.exchange([device.request(op.FORGET, 2, (1,))], [], ring=HIPRIO)  # it is past both kicks now
    device.start_ring(REQUESTS, base)
    device.kick()
    device.used()
    works(device)
    return between


@CASES.case("features-again", "vhost-user 'SET_FEATURES'")
def features_again(rig: RingRig) -> None:
    """The same SET_FEATURES while rings run leaves them enabled and running."""
    device = rig.device()
    device.set_features()
    works(device, 3)


@CASES.case("address-again", "vhost-user 'SET_VRING_ADDR'")
def address_again(rig: RingRig) -> None:
    """SET_VRING_ADDR with the same addresses while the ring runs, as for logging, changes nothing."""
    device = rig.device()
    works(device, 3)
    rig.wire.done("SET_VRING_ADDR", device.addr(REQUESTS))
    works(device, 3)


@CASES.case("call-replaced", "vhost-user 'SET_VRING_CALL'")
def call_replaced(rig: RingRig) -> None:
    """A new call descriptor while the ring runs is used from then on."""
    device = rig.device()
    former, device.calls[REQUESTS] = device.calls[REQUESTS], EventFd()
    rig.on_close(former.close)
    rig.wire.done("SET_VRING_CALL", p.Number(REQUESTS), (device.calls[REQUESTS].fd,))
    former.drain()
    works(device, 3)
    same(former.drain(), 0, "calls on the former descriptor")


@CASES.case("used-index-from-memory", STATES)
def used_index_from_memory(rig: RingRig) -> None:
    """A ring that starts again takes its used index from guest memory and adds to it."""
    device = rig.device()
    works(device, 5)
    stop_and_go(device)
    works(device, 5)
    same(device.memory.load_u16(device.config(REQUESTS).device + 2), 11, "the used index (INIT and 10)")


@CASES.case("new-ring", STATES)
def new_ring(rig: RingRig) -> None:
    """Stopped, a ring may come back with another size at another base."""
    device = rig.device()
    for size in (16, 128):
        for index in range(device.count):
            device.stop_ring(index)
        device.size = size
        for index in range(device.count):
            device.new_ring(index)
            device.start_ring(index)
        works(device, 5)


@CASES.case("in-band", "vhost-user 'VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS'")
def in_band(rig: BareRig) -> None:
    """Kicks and calls as messages: VRING_KICK is carried out, VRING_CALL comes on the channel."""
    rig.wire.negotiate(c.protocol_bits(c.F_MQ, c.F_REPLY_ACK, c.F_BACKEND_REQ, c.F_INBAND_NOTIFICATIONS))
    rig.wire.require(c.F_INBAND_NOTIFICATIONS)
    device = rig.driver(rig.wire)
    channel = rig.backend_channel(rig.wire)
    device.set_features()
    device.share_memory()
    for index in range(device.count):
        device.new_ring(index)
        rig.wire.done("SET_VRING_NUM", p.VringState(index, device.size))
        rig.wire.done("SET_VRING_BASE", p.VringState(index, 0))
        rig.wire.done("SET_VRING_ADDR", device.addr(index))
        rig.wire.done("SET_VRING_CALL", p.Number(index | c.NO_FD))
        rig.wire.done("SET_VRING_KICK", p.Number(index | c.NO_FD))
        device.enable(index)
    posted = device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES], kick=False)
    rig.wire.done("VRING_KICK", p.VringState(REQUESTS, 0))
    message = channel.receive()
    same((message.header.request, message.body[:4]), (4, b"\x01\0\0\0"), "VRING_CALL of ring 1")
    found = device.rings[REQUESTS].reap()
    check(found is not None and found[0] == posted.id, "the buffer used", repr(found))
