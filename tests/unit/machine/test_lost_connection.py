"""The connection to the back-end is lost for good during a migration: the source makes a new one."""

from __future__ import annotations

import itertools
import os

import pytest

from tests.simulation.voyage import Trouble
from vmsim.errors import MigrationError
from vmsim.machine import Machine, Seams
from vmsim.schedule.seeded import SeededSchedule
from vmsim.trace import NOWHERE
from vmsim.wrappers.faults import Fault

MESSAGES = "[A-Z]*"
"""Not kicks, which are lost with the connection."""


def machine_in_trouble(share, schedule=None):
    trouble = Trouble(NOWHERE, {})
    return Machine(share, memory="2M", schedule=schedule, seams=trouble.wrap(Seams())), trouble


def messages_of_a_migration(share):
    machine, trouble = machine_in_trouble(share)
    trouble.arm()
    machine.migrate(seams=Seams()).close()
    machine.close()
    return [step.operation for step in trouble.steps if step.seam == "vhost 1" and step.operation.isupper()]


def test_a_source_goes_on_with_a_new_connection(tmp_path):
    messages = messages_of_a_migration(tmp_path)
    assert messages[:2] == ["SET_LOG_BASE", "SET_FEATURES"]
    sides = []
    for number in range(1, len(messages) + 1):
        machine, trouble = machine_in_trouble(tmp_path)
        fd = machine.mount().open("/f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        trouble.arm(Fault("vhost 1", MESSAGES, number, "cut"))
        try:
            machine = machine.migrate(seams=Seams())
        except MigrationError as error:
            sides.append(error.side)
        trouble.arm()
        fs = machine.mount()
        assert fs.write(fd, b"text") == 4, messages[number - 1]
        assert fs.pread(fd, 9, 0) == b"text"
        machine = machine.migrate(seams=Seams())
        assert machine.mount().pread(fd, 9, 0) == b"text"
        machine.close()
    assert len(sides) >= 10
    assert set(sides) == {"source"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_kick_that_was_lost_meanwhile_is_made_up_for(number, tmp_path):
    """Programs work on while the source finds out."""
    schedule = SeededSchedule(number)
    machine, trouble = machine_in_trouble(tmp_path, schedule)
    written = itertools.count(1)

    def program(fs):
        fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
        for _ in range(100):
            fs.pwrite(fd, b"%d" % next(written), 0)

    task = machine.spawn("program", program)
    schedule.sleep_ns(30_000)
    trouble.arm(Fault("vhost 1", MESSAGES, number, "cut"))
    with pytest.raises(MigrationError, match="gone"):
        machine.migrate(seams=Seams())
    schedule.join(task)
    assert (tmp_path / "f").read_bytes() == b"100"
    machine.close()
