"""Events, who hears them, and how they are written down."""

from __future__ import annotations

import io
import re

import pytest

from vmsim.errors import StreamError
from vmsim.trace import EVENTS, JsonlWriter, Tracer, read_jsonl, render
from vmsim.trace.events import FuseReply, FuseRequest, RingCall, RingPop, kind_of


def request(unique=4):
    return FuseRequest(ring=1, unique=unique, opcode="GETATTR", nodeid=1, size_bytes=56)


def test_kinds_are_unique_and_dotted():
    kinds = [kind_of(event) for event in EVENTS]
    assert len(set(kinds)) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(\.[a-z-]+)+", kind) for kind in kinds)


def test_listeners_hear_what_their_globs_match():
    tracer = Tracer()
    fuse, rings = tracer.record("fuse.*"), tracer.record("virtio.ring.*")
    both = tracer.record("fuse.reply, *.call")
    source = tracer.source("vm1")
    source.emit(request())
    source.emit(RingPop(ring=0, head=1, readable_bytes=2, writable_bytes=3))
    source.emit(RingCall(ring=0))
    source.emit(FuseReply(ring=1, unique=4, opcode="GETATTR", error=0, size_bytes=120))
    assert [kind_of(type(entry.event)) for entry in fuse] == ["fuse.request", "fuse.reply"]
    assert [entry.number for entry in rings] == [1, 2]
    assert [kind_of(type(entry.event)) for entry in both] == ["virtio.ring.call", "fuse.reply"]
    assert {entry.where for entry in fuse} == {"vm1"}


def test_nobody_listens():
    tracer = Tracer()
    source = tracer.source("vm1")
    assert not source.wants(FuseRequest)
    history = tracer.record("fuse.request")
    assert source.wants(FuseRequest)
    assert not source.wants(FuseReply)
    tracer.drop(next(iter(tracer.listeners(FuseRequest))))
    assert not source.wants(FuseRequest)
    source.emit(request())
    assert history == []


def test_a_listener_cannot_break_a_run():
    tracer = Tracer()

    def broken(entry):
        raise KeyError("listener")

    tracer.subscribe("*", broken)
    history = tracer.record()
    source = tracer.source("vm1")
    source.emit(request(1))
    source.emit(request(2))
    assert len(history) == 2
    assert len(tracer.failures) == 1
    with pytest.raises(KeyError, match="listener"):
        tracer.check()


def test_time_comes_from_the_schedule():
    times = iter([10, 25])
    tracer = Tracer(lambda: next(times))
    history = tracer.record()
    source = tracer.source("vm1")
    source.emit(request())
    source.emit(request())
    assert [entry.now_ns for entry in history] == [10, 25]


def test_json_lines_and_back():
    tracer, out = Tracer(lambda: 7), io.BytesIO()
    tracer.subscribe("*", JsonlWriter(out))
    history = tracer.record()
    source = tracer.source("vm1")
    for event in (request(), RingCall(ring=3), FuseReply(1, 4, "OPEN", 2, 16, deferred=True)):
        source.emit(event)
    lines = out.getvalue().splitlines()
    assert lines[1] == b'[1,7,"vm1",{"kind":"virtio.ring.call","ring":3}]'
    assert list(read_jsonl(lines)) == history


BAD_LINES = [b"", b"{", b"[1,2]", b'[1,2,"x",{"kind":"no"}]', b'[1,2,"x",{"kind":"virtio.ring.call"}]']


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_lines_are_named(line):
    with pytest.raises(StreamError, match="line 1"):
        list(read_jsonl([line]))


def test_printing():
    tracer = Tracer(lambda: 1_500)
    history = tracer.record()
    tracer.source("vm1").emit(FuseReply(ring=1, unique=4, opcode="LOOKUP", error=2, size_bytes=16))
    tracer.source("vm1").emit(FuseReply(ring=1, unique=6, opcode="LOOKUP", error=0, size_bytes=144))
    first, second = (render(entry) for entry in history)
    words = "1.500 vm1 fuse.reply ring=1 unique=4 opcode=LOOKUP error=ENOENT size_bytes=16 deferred=False"
    assert first.split() == words.split()
    assert "error" not in second
