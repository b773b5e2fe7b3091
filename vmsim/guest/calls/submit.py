"""Requests without waiting: several of one program in flight at a time."""

from __future__ import annotations

import errno
import fcntl
from typing import TYPE_CHECKING, Final, NamedTuple

from vmsim.fuse import opcodes as op
from vmsim.guest.calls.context import fail
from vmsim.guest.calls.files import flat
from vmsim.guest.calls.locks import LockCalls
from vmsim.guest.state import DONE, Segments

if TYPE_CHECKING:
    from typing_extensions import Buffer

READ: Final = "read"
WRITE: Final = "write"
LOCK: Final = "lock"
STAT: Final = "stat"


class Pending(NamedTuple):
    """A submitted request: plain values, good on whichever machine runs the guest."""

    kind: str
    unique: int
    nodeid: int
    size: int
    buffer: Segments


class SubmitCalls(LockCalls):
    """``submit_*`` return a Pending; ``result`` waits for it and raises or returns as the plain call would.

    These go past the page cache; one request each, so sizes are bounded by the session's maxima.
    """

    def submit_read(self, fd: int, n: int, offset: int) -> Pending:
        """Begin a ``pread`` of up to ``n`` bytes; the result are bytes."""
        file = self._readable(fd)
        kernel = self._running()
        gpa, size = self._buffer(min(n, kernel.max_read))
        kernel = self.kernel
        args = (file.fh, offset, size, 0, 0, file.flags, 0)
        buffer = [(gpa, size)]
        request = kernel.submit(
            op.READ, file.nodeid, args, process=self.process, writes=buffer, owned=list(buffer)
        )
        return Pending(READ, request.unique, file.nodeid, size, buffer)

    def submit_write(self, fd: int, data: Buffer, offset: int) -> Pending:
        """Begin a ``pwrite``; the result is the number of bytes written."""
        file = self._writable(fd)
        view = flat(data)
        self._remove_privs(file.nodeid)
        file = self._writable(fd)
        kernel = self._running()
        gpa, size = self._buffer(min(len(view), kernel.max_write))
        kernel = self.kernel
        kernel.memory.write(gpa, view[:size])
        args = (file.fh, offset, size, self._write_flags(False), 0, file.flags, 0)
        buffer = [(gpa, size)]
        request = kernel.submit(
            op.WRITE, file.nodeid, args, process=self.process, reads=buffer, owned=list(buffer)
        )
        node = kernel.nodes.get(file.nodeid)
        kernel.touch(node)
        node.pages_epoch += 1
        if kernel.pages is not None:
            kernel.pages.drop_clean(node.id)
        return Pending(WRITE, request.unique, file.nodeid, size, buffer)

    def submit_stat(self, fd: int) -> Pending:
        """Begin an ``fstat``; the result is the raw reply (``fuse_attr_out``)."""
        file = self._usable(fd)
        request = self._running().submit(op.GETATTR, file.nodeid, (1, 0, file.fh), process=self.process)
        return Pending(STAT, request.unique, file.nodeid, 0, [])

    def submit_lock(self, fd: int, kind: int, start: int, length: int, wait: bool = True) -> Pending:
        """Begin a POSIX lock (SETLKW, or SETLK); the result is None. EOPNOTSUPP if locks are guest-local."""
        file = self._usable(fd)
        if not self._remote_posix():
            fail(errno.EOPNOTSUPP)
        wanted = self._range(file, kind, start, length)
        opcode = op.SETLKW if wait and kind != fcntl.F_UNLCK else op.SETLK
        request = self._running().submit(
            opcode, file.nodeid, self._args(file.id, wanted), process=self.process
        )
        return Pending(LOCK, request.unique, file.nodeid, 0, [])

    def done(self, pending: Pending) -> bool:
        """Whether ``result`` would return at once."""
        return self._running().ended(pending.unique)

    def result(self, pending: Pending) -> bytes | int | None:
        """Wait for a submitted request; its result, or its OSError. Each may be asked for once."""
        kernel = self._running()
        request = kernel.requests.get(pending.unique)
        if request is None:
            fail(errno.EINVAL)
        if request.status == DONE:
            del kernel.requests[pending.unique]
        else:
            request = self._await(pending.unique)
        kernel = self.kernel
        try:
            if request.error:
                fail(request.error)
            if pending.kind == READ:
                return kernel.memory.read(pending.buffer[0][0], min(request.written, pending.size))
            if pending.kind == WRITE:
                written = int(self._record(op.WRITE, request).size)
                kernel.touch(kernel.nodes.get(pending.nodeid))
                return written
            return request.reply if pending.kind == STAT else None
        finally:
            kernel.free_owned(request)
