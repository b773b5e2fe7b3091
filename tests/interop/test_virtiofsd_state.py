"""Our states in the real virtiofsd, and its states here: LOAD, CHECK, SAVE over a bare vhost-user socket."""

from __future__ import annotations

import array
import importlib.util
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from devices.virtio_fs.state import blob
from tests.support.waiting import until
from vmsim.errors import VmsimError

pytestmark = pytest.mark.interop

GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE = 42, 43
SAVE, LOAD = 0, 1
DEVICE_STATE = 1 << 19

_spec = importlib.util.spec_from_file_location(
    "state_conftest", Path(__file__).parents[1] / "unit" / "devices" / "state" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
share = _module.share
make_guest = _module.make_guest
guest = _module.guest


class Virtiofsd:
    """One daemon over ``share``; just enough of a front-end to move states."""

    def __init__(self, peers, share: Path, folder: Path, *arguments: str) -> None:
        path = folder / "socket"
        path.unlink(missing_ok=True)
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [peers.virtiofsd, f"--socket-path={path}", f"--shared-dir={share}", "--sandbox=none", *arguments],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )
        self.socket = socket.socket(socket.AF_UNIX)
        until(
            lambda: self.socket.connect_ex(str(path)) == 0, "virtiofsd to listen",
            alive=lambda: self.process.poll() is None,
        )  # fmt: skip
        self.call(SET_OWNER, reply=False)
        features = self.call(GET_FEATURES)
        self.call(SET_FEATURES, features & ~(1 << 26), reply=False)
        assert self.call(GET_PROTOCOL_FEATURES) & DEVICE_STATE
        self.call(SET_PROTOCOL_FEATURES, DEVICE_STATE | 1 << 3, reply=False)

    def call(self, request: int, *words: int, fd: int = -1, reply: bool = True, raw: bytes = b"") -> int:
        body = raw or struct.pack(f"<{len(words)}Q", *words)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self.socket.sendmsg([struct.pack("<III", request, 1, len(body)), body], ancillary)
        if not reply:
            return 0
        header = self.socket.recv(12, socket.MSG_WAITALL)
        size = struct.unpack("<III", header)[2]
        return struct.unpack("<Q", self.socket.recv(size, socket.MSG_WAITALL))[0]

    def load(self, state: bytes) -> bool:
        """Whether the daemon took the state."""
        read_end, write_end = os.pipe()
        assert self.call(SET_DEVICE_STATE_FD, raw=struct.pack("<II", LOAD, 0), fd=read_end) & 0xFF == 0
        os.close(read_end)
        with open(write_end, "wb") as pipe:
            pipe.write(state)
        return self.call(CHECK_DEVICE_STATE) == 0

    def save(self) -> bytes:
        read_end, write_end = os.pipe()
        assert self.call(SET_DEVICE_STATE_FD, raw=struct.pack("<II", SAVE, 0), fd=write_end) & 0xFF == 0
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            state = pipe.read()
        assert self.call(CHECK_DEVICE_STATE) == 0
        return state

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(10)
        self.log.close()


@pytest.fixture
def virtiofsd(peers, share, tmp_path):
    daemons = []

    def start(*arguments: str) -> Virtiofsd:
        daemons.append(Virtiofsd(peers, share, tmp_path, *arguments))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()


def busy(guest, share) -> None:
    guest.open(guest.lookup("d/f.txt"))
    guest.opendir(guest.lookup("d"))
    guest.lookup("g")
    (share / "s").symlink_to("g")
    guest.lookup("s")
    (share / "ünïcode").mkdir()
    guest.lookup("ünïcode")
    guest.create(guest.lookup("d"), b"made", os.O_RDWR | os.O_APPEND)
    guest.rename(1, b"g", 2, b"moved")
    for index in range(200):
        (share / f"many-{index}").touch()
        guest.lookup(f"many-{index}")


@pytest.mark.parametrize("extension", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_virtiofsd_takes_our_state_and_writes_the_same_again(guest, share, virtiofsd, extension, verify):
    busy(guest, share)
    data = guest.save(extension=extension, verify_handles=verify)
    ours, _ = blob.decode(data)
    daemon = virtiofsd(*(["--migration-verify-handles"] if verify else []))
    assert daemon.load(data)
    theirs, _ = blob.decode(daemon.save())
    ours.handles.sort(key=lambda handle: handle.id)
    assert theirs == ours


@pytest.mark.skipif(os.getuid() != 0, reason="file handles need CAP_DAC_READ_SEARCH")
def test_file_handles_both_ways(guest, make_guest, share, virtiofsd):
    busy(guest, share)
    node = guest.lookup("many-0")
    fh = guest.open(node)
    guest.unlink(1, b"many-0")
    data = guest.save(mode="file-handles")
    daemon = virtiofsd("--migration-mode=file-handles", "--modcaps=+dac_read_search")
    assert daemon.load(data)
    back = daemon.save()
    theirs, _ = blob.decode(back)
    ours, _ = blob.decode(data)
    assert {record.id: record.refcount for record in theirs.inodes} == {
        record.id: record.refcount for record in ours.inodes
    }
    other = make_guest().load(back)
    assert other.report.losses == []
    assert [row[:3] for row in other.snapshot()[0]] == [row[:3] for row in guest.snapshot()[0]]
    other.write(node, fh, b"x")
    assert guest.read(node, fh) == b"x"


def test_what_virtiofsd_writes_loads_here(guest, make_guest, share, virtiofsd):
    busy(guest, share)
    daemon = virtiofsd()
    assert daemon.load(guest.save())
    other = make_guest().load(daemon.save())
    assert other.snapshot()[0] == guest.snapshot()[0]
    assert other.snapshot()[1:4] == guest.snapshot()[1:4]
    assert other.session.state.minor == 38


def test_a_parent_that_the_guest_forgot(guest, share, virtiofsd):
    guest.open(guest.lookup("d/f.txt"))
    guest.fs.forget(2, 1)
    data = guest.save()
    daemon = virtiofsd()
    assert daemon.load(data)
    theirs, _ = blob.decode(daemon.save())
    assert {r.id: r.refcount for r in theirs.inodes if r.id < 4}[3] == 1


def test_an_unlinked_file_is_the_peers_eio_but_loads(guest, share, virtiofsd):
    guest.open(guest.lookup("g"))
    guest.unlink(1, b"g")
    data = guest.save()
    daemon = virtiofsd("--migration-on-error=guest-error")
    assert daemon.load(data)


def test_both_refuse_the_same(guest, make_guest, virtiofsd):
    """What section 1.5 of the reference lists as refused, put to the real one as well."""
    guest.open(guest.lookup("d/f.txt"))
    good = guest.save(extension=False)
    daemon = virtiofsd()
    for bad in (b"", good[:9], b"\x05" + good[1:], good[:2] + good[2:4], b"\x01\xff\xff\xff\xff\x0f"):
        assert not daemon.load(bad)
        other = make_guest()
        with pytest.raises(VmsimError):
            other.load(bad)
    assert daemon.load(good + b"junk")
    make_guest().load(good + b"junk")
