"""Migration channels by their URIs, wired to a schedule: guests work on while the network is slow."""

from __future__ import annotations

from typing import Final

from vmsim.host.files import incoming_channel, outgoing_channel
from vmsim.host.waits import FdWaits
from vmsim.migration.channel import Channel
from vmsim.schedule import Schedule

NOT_WIRED: Final = (None, None)


def outgoing(channel: Channel | str, schedule: Schedule) -> Channel:
    """``channel``, or the one of the URI ``file:``, ``unix:``, ``tcp:`` or ``exec:`` to write to."""
    return outgoing_channel(channel, *wire(schedule)) if isinstance(channel, str) else channel


def incoming(channel: Channel | str, schedule: Schedule) -> Channel:
    """The same to read from; ``unix:`` and ``tcp:`` listen for one connection."""
    return incoming_channel(channel, *wire(schedule)) if isinstance(channel, str) else channel


def wire(schedule: Schedule) -> tuple[Schedule, FdWaits] | tuple[None, None]:
    """What a channel over descriptors waits with; two Nones (it then simply blocks) if that cannot be."""
    if schedule.descriptors is None:
        schedule.attach(FdWaits(now_ns=schedule.now_ns))
    waits = schedule.descriptors
    return (schedule, waits) if isinstance(waits, FdWaits) else NOT_WIRED
