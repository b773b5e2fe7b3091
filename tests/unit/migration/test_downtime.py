"""What the downtime consists of, that it is promised before the guest stops, and what becomes of promises."""

from __future__ import annotations

import pytest

from tests.support.migration_rig import Machine, Run
from vmsim.errors import MigrationCancelled, UsageError
from vmsim.migration.downtime import PARTS, Downtime, Forecast, Stopwatch, WaitingSink, expected, overrun
from vmsim.migration.report import MigrationParameters

MS = 1_000_000


class Slow(Machine):
    """Each step of the way takes its own time of the virtual clock."""

    let_pass = None

    def _step(self, name):
        super()._step(name)
        if self.let_pass is not None:
            self.let_pass(name)


class SlowSection:
    version_id = max_version_id = 1
    instance_id = 0

    def __init__(self, idstr, save_ns=0, load_ns=0, clock=None):
        self.idstr, self.save_ns, self.load_ns, self.clock = idstr, save_ns, load_ns, clock

    def save(self, out):
        self.clock.advance_to(self.clock.now_ns() + self.save_ns)
        out.u8("x", 1)

    def load(self, src, version_id):
        self.clock.advance_to(self.clock.now_ns() + self.load_ns)
        src.u8("x")


def slow_run(parameters=None, **takes):
    """A migration whose steps take the given times."""
    source = Slow()
    run = Run(source=source, parameters=parameters)
    clock = run.schedule.clock
    source.let_pass = lambda name: clock.advance_to(clock.now_ns() + takes.get(name, 0))
    source.devices = sections(clock)

    def built(machine):
        machine.devices = sections(clock)
        prepare = machine.prepare
        machine.prepare = lambda: (clock.advance_to(clock.now_ns() + takes.get("prepare", 0)), prepare())

    run._prepare = built
    return run.go()


def sections(clock):
    return [
        SlowSection("vmsim/guest", 3 * MS, 5 * MS, clock),
        SlowSection("bus@0/disk", 7 * MS, 11 * MS, clock),
    ]


def test_every_part_is_measured_and_they_add_up():
    run = slow_run(stop_rings=2 * MS, pause=1 * MS, prepare=4 * MS)
    assert run.errors == {}
    run.outgoing.started(run.incoming.load_ns)
    parts = run.outgoing.stats.downtime
    assert parts.rings_ns == 3 * MS
    assert parts.guest_ns == 3 * MS
    assert parts.device_ns == 7 * MS
    assert parts.load_ns == (5 + 11 + 4) * MS
    assert run.outgoing.stats.downtime_ns == (1 + 2 + 3 + 7 + 20) * MS, "from the guest's stop to its start"
    assert sum(parts.parts().values()) == run.outgoing.stats.downtime_ns


def test_what_happens_before_the_stop_is_no_downtime():
    run = slow_run(start_log=50 * MS, check_migratable=50 * MS)
    assert run.outgoing.stats.downtime_ns == 26 * MS
    assert run.outgoing.stats.total_ns == 126 * MS


def test_a_destination_elsewhere_counts_as_long_as_its_answer_takes():
    run = slow_run()
    assert run.outgoing.stats.downtime.load_ns + run.outgoing.stats.downtime.transfer_ns == 16 * MS


FORECAST = Forecast(guest_ns=20 * MS, device_ns=30 * MS, load_ns=200 * MS, state_bytes=0, because="7 inodes")


def test_what_cannot_be_kept_is_said_before_the_guest_stops():
    reports = []

    def note(report):
        reports.append((report.phase, report.warning, report.expected, run_of[0].running))

    source = Machine()
    source.expects = FORECAST
    run_of = [source]
    run = Run(source=source, parameters=MigrationParameters(downtime_limit_ns=50 * MS), on_progress=note).go()
    assert run.errors == {}
    phase, warning, promise, running = next(each for each in reports if each[1])
    assert (phase, running) == ("precopy", True)
    assert warning == (
        "the downtime limit of 50 ms cannot be kept: 250 ms are expected, 200 ms too many; "
        "200 ms of them for loading at the destination (7 inodes)"
    )
    assert promise.total_ns == 250 * MS
    stats = run.outgoing.stats
    assert not stats.converged
    assert stats.warnings == [warning]
    assert stats.expected == promise


def test_by_choice_it_refuses_and_the_guest_goes_on():
    source = Machine()
    source.expects = FORECAST
    parameters = MigrationParameters(downtime_limit_ns=50 * MS, over_limit="refuse")
    run = Run(source=source, parameters=parameters).go()
    assert run.who_runs() == ["source"]
    assert source.untouched()
    assert "pause" not in source.log
    assert run.errors["source"].step == "precopy"
    assert "allow a downtime of 250 ms" in run.errors["source"].hint


def test_state_leaves_less_for_memory():
    """At 1 MB/s, 5 ms are 5000 bytes; with 4 ms for the state only 1000, less than a page."""

    def rounds(forecast):
        source = Machine()
        source.expects = forecast
        dirty = iter([[(0x1000, 4096)], [(0x1000, 4096)], []])
        source.harvest = lambda: next(dirty, [])
        parameters = MigrationParameters(part_bytes=4096, bandwidth=1_000_000, downtime_limit_ns=5 * MS)
        run = Run(source=source, parameters=parameters).go()
        assert run.errors == {}
        return len(run.outgoing.stats.rounds)

    assert rounds(Forecast()) == 1
    assert rounds(Forecast(load_ns=4 * MS)) == 3
    assert rounds(Forecast(load_ns=400 * MS)) == 3, "and what never fits does not go round for ever"


def test_the_state_has_to_be_sent_too():
    promise = expected(Forecast(state_bytes=1000), 3000, 1e-3)
    assert (promise.memory_ns, promise.transfer_ns) == (3 * MS, 1 * MS)
    assert "0.5 ms too many" in overrun(promise, 3_500_000, "")
    assert overrun(promise, 4 * MS, "") == ""


def test_a_limit_that_was_promised_and_not_kept_is_told():
    run = slow_run(MigrationParameters(downtime_limit_ns=10 * MS))
    stats = run.outgoing.stats
    assert stats.warnings == []
    run.outgoing.started(run.incoming.load_ns)
    assert not stats.converged
    (warning,) = stats.warnings
    assert warning.startswith("the downtime was 26 ms")


@pytest.mark.parametrize("part", PARTS)
def test_the_part_that_takes_longest_is_named(part):
    downtime = Downtime(**{part: 2})
    assert downtime.total_ns == 2
    assert PARTS[part] in overrun(downtime, 1, "")


def test_waiting_for_the_channel_is_no_part_of_saving():
    now = [0]

    class Channel:
        def write(self, data):
            now[0] += 10

    sink = WaitingSink(Channel(), lambda: now[0])
    watch = Stopwatch(lambda: now[0], sink)
    watch.begin()

    def save():
        now[0] += 3
        sink.write(b"")

    watch.do("guest_ns", save)
    watch.end()
    assert (watch.parts.guest_ns, watch.parts.transfer_ns, watch.parts.total_ns) == (3, 10, 13)


def test_cancelled_after_a_while_also_while_everybody_waits():
    """The destination has stopped reading: nobody but the alarm can end this."""
    source = Machine()
    run = Run(source=source, parameters=MigrationParameters(cancel_after_ns=50 * MS), capacity=4096)
    run.incoming.run = lambda: None
    run.go()
    assert isinstance(run.errors["source"], MigrationCancelled)
    assert "it was not done after 50 ms" in str(run.errors["source"])
    assert source.untouched()
    assert 50 * MS <= run.schedule.now_ns() <= 61 * MS


def test_the_alarm_does_not_outlive_the_migration():
    run = Run(parameters=MigrationParameters(cancel_after_ns=3600 * 10**9)).go()
    assert run.errors == {}
    run.schedule.sleep_ns(11 * MS)
    assert run.schedule.waits() == {}


@pytest.mark.parametrize("wrong", [
    {"over_limit": "hope"}, {"downtime_limit_ns": -1}, {"max_rounds": 0}, {"bandwidth": 0}, {"part_bytes": 0},
    {"cancel_after_ns": -1},
])  # fmt: skip
def test_impossible_parameters_are_refused_before_anything_happens(wrong):
    with pytest.raises(UsageError):
        Run(parameters=MigrationParameters(**wrong))


def writing(dirty_pages):
    """A machine of whose memory so many pages are dirty after each round, from the first on."""
    source = Machine()
    pages = iter(dirty_pages)
    source.harvest = lambda: [(0x1000, 4096 * count)] if (count := next(pages, 0)) else []
    return source


STUCK = {"part_bytes": 4096, "bandwidth": 1_000_000, "downtime_limit_ns": MS, "max_rounds": 9}


def test_memory_that_does_not_get_less_is_told_while_the_guest_works_and_again_at_the_end():
    source, told = writing([3, 3, 2, 3, 3, 3, 3, 3, 3]), []
    parameters = MigrationParameters(**STUCK)

    def note(report):
        if report.warning and report.warning not in (warning for _, warning in told):
            told.append((source.running, report.warning))

    run = Run(source=source, parameters=parameters, on_progress=note).go()
    assert (run.errors, run.outgoing.stats.converged) == ({}, False)
    (runs, first), (still_runs, second) = told
    assert runs is still_runs is True
    assert first == (
        "memory changes as fast as it is sent: 12288 bytes are left after 5 rounds, "
        "12 ms of downtime for them alone; after round 9 the guest is stopped"
    )
    assert "the downtime limit of 1 ms cannot be kept" in second
    assert [each.split(":")[0] for each in run.outgoing.stats.warnings] == [
        "memory changes as fast as it is sent", "the downtime limit of 1 ms cannot be kept"
    ]  # fmt: skip


@pytest.mark.parametrize("dirty", [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [1, 5, 4, 3, 0], [3, 3, 3, 3, 0]])
def test_nothing_is_said_of_memory_that_gets_less(dirty):
    told = []
    parameters = MigrationParameters(**STUCK | {"max_rounds": 30})
    note = lambda report: told.append(report.warning)  # noqa: E731
    run = Run(source=writing(dirty), parameters=parameters, on_progress=note).go()
    assert (set(told), run.outgoing.stats.warnings, run.outgoing.stats.converged) == ({""}, [], True)


def test_whoever_waits_for_the_bandwidth_can_be_cancelled():
    """One part takes an hour here."""
    source = Machine()
    source.memory.regions[0].view[:] = b"\1" * (40 * 4096)
    parameters = MigrationParameters(part_bytes=40 * 4096, bandwidth=45, cancel_after_ns=25 * MS)
    run = Run(source=source, parameters=parameters).go()
    assert isinstance(run.errors["source"], MigrationCancelled)
    assert source.untouched()
    assert run.schedule.now_ns() < 100 * MS
