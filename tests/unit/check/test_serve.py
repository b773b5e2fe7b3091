"""A case of every group and kind against ``vmsim serve``, with what it leaves behind; all: tests/interop."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leaks import Held
from tests.support.sampling import sample
from tests.support.waiting import PATIENCE_S, until
from vmsim.check.cases import CASES
from vmsim.check.outcome import Outcome
from vmsim.check.runner import run, select
from vmsim.check.target import Aim, Target
from vmsim.errors import HostError
from vmsim.host.sockets import UnixSocket

SAMPLE = [
    "messages.ack-set-up", "messages.slot-overlaps", "messages.noise", "rings.packed-batch", "rings.in-band",
    "rings.suspended", "fuse.read-write", "fuse.readdir-positions", "hostile.lookup-without-nul",
    "hostile.table-nested", "hostile.mkdir-outside", "log.across-pages", "state.save-and-load",
    "state.truncated", "migration.under-load", "migration.load-refused", "migration.append",
    "killed.front-end-goes-amid-requests", "killed.back-end-killed",
]  # fmt: skip


def test_a_sample_passes_and_leaves_nothing(serve, tmp_path):
    before = Held()
    target = Target(Aim(start=serve, shared_dir=str(tmp_path), timeout_s=PATIENCE_S))
    try:
        names = sample(SAMPLE, 8, "check cases")
        results = run(select(CASES, names), target)
    finally:
        target.close()
    assert len(results) == len(names)
    assert [result for result in results if result.outcome is not Outcome.PASS] == []
    assert list(tmp_path.iterdir()) == []
    assert before.more() == []


def listening(socket: Path) -> bool:
    try:
        UnixSocket.connect(str(socket)).close()
    except HostError:
        return False
    return True


@pytest.fixture
def running(serve, tmp_path):
    """A ``vmsim serve`` that stays, as somebody else's: its socket and what it shares."""
    share, socket = tmp_path / "share", tmp_path / "s"
    share.mkdir()
    (share / "theirs").write_text("untouched")
    command = [
        sys.executable, "-P", "-m", "vmsim.cli", "serve", "--socket-path", str(socket), "--shared-dir",
        str(share), "--reconnect", "--xattr",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: listening(socket), "vmsim serve to listen", alive=lambda: process.poll() is None)
    yield socket, share
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def test_a_running_back_end(running):
    socket, share = running
    target = Target(Aim(socket=str(socket), shared_dir=str(share), timeout_s=PATIENCE_S))
    only = ["fuse.rename", "fuse.xattr", "rings.split", "hostile.mkdir-outside", "hostile.descriptor-loop",
            "messages.reply-ack", "migration.open-files", "killed.reconnect"]  # fmt: skip
    results = {result.id: result for result in run(select(CASES, only), target)}
    target.close()
    assert {name: result.outcome.value for name, result in results.items()} == {
        **dict.fromkeys(only, "pass"),
        **dict.fromkeys(("migration.open-files", "killed.reconnect"), "not offered"),
    }
    assert "--start" in results["migration.open-files"].reason
    assert [path.name for path in share.iterdir()] == ["theirs"]
    UnixSocket.connect(str(socket)).close()


def test_without_the_shared_directory_nothing_is_written(running):
    socket, share = running
    target = Target(Aim(socket=str(socket), timeout_s=PATIENCE_S))
    results = {result.id: result for result in run(select(CASES, ["fuse.rename", "rings.split"]), target)}
    target.close()
    assert results["rings.split"].outcome is Outcome.PASS
    assert "--shared-dir" in results["fuse.rename"].reason
    assert [path.name for path in Path(share).iterdir()] == ["theirs"]
