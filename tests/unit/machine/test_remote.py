"""Machines whose back-end is another process: everything that holds in one process holds here."""

from __future__ import annotations

import ast
import os
import sys

import pytest

from devices.virtio_fs import DEVICE
from tests.support.machine_rig import FEW_KINDS, Life, make
from tests.support.remote_rig import Side, nothing_left
from vmsim.errors import HostError, MigrationBlocked, MigrationCancelled, MigrationError, UsageError
from vmsim.host.processes import SERVE, BackendProcess
from vmsim.host.vhost_user.transport import VhostUserTransport
from vmsim.machine import Machine, MachineConfig, RemoteBackend, Seams
from vmsim.machine.remote import command_options
from vmsim.machine.states import FINISHED, RUNNING
from vmsim.migration.report import MigrationParameters
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.schedule.seeded import SeededSchedule
from vmsim.vhost import payloads as p
from vmsim.vhost.constants import F_DEVICE_STATE, NO_FD
from vmsim.vhost.device_options import option_words
from vmsim.vhost.messages import Reply, Request

REMOTE = {"transport": "vhost-user"}


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def clean(tmp_path):
    with nothing_left(tmp_path / "temporary"):
        yield


@pytest.mark.parametrize("kind", FEW_KINDS, ids=str)
def test_everything_survives(share, kind):
    vm = make(share, kind, **REMOTE)
    life = Life(vm)
    for _ in range(2):
        before, vm = vm, vm.migrate()
        assert before.state == FINISHED
        assert vm.backend.process.pid != before.backend.process.pid
        assert not before.backend.process.alive
        life.check(vm)
        life.go_on(vm)
        before.close()
    life.finish(vm)
    vm.close()


@pytest.mark.parametrize("kind", FEW_KINDS[1:3], ids=str)
def test_a_back_end_that_is_kept_goes_on_behind_the_destination(share, kind):
    vm = make(share, kind, migration="external", **REMOTE)
    pid = vm.backend.process.pid
    life = Life(vm)
    for _ in range(2):
        vm = vm.migrate()
        assert vm.backend.process.pid == pid
        life.check(vm)
        life.go_on(vm)
    life.finish(vm)
    vm.close()


def test_pause_stops_everything_and_resume_goes_on(share):
    with make(share, FEW_KINDS[0], **REMOTE) as vm:
        life = Life(vm)
        for _ in range(3):
            vm.pause()
            vm.resume()
            life.go_on(vm)
        life.check(vm)
        life.finish(vm)


@pytest.mark.parametrize("kind", FEW_KINDS[:2], ids=str)
def test_saved_and_restored_on_either_transport(share, tmp_path, kind):
    vm = make(share, kind._replace(mode="find-paths"), **REMOTE)
    fs = vm.mount()
    fd = fs.open("/kept", os.O_RDWR | os.O_CREAT)
    fs.write(fd, b"text")
    gone = fs.open("/gone", os.O_RDWR | os.O_CREAT)
    fs.write(gone, b"only here")
    fs.unlink("/gone")
    vm.save(tmp_path / "one", keep_running=False)
    for number, transport in enumerate(("inproc", "vhost-user", "inproc")):
        vm = Machine.restore(
            tmp_path / ("one", "two")[number % 2], share=share, transport=transport,
            schedule=kind.schedule(),
        )  # fmt: skip
        fs = vm.mount()
        assert fs.read(fd, 10) == b""
        assert fs.pread(fd, 10, 0) == b"text"
        assert fs.pread(gone, 10, 0) == b"only here"
        vm.save(tmp_path / ("two", "one")[number % 2], keep_running=False)


def test_cancelled_it_goes_on_with_its_handles(share):
    vm = make(share, FEW_KINDS[0], **REMOTE)
    life = Life(vm)
    for phase in ("precopy", "stop", "device", "ready"):

        def cancel(report, phase=phase):
            if report.phase == phase:
                vm.cancel()

        with pytest.raises(MigrationCancelled):
            vm.migrate(progress=cancel)
        assert vm.state == RUNNING
        life.check(vm)
        life.go_on(vm)
    life.finish(vm)
    vm.close()


@pytest.mark.parametrize("bandwidth", [64 << 20, None])
def test_the_guest_works_on_while_its_memory_is_sent(share, bandwidth):
    for schedule in (ImmediateSchedule(), SeededSchedule(5)):
        vm = make(share, FEW_KINDS[0], schedule=schedule, memory="16M", **REMOTE)
        done = []

        def program(fs, done=done):
            while len(done) < 2000:
                fs.stat("/")
                done.append(len(done))

        task = vm.spawn("program", program)
        moved = []
        slow = MigrationParameters(part_bytes=4096, bandwidth=bandwidth, max_rounds=3, downtime_limit_ns=1)
        vm.mount().open("/f", os.O_CREAT | os.O_RDWR)

        def seen(report, moved=moved, done=done):
            moved.append(len(done))

        vm = vm.migrate(progress=seen, parameters=slow)
        assert moved[-1] > moved[0]
        schedule.join(task)
        assert len(done) == 2000
        vm.close()


def test_many_queues_and_every_program_on_them(share):
    schedule = SeededSchedule(6)
    vm = make(share, FEW_KINDS[2], schedule=schedule, queues=3, memory="4M", **REMOTE)

    def program(fs, name):
        fd = fs.open(name, os.O_RDWR | os.O_CREAT)
        for number in range(50):
            assert fs.pwrite(fd, b"%04d" % number, 4 * number) == 4
        return fs.pread(fd, 1000, 0)

    tasks = [vm.spawn(f"{n}", lambda fs, n=n: program(fs, f"/{n}"), pid=n + 2) for n in range(5)]
    vm = vm.migrate()
    expected = b"".join(b"%04d" % number for number in range(50))
    assert [schedule.join(task) for task in tasks] == [expected] * 5
    vm.close()


def test_facts_are_what_the_guest_knows(share):
    with make(share, FEW_KINDS[0], **REMOTE) as vm:
        life = Life(vm)
        facts = vm.facts()
        assert facts["handles"] == len(vm.kernel.state.files)
        assert facts["waiting"] == 1
        assert facts["inodes"] > 3
        assert "locks" not in facts, "nobody on this side knows"
        assert str(vm.backend.process.pid) in next(vm.backend.describe())
        assert [finding.severity for finding in vm.preflight()] == ["info"]
        assert vm.notes() == []
        assert vm.backend.ring(1) is None
        life.finish(vm)


def test_a_back_end_behind_a_path_is_used_and_left_alone(share):
    with BackendProcess(str(share), options=["--reconnect"]) as process:
        process.wait_ready()
        process.connect().close()
        schedule = ImmediateSchedule()
        backend = RemoteBackend(process.socket, str(share), schedule)
        assert process.socket in next(backend.describe())
        with Machine(share, memory="2M", schedule=schedule, backend=backend) as vm:
            vm.mount().mkdir("/d")
            assert backend.connected
        assert not backend.connected
        assert process.alive
    assert (share / "d").is_dir()


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_rings_without_a_kick_are_polled(share, ring, monkeypatch):
    """SET_VRING_KICK without a descriptor (bit 8): "polling should be used instead"."""
    left_out = []

    def request(self: VhostUserTransport, asked: Request) -> Reply | None:
        if asked.row.name == "SET_VRING_KICK":
            left_out.append(asked.payload.value)
            asked = Request(asked.row, p.Number(asked.payload.value | NO_FD), (), asked.need_reply)
        return ask(self, asked)

    ask = VhostUserTransport.request
    monkeypatch.setattr(VhostUserTransport, "request", request)
    monkeypatch.setattr(VhostUserTransport, "kick", lambda self, ring: None)
    with Machine(share, ring=ring, **REMOTE) as vm:
        fs = vm.mount()
        fs.mkdir("/d")
        vm.pause()
        vm.resume()
        assert "d" in fs.listdir("/")
    assert left_out == [0, 1, 0, 1]


def test_commands_that_start_nothing_useful(share):
    with pytest.raises(HostError, match="exit status 3") as caught:
        make(share, transport="vhost-user", backend_command="sh -c 'echo no disk >&2; exit 3' {socket}")
    assert caught.value.hint == "it said: no disk"
    with pytest.raises(UsageError, match="where the back-end listens"):
        make(share, transport="vhost-user", backend_command="virtiofsd")
    with pytest.raises(UsageError, match="transport='tcp'"):
        make(share, transport="tcp")
    with pytest.raises(UsageError, match="backend_command"):
        make(share, backend_command="x {socket}")


def test_options_reach_the_back_end(share):
    side = Side()
    with make(share, seams=side.seams, options={"migration_verify_handles": False}):
        assert list(side.process.command[: len(SERVE) - 4]) == list(SERVE[:-4])
        assert "--reconnect" in side.process.command


def test_options_are_spelled_as_virtiofsds():
    config = MachineConfig(
        memory=[(0, 1 << 20)], queues=2, dialect="rfc2023",
        options={
            "migration_mode": "find-paths", "readonly": True, "writeback": False, "locks": False,
            "direct_io": True, "cache": "never", "timeout_s": None,
            "translate_uid": ("map:0:1:2", "map:5:6:7"),
        },
    )  # fmt: skip
    said = [
        "--cache=never", "--allow-direct-io", "--readonly", "--no-locks", "--translate-uid=map:0:1:2",
        "--translate-uid=map:5:6:7",
    ]  # fmt: skip
    assert sorted(option_words(DEVICE.options, config.options)) == sorted(said)
    assert command_options(config) == [
        *said[:2], "--xattr", *said[2:], "--sandbox=none", "--ring-policy=strict", "--reconnect",
        "--ring-reset", "--dialect=rfc2023", "--request-queues=2",
    ]  # fmt: skip


def test_what_only_programs_can_ask_for_is_no_word():
    with pytest.raises(UsageError, match="no command line says 'search_entries'"):
        option_words(DEVICE.options, {"search_entries": 5})


RECORDER = "import sys; print(sys.argv[1:], file=sys.stderr); sys.exit(9)"


@pytest.mark.parametrize("changes", [
    {"migration": "external"}, {"dialect": "rfc2023"}, {"queues": 2}, {"migration": "none"},
    {"options": {"migration_mode": "find-paths", "locks": True}}, {"ring": "packed"},
])  # fmt: skip
def test_to_a_command_of_somebody_elses_nothing_is_added(share, changes):
    command = [sys.executable, "-c", RECORDER, "{socket}", "--like=this", "{dir}"]
    with pytest.raises(HostError, match="exit status 9") as caught:
        make(share, transport="vhost-user", backend_command=command, **changes)
    socket, *rest = ast.literal_eval(caught.value.hint.removeprefix("it said: "))
    assert os.path.basename(socket) == "socket"
    assert rest == ["--like=this", str(share)]


def test_options_go_where_a_command_of_somebody_elses_says(share):
    options = {"readonly": True, "cache": "never"}
    command = [sys.executable, "-c", RECORDER, "{options}", "{socket}"]
    with pytest.raises(HostError) as caught:
        make(share, transport="vhost-user", backend_command=command, options=options)
    assert "['--readonly', '--cache=never'," in caught.value.hint
    with pytest.raises(UsageError, match="no place for --readonly --cache=never") as refused:
        make(share, transport="vhost-user", backend_command="serve {socket} {dir}", options=options)
    assert "{options}" in refused.value.hint


def test_a_back_end_that_ends_with_its_front_end_cannot_be_kept(share):
    command = [*SERVE, "--sandbox=none"]
    with make(share, transport="vhost-user", backend_command=command, migration="external") as vm:
        with pytest.raises(MigrationError, match="did not stay for another connection") as caught:
            vm.migrate()
        assert "--reconnect" in caught.value.hint
        assert "migration internal" in caught.value.hint


def test_a_back_end_that_cannot_migrate_is_said_so_in_words_that_help(share):
    """The kind that was asked for is no advice to somebody who has asked for it."""
    def without_device_state(inner):
        ask = inner.request

        def request(what):
            reply = ask(what)
            if what.row.name == "GET_PROTOCOL_FEATURES":
                return Reply(p.Number(reply.payload.value & ~(1 << F_DEVICE_STATE)))
            return reply

        inner.request = request
        return inner

    with make(share, seams=Seams(transport=without_device_state), transport="vhost-user") as vm:
        with pytest.raises(MigrationBlocked, match="does not support migration through qemu") as caught:
            vm.migrate()
        assert "VHOST_USER_PROTOCOL_F_DEVICE_STATE" in caught.value.hint
        assert "internal" not in caught.value.hint
        assert vm.state == "running"


def test_a_schedule_that_waits_elsewhere_is_refused(share):
    with pytest.raises(UsageError, match="cannot wait"):
        make(share, schedule=ImmediateSchedule(idle=lambda deadline: False), **REMOTE)
