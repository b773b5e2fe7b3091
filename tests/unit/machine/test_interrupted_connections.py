"""An interrupt at every line of making a connection: nothing is left to the garbage collector.

What a call has made and nobody has given a name yet is lost all the same; but no program waits there.
"""

from __future__ import annotations

import contextlib
import gc
import sys

import pytest

from tests.support.leaks import Held
from tests.support.lines import counted_lines
from vmsim.host import channels, sockets
from vmsim.host.sockets import Listener, UnixSocket
from vmsim.host.vhost_user import transport
from vmsim.machine import RemoteBackend, Seams, remote
from vmsim.schedule.immediate import ImmediateSchedule

FILES = {module.__file__ for module in (channels, sockets, transport, remote)}


@pytest.fixture
def listener(tmp_path):
    with contextlib.closing(Listener(str(tmp_path / "socket"))) as listener:
        yield listener


@pytest.fixture
def lost(monkeypatch):
    """What was collected without having been closed, as it says; nothing may be in the end."""
    before, found = Held(), []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: found.append(str(what.exc_value)))
    yield found
    gc.collect()
    assert found == []
    assert before.more() == []


def back_end(listener):
    connect = RemoteBackend(listener.path, "/", ImmediateSchedule()).connect
    return lambda: (connect(),)


@pytest.mark.parametrize("making", [
    lambda listener: UnixSocket.pair,
    lambda listener: lambda: (UnixSocket.connect(listener.path),),
    lambda listener: lambda: (channels.connect(listener.path),),
    back_end,
], ids=["pair", "socket", "channel", "back-end"])  # fmt: skip
def test_at_every_line(making, listener, lost):
    make = making(listener)

    def dropped():
        """Nobody accepts, and few may wait for that."""
        while (other := listener.accept()) is not None:
            other.close()

    with counted_lines(FILES) as lines:
        made = make()
    for each in made:
        each.close()
    for number in range(1, lines.count + 1):
        dropped()
        with contextlib.suppress(KeyboardInterrupt), counted_lines(FILES, KeyboardInterrupt, number) as again:
            make()
        assert again.raised
        assert not lost, f"line {number} of {lines.count}"
    dropped()


def test_a_seam_that_fails(listener, lost):
    def fails(inner):
        raise ZeroDivisionError

    backend = RemoteBackend(listener.path, "/", ImmediateSchedule(), seams=Seams(transport=fails))
    with pytest.raises(ZeroDivisionError):
        backend.connect()
    assert not backend.connected
