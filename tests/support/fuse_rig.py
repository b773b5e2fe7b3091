"""A client and a session face to face, over buffers that are cut in any way."""

from __future__ import annotations

from tests.support.memory_fs import MemoryFs
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.init_flags import LINUX_6_12_OFFER
from vmsim.fuse.init import InitOptions
from vmsim.fuse.session import Session

FILL = 0xA5
GUARD = 32


def cut_views(buffer, sizes):
    """``buffer`` as views of the given sizes, the rest in a last one."""
    view, views, position = memoryview(buffer), [], 0
    for size in sizes:
        views.append(view[position : position + size])
        position += size
    if position < len(view):
        views.append(view[position:])
    return views


class Rig:
    """``call`` sends a request and decodes the reply; faults of the file system are raised at once."""

    def __init__(self, options=None, *, offer=LINUX_6_12_OFFER, minor=41, fs=None, init=True):
        self.fs = fs if fs is not None else MemoryFs()
        self.session = Session(self.fs, options if options is not None else InitOptions())
        self.session.on_fault = self.fault
        self.faults = []
        self.unique = 0
        self.completed = []
        if init:
            self.init(offer, minor)

    def fault(self, error, opcode):
        self.faults.append((error, opcode))

    def init(self, offer=LINUX_6_12_OFFER, minor=41, major=7, readahead=1 << 17):
        return self.call(op.INIT, 0, (major, minor, readahead, offer & 0xFFFFFFFF, offer >> 32, b""))

    def raw(self, request, room, cuts=(), reply_cuts=()):
        """The used length (None: deferred) and the writable buffer; nothing outside it was written."""
        memory = bytearray([FILL]) * (GUARD + room + GUARD)
        reply = memoryview(memory)[GUARD : GUARD + room]
        readable = cut_views(bytearray(request), cuts) if request else []
        writable = cut_views(reply, reply_cuts) if room else []
        used = self.session.handle(readable, writable, self.completed.append)
        assert used is None or 0 <= used <= room
        assert memory[:GUARD] == memory[GUARD + room :] == bytes([FILL]) * GUARD
        return used, reply

    def call(
        self, opcode, nodeid=1, args=(), names=(), data=b"", *, size=0, room=None, extensions=b"",
        compat=False, cuts=(), reply_cuts=(), size_query=False, uid=0,
    ):  # fmt: skip
        self.unique += 1
        request = client.encode(
            opcode, self.unique, nodeid, uid, 0, 7, args, names, data, extensions=extensions, compat=compat
        )
        room = client.reply_room(opcode, size) if room is None else room
        used, reply = self.raw(request, room, cuts, reply_cuts)
        if used is None:
            return None
        assert not self.faults, self.faults
        if op.BY_NUMBER[opcode].reply is op.Reply.NONE:
            assert used == 0
        return client.decode(opcode, bytes(reply[:used]), self.unique, size_query=size_query)

    def ok(self, *args, **kwargs):
        answer = self.call(*args, **kwargs)
        assert answer is not None
        assert answer.error == 0, answer
        return answer.body

    def error(self, *args, **kwargs):
        answer = self.call(*args, **kwargs)
        assert answer is not None
        assert answer.error, answer
        return answer.error

    def create(self, name=b"f", data=b""):
        """A file with content: nodeid and fh."""
        made = self.ok(op.CREATE, 1, (2, 0o644, 0, 0), (name,))
        if data:
            self.ok(op.WRITE, made.nodeid, (made.fh, 0, len(data), 0, 0, 0, 0), (), data)
        return made.nodeid, made.fh
