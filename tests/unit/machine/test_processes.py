"""A machine goes to another process: through a file, a socket, a pipe to a command."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import FEW_KINDS, HANDLES_ALLOWED, Life, host_lock, make
from vmsim.errors import HostError, MigrationError, StateError
from vmsim.host.channels import SocketChannel
from vmsim.machine import Machine, channel_uri
from vmsim.machine.states import FINISHED, RUNNING
from vmsim.migration.channel import MemoryChannel
from vmsim.migration.errors import ChannelError
from vmsim.migration.report import MigrationInDoubt, MigrationParameters
from vmsim.schedule.seeded import SeededSchedule
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyChannel

ROOT = Path(__file__).resolve().parents[3]
OTHER = Path(__file__).with_name("other_process.py")


def plan_of(life: Life) -> str:
    names = ("fd", "unlinked", "renamed", "append", "folder")
    return json.dumps({name: getattr(life, name) for name in names})


def start(*arguments: object, **more) -> subprocess.Popen:
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(OTHER), *map(str, arguments)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more,
    )  # fmt: skip


def answer(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


def check(found: dict, life: Life) -> None:
    assert found["content"] == life.written.decode()
    assert found["offset"] == len(life.written)
    assert (found["unlinked"], found["nlink"]) == ("only here", 0)
    assert (found["renamed"], found["same"]) == ("renamed", True)
    assert found["folder"] == ["after", "f0", "f1", "f2"]
    assert found["locked"] == "EAGAIN", "a third party cannot have the lock"
    assert found["notes"] == {"who": "me"}
    assert found["flushed"] is None


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


def lived(share, kind=FEW_KINDS[0], **changes):
    vm = make(share, kind, **changes)
    life = Life(vm)
    vm.programs["who"] = b"me"
    return vm, life


@pytest.mark.parametrize("kind", [kind for kind in FEW_KINDS if kind.mode == "find-paths"], ids=str)
def test_a_saved_machine_goes_on_in_another_process(tmp_path, share, kind):
    with no_leaks():
        vm, life = lived(share, kind)
        vm.save(tmp_path / "file", keep_running=False)
        assert vm.state == FINISHED
        vm.close()
    check(answer(start("restore", tmp_path / "file", share, plan_of(life))), life)
    assert (share / "notes").read_bytes() == life.written + b" and from there"
    assert (share / "log").read_bytes() == b"xy"
    assert oct((tmp_path / "file").stat().st_mode & 0o777) == "0o600"


def test_what_nobody_waits_for_any_more_is_given_up(tmp_path, share):
    """The program that waited for a lock is not in the file: no ghost may take the lock in its place."""
    with no_leaks():
        vm, life = lived(share)
        vm.save(tmp_path / "file", keep_running=False)
        vm.close()
        with Machine.restore(tmp_path / "file", share=share) as vm2:
            assert vm2.kernel.requests == {}
            fs = vm2.mount()
            fs.setlk(life.locked, fcntl.F_UNLCK, 0, 0)
            assert vm2.facts()["locks"] == 1, "the flock"
            assert host_lock(share / "locked")


@pytest.mark.skipif(not HANDLES_ALLOWED, reason="needs CAP_DAC_READ_SEARCH")
def test_a_file_handle_of_an_unlinked_file_is_stale_once_the_source_is_gone(tmp_path, share):
    """Mode file-handles counts on the source's file system object; find-paths takes the contents along."""
    with no_leaks():
        vm, _ = lived(share, FEW_KINDS[1])
        vm.save(tmp_path / "file", keep_running=False)
        vm.close()
        with pytest.raises(MigrationError, match="Stale file handle") as caught:
            Machine.restore(tmp_path / "file", share=share)
        assert caught.value.side == "destination"


def test_saving_does_not_disturb(tmp_path, share):
    """Saved, gone on, saved again: the file is the machine at that moment."""
    with no_leaks():
        vm, life = lived(share)
        for number in range(3):
            stats = vm.save(tmp_path / f"file{number}")
            assert stats.stream_bytes == (tmp_path / f"file{number}").stat().st_size
            assert vm.state == RUNNING
            life.check(vm)
            life.go_on(vm)
        life.finish(vm)
        vm.close()


@pytest.mark.parametrize("kind", FEW_KINDS, ids=str)
def test_through_a_socket_pair(share, kind):
    vm, life = lived(share, kind)
    ours, theirs = socket.socketpair()
    with theirs:
        process = start("receive", theirs.fileno(), share, plan_of(life), pass_fds=[theirs.fileno()])
    stats = vm.send(SocketChannel(ours))
    assert vm.state == FINISHED
    assert stats.stream_bytes > 60_000
    vm.close()
    check(answer(process), life)


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_by_address(tmp_path, share, scheme):
    vm, life = lived(share)
    uri = f"unix:{tmp_path}/socket" if scheme == "unix" else f"tcp:127.0.0.1:{free_port()}"
    process = start("receive", uri, share, plan_of(life))
    send_when_they_listen(vm, uri)
    vm.close()
    check(answer(process), life)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def send_when_they_listen(vm: Machine, uri: str) -> None:
    for _ in range(600):
        try:
            vm.send(uri)
        except HostError:
            vm.schedule.sleep_ns(50_000_000)
        else:
            return
    raise AssertionError("nobody listens")


def test_through_a_command(tmp_path, share):
    with no_leaks():
        vm, life = lived(share)
        path = shlex.quote(str(tmp_path / "file.gz"))
        vm.send(f"exec:gzip -1 > {path}")
        vm.close()
        with Machine.receive(f"exec:gzip -dc {path}", share) as vm2:
            fs = vm2.mount()
            assert fs.pread(life.fd, 100, 0) == life.written
            assert fs.pread(life.unlinked, 100, 0) == b"only here"


def test_a_command_that_fails_leaves_the_source_running(share):
    with no_leaks():
        vm, life = lived(share)
        for command in ("exit 0", "head -c 70000 >/dev/null; exit 1"):
            with pytest.raises(MigrationError) as caught:
                vm.send(f"exec:{command}")
            assert caught.value.side == "source"
            assert vm.state == RUNNING
            life.check(vm)
        life.finish(vm)
        vm.close()


@pytest.mark.parametrize("ending", ["exit 3", "kill -9 $$"])
def test_a_command_that_fails_when_it_has_everything_leaves_a_doubt(share, ending):
    """What it was given may run somewhere: `ssh there vmsim ...` also fails when only the connection does."""
    with no_leaks():
        vm, life = lived(share)
        with pytest.raises(MigrationInDoubt, match="the whole stream"):
            vm.send(f"exec:cat >/dev/null; {ending}")
        assert vm.state == "in doubt"
        vm.settle(destination_runs=False)
        life.check(vm)
        life.finish(vm)
        vm.close()


def test_a_file_that_cannot_be_written(tmp_path, share):
    with no_leaks():
        vm, life = lived(share)
        with pytest.raises(Exception, match="ENOENT"):
            vm.save(tmp_path / "missing" / "file")
        life.check(vm)
        life.finish(vm)
        vm.close()


def test_guest_programs_work_on_while_the_socket_is_slow(share):
    """The other end reads with pauses: meanwhile the schedule runs the guest instead of standing still."""
    vm = make(share, memory="16M")
    fs = vm.mount()
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    steps = 0

    def work(fs):
        nonlocal steps
        for steps in range(10_000_000):
            fs.pwrite(fd, b"%08d" % steps, 0)
            if vm.outgoing is None and steps > 10:
                return
            fs.kernel.schedule.sleep_ns(1_000_000)

    for page in range(0, 8 << 20, 4096):
        vm.memory.write((6 << 20) + page, os.urandom(8) * 512)
    ours, theirs = socket.socketpair()
    phases = {}

    def read_slowly():
        for _ in range(100):
            theirs.recv(1 << 16)
            threading.Event().wait(0.001)
        theirs.close()

    reader = threading.Thread(target=read_slowly)
    reader.start()
    channel = SocketChannel(ours, *channel_uri.wire(vm.schedule))
    task = vm.spawn("worker", work, pid=1)
    with pytest.raises(MigrationError) as caught:
        vm.send(
            channel, progress=lambda report: phases.setdefault(report.phase, steps),
            parameters=MigrationParameters(part_bytes=1 << 18),
        )
    reader.join()
    assert caught.value.step == "memory round 1"
    assert steps > phases["precopy"] + 10
    assert vm.state == RUNNING
    vm.schedule.join(task)
    vm.close()


class BreaksAfterGo(SocketChannel):
    """After the go nothing is heard any more: did it not arrive, or is the answer lost? Nobody here knows."""

    went = False
    arrives = True

    def write(self, data):
        self.went = self.went or bytes(data) == b"G"
        if self.arrives or not self.went:
            super().write(data)

    def read_some(self, limit):
        if self.went:
            if self.arrives:
                super().read_some(limit)  # the acknowledgement, or the end
            raise ChannelError("the line is dead", errno=errno.ETIMEDOUT)
        return super().read_some(limit)


def test_a_doubt_is_settled_by_whoever_knows(share):
    vm, life = lived(share)

    for destination_runs in (False, True):
        ours, theirs = socket.socketpair()
        with theirs:
            process = start("receive", theirs.fileno(), share, plan_of(life), pass_fds=[theirs.fileno()])
        channel = BreaksAfterGo(ours)
        channel.arrives = destination_runs
        with pytest.raises(MigrationInDoubt) as caught:
            vm.send(channel)
        assert "settle" in caught.value.hint
        assert vm.state == "in doubt"
        with pytest.raises(StateError, match="in doubt"):
            vm.mount()
        _, complaint = process.communicate(timeout=60)
        assert (process.returncode == 0) == destination_runs, complaint
        vm.settle(destination_runs=destination_runs)
        if not destination_runs:
            assert vm.state == RUNNING
            life.check(vm)
            life.go_on(vm)
    assert vm.state == FINISHED
    vm.close()


def test_a_machine_in_doubt_can_be_closed(share):
    with no_leaks():
        schedule = SeededSchedule(1)
        vm = make(share, schedule=schedule)
        plan = FaultPlan([Fault("ours", "read", number, "fail") for number in range(2, 30)])
        one, other = MemoryChannel.pair(schedule)
        task = schedule.spawn("destination", lambda: Machine.receive(other, share, schedule=schedule))
        with pytest.raises(MigrationInDoubt):
            vm.send(FaultyChannel(one, plan, "ours"))
        vm.close()
        schedule.wait(lambda: task.done, "the destination")
        try:
            task.result().close()
        except MigrationError:
            pass  # it depends on the schedule whether the acknowledgement could still be written
