"""File-system operations as requests of one guest, with as many of them in flight as is wanted.

An operation is a generator: it yields one request after the other and is sent what became of each. ``run``
keeps ``depth`` of them going, all from one guest process that waits only when none of its requests has ended.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from tests.bench.contenders import Contender
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.replies import DIRENT, ENTRY_OUT
from vmsim.guest.kernel.requests import NONE
from vmsim.guest.state import DONE, Request, Segments

DEPTH_MAX: Final = 16
LARGE: Final = 1 << 20
SMALL: Final = 4096
LISTING: Final = 64 << 10
FILE_BYTES: Final = 4 << 20
ENTRIES: Final = "entries"
_position_of: Final = Struct("<QI").unpack_from
_BEFORE: Final = ENTRY_OUT.size + 8
"""Bytes of a READDIRPLUS entry before its offset (the position behind it) and the length of its name."""
_ROUND_UP: Final = ENTRY_OUT.size + DIRENT.size + 7


class Ask(NamedTuple):
    """One request."""

    opcode: int
    nodeid: int
    args: tuple[int, ...] = ()
    names: tuple[bytes, ...] = ()
    reads: Segments = NONE
    writes: Segments = NONE


Operation = Generator[Ask, Request, None]
Maker = Callable[[int], Operation]
"""Makes the operation with this number."""


def prepare(share: Path, entries: int) -> None:
    """What the operations work on."""
    (share / "file").write_bytes(os.urandom(LARGE) * (FILE_BYTES // LARGE))
    (share / ENTRIES).mkdir()
    for number in range(entries):
        (share / ENTRIES / f"file-{number:06}").touch()


class Guest:
    """The requests of a contender's guest."""

    def __init__(self, contender: Contender) -> None:
        self.kernel = contender.machine.kernel
        self.schedule = contender.schedule
        self.process = self.kernel.state.processes[1]
        self.buffers = [self._pages() for _ in range(DEPTH_MAX)]

    def _pages(self) -> int:
        gpa = self.kernel.allocator.allocate(LARGE)
        assert gpa is not None
        return gpa

    def once(self, operation: Operation) -> None:
        """Work off one operation."""
        self.run(lambda number: operation, 1, 1)

    def run(self, make: Maker, count: int, depth: int) -> None:
        """Work off the operations 0 to ``count`` - 1, ``depth`` of them at a time; OSError if one fails."""
        busy: deque[tuple[Request, Operation]] = deque()
        kernel, wait = self.kernel, self.schedule.wait
        made = 0
        while made < count or busy:
            while made < count and len(busy) < depth:
                self._advance(make(made), None, busy)
                made += 1
            unique = busy[0][0].unique
            if busy[0][0].status != DONE:
                kernel.arm_interrupts()
                wait(lambda unique=unique: kernel.ended(unique), "a request")
            ended = []
            while busy and busy[0][0].status == DONE:
                ended.append(busy.popleft())
            for request, operation in ended:
                del kernel.requests[request.unique]
                if request.error:
                    raise OSError(request.error, f"opcode {request.opcode}: {os.strerror(request.error)}")
                self._advance(operation, request, busy)

    def _advance(
        self, operation: Operation, request: Request | None, busy: deque[tuple[Request, Operation]]
    ) -> None:
        """Send what the operation asks for next, if it has not ended."""
        try:
            ask = next(operation) if request is None else operation.send(request)
        except StopIteration:
            return
        kernel, process = self.kernel, self.process
        if ask.names or ask.reads or ask.writes:
            sent = kernel.submit(
                ask.opcode, ask.nodeid, ask.args, ask.names, process=process, reads=ask.reads,
                writes=ask.writes,
            )  # fmt: skip
        else:
            sent = kernel.ask(ask.opcode, ask.nodeid, ask.args, process)
        busy.append((sent, operation))

    def forget(self, nodeid: int) -> None:
        """One lookup less; sent in batches as the guest's own facade does."""
        forgets = self.kernel.state.forgets
        forgets.append((nodeid, 1))
        if len(forgets) >= self.kernel.config.forget_batch:
            self.kernel.flush_forgets()


class Operations:
    """The operations on the share that ``prepare`` made."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.node = self.folder = self.fh = self.folder_fh = 0
        guest.once(self._find())

    def _find(self) -> Operation:
        found = op.BY_NUMBER
        entry = found[op.LOOKUP].record
        opened = found[op.OPEN].record
        assert entry is not None
        assert opened is not None
        self.node = entry.unpack((yield Ask(op.LOOKUP, 1, names=(b"file",))).reply).nodeid
        self.folder = entry.unpack((yield Ask(op.LOOKUP, 1, names=(ENTRIES.encode(),))).reply).nodeid
        self.fh = opened.unpack((yield Ask(op.OPEN, self.node, (os.O_RDWR, 0))).reply).fh
        self.folder_fh = opened.unpack((yield Ask(op.OPENDIR, self.folder, (os.O_RDONLY, 0))).reply).fh

    def getattr(self, number: int) -> Operation:
        """Attributes of an open file."""
        yield Ask(op.GETATTR, self.node, (1, 0, self.fh))

    def lookup(self, number: int) -> Operation:
        """A name in the root."""
        yield Ask(op.LOOKUP, 1, names=(b"file",))

    def open_release(self, number: int) -> Operation:
        """Open for reading, and close."""
        reply = (yield Ask(op.OPEN, self.node, (os.O_RDONLY, 0))).reply
        yield Ask(op.RELEASE, self.node, (int.from_bytes(reply[:8], "little"), os.O_RDONLY, 0, 0))

    def create_unlink(self, number: int) -> Operation:
        """Create a file, close it, remove it, forget it."""
        name = b"new-%d" % (number % DEPTH_MAX)
        reply = (yield Ask(op.CREATE, 1, (os.O_RDWR, 0o644, 0, 0), (name,))).reply
        nodeid, fh = int.from_bytes(reply[:8], "little"), int.from_bytes(reply[128:136], "little")
        yield Ask(op.RELEASE, nodeid, (fh, os.O_RDWR, 0, 0))
        yield Ask(op.UNLINK, 1, names=(name,))
        self.guest.forget(nodeid)

    def _pages(self, number: int, size: int) -> tuple[int, Segments]:
        at = number * size % FILE_BYTES
        return at, [(self.guest.buffers[number % DEPTH_MAX], size)]

    def _read(self, number: int, size: int) -> Operation:
        at, pages = self._pages(number, size)
        request = yield Ask(op.READ, self.node, (self.fh, at, size, 0, 0, os.O_RDWR, 0), writes=pages)
        _expect(request.written, size)

    def _write(self, number: int, size: int) -> Operation:
        at, pages = self._pages(number, size)
        request = yield Ask(op.WRITE, self.node, (self.fh, at, size, 0, 0, os.O_RDWR, 0), reads=pages)
        _expect(int.from_bytes(request.reply[:4], "little"), size)

    def read_4k(self, number: int) -> Operation:
        """READ of 4 KiB."""
        return self._read(number, SMALL)

    def write_4k(self, number: int) -> Operation:
        """WRITE of 4 KiB."""
        return self._write(number, SMALL)

    def read_1m(self, number: int) -> Operation:
        """READ of 1 MiB."""
        return self._read(number, LARGE)

    def write_1m(self, number: int) -> Operation:
        """WRITE of 1 MiB."""
        return self._write(number, LARGE)

    def readdirplus(self, number: int) -> Operation:
        """Everything in the large directory, 64 KiB at a time."""
        pages = [(self.guest.buffers[number % DEPTH_MAX], LISTING)]
        view = self.guest.kernel.memory.view(*pages[0])
        offset = 0
        while True:
            args = (self.folder_fh, offset, LISTING, 0, 0, os.O_RDONLY, 0)
            size = (yield Ask(op.READDIRPLUS, self.folder, args, writes=pages)).written
            if not size:
                return
            at = 0
            while at < size:
                offset, length = _position_of(view, at + _BEFORE)
                at += length + _ROUND_UP & ~7


def _expect(moved: int, size: int) -> None:
    if moved != size:
        raise RuntimeError(f"{moved} of {size} bytes were moved")
