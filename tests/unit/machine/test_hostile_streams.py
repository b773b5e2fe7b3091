"""Saved machines that somebody has tampered with: refused with a typed error, and nothing is left open."""

from __future__ import annotations

import os

import msgspec
import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import make
from vmsim.errors import MigrationError, StreamError
from vmsim.machine import Machine
from vmsim.machine.config import MachineConfig


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def saved(share, tmp_path, monkeypatch):
    """Saves a machine whose configuration went through a function."""

    def save(change):
        path = tmp_path / "saved"
        with make(share) as vm:
            vm.mount().close(vm.mount().open("/f", os.O_CREAT | os.O_RDWR))
            with monkeypatch.context() as patch:
                data = change(vm.config.encode())
                patch.setattr(MachineConfig, "encode", lambda self: data)
                vm.save(path)
        return path

    return save


def deep(data: bytes) -> bytes:
    """An option whose value is a list in a list in a list …"""
    plain = msgspec.msgpack.decode(data)
    plain["options"] = {"readonly": 77}
    encoded = msgspec.msgpack.encode(plain)
    at = encoded.index(b"\xa8readonly") + 9
    return encoded[:at] + b"\x91" * 500_000 + encoded[at:]


def changed(**fields):
    def change(data: bytes) -> bytes:
        return msgspec.msgpack.encode(msgspec.msgpack.decode(data) | fields)

    return change


@pytest.mark.parametrize(
    "change",
    [
        deep,
        changed(memory=[[0, 60 << 30]]),
        changed(memory=[[0, 1 << 60]]),
        changed(memory=[[1 << 63, 1 << 63]]),
        changed(queues=1 << 40),
        changed(queue_size=0),
        changed(device="../evil"),
        changed(options={"share": "/"}),
        changed(options={"search_entries": 1 << 62}),
        changed(options={"xattrmap": ":prefix:all:a:b:" * 30_000}),
        changed(guest={"heap": [[0, -4096]]}),
        changed(tag="\ud7ff" * 36),
    ],
)
def test_configurations(saved, share, change):
    path = saved(change)
    with no_leaks(), pytest.raises(MigrationError) as caught:
        Machine.restore(path, share=share)
    assert caught.value.side == "destination"


def test_a_configuration_that_nests_without_end_is_a_stream_error():
    with pytest.raises(StreamError, match="machine configuration"):
        MachineConfig.decode(b"\x91" * (1 << 20))


def test_what_the_user_says_wins_over_the_stream(saved, share):
    path = saved(changed(options={"readonly": False, "xattrmap": ""}))
    options = {"readonly": True, "xattrmap": ":map::user.virtiofs.:"}
    with Machine.restore(path, share=share, options=options) as vm:
        with pytest.raises(OSError):
            vm.mount().mkdir("/d")
        assert vm.config.options == options
