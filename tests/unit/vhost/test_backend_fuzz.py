"""Any sequence of messages, kicks and ring contents: typed refusals, no other exception, nothing leaks."""

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.dying import OPTIONS
from tests.support.leaks import Held
from tests.support.vhost_rig import Rig
from vmsim.vhost import payloads as p
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.messages import MessageError, Request

small = st.integers(0, 3)
known = st.sampled_from([128, 0x100, 0x101, 0x8A42B, 0x140000000, 0x144000000, 4 << 20])
word = st.one_of(small, known, st.integers(0, 2**64 - 1))
half = st.one_of(small, st.sampled_from([128, 256, 0x80008000]), st.integers(0, 2**32 - 1))
LOW, HIGH = Rig.USER
user = st.sampled_from([LOW, HIGH, HIGH + 0xF00000, HIGH + 0xF01000, 0, 2**64 - 1])
region = st.builds(
    p.MemoryRegion, st.sampled_from([0, 4096, 0x100000]), st.sampled_from([0, 4096, 0xF0000]), user, small
)
PAYLOADS = {
    "Number": st.builds(p.Number, word),
    "VringState": st.builds(p.VringState, small, half),
    "VringAddr": st.builds(p.VringAddr, small, st.integers(0, 3), user, user, user, word),
    "SlotRegion": region.map(lambda one: p.SlotRegion(0, *one)),
    "MemoryTable": st.lists(region, max_size=3).map(lambda some: p.MemoryTable(tuple(some))),
    "LogArea": st.builds(p.LogArea, st.sampled_from([0, 2048, 4096, 2**63]), small),
    "DeviceState": st.builds(p.DeviceState, small, st.integers(0, 1)),
    "StateChunk": st.builds(p.StateChunk, word, word),
    "ConfigSpace": st.just(p.ConfigSpace(0, 0, b"x")),
    "IotlbMessage": st.just(p.IotlbMessage(0, 0, 0, 0, 0)),
    "Inflight": st.builds(
        p.Inflight, st.sampled_from([0, 64, 8320, 1 << 20, 2**63]), small, small,
        st.sampled_from([0, 1, 128, 65535]),
    ),
    "Uuid": st.just(p.Uuid(bytes(16))),
    "Opaque": st.just(p.Opaque(b"x")),
}


@st.composite
def steps(draw, messages):
    what = draw(st.sampled_from(["message"] * 8 + ["kick", "scribble", "progress"]))
    if what != "message":
        return what, draw(small), draw(st.integers(0, 65535))
    row = draw(st.sampled_from(messages.rows))
    payload = draw(PAYLOADS[row.request.name]) if row.request else None
    return what, Request(row, payload, (), draw(st.booleans())), draw(st.integers(0, 2))


def run(rig, sequence):
    files = [os.dup(rig.ram.fd), os.open("/dev/null", os.O_RDWR)]
    try:
        for what, one, other in sequence:
            if what == "message":
                one.fds = tuple(files[:other])
                try:
                    reply = rig.transport.request(one)
                except MessageError:
                    continue
                files += reply.fds if reply else ()
            elif what == "kick":
                if one < 2:
                    rig.transport.kick(one)
            elif what == "scribble":
                rig.memory.store_u16(0x1000000 + 0x100000 * (one & 1) + 0x1000 * (one >> 1) + 2, other)
            else:
                rig.backend.progress()
    finally:
        for fd in files:
            os.close(fd)


def fuzz(dialect):
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(steps(DIALECTS[dialect].messages), max_size=30), st.booleans())
    def check(sequence, booted):
        with Rig(dialect, backend=OPTIONS) as rig:
            rig.echo.config_space = bytes(40)
            if booted:
                rig.boot()
            run(rig, sequence)

    def check_all():
        before = Held()
        check()
        assert before.more() == []

    return check_all


test_upstream = fuzz("upstream")
test_rfc2023 = fuzz("rfc2023")
