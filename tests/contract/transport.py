"""Seam S1: what every transport does. A new transport passes every check_* here.

A check takes a function ``make(**options) -> Rig``: a context manager like
:class:`tests.support.vhost_rig.Rig`, whose back-end may live elsewhere as long as ``rig.echo`` can be asked
what reached it.
"""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.leaks import Held
from tests.support.vhost_rig import PACKED, EchoDevice
from vmsim.errors import PeerError, StallError, StateError, VmsimError
from vmsim.host.shm import SharedMemory
from vmsim.memory import DirtyLog
from vmsim.vhost import payloads as p
from vmsim.vhost.backend import BackendOptions
from vmsim.vhost.messages import Reply, Request
from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_RING_PACKED,
    F_VERSION_1,
    STATUS_DEVICE_NEEDS_RESET,
)


class InUse(EchoDevice):
    """Loads a state only after a reset."""

    def load_state(self, blob):
        if "reset" not in self.events:
            raise StateError("the device is in use")
        super().load_state(blob)


NO_ACKS = BackendOptions(protocol_features=0x8A42B & ~(1 << 3))


def send(rig, name, payload=None, fds=(), need_reply=False):
    """One raw message."""
    return rig.transport.request(Request(rig.dialect.messages[name], payload, fds, need_reply))


def refused(rig, name, payload=None, fds=()):
    """The number with which a message is refused when an acknowledgement is asked for."""
    reply = send(rig, name, payload, fds, need_reply=True)
    return reply.payload.value


def check_requests_and_answers(make):
    """Bytes go through the ring and come back, on every ring, with an interrupt."""
    for features in (F_VERSION_1, F_VERSION_1 | F_EVENT_IDX, PACKED, PACKED | F_EVENT_IDX):
        with make(echo=EchoDevice(features)) as rig:
            rig.boot(features)
            before = rig.interrupts
            for round_ in range(300):
                assert rig.driver.call(b"ab%d" % round_) == (b"ab%d" % round_)[::-1]
            assert rig.interrupts - before == 300
            assert rig.driver.call(b"forget", 0) == b"tegrof"


def check_acknowledgements(make):
    """NEED_REPLY is answered 0 or not 0; on a message with its own reply it changes nothing."""
    with make() as rig:
        assert send(rig, "SET_VRING_NUM", p.VringState(0, 8), need_reply=True) == Reply(p.Number(0))
        assert send(rig, "SET_VRING_NUM", p.VringState(0, 8)) is None
        assert refused(rig, "SET_VRING_NUM", p.VringState(0, 0)) == errno.EINVAL
        assert refused(rig, "SET_VRING_NUM", p.VringState(2, 8)) == errno.EINVAL
        assert send(rig, "GET_QUEUE_NUM", need_reply=True) == Reply(p.Number(2))


def check_refusals_without_acknowledgement(make):
    """Whoever did not ask for an answer learns of a refusal by an error, at the latest with the next one."""
    with make() as rig:

        def refused_sooner_or_later():
            send(rig, "SET_VRING_NUM", p.VringState(0, 0))
            send(rig, "GET_FEATURES")

        with pytest.raises(PeerError):
            refused_sooner_or_later()


def check_messages_need_their_feature(make):
    """A message whose protocol feature was not negotiated is refused, by name."""
    with make() as rig:
        assert refused(rig, "SET_STATUS", p.Number(1)) == errno.EINVAL
        assert refused(rig, "SET_CONFIG", p.ConfigSpace(0, 0, b"x")) == errno.EINVAL
        with pytest.raises(PeerError, match="INFLIGHT_SHMFD" if rig.tells_reasons else "closed"):
            send(rig, "GET_INFLIGHT_FD", p.Inflight(0, 0, 2, 128))


def check_wrong_order(make):
    """Kicking a ring that was never described breaks it; changing one that runs is refused."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"x")
        assert refused(rig, "SET_VRING_NUM", p.VringState(1, 64)) == errno.EINVAL
        assert refused(rig, "SET_VRING_BASE", p.VringState(1, 0)) == errno.EINVAL
        assert refused(rig, "SET_VRING_ADDR", p.VringAddr(1, 0, *[rig.USER[1]] * 3, 0)) == errno.EINVAL
        assert refused(rig, "SET_FEATURES", p.Number(1 << 30)) == errno.EINVAL
        assert rig.driver.call(b"still") == b"llits"
    with make() as rig:
        fd = rig.transport.notifier("SET_VRING_KICK", 1)
        send(rig, "SET_VRING_KICK", p.Number(1 if fd >= 0 else 0x101), (fd,) if fd >= 0 else ())
        send(rig, "SET_VRING_ENABLE", p.VringState(1, 1)) if rig.backend.features else None
        rig.transport.kick(1)
        assert rig.device.virtio.status & STATUS_DEVICE_NEEDS_RESET


def check_memory_messages(make):
    """Regions that overlap, wrap, are empty or larger than their file are refused; nothing leaks."""
    with make() as rig:
        before = Held()
        ram = SharedMemory("r", 1 << 20)
        add = p.SlotRegion(0, 0, 1 << 20, 0x10000000, 0)
        assert refused(rig, "ADD_MEM_REG", add, (ram.fd,)) == 0
        for bad in (
            add,
            add._replace(guest_addr=0xFF000),
            add._replace(guest_addr=1 << 30),
            add._replace(guest_addr=1 << 30, user_addr=1 << 40, mmap_offset=4096),
            add._replace(guest_addr=1 << 30, user_addr=1 << 40, size_bytes=0),
            add._replace(guest_addr=(1 << 64) - 4096, user_addr=1 << 40),
            add._replace(guest_addr=12345, user_addr=1 << 40),
        ):
            assert refused(rig, "ADD_MEM_REG", bad, (ram.fd,)), bad
        assert refused(rig, "REM_MEM_REG", add._replace(guest_addr=4096))
        assert refused(rig, "REM_MEM_REG", add, (ram.fd,)) == 0, "one stray descriptor is tolerated"
        table = p.MemoryTable((add.region, add.region._replace(guest_addr=4096)))
        assert refused(rig, "SET_MEM_TABLE", table, (ram.fd, ram.fd))
        assert refused(rig, "SET_MEM_TABLE", p.MemoryTable((add.region,)), ())
        assert refused(rig, "SET_MEM_TABLE", p.MemoryTable((add.region,)), (ram.fd,)) == 0
        assert refused(rig, "SET_MEM_TABLE", p.MemoryTable(()), ()) == 0
        ram.close()
        assert before.more() == []


def check_enabling_is_remembered(make):
    """A stopped ring keeps its enable bit; a disabled one does nothing until it is enabled."""
    with make() as rig:
        rig.boot()
        send(rig, "SET_VRING_ENABLE", p.VringState(1, 0), need_reply=True)
        rig.driver.send(b"later")
        assert rig.driver.reap() is None
        send(rig, "SET_VRING_ENABLE", p.VringState(1, 1), need_reply=True)
        assert rig.driver.reap() is not None
        rig.device.pause()
        rig.driver.send(b"while stopped", slot=1)
        assert rig.driver.reap() is None, "a suspended device is silent"
        rig.device.resume()
        assert rig.driver.reap() is not None, "the unsolicited kick finds it"


def check_nothing_is_left_in_a_ring_that_is_disabled(make):
    """What was made available before is answered first, though its kick is still under way.

    A front-end that stops drops that kick, and the next back-end may well wait for another one.
    """
    for features in (F_VERSION_1, PACKED):
        with make(echo=EchoDevice(features)) as rig:
            rig.boot(features)
            rig.driver.add(b"kicked?")
            rig.driver.rings[1].publish()
            send(rig, "SET_VRING_ENABLE", p.VringState(1, 0), need_reply=True)
            assert rig.driver.reap() is not None
            rig.driver.send(b"later", slot=1)
            assert rig.driver.reap() is None


def check_bases(make):
    """GET_VRING_BASE says where the ring stands: next available index, or both packed positions."""
    for features, base in ((F_VERSION_1, 5), (PACKED, 0x800A_800A)):
        with make(echo=EchoDevice(features)) as rig:
            rig.boot(features)
            for _ in range(5):
                rig.driver.call(b"x")
            rig.device.pause()
            assert rig.device.virtio.queues[1].base == base
            rig.device.resume()
            assert rig.driver.call(b"more") == b"erom"


def check_stop_drains_or_parks(make):
    """What waits is finished, or kept as plain data and taken up again; never lost, never done twice."""
    for features in (F_VERSION_1, F_VERSION_1 | F_RING_PACKED):
        with make(echo=EchoDevice(features)) as rig:
            rig.boot(features)
            rig.echo.defer.add(1)
            rig.driver.send(b"lock me")
            assert rig.driver.reap() is None
            stale = list(rig.echo.waiting)
            rig.device.pause()
            (parked,) = rig.echo.kept[1].in_flight
            assert [length for _, length, _ in parked.descriptors] == [7, 7]
            for _, chain, complete in stale:
                complete(chain, 0)
            assert rig.driver.reap() is None, "a chain that was given up cannot be completed any more"
            rig.device.resume()
            assert rig.echo.served == []
            rig.echo.finish()
            assert rig.driver.answer(rig.driver.reap()[1]) == b"em kcol"
            assert rig.echo.served == [(1, b"lock me")]


def check_undrainable_is_an_error(make):
    """A request that neither ends nor can be parked makes the stop fail, and the device goes on."""
    with make() as rig:
        rig.boot()
        rig.echo.defer.add(1)
        rig.echo.undrainable.add(1)
        rig.driver.send(b"stuck")
        with pytest.raises((StallError, PeerError)):
            rig.device.pause()
        rig.echo.defer.clear()
        if not rig.tells_reasons:
            # GET_VRING_BASE has no reply that says no: the connection ends, and the next one finds a device.
            rig.device.detach()
            rig.attach()
            rig.boot()
            assert rig.driver.call(b"new") == b"wen"
            return
        assert rig.driver.call(b"hiprio", 0) == b"oirpih"
        rig.driver.send(b"next", slot=1)
        assert rig.driver.reap() is not None
        rig.echo.finish()
        assert rig.driver.reap() is not None


def check_hiprio_is_not_held_up(make):
    """High-priority requests are taken between two requests of a full request queue."""
    with make() as rig:
        rig.boot()
        for slot in range(8):
            rig.driver.add(b"r%d" % slot, 1, slot)

        def forget_now(ring):
            if ring == 1 and len(rig.echo.served) == 2:
                rig.echo.during = None
                rig.driver.add(b"forget", 0)
                rig.driver.rings[0].publish()

        rig.echo.during = forget_now
        rig.driver.rings[1].publish()
        rig.driver.kick(1)
        order = [data for _, data in rig.echo.served]
        assert order.index(b"forget") == 3
        assert len(order) == 9


def check_dirty_log(make):
    """Pages that the back-end writes, payload and rings, are in the log; those of the driver are not."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"before")
        dirty = DirtyLog(rig.memory)
        dirty.start()
        rig.device.start_log(dirty)
        assert rig.echo.events[-1] == "log started"
        dirty.harvest()
        rig.memory.dirty = None
        rig.driver.rings[1].add([(0x2000000, 10)], [(0x2345800, 0x1000)])
        rig.driver.rings[1].publish()
        rig.driver.kick()
        runs = dict(dirty.harvest())
        assert runs == {0x1102000: 4096, 0x2345000: 4096}, [hex(gpa) for gpa in runs]
        rig.driver.reap()
        rig.device.pause()
        rig.device.resume()
        rig.driver.call(b"logged after a restart")
        assert 0x2100000 in dict(dirty.harvest())
        rig.device.stop_log(dirty)
        dirty.stop()
        assert rig.echo.events[-1] == "log stopped"
        assert rig.driver.call(b"goes on") == b"no seog"


def check_ring_violation(make):
    """A malformed ring sets DEVICE_NEEDS_RESET with an interrupt; a reset brings the device back."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"fine")
        interrupts = rig.interrupts
        rig.memory.store_u16(rig.driver.base(1) + 0x1002, 5000)
        rig.driver.kick()
        assert rig.device.virtio.status & STATUS_DEVICE_NEEDS_RESET
        if rig.tells_reasons:
            assert "avail.idx 5000" in rig.device.virtio.reset_reason
        assert rig.interrupts == interrupts + 1
        assert rig.device.registers.read(0x60, 4) == 3
        rig.boot()
        assert rig.driver.call(b"back") == b"kcab"


def check_reset(make):
    """A reset by the driver forgets requests in flight and the session."""
    with make() as rig:
        rig.boot()
        rig.echo.defer.add(1)
        rig.driver.send(b"never answered")
        stale = list(rig.echo.waiting)
        rig.boot()
        assert rig.echo.events[-1] == "reset"
        for _, chain, complete in stale:
            complete(chain, 0)
        assert rig.driver.reap() is None


def check_without_acknowledgements(make):
    """Without REPLY_ACK a GET_FEATURES round trip follows what must be known to have succeeded."""
    with make(backend=NO_ACKS) as rig:
        rig.boot()
        assert rig.driver.call(b"works") == b"skrow"
        names = rig.transport.names
        assert names[names.index("SET_VRING_ENABLE") + 1] == "GET_FEATURES"
        assert all(flags & 8 == 0 for _, _, flags, *_ in rig.transport.log)


def check_closing(make):
    """After a close every message is an error, twice is once, and nothing stays open."""
    before = Held()
    with make() as rig:
        rig.boot()
        transport = rig.transport
        transport.close()
        transport.close()
        with pytest.raises(PeerError):
            send(rig, "GET_FEATURES")
        rig.driver.send(b"into the void")
        assert rig.driver.reap() is None
    assert before.more() == []


def check_closing_with_a_request_that_never_ends(make):
    """Whoever goes away does not wait for it; the next front-end finds a working device."""
    with make() as rig:
        rig.boot()
        rig.echo.defer.add(1)
        rig.echo.undrainable.add(1)
        rig.driver.send(b"stuck")
        rig.transport.close()
        rig.device.detach()
        rig.echo.defer.clear()
        rig.attach()
        rig.boot()
        assert rig.driver.call(b"new") == b"wen"


def check_a_broken_ring_without_reset_device(make):
    """A back-end without RESET_DEVICE forgets a violation when the ring is stopped."""
    with make(backend=BackendOptions(protocol_features=0x8A42B & ~(1 << 13))) as rig:
        rig.boot()
        rig.memory.store_u16(rig.driver.base(1) + 0x1002, 5000)
        rig.driver.kick()
        assert rig.device.virtio.status & STATUS_DEVICE_NEEDS_RESET
        rig.boot()
        assert rig.driver.call(b"back") == b"kcab"


def check_reattach(make):
    """Another front-end may attach to the same session: external migration."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"one")
        rig.device.pause()
        rig.device.detach()
        rig.echo.events.clear()
        rig.attach(reset=False)
        rig.device.resume()
        assert rig.driver.call(b"two") == b"owt"
        assert rig.echo.events == []


def check_a_kept_session_survives_the_reset_of_a_new_front_end(make):
    """QEMU resets the device when it starts, also to take over a guest; once rings ran it is meant so."""
    with make(backend=BackendOptions(keeps_session=True)) as rig:
        rig.boot()
        assert rig.echo.events == [], "no ring has run yet"
        rig.driver.call(b"one")
        rig.device.pause()
        rig.device.detach()
        rig.attach()
        rig.device.resume()
        assert rig.driver.call(b"two") == b"owt"
        assert rig.echo.events == []
        rig.boot()
        assert rig.echo.events == ["reset"]


def check_a_kept_session_gives_way_to_a_state(make):
    """QEMU saves and loads a state also when its back-end stays: a new front-end may bring one, a running
    guest's front-end may not."""
    for keeps in (True, False):
        with make(echo=InUse(), backend=BackendOptions(keeps_session=keeps)) as rig:
            rig.boot()
            rig.echo.events.clear()
            rig.driver.call(b"one")
            rig.device.pause()
            with pytest.raises(PeerError):
                rig.dialect.load(rig.device.frontend, b"a state")
            rig.device.detach()
            rig.attach(reset=keeps)
            if keeps:
                rig.dialect.load(rig.device.frontend, b"a state")
                assert (rig.echo.events, rig.echo.loaded) == (["reset"], [b"a state"])
            else:
                with pytest.raises(PeerError):
                    rig.dialect.load(rig.device.frontend, b"a state")


def check_bad_descriptors_are_closed(make):
    """Descriptors of refused messages, and superfluous ones, do not stay open at the receiver."""
    with make() as rig:
        read_end, write_end = os.pipe()
        before = Held()
        for name, payload, fds in (
            ("SET_VRING_CALL", p.Number(9), (write_end,)),
            ("SET_VRING_CALL", p.Number(0x100), (write_end,)),
            ("SET_VRING_KICK", p.Number(0), ()),
            ("SET_OWNER", None, (write_end,)),
            ("ADD_MEM_REG", p.SlotRegion(0, 0, 4096, 1 << 50, 0), (write_end,)),
            ("SET_LOG_FD", None, (write_end, write_end)),
        ):
            assert refused(rig, name, payload, fds), name
        assert before.more() == []
        os.close(read_end)
        os.close(write_end)


def check_failure_at_every_message(make):
    """Whichever message is lost between log start and the end of the save: a typed error, nothing leaks, and
    the source goes on as if nothing had happened."""
    total = 0
    number = 0
    while number <= total:
        before = Held()
        with make() as rig:
            rig.boot()
            rig.driver.call(b"before")
            start = rig.transport.count
            rig.transport.fail_at = start + number
            dirty = DirtyLog(rig.memory)
            dirty.start()
            try:
                rig.device.start_log(dirty)
                rig.device.pause()
                saved = b"".join(rig.device.frontend.save_backend_state())
                assert b"echo device" in saved
                total = rig.transport.count - start
                assert number == total, "every failure is reported"
            except VmsimError as error:
                if "lost on purpose" not in str(error):
                    raise
                total = number + 1
            rig.transport.fail_at = -1
            rig.device.stop_log(dirty)
            rig.device.resume()
            assert rig.driver.call(b"after") == b"retfa", f"message {number}"
            assert rig.echo.state == b"state of the echo device"
        assert before.more() == []
        number += 1
    assert number > 10


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
