"""Whole migrations through every kind of channel."""

from __future__ import annotations

import shlex

import pytest

from tests.support.migration_rig import Machine
from vmsim.errors import MigrationError
from vmsim.host.channels import CommandWriter, SocketChannel
from vmsim.host.files import FileWriter, incoming_channel, outgoing_channel
from vmsim.host.waits import FdWaits
from vmsim.migration.destination import IncomingMigration
from vmsim.migration.report import MigrationInDoubt, MigrationParameters
from vmsim.migration.source import OutgoingMigration
from vmsim.schedule.immediate import ImmediateSchedule


def filled() -> Machine:
    machine = Machine()
    machine.memory.write(0x2000, bytes(range(256)) * 100)
    return machine


def test_both_ends_of_a_socket_in_one_process():
    waits = FdWaits()
    schedule = ImmediateSchedule(descriptors=waits)
    source = filled()
    one, other = SocketChannel.pair(schedule, waits)
    arrival = schedule.spawn("destination", IncomingMigration(other, Machine.built).run)
    OutgoingMigration(source, one, schedule).run()
    destination = schedule.join(arrival)
    assert destination.state() == source.state()
    assert destination.running
    assert source.finished


@pytest.mark.parametrize("kind", ["file", "exec"])
def test_saved_now_and_restored_later(kind, tmp_path):
    path = tmp_path / "stream"
    quoted = shlex.quote(str(path))
    source = filled()
    uris = {"file": (f"file:{path}",) * 2, "exec": (f"exec:gzip > {quoted}", f"exec:gunzip < {quoted}")}[kind]
    OutgoingMigration(source, outgoing_channel(uris[0]), ImmediateSchedule()).run()
    assert source.finished
    assert IncomingMigration(incoming_channel(uris[1]), Machine.built).run().state() == source.state()


@pytest.mark.parametrize("runs", [True, False])
def test_a_command_that_fails_at_the_end_leaves_a_doubt(runs):
    source = filled()
    channel = CommandWriter("cat > /dev/null; exit 1")
    migration = OutgoingMigration(source, channel, ImmediateSchedule())
    with pytest.raises(MigrationInDoubt, match="status 1"):
        migration.run()
    assert not source.running
    migration.settle(destination_runs=runs)
    assert (source.finished, source.untouched()) == (runs, not runs)


def test_a_command_that_fails_at_the_end_of_a_saved_copy_leaves_the_source_running():
    source = filled()
    channel = CommandWriter("cat > /dev/null; exit 1")
    parameters = MigrationParameters(keep_running=True)
    with pytest.raises(MigrationError, match="status 1") as caught:
        OutgoingMigration(source, channel, ImmediateSchedule(), parameters).run()
    assert not isinstance(caught.value, MigrationInDoubt)
    assert source.untouched()


def test_a_failed_save_leaves_no_file_and_a_running_source(tmp_path):
    source = filled()
    source.fail_at = "stop_rings"
    with pytest.raises(MigrationError):
        OutgoingMigration(source, FileWriter(tmp_path / "stream"), ImmediateSchedule()).run()
    assert source.untouched()
    assert list(tmp_path.iterdir()) == []


def test_a_cut_file_and_a_cut_pipe_are_refused(tmp_path):
    path = tmp_path / "stream"
    OutgoingMigration(filled(), FileWriter(path), ImmediateSchedule()).run()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    quoted = shlex.quote(str(path))
    for uri in (f"file:{path}", f"exec:cat {quoted}", f"exec:cat {quoted}; exit 1"):
        with pytest.raises(MigrationError):
            IncomingMigration(incoming_channel(uri), Machine.built).run()
