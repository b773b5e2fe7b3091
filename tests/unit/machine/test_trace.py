"""What a machine shows, chosen by glob, through the same wrappers as ``--trace``."""

from __future__ import annotations

import errno
import os
from fnmatch import fnmatchcase

import pytest

from vmsim.cli import run as run_command
from vmsim.cli.tracing import traced_seams, tracer_for
from vmsim.errors import MigrationError, UsageError
from vmsim.machine import Machine
from vmsim.schedule.seeded import SeededSchedule
from vmsim.trace import Tracer, render
from vmsim.trace.events import (
    FuseReply,
    FuseRequest,
    MigrationCommit,
    MigrationFailed,
    MigrationPhase,
    MigrationRound,
    RingCall,
    RingNotify,
    RingPop,
    RingPush,
    RingViolated,
    kind_of,
)
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyChannel

PHASES = ["setup", "precopy", "stop", "device", "ready", "done"]


class Traced:
    """A machine under a tracer that records one glob."""

    def __init__(self, share, glob="*", **options):
        self.schedule = SeededSchedule(5)
        self.tracer = Tracer(self.schedule.now_ns)
        self.history = self.tracer.record(glob)
        self.schedule.trace = self.tracer.source("schedule")
        seams = traced_seams(self.tracer, "vm1")
        self.machine = Machine(share, memory="2M", schedule=self.schedule, seams=seams, **options)

    def migrate(self, **options):
        self.machine = self.machine.migrate(seams=traced_seams(self.tracer, "vm2"), **options)

    def events(self, *kinds):
        return [entry.event for entry in self.history if isinstance(entry.event, kinds)]

    def kinds(self):
        return {kind_of(type(entry.event)) for entry in self.history}


@pytest.fixture
def traced(tmp_path):
    made = []

    def make(glob="*", **options):
        made.append(Traced(tmp_path, glob, **options))
        return made[-1]

    yield make
    for each in made:
        each.schedule.close()
        each.machine.close()


def work(fs):
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"text")
    with pytest.raises(FileNotFoundError):
        fs.stat("/none")
    fs.close(fd)


EXPECTED = {
    "fuse.*": {"fuse.request", "fuse.reply", "fuse.no-reply"},
    "virtio.ring.*": {"virtio.ring.pop", "virtio.ring.push", "virtio.ring.notify", "virtio.ring.call"},
    "migration.*": {
        "migration.phase", "migration.round", "migration.commit", "migration.write", "migration.read",
    },
    "migration.phase, migration.commit": {"migration.phase", "migration.commit"},
    "vhost.*": {"vhost.request", "vhost.reply"},
    "host.*": {"host.call"},
    "sim.*": {"sim.spawn", "sim.turn", "sim.end"},
    "*.re*": {"fuse.request", "fuse.reply", "vhost.request", "vhost.reply", "migration.read"},
}  # fmt: skip


@pytest.mark.parametrize("glob", EXPECTED)
def test_a_glob_shows_its_kinds_and_no_others(traced, glob):
    run = traced(glob)
    run.machine.spawn("program", work)
    run.schedule.sleep_ns(50_000)
    run.migrate()
    run.schedule.settle()
    run.machine.mount().drop_caches()
    run.schedule.settle()
    assert run.kinds() == EXPECTED[glob]
    for kind in run.kinds():
        assert any(fnmatchcase(kind, each.strip()) for each in glob.split(","))


def test_a_request_from_kick_to_call(traced):
    run = traced("virtio.ring.*,fuse.*")
    fs = run.machine.mount()
    fs.stat("/")
    run.history.clear()
    fs.stat("/")
    events = [entry.event for entry in run.history]
    assert [type(event) for event in events] == [
        RingNotify, RingPop, FuseRequest, FuseReply, RingPush, RingCall,
    ]  # fmt: skip
    notify, pop, request, reply, push, call = events
    assert notify.ring == pop.ring == request.ring == reply.ring == push.ring == call.ring == 1
    assert pop.head == push.head
    assert request.opcode == reply.opcode == "GETATTR"
    assert (request.unique, request.nodeid, reply.error) == (reply.unique, 1, 0)
    assert reply.size_bytes == push.written_bytes == 16 + 104
    assert {entry.where for entry in run.history} == {"vm1"}


def test_errors_are_shown_with_their_names(traced):
    run = traced("fuse.reply")
    with pytest.raises(FileNotFoundError):
        run.machine.mount().stat("/none")
    assert "LOOKUP error=ENOENT" in render(run.history[-1])


def test_a_migration_from_setup_to_commit(traced):
    run = traced("migration.*")
    run.migrate()
    assert [event.phase for event in run.events(MigrationPhase)] == PHASES[1:]
    stats = run.machine.migration_stats
    rounds = [(each.sent_bytes, each.dirty_bytes) for each in run.events(MigrationRound)]
    assert rounds == [(each.memory_bytes, each.dirty_bytes) for each in stats.rounds]
    assert [event.downtime_ns for event in run.events(MigrationCommit)] == [stats.downtime_ns]
    order = [type(entry.event) for entry in run.history]
    assert order.index(MigrationRound) < order.index(MigrationCommit)
    assert run.events(MigrationFailed) == []
    run.history.clear()
    run.machine.mount().stat("/")
    assert run.history == []


def test_a_migration_that_fails_says_where(traced):
    run = traced("migration.*")
    plan = FaultPlan([Fault("channel source", "write", 5, "fail")])
    inner = run.machine.seams.channel
    run.machine.seams.channel = lambda channel, side: FaultyChannel(
        inner(channel, side), plan, f"channel {side}"
    )
    with pytest.raises(MigrationError) as caught:
        run.migrate()
    (failed,) = run.events(MigrationFailed)
    assert (failed.side, failed.step) == (caught.value.side, caught.value.step)
    assert failed.side == "source"
    assert failed.step.startswith("saving virtio-mmio")
    assert failed.message == caught.value.message
    assert caught.value.errno == errno.EIO
    assert run.events(MigrationCommit) == []
    assert len(run.events(MigrationRound)) >= 1


def test_both_machines_are_told_apart(traced):
    run = traced("vhost.request,fuse.request")
    run.machine.mount().stat("/")
    run.migrate()
    run.machine.mount().stat("/")
    fuse = [entry.where for entry in run.history if isinstance(entry.event, FuseRequest)]
    assert fuse[-1] == "vm2"
    assert fuse[0] == "vm1"
    assert {entry.where for entry in run.history} == {"vm1", "vm2"}


def test_a_ring_that_is_given_up(traced):
    run = traced("virtio.ring.violation")
    kernel = run.machine.kernel
    queue = kernel.state.queues[1]
    kernel.memory.store_u16(queue.driver + 2, 60_000)  # avail.idx jumps
    kernel.driver.bus.write(0x50, 4, 1)
    run.schedule.settle()
    (violated,) = run.events(RingViolated)
    assert violated.ring == 1
    assert violated.message


def test_nobody_listens_nothing_is_made(tmp_path):
    tracer = Tracer()
    with Machine(tmp_path, memory="2M", seams=traced_seams(tracer, "vm")) as machine:
        work(machine.mount())
    history = tracer.record("*")
    assert history == []
    with Machine(tmp_path, memory="2M", seams=traced_seams(tracer, "vm")) as machine:
        work(machine.mount())
    assert history[0].number == 0


def test_a_glob_that_matches_nothing_is_refused():
    schedule = SeededSchedule(1)
    with pytest.raises(UsageError, match="no event matches"):
        tracer_for("fuze.*", schedule)


@pytest.mark.parametrize(
    ("glob", "some"),
    [("migration.phase", "phase=precopy"), ("fuse.*", "opcode=CREATE"), ("sim.spawn", "name=workload")],
)
def test_the_command_prints_what_matches(glob, some, tmp_path, capsys):
    (tmp_path / "f").write_bytes(b"1")
    options = ["--memory", "8M", "--inodes", "20", "--trace", glob, "--json"]
    assert run_command(["migrate", str(tmp_path), *options]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(" ")]
    assert any(some in line for line in lines)
    for line in lines:
        assert any(fnmatchcase(word, glob) for word in line.split())
