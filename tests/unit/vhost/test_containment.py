"""An exception that nobody meant ends the ring, message or session that it came up in, and is told."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest

from devices.virtio_fs.backend import VirtioFsBackend
from tests.support.vhost_rig import BASIC, EchoDevice, Rig
from vmsim.errors import InternalFault, PeerError, StreamError, VmsimError, contained
from vmsim.fuse import opcodes as op
from vmsim.host.fs import LinuxFs
from vmsim.virtio.constants import F_RING_PACKED, STATUS_DEVICE_NEEDS_RESET

FAULTS = [
    AttributeError("no such thing"), MemoryError(), RecursionError("too deep"), BufferError("exported"),
    struct.error("unpack"), OSError(5, "of no call that was meant"), AssertionError(), KeyError(7),
    ZeroDivisionError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), StopIteration(),
]  # fmt: skip
NAMES = [type(fault).__name__ for fault in FAULTS]


def status(rig):
    return rig.device.registers.read(0x70, 4)


@pytest.mark.parametrize("features", [BASIC, BASIC | F_RING_PACKED])
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_in_a_request(fault, features):
    """The driver sees a device that needs a reset, and after that it works again."""
    with Rig(echo=EchoDevice(BASIC | F_RING_PACKED)).boot(features) as rig:
        assert rig.driver.call(b"first") == b"tsrif"

        def fail(ring):
            raise fault

        rig.echo.during = fail
        rig.driver.send(b"second")
        assert status(rig) & STATUS_DEVICE_NEEDS_RESET
        assert f"a bug in vmsim: {type(fault).__name__}" in rig.device.virtio.reset_reason
        assert "fail (test_containment.py" in rig.device.virtio.reset_reason
        rig.echo.during = None
        rig.boot(features)
        assert rig.driver.call(b"third") == b"driht"


@pytest.mark.parametrize("method", ["set_features", "log_started", "parked", "keep_parked", "resume_parked"])
@pytest.mark.parametrize("fault", [AttributeError("x"), MemoryError()], ids=["AttributeError", "MemoryError"])
def test_in_a_message(method, fault, monkeypatch):
    """It is refused like one that asks for something impossible: with a typed error."""
    with Rig().boot(BASIC) as rig:
        rig.echo.defer = {1}
        rig.driver.send(b"parked")

        def fail(*_):
            raise fault

        monkeypatch.setattr(rig.echo, method, fail)
        for act in (rig.device.pause, rig.device.resume, lambda: rig.boot(BASIC)):
            with suppress(VmsimError):
                act()
        monkeypatch.undo()
        rig.echo.defer = set()
        rig.boot(BASIC)
        assert rig.driver.call(b"on") == b"no"


def test_in_the_transfer_of_a_state(monkeypatch):
    with Rig().boot(BASIC) as rig:
        rig.device.pause()

        def fail(blob):
            raise RecursionError("a state that is too deep")

        monkeypatch.setattr(rig.echo, "load_state", fail)
        with pytest.raises(PeerError) as caught:
            rig.device.frontend.load_backend_state(b"state")
        assert "RecursionError" in rig.transport.reason()[0] + str(caught.value)
        monkeypatch.undo()
        rig.device.frontend.load_backend_state(b"state")
        assert rig.echo.loaded == [b"state"]


class Chain:
    def __init__(self, data, room):
        self.readable, self.writable = [memoryview(bytearray(data))], [memoryview(bytearray(room))]


def ask(backend, opcode, node=1, body=b"", room=200):
    head = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 1, node, 0, 0, 1, 0, 0)
    return backend.handle(1, Chain(head + body, room), lambda chain, written: None)


@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_in_the_file_system(fault, tmp_path):
    """An OSError is an answer; anything else means that nobody knows any more what the session is."""
    backend = VirtioFsBackend(LinuxFs(), str(tmp_path))
    ask(backend, op.INIT, 0, struct.pack("<IIIII", 7, 38, 0, 0xBFFFFFFF, 0) + bytes(44))

    def fail(*_):
        raise fault

    backend.fs.host.fstatvfs = fail
    if isinstance(fault, OSError):
        assert ask(backend, op.STATFS) == 16
    else:
        with pytest.raises(InternalFault, match=type(fault).__name__) as caught:
            ask(backend, op.STATFS)
        assert "Traceback" in caught.value.report
    backend.close()


def test_what_was_meant_stays_what_it_is():
    error = StreamError("cut", offset=3)
    assert contained(error) is error
