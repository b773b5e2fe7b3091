"""State that goes ahead of the stop: when, to whom, and that nothing depends on it."""

from __future__ import annotations

from tests.support.migration_rig import FaultChannel, Machine, Run
from vmsim.errors import StreamError
from vmsim.host.files import FileReader, FileWriter
from vmsim.limits import EARLY_PIECE_MAX
from vmsim.migration.destination import IncomingMigration
from vmsim.migration.report import MigrationParameters
from vmsim.migration.source import OutgoingMigration
from vmsim.schedule.immediate import ImmediateSchedule

PIECES = [("vmsim/guest", b""), ("vmsim/guest", b"first"), ("bus@0/timer", b"x" * 100_000), ("nobody", b"z")]


def source_with(pieces=tuple(PIECES)):
    machine = Machine()
    machine.pieces = list(pieces)
    return machine


def test_pieces_arrive_in_order_before_the_guest_stops():
    source = source_with()
    seen = []
    run = Run(source=source)

    def pause():
        seen.extend(run.destination.came)
        Machine.pause(source)

    source.pause = pause
    run.go()
    assert run.errors == {}
    assert seen == [piece for piece in PIECES if piece[1]], "all of them, and the empty one is none"
    assert run.destination.state() == source.state()
    assert run.outgoing.stats.section_bytes["vmsim/early"] > 100_000


def test_memory_written_while_they_are_sent_is_not_lost():
    source = source_with()
    run = Run(source=source)
    wrote = []

    def early(piece_of=source.early):
        for target, piece in piece_of(1):
            source.memory.write(0x3000, b"written while state went ahead")
            wrote.append(piece)
            yield target, piece

    source.early = lambda least: early()
    run.go()
    assert run.errors == {}
    assert wrote
    assert run.destination.state() == source.state()


def test_without_pieces_nothing_is_asked():
    run = Run(source=source_with([])).go()
    assert run.errors == {}
    assert "vmsim/early" not in run.outgoing.stats.section_bytes


def test_a_channel_without_answers_gets_none(tmp_path):
    source = source_with()
    path = tmp_path / "stream"
    stats = OutgoingMigration(source, FileWriter(path), ImmediateSchedule(), MigrationParameters()).run()
    assert "vmsim/early" not in stats.section_bytes
    machine = IncomingMigration(FileReader(path), Machine.built).run()
    assert machine.state() == source.state()
    assert machine.came == []


def test_a_destination_that_refuses_a_piece_says_why_and_the_source_goes_on():
    source = source_with()

    def prepare(machine):
        def refuse(target, piece):
            raise StreamError("this piece is no piece", field=target)

        machine.early = refuse

    run = Run(source=source, prepare=prepare).go()
    assert run.who_runs() == ["source"]
    assert source.untouched()
    assert "pause" not in source.log
    assert "this piece is no piece" in str(run.errors["source"])
    assert run.errors["source"].side == "destination"
    assert run.errors["source"].step == "loading vmsim/early"


def test_a_piece_has_its_bound():
    run = Run(source=source_with([("nobody", bytes(EARLY_PIECE_MAX + 1))]), capacity=1 << 25).go()
    assert run.who_runs() == ["source"]
    assert "vmsim/early" in str(run.errors["destination"])


def cut_at(number):
    """A migration whose channel breaks at one operation of the source; None if it has not so many."""
    source = source_with()
    broken = []

    def wrap(end):
        broken.append(FaultChannel(end, number, "cut"))
        return broken[0]

    run = Run(source=source, wrap_source=wrap).go()
    return (source, run) if broken[0].injected else None


def test_who_runs_whatever_operation_of_the_channel_fails():
    number = 1
    while (ended := cut_at(number)) is not None:
        source, run = ended
        assert len(run.who_runs()) <= 1, number
        if run.who_runs() == ["source"]:
            assert source.untouched(), number
        number += 1
    assert number > 20
