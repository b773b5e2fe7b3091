"""Over a socket our front-end's messages are QEMU's to the byte, descriptors included."""

from pathlib import Path

from devices.virtio_fs.section import FsSection
from tests.support.socket_rig import SocketRig
from tests.unit.vhost.test_golden_trace import Bytes, save
from vmsim.memory import DirtyLog
from vmsim.migration.byteio import StreamInput
from vmsim.migration.vmio import VmReader

GOLDEN = Path(__file__).parents[2] / "golden"


def golden(name):
    """(direction, message, flags, size, descriptors, payload) of every message."""
    messages = []
    for line in (GOLDEN / name).read_text().splitlines():
        if "EOF" in line:
            continue
        _, direction, message, *fields = line.split()
        values = dict(field.split("=") for field in fields)
        facts = (int(values["flags"], 16), int(values["size"]), int(values["fds"]), values["payload"])
        messages.append((direction, message, *facts))
    return messages


def test_source_and_destination_as_qemu():
    with SocketRig() as source:
        source.boot()
        for number in range(4):
            assert source.driver.call(b"read %d" % number) == b"%d daer" % number
        dirty = DirtyLog(source.memory)
        dirty.start()
        source.device.start_log(dirty)
        source.device.pause()
        stream = save(source)
        assert source.transport.log == golden("vhost-user-source.log")
        source.device.stop_log(dirty)

    with SocketRig(user=(0x7FE087FFF000, 0x7FE0880FF000)) as destination:
        section = FsSection(destination.device)
        destination.ram.view[0x1000000:0x1200000] = bytes(0x200000)
        destination.memory.store_u16(0x1001000 + 2, 0)
        destination.memory.store_u16(0x1101000 + 2, 4)
        destination.memory.store_u16(0x1102000 + 2, 4)
        section.load(VmReader(StreamInput(Bytes(stream))), section.version_id)
        destination.device.resume()
        # One more request, as in the log: its index is all that the back-end looks at first.
        destination.driver.rings[1] = destination.driver.make(1, 1 << 32, used_up_to(4))
        assert destination.driver.call(b"one more") == b"erom eno"
        destination.device.pause()
        assert destination.transport.log == golden("vhost-user-destination.log")
        assert destination.echo.loaded == [b"state of the echo device"]


def used_up_to(count):
    """A driver's ring after ``count`` requests one at a time."""
    with SocketRig() as rig:
        rig.boot()
        for _ in range(count):
            rig.driver.call(b"x")
        return rig.driver.rings[1].save()
