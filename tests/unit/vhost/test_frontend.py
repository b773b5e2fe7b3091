"""The front-end against back-ends that offer less, or more, than usual."""

import pytest

from devices.virtio_fs.config import FsDeviceOptions
from tests.support.vhost_rig import BASIC, PACKED, EchoDevice, Rig
from vmsim.errors import PeerError, StateError, UsageError
from vmsim.memory import DirtyLog
from vmsim.vhost.backend import PROTOCOL_FEATURES, BackendOptions, VhostBackend
from vmsim.vhost.constants import (
    F_CONFIG,
    F_CONFIGURE_MEM_SLOTS,
    F_MQ,
    F_PAGEFAULT,
    F_RESET_DEVICE,
    F_STATUS,
)
from vmsim.vhost.dialects import dialect_by_name
from vmsim.vhost.inproc import InProcessTransport
from vmsim.virtio.constants import F_EVENT_IDX, F_VERSION_1


def without(*bits):
    return BackendOptions(protocol_features=PROTOCOL_FEATURES & ~sum(1 << bit for bit in bits))


def test_without_memory_slots_the_whole_table_is_sent():
    with Rig(backend=without(F_CONFIGURE_MEM_SLOTS)) as rig:
        rig.boot()
        assert rig.driver.call(b"works") == b"skrow"
        rig.device.pause()
        rig.device.resume()
        assert rig.transport.names.count("SET_MEM_TABLE") == 1, "not again when it has not changed"
        assert "ADD_MEM_REG" not in rig.transport.names
        assert rig.driver.call(b"still") == b"llits"


def test_without_multiqueue_one_queue_is_all():
    with Rig(backend=without(F_MQ), attach=False) as rig, pytest.raises(PeerError, match="1 queues"):
        rig.attach()


def test_without_reset_device_a_driver_reset_stops_the_rings_only():
    with Rig(backend=without(F_RESET_DEVICE)) as rig:
        rig.boot()
        rig.driver.call(b"x")
        rig.boot()
        assert rig.echo.events == []
        assert rig.driver.call(b"again") == b"niaga"


def test_status_is_told_and_stopping_loses_no_session():
    options = BackendOptions(protocol_features=PROTOCOL_FEATURES | 1 << F_STATUS)
    with Rig(backend=options) as rig:
        rig.boot()
        assert rig.backend.status == 15
        rig.echo.events.clear()
        rig.device.pause()
        assert rig.backend.status == 0
        rig.device.resume()
        assert rig.driver.call(b"same") == b"emas"
        assert rig.echo.events == []


def test_configuration_is_served_by_the_device_itself():
    assert not PROTOCOL_FEATURES >> F_CONFIG & 1


def test_a_back_end_offers_only_what_it_has():
    with pytest.raises(ValueError, match="PAGEFAULT"):
        VhostBackend(
            EchoDevice(), None, None, dialect_by_name("upstream"), BackendOptions(1 << F_PAGEFAULT)
        )


def test_an_unknown_dialect():
    with pytest.raises(UsageError, match="no dialect 'v4'") as caught:
        dialect_by_name("v4")
    assert caught.value.hint == "one of: upstream, rfc2023"


def test_starting_twice_and_logging_twice():
    with Rig() as rig:
        rig.boot()
        frontend = rig.device.frontend
        with pytest.raises(StateError, match="the front-end is running"):
            frontend.start(0, rig.memory, [])
        dirty = DirtyLog(rig.memory)
        rig.device.start_log(dirty)
        with pytest.raises(StateError, match="on already"):
            frontend.start_log(rig.memory)
        rig.device.stop_log(dirty)
        rig.device.stop_log(dirty)


def test_one_front_end_at_a_time():
    with Rig() as rig, pytest.raises(PeerError, match="connected already"):
        InProcessTransport(rig.backend, rig.schedule, rig.host)


def test_resuming_without_a_kick_works_off_nothing():
    """Everything that can fail happens before the commit; the kick comes after it."""
    with Rig() as rig:
        rig.boot()
        rig.device.pause()
        rig.driver.send(b"sent while stopped")
        rig.device.resume(kick=False)
        assert rig.driver.reap() is None
        rig.device.kick()
        assert rig.driver.reap() is not None


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_EVENT_IDX, PACKED])
def test_rings_shared_with_another_process_have_a_fence(features):
    """Before each decision about notifications: when kicks are asked for, and before a call."""
    fences = []
    options = BackendOptions(fence=lambda: fences.append(1))
    with Rig(echo=EchoDevice(BASIC | features), backend=options) as rig:
        rig.boot(features)
        rig.driver.call(b"first")
        before = len(fences)
        rig.driver.call(b"next")
        assert len(fences) - before == 2


def test_a_bit_that_is_not_offered_to_the_driver_reaches_nobody():
    options = FsDeviceOptions(tag="myfs", features=1 << 32)
    with Rig(echo=EchoDevice(BASIC), options=options) as rig:
        assert rig.device.virtio.features_offered == 1 << 32
        rig.boot()
        assert rig.echo.features == 1 << 32
