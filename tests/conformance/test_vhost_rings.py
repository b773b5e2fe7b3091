"""Ring states, suspension, logging and notifications of vhost-user, in one process and over a socket."""

import errno

import pytest

from tests.contract.transport import refused, send
from tests.support import dying
from tests.support.dying import OPTIONS, reap_all
from tests.support.leaks import Held
from tests.support.socket_rig import SocketRig
from tests.support.vhost_rig import BASIC, PACKED, EchoDevice, Rig
from vmsim.errors import PeerError
from vmsim.host.shm import SharedMemory
from vmsim.memory import DirtyLog
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.backend import IMPLEMENTED, PROTOCOL_FEATURES, BackendOptions
from vmsim.vhost.frontend import PROTOCOL_FEATURES as ACCEPTED
from vmsim.vhost.frontend import FrontendOptions
from vmsim.virtio.constants import F_VERSION_1

both = pytest.mark.parametrize("make", [Rig, SocketRig], ids=["in process", "socket"])
LOG = 1 << 26
ENABLING = 1 << 30


def without(*bits):
    return BackendOptions(protocol_features=PROTOCOL_FEATURES & ~c.protocol_bits(*bits))


def base_of(rig, ring):
    return send(rig, "GET_VRING_BASE", p.VringState(ring, 0)).payload


def ends(rig, name, payload, fds=()):
    """The message is refused without an acknowledgement: by an error, at the latest with the next one."""

    def refused_sooner_or_later():
        send(rig, name, payload, fds)
        send(rig, "GET_FEATURES")

    with pytest.raises(PeerError):
        refused_sooner_or_later()


# -- states


@both
def test_features_without_bit_30_enable_all_rings(make):
    """A front-end that knows no SET_VRING_ENABLE: rings run as soon as they are kicked."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"x")
        bases = [base_of(rig, ring).num for ring in (0, 1)]
        for ring in (0, 1):
            assert refused(rig, "SET_VRING_ENABLE", p.VringState(ring, 0)) == 0
        assert refused(rig, "SET_FEATURES", p.Number(F_VERSION_1)) == 0
        for ring in (0, 1):
            assert refused(rig, "SET_VRING_BASE", p.VringState(ring, bases[ring])) == 0
            fd = rig.transport.notifier("SET_VRING_KICK", ring)
            none = p.Number(ring | c.NO_FD)
            send(rig, "SET_VRING_KICK", p.Number(ring) if fd >= 0 else none, (fd,) if fd >= 0 else ())
            rig.transport.kick(ring)
        assert rig.driver.call(b"runs") == b"snur"
        assert refused(rig, "SET_VRING_ENABLE", p.VringState(1, 0)), "which needs bit 30"


@both
def test_features_that_switch_logging_leave_rings_enabled(make):
    with make() as rig:
        rig.boot()
        send(rig, "SET_VRING_ENABLE", p.VringState(0, 0), need_reply=True)
        log = SharedMemory("log", 4096)
        send(rig, "SET_LOG_BASE", p.LogArea(4096, 0), (log.fd,))
        for word in (F_VERSION_1 | ENABLING | LOG, F_VERSION_1 | ENABLING):
            assert refused(rig, "SET_FEATURES", p.Number(word)) == 0
            assert rig.driver.call(b"on") == b"no"
            rig.driver.send(b"off", 0)
            assert rig.driver.reap(0) is None, "and disabled ones disabled"
        log.close()


@both
def test_enabling_comes_before_starting(make):
    """Nothing happens on a ring that is enabled and has never been kicked, or started and not enabled."""
    with make() as rig:
        rig.boot()
        rig.device.pause()
        assert refused(rig, "SET_VRING_ENABLE", p.VringState(1, 1)) == 0
        rig.driver.send(b"early")
        assert rig.driver.reap() is None
        assert refused(rig, "SET_VRING_ENABLE", p.VringState(1, 0)) == 0
        rig.device.resume()
        assert rig.driver.reap() is not None


@both
def test_enabling_before_any_features_is_refused(make):
    with make() as rig:
        send(rig, "SET_FEATURES", p.Number(0), need_reply=True)
        assert refused(rig, "SET_VRING_ENABLE", p.VringState(1, 1)) == errno.EINVAL


@both
def test_the_base_of_a_ring_that_never_ran(make):
    with make() as rig:
        for ring in (0, 1):
            assert base_of(rig, ring) == p.VringState(ring, 0)
        send(rig, "SET_VRING_BASE", p.VringState(1, 77), need_reply=True)
        assert base_of(rig, 1) == p.VringState(1, 77)
        assert base_of(rig, 1) == p.VringState(1, 77), "asking twice changes nothing"


@both
@pytest.mark.parametrize(("features", "avail", "base"), [
    (F_VERSION_1, 3, 3), (PACKED, None, (4 | 1 << 15) << 16 | 6 | 1 << 15),
])  # fmt: skip
def test_the_base_is_where_the_next_request_will_be_taken(make, features, avail, base):
    """Two are answered and one is parked: not the used position."""
    with make(echo=EchoDevice(features)) as rig:
        rig.boot(features)
        rig.driver.call(b"one")
        rig.driver.call(b"two")
        rig.echo.defer.add(1)
        rig.driver.send(b"three")
        assert base_of(rig, 1).num == base
        if avail is not None:
            assert rig.memory.load_u16(rig.driver.base(1) + 0x1002) == avail
            assert rig.memory.load_u16(rig.driver.base(1) + 0x2002) == avail - 1


@both
def test_a_ring_is_drained_before_its_base_is_told(make):
    with make() as rig:
        rig.boot()
        for slot in range(20):
            rig.driver.add(b"%d" % slot, 1, slot % 16)
        rig.driver.rings[1].publish()
        rig.transport.kick(1)
        assert base_of(rig, 1).num == 20
        assert len(reap_all(rig)) == 20


@both
def test_bad_ring_numbers(make):
    with make() as rig:
        for name in ("SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ENABLE"):
            assert refused(rig, name, p.VringState(2, 1)) == errno.EINVAL
        assert refused(rig, "SET_VRING_ADDR", p.VringAddr(2, 0, 0, 0, 0, 0)) == errno.EINVAL
        with pytest.raises(PeerError):
            base_of(rig, 2)


# -- suspension, stop and continue, reset


@both
def test_a_suspended_device_is_silent_and_still_answers(make):
    with make() as rig:
        rig.boot()
        rig.driver.call(b"x")
        rig.device.pause()
        memory = bytes(rig.ram.view[0x1000000:0x1200000])
        interrupts = rig.interrupts
        rig.driver.send(b"unheard", slot=3)
        rig.transport.kick(1)
        sent = bytes(rig.ram.view[0x1101000:0x1102000])
        assert send(rig, "GET_FEATURES").payload.value & ENABLING
        assert send(rig, "GET_QUEUE_NUM") is not None
        assert refused(rig, "SET_VRING_ENABLE", p.VringState(1, 1)) == 0
        assert rig.interrupts == interrupts
        now = bytes(rig.ram.view[0x1000000:0x1200000])
        assert now[0x102000:] == memory[0x102000:], "the used ring is as it was"
        assert now[0x101000:0x102000] == sent
        assert refused(rig, "SET_VRING_ENABLE", p.VringState(1, 0)) == 0


@both
def test_stopping_and_going_on_keeps_the_session(make):
    with make() as rig:
        rig.boot()
        rig.echo.events.clear()
        for number in range(5):
            assert rig.driver.call(b"%d" % number) == b"%d" % number
            rig.device.pause()
            rig.device.resume()
        assert rig.echo.events == []
        assert [data for _, data in rig.echo.served] == [b"%d" % number for number in range(5)]


@both
def test_reset_device_clears_rings_and_session_and_nothing_else(make):
    """Memory, features and protocol features stay; rings are stopped, disabled, and at 0."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"x")
        rig.echo.defer.add(1)
        rig.driver.send(b"forgotten")
        rig.echo.events.clear()
        assert refused(rig, "RESET_DEVICE") == 0
        assert rig.echo.events == ["reset"]
        rig.echo.defer.clear()
        rig.echo.finish()
        assert rig.driver.reap() is None
        assert base_of(rig, 1) == p.VringState(1, 0)
        assert send(rig, "GET_QUEUE_NUM").payload.value == 2, "MQ is still negotiated"
        size = 64 << 20
        region = p.SlotRegion(0, 0, size, 1 << 46, 0)
        assert refused(rig, "ADD_MEM_REG", region, (rig.ram.fd,)), "memory is still there"


@both
def test_reset_owner_is_ignored(make):
    """Deprecated: its only effect is none."""
    with make() as rig:
        rig.boot()
        assert refused(rig, "RESET_OWNER") == 0
        assert rig.driver.call(b"goes on") == b"no seog"


@both
def test_the_status_is_kept(make):
    """SET_STATUS 0 comes with every stop of QEMU's: the session is not touched by it."""
    with make(backend=OPTIONS) as rig:
        rig.boot()
        rig.echo.events.clear()
        for status in (1, 3, 15, 0):
            assert refused(rig, "SET_STATUS", p.Number(status)) == 0
            assert send(rig, "GET_STATUS").payload.value == status
        assert rig.echo.events == []


@both
@pytest.mark.parametrize(("name", "payload"), [
    ("SET_VRING_ENDIAN", p.VringState(0, 1)), ("SEND_RARP", p.Number(0)), ("NET_SET_MTU", p.Number(1500)),
    ("CLOSE_CRYPTO_SESSION", p.Number(0)),
])  # fmt: skip
def test_messages_of_other_devices_are_refused(make, name, payload):
    with make(backend=OPTIONS) as rig:
        rig.boot()
        assert refused(rig, name, payload) == errno.EINVAL
        assert rig.driver.call(b"goes on") == b"no seog"


# -- the log


@both
def test_a_log_needs_its_feature_its_descriptor_and_its_size(make):
    with make() as rig:
        rig.boot()
        ends(rig, "SET_LOG_BASE", p.LogArea(2048, 0))
    log = SharedMemory("log", 4096)
    for options, size in ((without(c.F_LOG_SHMFD), 4096), (None, 1024), (None, 8192)):
        before = Held()
        with make(backend=options) as rig:
            rig.boot()
            ends(rig, "SET_LOG_BASE", p.LogArea(size, 0), (log.fd,))
        assert before.more() == []
    log.close()


@both
def test_bits_of_the_log(make):
    """Page n is bit n % 8 of byte n / 8, counted from guest address 0; a write may touch two pages."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"before")
        log = SharedMemory("log", 8192)
        send(rig, "SET_LOG_BASE", p.LogArea(4096, 2048), (log.fd,))
        word = F_VERSION_1 | ENABLING | LOG
        assert refused(rig, "SET_FEATURES", p.Number(word)) == 0
        rig.memory.write(0x2000000, b"0123456789")
        rig.driver.rings[1].add([(0x2000000, 10)], [(0x2345FFB, 10)])
        rig.driver.rings[1].publish()
        rig.driver.kick()
        bits = int.from_bytes(log.view, "little") >> 2048 * 8
        assert pages_of(bits) == [0x2345, 0x2346], "the used ring's own flag was not set"
        assert log.view[2048 + (0x2345 >> 3)] == 1 << 5 | 1 << 6
        log.close()


def pages_of(bits):
    return [page for page in range(bits.bit_length()) if bits >> page & 1]


@both
def test_the_used_ring_is_logged_where_its_address_says(make):
    """F_LOG of the ring; an address for the log that is not the used ring's own is refused."""
    with make() as rig:
        rig.boot()
        rig.driver.call(b"before")
        log = SharedMemory("log", 2048)
        send(rig, "SET_LOG_BASE", p.LogArea(2048, 0), (log.fd,))
        send(rig, "SET_FEATURES", p.Number(F_VERSION_1 | ENABLING | LOG), need_reply=True)
        user = rig.USER[1] - 0x100000
        addr = p.VringAddr(1, 1, user + 0x1100000, user + 0x1102000, user + 0x1101000, 0x1102000)
        assert refused(rig, "SET_VRING_ADDR", addr._replace(log=0x1103000))
        assert refused(rig, "SET_VRING_ADDR", addr) == 0
        rig.driver.call(b"logged")
        assert pages_of(int.from_bytes(log.view, "little")) == [0x1102, 0x2100]
        log.close()


@both
def test_a_log_that_is_switched_between_any_two_requests_loses_nothing(make):
    """As QEMU when memory grows, and as our front-end at each harvest."""
    with make() as rig:
        rig.boot()
        if rig.transport.shares_process:
            rig.transport.shares_process = False
        dirty = DirtyLog(rig.memory)
        dirty.start()
        rig.device.start_log(dirty)
        dirty.harvest()
        rig.memory.dirty = None
        seen = set()
        for slot in range(16):
            rig.driver.send(b"data", slot=slot)
            rig.driver.reap()
            if slot % 3 == 0:
                seen |= pages_in(dirty.harvest())
        seen |= pages_in(dirty.harvest())
        assert seen >= {0x2100 + slot for slot in range(16)} | {0x1102}
        assert not dirty.harvest()
        rig.device.stop_log(dirty)
        dirty.stop()
        assert rig.driver.call(b"goes on") == b"no seog"


def pages_in(runs):
    return {page for gpa, size in runs for page in range(gpa >> 12, gpa + size >> 12)}


@both
def test_cancelling_clears_the_log_feature_and_the_flags_of_the_rings(make):
    with make() as rig:
        rig.boot()
        dirty = DirtyLog(rig.memory)
        rig.device.start_log(dirty)
        start = len(rig.transport.log)
        rig.device.stop_log(dirty)
        sent = [entry for entry in rig.transport.log[start:] if entry[0] == "FE>BE"]
        features, *addresses = [(name, bytes.fromhex(payload)) for _, name, _, _, _, payload in sent]
        assert features == ("SET_FEATURES", (F_VERSION_1 | ENABLING).to_bytes(8, "little"))
        assert [(name, payload[:8]) for name, payload in addresses] == [
            ("SET_VRING_ADDR", bytes([ring, 0, 0, 0, 0, 0, 0, 0])) for ring in (0, 1)
        ]
        assert rig.driver.call(b"goes on") == b"no seog"
        rig.device.start_log(dirty)
        rig.device.stop_log(dirty)


# -- memory


@both
def test_a_memory_table_that_changes_while_rings_run(make):
    """Requests in flight keep their memory; new ones are looked up in the new table."""
    with make(backend=without(c.F_CONFIGURE_MEM_SLOTS)) as rig:
        rig.boot()
        rig.driver.call(b"x")
        rig.echo.defer.add(1)
        rig.driver.send(b"waits", slot=1)
        table = p.MemoryTable(tuple(
            p.MemoryRegion(region.gpa, region.size_bytes, region.user_addr, region.fd_offset)
            for region in rig.memory.regions
        ))  # fmt: skip
        assert refused(rig, "SET_MEM_TABLE", table, (rig.ram.fd, rig.ram.fd)) == 0
        rig.echo.defer.clear()
        rig.echo.finish()
        assert rig.driver.answer(rig.driver.reap()[1], slot=1) == b"stiaw"
        assert rig.driver.call(b"new") == b"wen"


# -- notifications without descriptors, configuration, requests in flight


IN_BAND = {
    "backend": BackendOptions(protocol_features=IMPLEMENTED),
    "frontend": FrontendOptions(protocol_features=ACCEPTED | c.protocol_bits(c.F_INBAND_NOTIFICATIONS)),
}


@both
def test_notifications_as_messages(make):
    with make(**IN_BAND) as rig:
        rig.boot()
        before = rig.interrupts
        for number in range(10):
            assert rig.driver.call(b"%d" % number) == b"%d" % number
        assert rig.interrupts - before == 10
        assert all(count == 0 for _, name, _, _, count, _ in rig.transport.log if "SET_VRING_" in name)
        rig.driver.add(b"by hand", 1, 5)
        rig.driver.rings[1].publish()
        assert refused(rig, "VRING_KICK", p.VringState(1, 0)) == 0
        assert rig.driver.reap() is not None
        assert refused(rig, "VRING_KICK", p.VringState(7, 0))
        rig.memory.store_u16(rig.driver.base(1) + 0x1002, 5000)
        rig.driver.kick()
        assert rig.device.virtio.reset_reason, "VRING_ERR"


@both
@pytest.mark.parametrize("missing", [c.F_BACKEND_REQ, c.F_REPLY_ACK])
def test_in_band_notifications_need_a_channel_and_acknowledgements(make, missing):
    bits = c.protocol_bits(c.F_MQ, c.F_BACKEND_REQ, c.F_REPLY_ACK, c.F_INBAND_NOTIFICATIONS)
    with make(backend=OPTIONS, attach=False) as rig:
        rig.connect()
        ends(rig, "SET_PROTOCOL_FEATURES", p.Number(bits & ~(1 << missing)))
        rig.transport.close()


@both
def test_the_configuration_space(make):
    """Whole, in part, and not at all where it ends; it cannot be written, and is offered if there is one."""
    echo = EchoDevice()
    echo.config_space = bytes(range(40))
    options = FrontendOptions(protocol_features=ACCEPTED | c.protocol_bits(c.F_CONFIG))
    with make(echo=echo, backend=OPTIONS, frontend=options) as rig:
        read = rig.device.frontend.read_config
        assert read(0, 40) == bytes(range(40))
        assert read(36, 4) == bytes([36, 37, 38, 39])
        for offset, size in ((0, 41), (37, 4), (40, 1), (0xFFFFFFFF, 256)):
            with pytest.raises(PeerError, match="has no"):
                read(offset, size)
        assert refused(rig, "SET_CONFIG", p.ConfigSpace(0, 0, b"x"))
        assert read(0, 1) == b"\0"
    with make(backend=OPTIONS, frontend=options) as rig:
        assert not rig.device.frontend.has(c.F_CONFIG)


@both
@pytest.mark.parametrize("features", [F_VERSION_1, PACKED], ids=["split", "packed"])
def test_a_killed_back_end_loses_and_repeats_nothing(make, features):
    before = Held()
    with dying.boot(BASIC | features, make=make) as rig:
        for number in range(200):
            rig.driver.call(b"%d" % number)
        rig.echo.defer.add(1)
        for slot in range(4):
            rig.driver.send(b"waits %d" % slot, slot=slot)
        ring, chain, complete = rig.echo.waiting.pop(2)
        complete(chain, rig.echo.echo(ring, chain))
        del chain, complete
        for _ in range(2):
            rig.echo.defer.add(1)
            dying.die(rig)
            rig.attach_again()
        rig.echo.defer.clear()
        rig.echo.finish()
        assert len(reap_all(rig)) == 4
        assert rig.transport.names.count("GET_INFLIGHT_FD") == 0, "the buffer is kept"
        assert rig.driver.call(b"and on") == b"no dna"
    assert before.more() == []
