"""Requests without waiting: several of one program in flight at a time."""

from __future__ import annotations

import errno
import fcntl
from typing import TYPE_CHECKING, Final, NamedTuple

from vmsim.fuse import opcodes as op
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.calls.files import flat
from vmsim.guest.calls.locks import Locks
from vmsim.guest.calls.transfer import Transfer
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


class Submission:
    """``submit_*`` return a Pending; ``result`` waits for it and raises or returns as the plain call would.

    These go past the page cache; one request each, so sizes are bounded by the session's maxima.
    """

    def __init__(self, ctx: ProcessContext, access: Access, locks: Locks, transfer: Transfer) -> None:
        self._ctx = ctx
        self._access = access
        self._locks = locks
        self._transfer = transfer

    def submit_read(self, fd: int, n: int, offset: int) -> Pending:
        """Begin a ``pread`` of up to ``n`` bytes; the result are bytes."""
        file = self._transfer.readable(fd)
        kernel = self._ctx.running()
        gpa, size = self._ctx.buffer(min(n, kernel.max_read))
        kernel = self._ctx.kernel
        args = (file.fh, offset, size, 0, 0, file.flags, 0)
        buffer = [(gpa, size)]
        request = kernel.submit(
            op.READ, file.nodeid, args, process=self._ctx.process, writes=buffer, owned=list(buffer)
        )
        return Pending(READ, request.unique, file.nodeid, size, buffer)

    def submit_write(self, fd: int, data: Buffer, offset: int) -> Pending:
        """Begin a ``pwrite``; the result is the number of bytes written."""
        file = self._transfer.writable(fd)
        view = flat(data)
        self._access.remove_privs(file.nodeid)
        file = self._transfer.writable(fd)
        kernel = self._ctx.running()
        gpa, size = self._ctx.buffer(min(len(view), kernel.max_write))
        kernel = self._ctx.kernel
        kernel.memory.write(gpa, view[:size])
        args = (file.fh, offset, size, self._transfer.write_flags(False), 0, file.flags, 0)
        buffer = [(gpa, size)]
        request = kernel.submit(
            op.WRITE, file.nodeid, args, process=self._ctx.process, reads=buffer, owned=list(buffer)
        )
        node = kernel.nodes.get(file.nodeid)
        kernel.inodes.touch(node)
        node.pages_epoch += 1
        if kernel.pages is not None:
            kernel.pages.drop_clean(node.id)
        return Pending(WRITE, request.unique, file.nodeid, size, buffer)

    def submit_stat(self, fd: int) -> Pending:
        """Begin an ``fstat``; the result is the raw reply (``fuse_attr_out``)."""
        file = self._ctx.usable(fd)
        args = (1, 0, file.fh)
        request = self._ctx.running().submit(op.GETATTR, file.nodeid, args, process=self._ctx.process)
        return Pending(STAT, request.unique, file.nodeid, 0, [])

    def submit_lock(self, fd: int, kind: int, start: int, length: int, wait: bool = True) -> Pending:
        """Begin a POSIX lock (SETLKW, or SETLK); the result is None. EOPNOTSUPP if locks are guest-local."""
        file = self._ctx.usable(fd)
        if not self._locks.remote_posix():
            fail(errno.EOPNOTSUPP)
        wanted = self._locks.lock_range(file, kind, start, length)
        opcode = op.SETLKW if wait and kind != fcntl.F_UNLCK else op.SETLK
        request = self._ctx.running().submit(
            opcode, file.nodeid, self._locks.lock_args(file.id, wanted), process=self._ctx.process
        )
        return Pending(LOCK, request.unique, file.nodeid, 0, [])

    def done(self, pending: Pending) -> bool:
        """Whether ``result`` would return at once."""
        return self._ctx.running().ended(pending.unique)

    def result(self, pending: Pending) -> bytes | int | None:
        """Wait for a submitted request; its result, or its OSError. Each may be asked for once."""
        kernel = self._ctx.running()
        request = kernel.requests.get(pending.unique)
        if request is None:
            fail(errno.EINVAL)
        if request.status == DONE:
            del kernel.requests[pending.unique]
        else:
            request = self._ctx.await_reply(pending.unique)
        kernel = self._ctx.kernel
        try:
            if request.error:
                fail(request.error)
            if pending.kind == READ:
                return kernel.memory.read(pending.buffer[0][0], min(request.written, pending.size))
            if pending.kind == WRITE:
                written = int(self._ctx.record(op.WRITE, request).size)
                kernel.inodes.touch(kernel.nodes.get(pending.nodeid))
                return written
            return request.reply if pending.kind == STAT else None
        finally:
            kernel.free_owned(request)
