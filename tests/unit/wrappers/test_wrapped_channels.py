"""A channel with wrappers around it is still a channel."""

from __future__ import annotations

import inspect

import pytest

from tests.contract import channel as contract
from vmsim.migration.channel import MemoryChannel
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.trace import Tracer
from vmsim.wrappers.faults import FaultPlan, FaultyChannel
from vmsim.wrappers.traced import TracedChannel

CHECKS = [check for name, check in vars(contract).items() if name.startswith("check_")]
DUPLEX = [check for check in CHECKS if "destination" in inspect.signature(check).parameters]


@pytest.mark.parametrize("check", DUPLEX, ids=lambda check: check.__name__)
@pytest.mark.parametrize("listening", [False, True])
def test_wrapped_channel(check, listening):
    tracer, plan = Tracer(), FaultPlan()
    if listening:
        tracer.record()
    schedule = ImmediateSchedule(VirtualClock())
    ends = [
        TracedChannel(FaultyChannel(end, plan), tracer.source("vm1"))
        for end in MemoryChannel.pair(schedule)
    ]
    check(schedule, *ends)
    assert plan.injected == []
