"""Never both, never neither: the line between the two ends breaks at every byte, in every way.

A small machine, so that *every* byte of both directions can be tried;
tests/unit/machine/test_tunnels.py does the same to whole machines at fewer places.
"""

from __future__ import annotations

import pytest

from tests.support.broken_line import BACK, FORTH, Break, BrokenLine, breaks
from tests.support.migration_rig import Machine, Run, make_memory
from tests.support.sampling import sample
from vmsim.errors import MigrationError, StateError, VmsimError
from vmsim.migration.report import MigrationInDoubt
from vmsim.migration.returnpath import FAILED, READY, RESUME_ACK, SHUT, ReturnMessage, encode
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule

ANSWERS = 16
"""Bytes of READY and of the acknowledgement."""


def small() -> Machine:
    machine = Machine(make_memory((2, 1)))
    machine.memory.write(0x1000, b"x" * 4096)
    return machine


class LineRun(Run):
    """A migration of a small machine over a line that may break."""

    def __init__(self, broken: Break | None = None, **more) -> None:
        schedule = ImmediateSchedule(VirtualClock())
        self.line = BrokenLine(schedule, broken)
        super().__init__(
            source=small(), memory=(2, 1), schedule=schedule,
            ends=(self.line.source, self.line.destination), **more,
        )


def undisturbed() -> tuple[int, int]:
    """Where the devices begin, and how many bytes go forth."""
    began = {}
    run = LineRun(on_progress=lambda report: began.setdefault(report.phase, report.sent_bytes)).go()
    assert run.errors == {}
    assert run.line.passed[BACK] == ANSWERS
    return began["device"], run.line.passed[FORTH]


def outcome(broken: Break) -> str:
    """What came of it, in a word; asserts that it is one of those that are allowed."""
    run = LineRun(broken).go()
    source, runs = run.source, run.who_runs()
    what = f"{broken}: {runs} run, phase {run.outgoing.phase}, {({k: str(v) for k, v in run.errors.items()})}"
    assert runs != ["source", "destination"], what
    if run.outgoing.phase == "doubt":
        assert isinstance(run.errors["source"], MigrationInDoubt), what
        assert "source" not in runs, what
        settled(run, destination_runs="destination" in runs)
        # Nobody here knew; whoever says the other thing is believed as well.
        if runs:
            run.destination.discard()
        again = LineRun(broken).go()
        settled(again, destination_runs="destination" not in runs)
        return f"doubt, {'it runs' if runs else 'it does not'}"
    assert len(runs) == 1, what
    if runs == ["source"]:
        assert source.untouched(), what
        assert all(machine.discarded for machine in run.built), what
    else:
        assert source.finished, what
        assert run.destination.state() == small().state(), what
    return runs[0]


def settled(run: Run, *, destination_runs: bool) -> None:
    assert not run.source.running
    assert not run.source.finished
    run.outgoing.settle(destination_runs=destination_runs)
    assert run.source.finished == destination_runs
    assert run.source.untouched() != destination_runs
    with pytest.raises(StateError):
        run.outgoing.settle(destination_runs=destination_runs)


def outcomes(direction: str, positions) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for broken in breaks(direction, positions):
        found.setdefault(broken.passed, set()).add(outcome(broken))
    return found


def test_every_byte_from_the_devices_to_the_go():
    begins, total = undisturbed()
    before = sample(range(begins, total - 1), 50, "bytes from the devices to the go")
    found = outcomes(FORTH, [*before, *range(total - 1, total + 2)])
    assert set().union(*(found[passed] for passed in before)) == {"source"}, "before the go"
    assert found[total - 1] == {"doubt, it does not"}, "the go does not arrive"
    assert found[total] == found[total + 1] == {"destination"}


def test_bytes_before_the_devices():
    begins, _ = undisturbed()
    found = outcomes(FORTH, [*range(64), *range(64, begins, 61)])
    assert set().union(*found.values()) == {"source"}


def test_every_byte_of_the_answers():
    found = outcomes(BACK, range(ANSWERS + 2))
    assert set().union(*(found[passed] for passed in range(8))) == {"source"}, "no go without the whole READY"
    assert set().union(*(found[passed] for passed in range(8, ANSWERS))) == {"doubt, it runs"}
    assert found[ANSWERS] == found[ANSWERS + 1] == {"destination"}


def test_the_destination_knows_whether_the_source_was_told():
    for passed, told in ((8, False), (12, False), (ANSWERS, True)):
        run = LineRun(Break(BACK, passed, "reset", True)).go()
        assert run.incoming.acknowledged == told


def test_half_an_acknowledgement_is_said():
    assert "it has run" in LineRun(Break(BACK, 12, "end", False)).go().errors["source"].message
    assert "it has run" not in LineRun(Break(BACK, 9, "end", False)).go().errors["source"].message


class Liar:
    """The destination's end: after the go it answers with other bytes."""

    duplex = True

    def __init__(self, inner, answer: bytes, *, ends: bool) -> None:
        self.inner, self.answer, self.ends = inner, answer, ends

    def write(self, data):
        if bytes(data) == encode(ReturnMessage(RESUME_ACK, 1)):
            data = self.answer
        self.inner.write(data)
        if data is self.answer and self.ends:
            self.inner.close_write()

    def __getattr__(self, name):
        return getattr(self.inner, name)


GARBAGE = (
    b"", b"\0", b"\0\6", b"HTTP/1.1 502 Bad Gateway\r\n", bytes(8), b"\xff" * 64,
    encode(ReturnMessage(SHUT, READY)), encode(ReturnMessage(RESUME_ACK, 0)),
    encode(ReturnMessage(SHUT, 2)), encode(ReturnMessage(7, FAILED)),
    encode(ReturnMessage(SHUT, FAILED, "loading", "a reason"))[:-1],
    b"\0\1\0\3\0\0\0", b"\0\1\xff\xff\0\0\0\1",
)  # fmt: skip


@pytest.mark.parametrize("answer", GARBAGE, ids=repr)
def test_what_is_no_statement_leaves_a_doubt(answer):
    run = Run(source=small(), memory=(2, 1), wrap_destination=lambda end: Liar(end, answer, ends=True)).go()
    assert isinstance(run.errors["source"], MigrationInDoubt)
    assert run.who_runs() == ["destination"]
    settled(run, destination_runs=True)


@pytest.mark.parametrize("ends", [True, False])
def test_a_refusal_is_a_statement_even_after_the_go(ends):
    answer = encode(ReturnMessage(SHUT, FAILED, "loading", "a reason", 5, "a hint"))
    run = Run(source=small(), memory=(2, 1), wrap_destination=lambda end: Liar(end, answer, ends=ends)).go()
    error = run.errors["source"]
    assert not isinstance(error, MigrationInDoubt)
    assert (error.step, error.side, error.errno, error.hint) == ("loading", "destination", 5, "a hint")
    assert run.source.untouched()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError, MemoryError])
@pytest.mark.parametrize("both_here", [True, False])
def test_whatever_is_raised_after_the_go_does_not_let_the_source_run(error, both_here):
    class Interrupted:
        duplex = True

        def __init__(self, inner) -> None:
            self.inner, self.went = inner, False

        def write(self, data):
            self.went = self.went or bytes(data) == b"G"
            self.inner.write(data)

        def read_some(self, limit):
            if self.went:
                raise error
            return self.inner.read_some(limit)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    run = Run(source=small(), memory=(2, 1), wrap_source=Interrupted)
    run.outgoing._both_here = both_here
    ours = issubclass(error, Exception)
    if ours:
        run.go()
        assert isinstance(run.errors["source"], MigrationInDoubt)
    else:
        with pytest.raises(error):
            run.go()
        run.schedule.settle()
    if ours or not both_here:
        assert run.outgoing.phase == "doubt"
        settled(run, destination_runs=True)
    else:
        assert run.source.untouched(), "its restart_rings makes an end of the destination"


@pytest.mark.parametrize("error", [VmsimError("it has hung"), ZeroDivisionError()])
def test_whoever_should_know_and_fails_leaves_a_doubt(error):
    def verdict():
        raise error

    run = LineRun(Break(BACK, 8, "end", False))
    run.outgoing._verdict = verdict
    run.go()
    assert run.errors["source"].__cause__ is error
    settled(run, destination_runs=True)


def test_a_failure_of_the_finished_source_is_no_failure_of_the_migration():
    run = LineRun()

    def finish() -> None:
        Machine.finish(run.source)
        raise MigrationError("the back-end is gone")

    run.source.finish = finish
    run.go()
    assert run.errors == {}
    assert run.who_runs() == ["destination"]
