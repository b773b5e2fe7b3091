from __future__ import annotations

import pytest

from tests.contract.channel import DUPLEX_CHECKS
from vmsim.errors import StallError
from vmsim.migration.channel import MemoryChannel
from vmsim.schedule.immediate import ImmediateSchedule


@pytest.mark.parametrize("check", DUPLEX_CHECKS)
@pytest.mark.parametrize("capacity", [5000, 1 << 20])
def test_contract(check, capacity):
    schedule = ImmediateSchedule()
    check(schedule, *MemoryChannel.pair(schedule, capacity))


def test_who_waits_for_nobody_is_told_so():
    schedule = ImmediateSchedule()
    source, _ = MemoryChannel.pair(schedule)
    with pytest.raises(StallError, match="bytes in the channel to the source"):
        source.read(1)


def test_a_writer_runs_ahead_only_by_the_capacity():
    schedule = ImmediateSchedule()
    source, destination = MemoryChannel.pair(schedule, capacity=1000)
    task = schedule.spawn("writer", lambda: source.write(bytes(5000)))
    schedule.settle()
    assert not task.done
    assert len(destination.read_some(5000)) == 1000
