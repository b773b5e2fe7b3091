"""Dirty logging: every page that the back-end writes is marked, from the first moment to the last.

The log has a bit for each page. A back-end that cannot set single bits safely may set all of a byte: pages
whose bit is in the byte of one that was written are not counted as wrong.
"""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.cases.messages_wrong import wrong
from vmsim.check.cases.rings import PACKED_RINGS, works
from vmsim.check.device import MEMORY_BYTES, REQUESTS, USUAL, RawDriver
from vmsim.check.outcome import NotOffered, check, same
from vmsim.check.rigs import RingRig, WireRig
from vmsim.fuse import opcodes as op
from vmsim.host.eventfd import EventFd
from vmsim.host.shm import SharedMemory
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p

CASES = Group("log")
SPEC = "vhost-user 'Migration'"
PAGE = c.LOG_PAGE
LOG_BYTES = MEMORY_BYTES // PAGE // 8
FAR_APART = 0x400000
"""Where a buffer shares its page with nothing."""


class Log:
    """A dirty log that the back-end fills."""

    def __init__(self, rig: RingRig, device: RawDriver, offset: int = 0) -> None:
        if not rig.wire.features & c.VHOST_F_LOG_ALL:
            raise NotOffered("LOG_ALL is not offered")
        rig.wire.require(c.F_LOG_SHMFD)
        self.memory = SharedMemory("vhost-log", LOG_BYTES + offset)
        rig.on_close(self.memory.close)
        self.rig, self.device, self.offset = rig, device, offset

    def use(self) -> Log:
        """SET_LOG_BASE, which is answered."""
        self.rig.wire.ask("SET_LOG_BASE", p.LogArea(LOG_BYTES, self.offset), (self.memory.fd,))
        return self

    def start(self) -> Log:
        """The usual way: log, features, ring addresses."""
        self.use()
        self.device.set_features(c.VHOST_F_LOG_ALL)
        for index in range(self.device.count):
            self.rig.wire.done("SET_VRING_ADDR", self.device.addr(index, log=True))
        return self

    def take(self) -> set[int]:
        """The pages marked, which are cleared."""
        view = self.memory.view[self.offset :]
        bits = bytes(view)
        view[:] = bytes(len(bits))
        return {8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1}

    def has(self, wanted: set[int]) -> None:
        """Fail unless these pages are marked, and none far from them; they are cleared."""
        marked = self.take()
        check(wanted <= marked, f"pages {sorted(wanted)} marked", sorted(marked))
        strange = {page for page in marked if page // 8 not in {each // 8 for each in wanted}}
        check(not strange, f"no pages marked but {sorted(wanted)}", sorted(strange))

    def used_page(self, index: int = REQUESTS) -> int:
        """The page of a ring's used area."""
        return self.device.config(index).device // PAGE


def getattr_into(device: RawDriver, *pieces: tuple[int, int]) -> None:
    """GETATTR whose reply goes into these (address, length) buffers."""
    ring = device.rings[REQUESTS]
    ring.add([device.place(device.request(op.GETATTR, 1, (0, 0, 0)))], list(pieces))
    ring.publish()
    device.kick()
    device.used()


@CASES.case("base-answered", "vhost-user 'SET_LOG_BASE'")
def base_answered(rig: RingRig) -> None:
    """SET_LOG_BASE is answered when LOG_SHMFD was negotiated."""
    device = rig.device()
    Log(rig, device).use()
    works(device)


@CASES.case("pages", SPEC)
def pages(rig: RingRig) -> None:
    """The page of a reply and that of the used ring are marked, those that the driver wrote are not."""
    device = rig.device()
    log = Log(rig, device).start()
    log.take()
    getattr_into(device, (FAR_APART, 120))
    log.has({FAR_APART // PAGE, log.used_page()})


@CASES.case("across-pages", SPEC)
def across_pages(rig: RingRig) -> None:
    """A reply that crosses a page, or lies in several buffers, marks all of its pages."""
    device = rig.device()
    log = Log(rig, device).start()
    log.take()
    getattr_into(device, (FAR_APART + PAGE - 16, 40), (FAR_APART + 9 * PAGE, 80))
    wanted = {FAR_APART // PAGE + number for number in (0, 1, 9)} | {log.used_page()}
    log.has(wanted)


@CASES.case("what-was-written", SPEC)
def what_was_written(rig: RingRig) -> None:
    """Of a large buffer the written part is marked; the rest need not be."""
    device = rig.device()
    log = Log(rig, device).start()
    log.take()
    getattr_into(device, (FAR_APART, 8 * PAGE))
    marked = log.take()
    check({FAR_APART // PAGE, log.used_page()} <= marked, "the pages written marked", marked)


@CASES.case("payload-alone", "vhost-user 'SET_VRING_ADDR'")
def payload_alone(rig: RingRig) -> None:
    """Payload is marked also when the ring's flag F_LOG is not set."""
    device = rig.device()
    log = Log(rig, device).use()
    device.set_features(c.VHOST_F_LOG_ALL)
    log.take()
    getattr_into(device, (FAR_APART, 120))
    marked = log.take()
    check(FAR_APART // PAGE in marked, "the page of the reply marked", sorted(marked))


@CASES.case("used-ring-address", "vhost-user 'SET_VRING_ADDR'")
def used_ring_address(rig: RingRig) -> None:
    """A log address other than the used ring's own is refused, or that is what is marked."""
    device = rig.device()
    log = Log(rig, device).use()
    device.set_features(c.VHOST_F_LOG_ALL)
    elsewhere = 0x700000
    rig.wire.require(c.F_REPLY_ACK)
    if rig.wire.acked("SET_VRING_ADDR", device.addr(REQUESTS, log=True)._replace(log=elsewhere)):
        return
    log.take()
    getattr_into(device, (FAR_APART, 120))
    log.has({FAR_APART // PAGE, elsewhere // PAGE})


@CASES.case("offset", "vhost-user 'SET_LOG_BASE'")
def offset(rig: RingRig) -> None:
    """A log may begin somewhere in its descriptor."""
    device = rig.device()
    log = Log(rig, device, offset=8192).start()
    log.take()
    getattr_into(device, (FAR_APART, 120))
    log.has({FAR_APART // PAGE, log.used_page()})
    same(bytes(log.memory.view[:8192]), bytes(8192), "what lies before the log")


@CASES.case("switched", SPEC)
def switched(rig: RingRig) -> None:
    """A new log takes over at once, and the former is left alone."""
    device = rig.device()
    former = Log(rig, device).start()
    log = Log(rig, device).use()
    former.take()
    getattr_into(device, (FAR_APART, 120))
    same(former.take(), set(), "pages marked in the former log")
    log.has({FAR_APART // PAGE, log.used_page()})


@CASES.case("cancelled", SPEC)
def cancelled(rig: RingRig) -> None:
    """After SET_FEATURES without LOG_ALL nothing is marked; on again, it is."""
    device = rig.device()
    log = Log(rig, device).start()
    device.set_features()
    for index in range(device.count):
        rig.wire.done("SET_VRING_ADDR", device.addr(index))
    log.take()
    getattr_into(device, (FAR_APART, 120))
    same(log.take(), set(), "pages marked after logging was switched off")
    log.start()
    getattr_into(device, (FAR_APART, 120))
    log.has({FAR_APART // PAGE, log.used_page()})


@CASES.case("rings-stay-enabled", "vhost-user 'SET_FEATURES'")
def rings_stay_enabled(rig: RingRig) -> None:
    """Switching logging on and off does not disturb the rings."""
    device = rig.device()
    log = Log(rig, device)
    for _ in range(3):
        log.start()
        works(device, 3)
        device.set_features()
        works(device, 3)


@CASES.case("across-a-stop", SPEC)
def across_a_stop(rig: RingRig) -> None:
    """Logging goes on when rings are stopped and started meanwhile."""
    device = rig.device()
    log = Log(rig, device).start()
    base = device.stop_ring(REQUESTS)
    rig.wire.done("SET_VRING_NUM", p.VringState(REQUESTS, device.size))
    rig.wire.done("SET_VRING_BASE", p.VringState(REQUESTS, base))
    rig.wire.done("SET_VRING_ADDR", device.addr(REQUESTS, log=True))
    rig.wire.done("SET_VRING_CALL", p.Number(REQUESTS), (device.calls[REQUESTS].fd,))
    rig.wire.done("SET_VRING_KICK", p.Number(REQUESTS), (device.kicks[REQUESTS].fd,))
    log.take()
    getattr_into(device, (FAR_APART, 120))
    log.has({FAR_APART // PAGE, log.used_page()})


@CASES.case("packed", SPEC)
def packed(rig: RingRig) -> None:
    """Packed rings: the descriptor ring, in which used descriptors are written, is marked."""
    device = rig.device(features=PACKED_RINGS)
    log = Log(rig, device).use()
    device.set_features(c.VHOST_F_LOG_ALL)
    ring = device.config(REQUESTS).desc
    rig.wire.done("SET_VRING_ADDR", device.addr(REQUESTS, log=True))
    log.take()
    getattr_into(device, (FAR_APART, 120))
    marked = log.take()
    check({FAR_APART // PAGE, ring // PAGE} <= marked, "payload and descriptor ring marked", marked)


@CASES.case("no-descriptor", "vhost-user 'SET_LOG_BASE'")
def no_descriptor(rig: WireRig) -> None:
    """SET_LOG_BASE without a descriptor is refused."""
    rig.wire.require(c.F_LOG_SHMFD)
    wrong(rig, "SET_LOG_BASE", p.LOG_AREA.encode(p.LogArea(4096, 0)), may_ignore=True, what="no log")


@CASES.case("not-mappable", "vhost-user 'SET_LOG_BASE'")
def not_mappable(rig: WireRig) -> None:
    """SET_LOG_BASE with something that cannot be mapped is refused."""
    rig.wire.require(c.F_LOG_SHMFD)
    event = EventFd()
    rig.on_close(event.close)
    body = p.LOG_AREA.encode(p.LogArea(4096, 0))
    wrong(rig, "SET_LOG_BASE", body, (event.fd,), may_ignore=True, what="an eventfd as log")


@CASES.case("too-small", "vhost-user 'SET_LOG_BASE'")
def too_small(rig: RingRig) -> None:
    """A log too small for the memory is refused, or at least not written past its end."""
    device = rig.idle_device(features=USUAL)
    device.start().init()
    log = Log(rig, device)
    rig.instances[0].may_end = True
    how = wrong(rig, "SET_LOG_BASE", p.LOG_AREA.encode(p.LogArea(8, 0)), (log.memory.fd,), may_ignore=True,
                what="a log of 8 bytes")  # fmt: skip
    if how == "closed":
        return
    rig.instances[0].may_end = False
    device.set_features(c.VHOST_F_LOG_ALL)
    getattr_into(device, (FAR_APART, 120))
    same(bytes(log.memory.view[8:]), bytes(LOG_BYTES - 8), "what lies behind the log")
