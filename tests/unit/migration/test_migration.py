"""Whole migrations of a small machine: what arrives, what is reported, and who runs after any failure."""

from __future__ import annotations

import pytest

from tests.support.migration_rig import FaultChannel, Machine, Run, contents
from vmsim.errors import MigrationCancelled, MigrationError, StateError, StreamError
from vmsim.migration.channel import MemoryChannel
from vmsim.migration.errors import ChannelError
from vmsim.migration.report import MigrationInDoubt, MigrationParameters
from vmsim.migration.source import OutgoingMigration
from vmsim.schedule.immediate import ImmediateSchedule


def filled() -> Machine:
    machine = Machine()
    for number, region in enumerate(machine.memory.regions):
        for page in range(0, region.size_bytes // 4096, 2):
            machine.memory.write(region.gpa + page * 4096, bytes([page + number + 1]) * 4096)
    return machine


def scribble(machine: Machine, step: int) -> None:
    """A guest that dirties pages here and there, and its device state."""
    page = step * 7 % 40
    machine.memory.write(0x1000 + page * 4096 + 8, step.to_bytes(8, "little"))
    machine.devices[1].value = step


def test_memory_and_devices_arrive():
    source = filled()
    run = Run(source=source).go()
    assert run.errors == {}
    assert run.who_runs() == ["destination"]
    assert run.destination.state() == source.state()
    assert source.finished
    assert source.log == [
        "check_migratable", "configuration", "start_log", "harvest", "pause", "stop_rings", "harvest",
    ]


def test_a_guest_works_on_and_nothing_is_lost():
    source = filled()
    run = Run(source=source, guest=scribble, parameters=MigrationParameters(bandwidth=5_000_000)).go()
    assert run.errors == {}
    assert run.destination.state() == source.state()
    assert source.devices[1].value > 3, "the guest did not get to work during the migration"
    stats = run.outgoing.stats
    assert sum(r.dirty_bytes for r in stats.rounds) > 0


def test_rounds_go_on_until_the_rest_fits_the_downtime():
    source = filled()

    def writer(machine: Machine, step: int) -> None:
        if step < 30:
            scribble(machine, step)

    parameters = MigrationParameters(part_bytes=4096, bandwidth=1_000_000, downtime_limit_ns=5_000_000)
    run = Run(source=source, guest=writer, parameters=parameters).go()
    assert run.errors == {}
    stats = run.outgoing.stats
    assert stats.converged
    assert len(stats.rounds) > 1
    assert all(r.dirty_bytes > 5000 for r in stats.rounds[:-1])
    assert stats.rounds[-1].dirty_bytes <= 5000
    assert run.destination.state() == source.state()


@pytest.mark.parametrize("stop", [True, False])
def test_a_guest_that_writes_faster_than_we_send(stop):
    source = filled()

    def writer(machine: Machine, step: int) -> None:
        for page in range(40):
            machine.memory.store_u32(0x1000 + page * 4096, step)

    parameters = MigrationParameters(
        part_bytes=4096, bandwidth=1_000_000, downtime_limit_ns=1, max_rounds=3, stop_when_diverging=stop
    )
    run = Run(source=source, guest=writer, parameters=parameters).go()
    assert len(run.outgoing.stats.rounds) == 3
    assert not run.outgoing.stats.converged
    if stop:
        assert run.who_runs() == ["destination"]
        assert contents(run.destination.memory) == contents(source.memory)
    else:
        assert run.who_runs() == ["source"]
        assert source.untouched()
        assert run.errors["source"].step == "precopy"
        assert "3 rounds" in str(run.errors["source"])


def test_statistics_add_up():
    run = Run(source=filled()).go()
    stats = run.outgoing.stats
    assert stats.pages == 24
    assert stats.zero_pages == 24
    assert set(stats.section_bytes) == {"vmsim/machine", "ram", "bus@0/timer", "vmsim/guest"}
    assert stats.section_bytes["ram"] > 24 * 4096
    assert sum(stats.section_bytes.values()) < stats.stream_bytes
    assert stats.rounds[0].memory_bytes == 48 * 4096


def test_progress_is_reported_in_order():
    reports = []
    run = Run(source=filled(), on_progress=reports.append).go()
    assert run.errors == {}
    phases = list(dict.fromkeys(report.phase for report in reports))
    assert phases == ["precopy", "stop", "device", "ready", "done"]
    assert [r.sent_bytes for r in reports] == sorted(r.sent_bytes for r in reports)


def test_only_the_parts_that_hold_data_are_sent_in_the_first_round():
    source = filled()
    first = source.memory.regions[0]
    source.data_of = lambda: lambda region: [(0, 4096 * 3)] if region is first else []
    for page in range(4, 40):
        first.view[page * 4096 : (page + 1) * 4096] = bytes(4096)
    source.memory.regions[1].view[:] = bytes(8 * 4096)
    run = Run(source=source).go()
    assert run.outgoing.stats.rounds[0].memory_bytes == 3 * 4096
    assert run.destination.state() == source.state()


def test_migrating_again_and_again():
    machine = filled()
    expected = machine.state()
    for _ in range(12):
        run = Run(source=machine).go()
        assert run.errors == {}
        machine = run.destination
        assert machine.state() == expected


def every_fault(side: str, kinds=("fail", "lose", "cut")):
    """(kind, number) of every channel operation of one side of an undisturbed migration."""
    counted = {}
    wrap = {f"wrap_{side}": lambda end: counted.setdefault("channel", FaultChannel(end))}
    Run(source=filled(), guest=None, **wrap).go()
    operations = counted["channel"].operations
    assert len(operations) > 6
    return [(kind, n + 1) for kind in kinds for n in range(len(operations))]


@pytest.mark.parametrize("side", ["source", "destination"])
def test_whatever_channel_operation_fails_exactly_one_machine_runs(side):
    outcomes = set()
    for kind, number in every_fault(side):
        source = filled()
        before = source.state()
        wrapped = []

        def wrap(end, kind=kind, number=number, wrapped=wrapped):
            wrapped.append(FaultChannel(end, number, kind))
            return wrapped[0]

        run = Run(source=source, **{f"wrap_{side}": wrap}).go()
        assert wrapped[0].injected, (kind, number)
        what = (kind, number, wrapped[0].operations[number - 1], {k: str(v) for k, v in run.errors.items()})
        runs = run.who_runs()
        if run.outgoing.phase == "doubt":
            assert len(runs) <= 1, (runs, what)
            run.outgoing.settle(destination_runs="destination" in runs)
            runs = run.who_runs()
        assert len(runs) == 1, (runs, what)
        outcomes.add(runs[0])
        assert source.state() == before, what
        if runs == ["source"]:
            assert source.untouched(), what
            assert set(run.errors) == {"source", "destination"}, what
            assert run.errors["source"].step, what
            assert all(machine.discarded for machine in run.built), what
        else:
            assert source.finished, what
            assert run.destination.state() == before, what
    assert outcomes == {"source", "destination"}, "some faults come before commit and some are survived"


@pytest.mark.parametrize(
    "step", ["check_migratable", "configuration", "start_log", "harvest", "pause", "stop_rings"]
)
def test_whatever_step_of_the_source_fails_it_goes_on(step):
    source = filled()
    source.fail_at = step
    run = Run(source=source).go()
    assert run.who_runs() == ["source"]
    assert source.untouched()
    error = run.errors["source"]
    assert isinstance(error, MigrationError)
    assert error.side == "source"
    assert error.errno == 5
    assert f"injected at {step}" in str(error)


@pytest.mark.parametrize("index", [0, 1])
def test_a_device_that_cannot_be_saved_is_named(index):
    source = filled()

    def broken(out):
        out.be32("value", 1)
        raise OSError(28, "no space")

    source.devices[index].save = broken
    run = Run(source=source).go()
    assert run.who_runs() == ["source"]
    assert source.untouched()
    assert run.errors["source"].step == f"saving {source.devices[index].idstr}"
    assert run.errors["source"].errno == 28


def test_a_destination_that_refuses_tells_the_source_why():
    def prepare(machine: Machine) -> None:
        machine.fail_at = "prepare"

    run = Run(source=filled(), prepare=prepare).go()
    assert run.who_runs() == ["source"]
    assert run.source.untouched()
    error = run.errors["source"]
    assert (error.side, error.step) == ("destination", "preparing to run")
    assert "injected at prepare" in str(error)
    assert run.destination.discarded


def test_a_device_that_cannot_be_loaded_is_named_on_both_sides():
    def prepare(machine: Machine) -> None:
        machine.devices[0].load = lambda src, version: src.refuse("value", "it is not to my liking")

    run = Run(source=filled(), prepare=prepare).go()
    assert run.who_runs() == ["source"]
    assert isinstance(run.errors["destination"].__cause__, StreamError)
    for error in run.errors.values():
        assert (error.side, error.step) == ("destination", "loading bus@0/timer")
        assert "not to my liking" in str(error)


def test_sections_must_match():
    def fewer(machine: Machine) -> None:
        del machine.devices[1]

    run = Run(source=filled(), prepare=fewer).go()
    assert "no section 'vmsim/guest'" in str(run.errors["source"])

    source = filled()
    del source.devices[1]
    run = Run(source=source).go()
    assert "the stream lacks 'vmsim/guest'" in str(run.errors["source"])
    assert run.who_runs() == ["source"]


def test_a_newer_section_is_refused():
    def older(machine: Machine) -> None:
        machine.devices[0].max_version_id = 1

    run = Run(source=filled(), prepare=older).go()
    assert "incoming version_id 2 is too new for local version_id 1" in str(run.errors["source"])


@pytest.mark.parametrize("phase", ["precopy", "stop", "device", "ready"])
def test_cancel_in_every_phase(phase):
    source = filled()

    def cancel(report) -> None:
        if report.phase == phase:
            run.outgoing.cancel()

    run = Run(source=source, on_progress=cancel)
    run.go()
    assert isinstance(run.errors["source"], MigrationCancelled)
    assert run.who_runs() == ["source"]
    assert source.untouched()


def test_cancel_while_the_destination_makes_up_its_mind():
    source = filled()
    run = Run(source=source, prepare=lambda machine: setattr(machine, "prepare", run.outgoing.cancel))
    run.go()
    assert isinstance(run.errors["source"], MigrationCancelled)
    assert run.who_runs() == ["source"]


def test_cancel_while_the_destination_does_not_read():
    schedule = ImmediateSchedule()
    source = filled()
    end, _other = MemoryChannel.pair(schedule, 8192)
    migration = OutgoingMigration(source, end, schedule)
    task = schedule.spawn("migration", migration.run)
    schedule.settle()
    assert not task.done
    migration.cancel()
    with pytest.raises(MigrationCancelled):
        schedule.join(task)
    assert source.untouched()


def test_it_is_too_late_to_cancel_after_commit():
    run = Run(source=filled()).go()
    with pytest.raises(StateError):
        run.outgoing.cancel()
    with pytest.raises(StateError):
        run.outgoing.run()


class Deaf:
    """A channel that gives the readiness of the destination and then errors for ever."""

    duplex = True

    def __init__(self, inner) -> None:
        self.inner = inner
        self.reads = 0

    def read_some(self, limit):
        self.reads += 1
        if self.reads > 1:
            raise ChannelError("the line is dead")
        return self.inner.read_some(limit)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_channel_that_stays_broken_while_the_destination_starts_leaves_the_source_stopped():
    for runs in (True, False):
        run = Run(source=filled(), wrap_source=Deaf).go()
        assert isinstance(run.errors["source"], MigrationInDoubt)
        assert "destination runs" in run.errors["source"].hint
        assert not run.source.running
        assert not run.source.finished
        assert run.outgoing.phase == "doubt"
        run.outgoing.settle(destination_runs=runs)
        assert run.source.finished == runs
        assert run.source.untouched() != runs
        with pytest.raises(StateError):
            run.outgoing.settle(destination_runs=runs)


@pytest.mark.parametrize("runs", [True, False])
def test_somebody_who_knows_ends_the_doubt(runs):
    run = Run(source=filled(), wrap_source=Deaf)
    run.outgoing._verdict = lambda: runs
    run.go()
    assert run.source.finished == runs
    assert ("source" in run.errors) != runs
    assert not isinstance(run.errors.get("source"), MigrationInDoubt)


def test_a_listener_that_fails_after_commit_does_not_matter():
    def listen(report) -> None:
        if report.phase == "done":
            raise ZeroDivisionError

    run = Run(source=filled(), on_progress=listen).go()
    assert run.who_runs() == ["destination"]


def test_a_bug_in_a_device_rolls_back_and_shows_itself():
    source = filled()

    def broken(out):
        raise ZeroDivisionError

    source.devices[0].save = broken
    with pytest.raises(ZeroDivisionError):
        Run(source=source).go()
    assert source.untouched()
