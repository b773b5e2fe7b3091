"""Never both, never neither: the channel ends at every byte of either direction, in every way.

The source and the destination are connected by a tunnel (as ssh -L, socat or a port-forward is one), which
passes on so many bytes of one direction and then ends: *reset* (both connections break), *end* (both are
closed in order, as the kernel of a killed tunnel does), *silence* (nothing is passed on any more, until
everybody has lost patience). Or there is no tunnel, and the connection itself does so.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.migration_rig import Run
from vmsim.errors import StateError, VmsimError
from vmsim.migration.channel import MemoryChannel
from vmsim.migration.errors import ChannelError

ENDINGS = ("reset", "end", "silence")
THERE, BACK = "there", "back"
CLOSELY = 220
"""Bytes at the end of the stream that are tried one by one; before them every STRIDE-th."""
STRIDE = 997
PATIENCE_NS = 60_000_000_000


class Wire:
    """One end of a connection that breaks when ``limit`` bytes have come through in ``direction``."""

    duplex = True

    def __init__(self, cut, inner, direction):
        self.cut, self.inner, self.direction = cut, inner, direction

    def write(self, data):
        data = bytes(data)
        if self.cut.broken == "reset":
            raise ChannelError("the connection was reset", errno=104)
        room = self.cut.room(self.direction, len(data))
        if room:
            self.inner.write(data[:room])
        if room < len(data):
            self.cut.happen()
            if self.cut.broken == "reset":
                raise ChannelError("the connection was reset", errno=104)
            # What is written into a connection that ends, or into silence, is accepted, and goes nowhere.

    def read_some(self, limit):
        if self.cut.broken == "reset":
            raise ChannelError("the connection was reset", errno=104)
        piece = self.inner.read_some(limit)
        if not len(piece) and self.cut.broken == "reset":
            raise ChannelError("the connection was reset", errno=104)
        return piece

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Cut:
    """What happens to the connection, and when."""

    def __init__(self, direction="", limit=0, ending=""):
        self.direction, self.limit, self.ending = direction, limit, ending
        self.passed = Counter()
        self.broken = ""
        self.ends = []

    def room(self, direction, wanted):
        if self.broken:
            return 0
        room = self.limit - self.passed[direction] if direction == self.direction else wanted
        taken = min(room, wanted)
        self.passed[direction] += taken
        return taken

    def happen(self):
        if self.broken:
            return
        self.broken = self.ending
        if self.ending != "silence":
            for end in self.ends:
                end.close_write()


def direct(cut):
    """A connection that breaks by itself."""
    def wrap(direction):
        def wrapped(end):
            cut.ends.append(end)
            return Wire(cut, end, direction)
        return wrapped
    return Run(wrap_source=wrap(THERE), wrap_destination=wrap(BACK))


def tunnelled(cut):
    """Two connections, and somebody between them who passes on what comes."""
    def far(end):
        one, other = MemoryChannel.pair(end._schedule, 8192)
        cut.ends += [end, one]
        return other

    run = Run(wrap_destination=far)
    inner, one = cut.ends
    schedule = run.schedule

    def pump(source, target, direction):
        try:
            while len(data := source.read_some(4096)):
                room = cut.room(direction, len(data))
                if room:
                    target.write(bytes(data[:room]))
                if room < len(data):
                    break
            else:
                target.close_write()
                return
        except (VmsimError, OSError):
            pass
        cut.happen()
        if cut.broken == "silence":
            schedule.sleep_ns(PATIENCE_NS)
        if cut.broken != "end":
            for end in cut.ends:
                end.close()

    schedule.spawn("tunnel there", lambda: pump(inner, one, THERE))
    schedule.spawn("tunnel back", lambda: pump(one, inner, BACK))
    return run


PLACES = {"at the channel": direct, "at a tunnel": tunnelled}


def outcome(run):
    """Who runs, and what the source says of itself."""
    source, outgoing = run.source, run.outgoing
    (machine,) = run.built or [None]
    there = machine is not None and machine.running and not machine.discarded
    if outgoing.phase == "doubt":
        assert not source.running, "a source in doubt stays stopped"
        assert not source.finished, "a source in doubt holds all that it has"
        return "doubt", there
    if source.finished:
        return "finished", there
    assert source.untouched()
    return "intact", there


def lengths(connect):
    """How many bytes go each way when nothing happens."""
    cut = Cut()
    run = connect(cut).go()
    assert outcome(run) == ("finished", True)
    return cut.passed


def positions(direction, total):
    if direction == BACK:
        return range(total + 1)
    return [*range(0, total - CLOSELY, STRIDE), *range(total - CLOSELY, total + 1)]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", sorted(PLACES))
def test_never_both_never_neither(place, ending):
    connect = PLACES[place]
    passed = lengths(connect)
    assert passed[BACK] == 16, "ready, and the acknowledgement"
    seen = Counter()
    for direction in (THERE, BACK):
        for limit in positions(direction, passed[direction]):
            run = connect(Cut(direction, limit, ending)).go()
            said, there = outcome(run)
            where = f"{limit} of {passed[direction]} bytes {direction}"
            assert (said, there) not in [("intact", True), ("finished", False)], where
            seen[said, there] += 1
            if said == "doubt":
                run.outgoing.settle(destination_runs=there)
                assert run.source.finished == there, where
                assert run.source.untouched() != there, where
                with pytest.raises(StateError):
                    run.outgoing.settle(destination_runs=there)
    # Each of these can happen, and does: a test that reached only one of them would show nothing.
    assert {("intact", False), ("doubt", True), ("finished", True)} <= set(seen), seen
