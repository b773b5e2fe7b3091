"""The virtio-fs device's front-end half, and its section of the migration stream."""

import io

import pytest

from devices.virtio_fs.config import VIRTIO_FS_F_NOTIFICATION, FsDeviceOptions
from devices.virtio_fs.section import FsSection
from tests.support.leaks import Held
from tests.support.vhost_rig import BASIC, EchoDevice, Rig
from vmsim.errors import (
    MigrationBlocked,
    MigrationError,
    PeerError,
    StateError,
    StreamError,
    UsageError,
    VmsimError,
)
from vmsim.memory import DirtyLog
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.vmio import VmReader, VmWriter
from vmsim.vhost.backend import BackendOptions
from vmsim.virtio.constants import F_RING_RESET, F_VERSION_1, STATUS_DEVICE_NEEDS_RESET

PATH = "/machine/peripheral/fs0"
WITHOUT_STATE = BackendOptions(protocol_features=0x2A42B & ~(1 << 17))
BOTH = pytest.mark.parametrize("dialect", ["upstream", "rfc2023"])


class Stream:
    """A section's body in memory."""

    def __init__(self, data=b""):
        self.file = io.BytesIO(data)

    def write(self, data):
        self.file.write(data)

    def read_some(self, limit):
        return self.file.read(limit)


def save(rig):
    """The section's version, bytes and description."""
    stream = Stream()
    output = StreamOutput(stream)
    writer = VmWriter(output)
    section = FsSection(rig.device)
    version = section.version_id
    section.save(writer)
    output.flush()
    return version, stream.file.getvalue(), writer.description


RINGS = slice(0x1000000, 0x1200000)
"""Where the rings lie in memory."""
ram: dict[str, bytes] = {}


def load(rig, version, data):
    rig.ram.view[RINGS] = ram["rings"]
    source = StreamInput(Stream(data))
    FsSection(rig.device).load(VmReader(source, "fs"), version)
    assert source.at_end()


def saved(dialect="upstream", **options):
    with Rig(dialect, options=FsDeviceOptions(tag="myfs", **options)) as rig:
        rig.boot()
        rig.driver.call(b"x")
        rig.device.pause()
        ram["rings"] = bytes(rig.ram.view[RINGS])
        return save(rig)


def test_config_space():
    assert FsDeviceOptions(tag="myfs").config_space() == b"myfs" + bytes(32) + b"\1\0\0\0"
    full = FsDeviceOptions(tag="t" * 36, num_request_queues=3, notification=True, notify_buf_size=512)
    assert full.config_space() == b"t" * 36 + b"\3\0\0\0" + b"\0\2\0\0"


@pytest.mark.parametrize(
    "bad",
    [
        {"tag": ""}, {"tag": "x" * 37}, {"tag": "é" * 19}, {"tag": "a\nb"}, {"num_request_queues": 0},
        {"queue_size": 0}, {"queue_size": 100, "features": F_VERSION_1}, {"queue_size": 2048},
            {"migration": "sometimes"},
    ],
    ids=str,
)
def test_impossible_options(bad):
    with pytest.raises(UsageError):
        FsDeviceOptions(**bad)


def test_a_back_end_with_too_few_queues():
    with Rig(options=FsDeviceOptions(num_request_queues=5), attach=False) as rig:
        with pytest.raises(PeerError, match="2 queues, the device needs 6"):
            rig.attach()
        assert rig.device.frontend is None


def test_several_request_queues():
    with Rig(echo=EchoDevice(queue_count=9), options=FsDeviceOptions(num_request_queues=3)) as rig:
        rig.boot()
        for queue in range(4):
            assert rig.driver.call(b"queue%d" % queue, queue) == b"%deueuq" % queue


def test_notification_queue():
    """Its buffers wait at the device until there is something to say, also across a stop."""
    options = FsDeviceOptions(notification=True)
    features = F_VERSION_1 | VIRTIO_FS_F_NOTIFICATION
    with Rig(echo=EchoDevice(BASIC | VIRTIO_FS_F_NOTIFICATION, 3), options=options) as rig:
        rig.echo.defer.add(1)
        rig.boot(features)
        assert rig.echo.features & VIRTIO_FS_F_NOTIFICATION
        rig.driver.send(b"a buffer for a notification", 1)
        assert rig.driver.call(b"request", 2) == b"tseuqer"
        rig.device.pause()
        rig.device.resume()
        assert rig.driver.reap(1) is None
        rig.echo.finish()
        assert rig.driver.reap(1) is not None


def test_queue_reset_and_reuse():
    features = F_VERSION_1 | F_RING_RESET
    with Rig(echo=EchoDevice(BASIC | F_RING_RESET)) as rig:
        rig.boot(features)
        rig.driver.call(b"one")
        rig.echo.defer.add(1)
        rig.driver.send(b"forgotten by the reset")
        rig.device.registers.write(0x30, 4, 1)
        rig.device.registers.write(0xC0, 4, 1)
        rig.echo.defer.clear()
        assert rig.driver.call(b"hiprio", 0) == b"oirpih"
        rig.driver.rings[1] = rig.driver.make(1, features)
        rig.driver.ready(1)
        assert rig.driver.call(b"two") == b"owt"
        assert [data for _, data in rig.echo.served] == [b"one", b"hiprio", b"two"]


def test_attach_twice_and_use_without_a_back_end():
    with Rig() as rig:
        with pytest.raises(StateError, match="attached already"):
            rig.device.attach(rig.transport)
        rig.boot()
        rig.device.pause()
        rig.device.detach()
        rig.device.detach()
        with pytest.raises(StateError, match="has no back-end"):
            rig.device.resume()


def test_activation_without_a_back_end_needs_a_reset():
    with Rig(attach=False) as rig:
        rig.boot()
        assert rig.device.virtio.status & STATUS_DEVICE_NEEDS_RESET


def test_a_back_end_that_lacks_what_the_driver_uses():
    with Rig(echo=EchoDevice(BASIC)) as rig:
        rig.boot(BASIC)
        rig.device.pause()
        rig.device.detach()
        rig.echo.virtio_features = F_VERSION_1
        rig.backend.features_offered &= ~(1 << 29)
        with pytest.raises(PeerError, match="lacks features 0x20000000"):
            rig.attach(reset=False)


# -- the section


@BOTH
def test_layouts(dialect):
    version, data, description = saved(dialect)
    state = b"state of the echo device"
    if dialect == "upstream":
        tail = b"\x05\x15vhost-user-fs-backend" + bytes(4) + b"\0\0\0\x18" + state + bytes(4)
        assert version == 0
        assert [sub["vmsd_name"] for sub in description["subsections"]] == ["vhost-user-fs-backend"]
        (field,) = description["subsections"][0]["fields"]
        assert field == {"name": "back-end", "type": "virtio-fs back-end state", "size": 32}
        names = ["virtio"]
    else:
        tail = bytes(7) + b"\x18" + state
        assert version == 1
        assert "subsections" not in description
        names = ["virtio", "back-end"]
    assert data.endswith(tail)
    assert [field["name"] for field in description["fields"]] == names


@BOTH
@pytest.mark.parametrize("other", ["upstream", "rfc2023"])
def test_every_layout_loads_through_every_dialect(dialect, other):
    version, data, _ = saved(dialect)
    with Rig(other) as rig:
        load(rig, version, data)
        assert rig.echo.loaded == [b"state of the echo device"]
        assert rig.device.virtio.queues[1].base == 1
        assert rig.device.virtio.live


@BOTH
def test_external_has_no_back_end_state(dialect):
    version, data, description = saved(dialect, migration="external")
    assert version == 0
    assert "subsections" not in description
    assert b"echo" not in data
    with Rig(dialect, options=FsDeviceOptions(tag="myfs", migration="external")) as rig:
        rig.transport.log.clear()
        load(rig, version, data)
        assert rig.transport.names == []
        assert rig.echo.loaded == []


def test_none_blocks_with_the_words_of_the_proposal():
    with Rig() as rig:
        rig.boot()
        rig.device.pause()
        rig.device.migration = "none"
        with pytest.raises(MigrationBlocked) as caught:
            save(rig)
        assert caught.value.message == f"Migration is blocked by device {PATH}"
        rig.device.migration = "internal"
        version, data, _ = save(rig)
        ram["rings"] = bytes(rig.ram.view[RINGS])
        rig.device.migration_load = "none"
        assert rig.device.migration == "internal/none"
        with pytest.raises(MigrationBlocked, match="blocked by device"):
            load(rig, version, data)


@BOTH
def test_state_where_none_was_expected(dialect):
    version, data, _ = saved(dialect)
    with Rig(options=FsDeviceOptions(tag="myfs", migration="external")) as rig:
        with pytest.raises(StreamError, match="none was expected") as caught:
            load(rig, version, data)
        assert "migration=internal on the destination" in caught.value.hint
        assert rig.echo.loaded == []


def test_no_state_where_it_was_expected():
    version, data, _ = saved(migration="external")
    with Rig() as rig:
        with pytest.raises(StreamError, match="has no back-end state") as caught:
            load(rig, version, data)
        assert "migration=external on the destination" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"fs-backend\0\0\0\0", b"fs-backend\0\0\0\1", "too new for local version_id 0"),
        (b"vhost-user-fs-backend", b"vhost-user-fs-bakkend", "unknown subsection"),
        (b"myfs", b"yrfs", 'device with tag "yrfs"'),
    ],
)
def test_changed_streams(old, new, match):
    version, data, _ = saved()
    with Rig() as rig:
        with pytest.raises(StreamError, match=match):
            load(rig, version, data.replace(old, new))
        assert rig.echo.loaded == []


def test_a_version_that_nobody_knows():
    _, data, _ = saved()
    with Rig() as rig, pytest.raises(StreamError, match="incoming version_id 2 is too new"):
        load(rig, 2, data)


def test_a_back_end_that_cannot_transfer_its_state():
    device = f'virtio-user-fs device {PATH} (tag: "myfs")'
    message = f"Back-end of {device} does not support migration through qemu"
    with Rig(backend=WITHOUT_STATE) as rig:
        rig.boot()
        rig.device.pause()
        with pytest.raises(MigrationBlocked) as blocked:
            save(rig)
        assert blocked.value.message == message
        rig.device.resume()
        assert rig.driver.call(b"goes on") == b"no seog"
    version, data, _ = saved()
    with Rig(backend=WITHOUT_STATE) as rig, pytest.raises(MigrationError) as failed:
        load(rig, version, data)
    assert failed.value.message == message


@BOTH
def test_errors_name_operation_device_and_cause(dialect):
    with Rig(dialect) as rig:
        rig.boot()
        rig.device.pause()
        rig.echo.refuse_save = True
        with pytest.raises(MigrationError) as caught:
            save(rig)
    start = f'Error saving back-end state of virtio-user-fs device {PATH} (tag: "myfs"): '
    assert caught.value.message.startswith(start)
    assert (caught.value.side, caught.value.errno > 0) == ("source", True)
    version, data, _ = saved(dialect)
    with Rig(dialect) as rig:
        rig.echo.refuse_load = True
        with pytest.raises(MigrationError) as caught:
            load(rig, version, data)
    assert caught.value.message.startswith(start.replace("saving", "loading"))
    assert caught.value.side == "destination"


def test_rings_must_be_stopped():
    with Rig() as rig:
        rig.boot()
        with pytest.raises(MigrationError, match="while its rings run"):
            save(rig)


def test_a_detached_device_can_be_saved_externally_only():
    with Rig() as rig:
        rig.boot()
        rig.device.pause()
        rig.device.detach()
        with pytest.raises(MigrationError, match="no back-end to save the state of"):
            save(rig)
        rig.device.migration = "external"
        assert save(rig)[0] == 0


def test_dirty_log_blockers():
    with Rig(backend=BackendOptions(protocol_features=0x8A42B & ~2)) as rig:
        rig.boot()
        with pytest.raises(MigrationError) as caught:
            rig.device.start_log(DirtyLog(rig.memory))
        assert caught.value.message == (
            "Migration disabled: vhost-user backend lacks VHOST_USER_PROTOCOL_F_LOG_SHMFD feature."
        )


@BOTH
def test_failure_at_every_message_of_the_destination(dialect):
    """Whichever message is lost while the destination loads and starts: a typed error, no state applied
    unless the load was complete, nothing leaks."""
    version, data, _ = saved(dialect)
    number, done = 0, False
    while not done:
        before = Held()
        with Rig(dialect) as rig:
            rig.transport.fail_at = rig.transport.count + number
            try:
                load(rig, version, data)
            except VmsimError as error:
                assert "lost on purpose" in str(error)  # noqa: PT017
                assert rig.echo.loaded == []
                continue
            finally:
                number += 1
            try:
                rig.device.resume()
                done = True
            except VmsimError as error:
                assert "lost on purpose" in str(error)  # noqa: PT017
                assert not rig.device.frontend.running
            assert rig.echo.loaded == [b"state of the echo device"]
        assert before.more() == []
    assert number > 15


@BOTH
def test_a_cut_section_never_reaches_the_back_end(dialect):
    version, data, _ = saved(dialect)
    start = len(data) - 60 if dialect == "upstream" else len(data) - 32
    for length in range(start, len(data)):
        with Rig(dialect) as rig:
            rig.transport.log.clear()
            with pytest.raises(StreamError):
                load(rig, version, data[:length])
            assert rig.transport.names == []


def test_the_golden_section_loads():
    """The device section of a stream that QEMU 10.0.2 wrote."""
    from pathlib import Path

    golden = (Path(__file__).parents[2] / "golden/qemu10.0.2-microvm-mmio-split.bin").read_bytes()
    name = b"virtio-mmio@00000000feb02e00/vhost-user-fs"
    start = golden.index(name) + len(name) + 8
    with Rig(options=FsDeviceOptions(tag="another")) as rig:
        device = rig.device
        source = StreamInput(Stream(golden[start:]))
        FsSection(device).load(VmReader(source), 0)
        assert device.virtio.features_accepted == F_VERSION_1
        assert [queue.base for queue in device.virtio.queues] == [0, 4]
        (blob,) = rig.echo.loaded
        assert len(blob) == 33
        assert b"hello.txt" in blob
        assert source.read(1) == b"\x7e"
