"""`vmsim serve` over a share with a mount that hangs: messages, other files and signals are served."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.slow_mount import SlowMount
from tests.support.waiting import state_of, until
from vmsim.check.device import RawDriver
from vmsim.check.frontend import Frontend
from vmsim.fuse import opcodes as op
from vmsim.host.processes import BackendProcess
from vmsim.host.vhost_user.probe import Probe

PATIENCE_S = 20


@pytest.fixture
def mount(tmp_path):
    (tmp_path / "share" / "slow").mkdir(parents=True)
    (tmp_path / "share" / "a").write_bytes(b"local")
    mount = SlowMount(tmp_path / "share" / "slow")
    yield mount
    mount.close()


@pytest.fixture
def process(tmp_path, mount):
    with BackendProcess(str(tmp_path / "share"), options=["--sandbox=none"]) as process:
        yield process
        mount.answer()


@pytest.fixture
def device(process):
    front = Frontend(Probe(process.connect(), PATIENCE_S))
    front.negotiate()
    device = RawDriver(front).start()
    device.init()
    yield device
    front.probe.close()
    device.close()


def test_messages_and_other_files(device, mount):
    root = device.lookup("/slow").nodeid
    file = device.ok(op.LOOKUP, root, (), (b"x",)).nodeid
    local = device.lookup("/a").nodeid
    mount.hang()
    waiting = {device.post([device.request(op.GETATTR, file, (0, 0, 0))], [120]).id for _ in range(20)}
    device.front.barrier()
    assert device.ok(op.GETATTR, local, (0, 0, 0)).size == 5
    device.front.barrier()
    mount.answer()
    assert {device.used()[0] for _ in waiting} == waiting


def test_a_signal_ends_it(device, mount, process):
    mount.hang()
    device.post([device.request(op.LOOKUP, 1, (), (b"slow",))], [200])
    device.front.barrier()
    os.kill(process.pid, signal.SIGTERM)
    until(
        lambda: state_of(process.pid) in ("Z", "gone"), "the server's end after SIGTERM",
        saw=lambda: state_of(process.pid),
    )  # fmt: skip
