"""The short ways against the general one: same reply, same calls of the file system, whatever comes."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.support.fuse_rig import Rig, cut_views
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.fuse.abi.replies import ENTRY_OUT
from vmsim.fuse.filesystem import FileSystem, TryAgain
from vmsim.fuse.short import SHORT_WAYS

ROOM = 300
ENTRY = tuple(range(1, len(ENTRY_OUT.unpack(bytes(ENTRY_OUT.size))) + 1))
EDGES = (0, 1, 2, 40, 255, 4096, (1 << 20), (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
WIDE = (*EDGES, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Recorder(FileSystem):
    """Notes what it is asked for and answers as it is told: with data, an error, or nonsense."""

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    def _say(self, *call):
        self.calls.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def lookup(self, ctx, parent, name):
        self._say(tuple(ctx), parent, name)
        return ENTRY

    def read(self, ctx, nodeid, fh, offset, views, flags, lock_owner):
        answer = self._say(tuple(ctx), nodeid, fh, offset, list(map(len, views)), flags, lock_owner)
        for view in views:
            view[:] = b"r" * len(view)
        return sum(map(len, views)) if answer is None else answer

    def write(self, ctx, nodeid, fh, offset, views, size, write_flags, flags, lock_owner):
        data = b"".join(map(bytes, views))
        answer = self._say(tuple(ctx), nodeid, fh, offset, data, size, write_flags, flags, lock_owner)
        return size if answer is None else answer


def ask(request, cuts, reply_cuts, room, answer, *, short):
    """(bytes written, what the client then sees, calls, whether the short way served it)."""
    fs = Recorder(answer)
    session = Rig(fs=fs).session
    fs.calls.clear()
    served = []
    if short:
        session._short = {
            number: lambda *args, way=way: served.append(way(*args)) or served[-1]
            for number, way in session._ways.items()
        }
    else:
        session._short = {}
    reply = bytearray(b"-" * room)
    written = session.handle(
        cut_views(memoryview(bytes(request)), cuts), cut_views(memoryview(reply), reply_cuts), print
    )
    return written, bytes(reply[: written or 0]), fs.calls, bool(served and served[-1])


def mostly(usual, *odd):
    """The usual value nine times out of ten."""
    return st.integers(0, 9).flatmap(lambda n: st.just(usual) if n else st.sampled_from(odd))


@st.composite
def requests(draw):
    number = draw(st.sampled_from([op.READ, op.WRITE, op.LOOKUP]))
    if number == op.LOOKUP:
        names = st.sampled_from([b"f", b".", b"..", b".hidden", b"", b"a/b", b"x" * 255, b"x" * 256, b"a\0b"])
        body = draw(st.just(b"f") | names | st.binary(max_size=12)) + draw(mostly(b"\0", b"", b"\0\0"))
        end = len(body)
    else:
        data = draw(st.binary(max_size=90)) if number == op.WRITE else b""
        size = draw(mostly(len(data), max(0, len(data) - 1), len(data) + 1, *EDGES))
        fh, owner = draw(st.sampled_from(WIDE)), draw(st.sampled_from(WIDE))
        offset = draw(mostly(7, *WIDE))
        kind, flags = draw(st.sampled_from([0, 1, 2, 3, 4])), draw(st.sampled_from([0, os.O_APPEND]))
        body = struct.pack("<QQIIQII", fh, offset, size, kind, owner, flags, 0) + data
        end = len(body)
    length = IN_HEADER.size + end + draw(mostly(0, 1, -1, -end, 1 << 20))
    head = IN_HEADER.pack(max(0, length), number, draw(st.sampled_from([2, 1 << 62])), 1, 3, 4, 5, 0, 0)
    return head + body


ANY = st.lists(st.integers(1, 60), max_size=4).map(tuple)
# The shapes of drivers: one view; header, arguments and payload apart; and any.
CUTS = mostly((80,), ()) | mostly((40, 40), (40,), (40, 40, 20)) | ANY
REPLIES = mostly((16,), (16, 8)) | mostly((), (24,), (16, 64)) | ANY
ROOMS = mostly(ROOM, 0, 15, 16, 17, 24, 143, 144)
ANSWERS = st.sampled_from(
    [None, None, None, 0, -1, 1 << 20, OSError(errno.ENOSPC, "full"), OSError("?"), ValueError("a bug")]
)


@settings(max_examples=300)
@given(requests(), CUTS, REPLIES, ROOMS, ANSWERS)
def test_the_short_way_does_what_the_general_one_does(request, cuts, reply_cuts, room, answer):
    *one, served = ask(request, cuts, reply_cuts, room, answer, short=True)
    *other, _ = ask(request, cuts, reply_cuts, room, answer, short=False)
    assert one == other
    event(f"short: {served}")


@pytest.mark.parametrize("cuts", [(), (80,), (40, 40)])
@pytest.mark.parametrize("number", SHORT_WAYS)
def test_what_drivers_send_goes_the_short_way(number, cuts):
    """All in one view, the payload apart (ours), or header and arguments apart as well (Linux's)."""
    body = b"name\0" if number == op.LOOKUP else struct.pack("<QQIIQII", 1, 2, 4, 0, 0, 0, 0)
    body += b"data" if number == op.WRITE else b""
    request = IN_HEADER.pack(40 + len(body), number, 2, 1, 0, 0, 0, 0, 0) + body
    if number == op.LOOKUP:
        cuts = cuts and (40,)
    reply_cuts = (16,) if number == op.READ else ()
    written, reply, calls, served = ask(request, cuts, reply_cuts, ROOM, None, short=True)
    assert served
    assert len(calls) == 1
    assert OUT_HEADER.unpack_from(reply)[:2] == (written, 0)


def test_a_request_that_has_to_try_again_is_kept():
    body = b"name\0"
    request = IN_HEADER.pack(40 + len(body), op.LOOKUP, 2, 1, 0, 0, 0, 0, 0) + body
    again = TryAgain(errno.EAGAIN, "leased")
    written, _, calls, _ = ask(request, (), (), ROOM, again, short=True)
    assert written is None
    assert len(calls) == 2, "once on each way: a request that tries again has done nothing"
