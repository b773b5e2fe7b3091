"""Boot, work, migrate: the same messages, in the same order, with the same bytes as QEMU 10.0.2 sent them.

Intended differences, all of the in-process transport:

1. SET_BACKEND_REQ_FD is not sent: there is no channel, what a back-end asks for it says to its link.
2. SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR say "no descriptor" (bit 8): kicks and calls are function
   calls.
"""

import io
from pathlib import Path

from devices.virtio_fs.section import FsSection
from tests.support.vhost_rig import Rig
from vmsim.memory import DirtyLog
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.vmio import VmReader, VmWriter

GOLDEN = Path(__file__).parents[2] / "golden"
NOTIFIERS = ("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR")


def golden(name):
    """The log's messages with the intended differences applied."""
    messages = []
    for line in (GOLDEN / name).read_text().splitlines():
        if "EOF" in line:
            continue
        _, direction, message, *fields = line.split()
        values = dict(field.split("=") for field in fields)
        if message == "SET_BACKEND_REQ_FD":
            continue
        fds, payload = int(values["fds"]), values["payload"]
        if message in NOTIFIERS:
            fds, payload = 0, f"{int(payload[:2], 16) | 0x100:04x}"
            payload = payload[2:] + payload[:2] + "0" * 12
        messages.append((direction, message, int(values["flags"], 16), int(values["size"]), fds, payload))
    return messages


class Bytes:
    def __init__(self, data=b""):
        self.stream = io.BytesIO(data)

    def write(self, data):
        self.stream.write(data)

    def read_some(self, limit):
        return self.stream.read(limit)


def save(rig):
    sink = Bytes()
    output = StreamOutput(sink)
    FsSection(rig.device).save(VmWriter(output))
    output.flush()
    return sink.stream.getvalue()


def test_source_and_destination_as_qemu():
    with Rig() as source:
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
        drivers = {queue: ring.save() for queue, ring in source.driver.rings.items()}
        ram = bytes(source.ram.view[0x1000000:0x1200000])

    with Rig(user=(0x7FE087FFF000, 0x7FE0880FF000)) as destination:
        destination.ram.view[0x1000000:0x1200000] = ram
        section = FsSection(destination.device)
        section.load(VmReader(StreamInput(Bytes(stream))), section.version_id)
        destination.device.resume()
        for queue, state in drivers.items():
            destination.driver.rings[queue] = destination.driver.make(queue, 1 << 32, state)
        assert destination.driver.call(b"one more") == b"erom eno"
        destination.device.pause()
        assert destination.transport.log == golden("vhost-user-destination.log")
        assert destination.echo.loaded == [b"state of the echo device"]
