"""The server's session: one request in, one reply out, and whatever the client sends, no exception.

``handle`` is the fast path: a simple row whose header and arguments, and whose reply, lie where they should.
READ, WRITE and LOOKUP have ways of their own (:mod:`vmsim.fuse.short`). Everything else takes ``_general``,
which assumes nothing.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Container, Iterable
from types import MethodType
from typing import Any

from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.fuse.decoding import check_length, decode
from vmsim.fuse.filesystem import DEFERRED, Context, FileSystem, TryAgain, Views
from vmsim.fuse.handlers import HANDLERS
from vmsim.fuse.init import InitOptions, check_restored, negotiate
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.fuse.opcodes import DESTROY, FUSE_INIT_BSWAP_RESERVED, INIT, OPCODES, Reply
from vmsim.fuse.plans import Plan
from vmsim.fuse.request import OUT_HEADER_SIZE, Request
from vmsim.fuse.short import SHORT_WAYS, ShortWay
from vmsim.fuse.unanswered import Aside, Unanswered
from vmsim.fuse.views import gather, scatter

_IN_HEADER_SIZE = IN_HEADER.size
_unpack_header = IN_HEADER.unpack_from
_pack_out_header = OUT_HEADER.pack
_header_into = OUT_HEADER.pack_into
_new_context = tuple.__new__
_FOREIGN_OUT_HEADER = struct.Struct(">IiQ")
_ERRNO_MAX = 4095


class Session:
    """One FUSE session over ``fs``.

    ``state`` is what INIT agreed on. ``on_fault`` is told of every exception other than OSError that the file
    system raised: these become EIO and are bugs of ours.
    """

    __slots__ = (
        "_fast", "_plans", "_routes", "_short", "_unanswered", "_ways", "fs", "on_fault", "options", "state",
    )  # fmt: skip

    def __init__(self, fs: FileSystem, options: InitOptions | None = None) -> None:
        self.fs = fs
        self.options = options if options is not None else InitOptions()
        self.state = NegotiatedState()
        self.on_fault: Callable[[Exception, int], None] | None = None
        self._unanswered = Unanswered(fs, self._finish)
        self._plans = {
            row.number: Plan(row, MethodType(HANDLERS[row.name], fs) if row.method else None)
            for row in OPCODES
        }
        self._routes = {row.number: self._plans[row.number].route for row in OPCODES if row.simple}
        self._ways = {number: way(fs) for number, way in SHORT_WAYS.items()}
        self._fast: dict[int, Any] = {}
        self._short: dict[int, ShortWay] = {}
        """Both empty until INIT."""

    def serve_aside(self, aside: Aside, opcodes: Container[int]) -> None:
        """Have ``aside`` asked about requests with these opcodes, and serve those that may take long."""
        self._unanswered.aside = aside
        self._routes = {
            row.number: self._plans[row.number].route
            for row in OPCODES
            if row.simple and row.number not in opcodes
        }
        self._ways = {number: way(self.fs) for number, way in SHORT_WAYS.items() if number not in opcodes}
        self._use_ways()

    def _use_ways(self) -> None:
        """Fast and short ways are for sessions that INIT has begun."""
        self._fast = self._routes if self.state.initialized else {}
        self._short = self._ways if self.state.initialized else {}

    # -- requests --------------------------------------------------------------------------------

    def handle(self, readable: Views, writable: Views, complete: Callable[[int], None]) -> int | None:
        """Serve one request; the number of bytes written, or None: ``complete(bytes written)`` comes later.

        ``readable`` and ``writable`` are views of the request and of the room for its reply, cut as the
        client likes. Written are a whole reply, an errno in a bare header, or nothing: for requests without
        reply and where not even a header fits. Whatever the bytes are, nothing is raised.
        """
        try:
            first = readable[0]
            header = _unpack_header(first)
            route = self._fast.get(header[1])
            if route is None:
                return self._another_way(header, readable, writable, complete)
            handler, unpack, request_size, pack_into, reply_size, body_into = route
            out = writable[0]
            body = None
            if len(out) < reply_size:
                body = writable[1]
                if len(out) != OUT_HEADER_SIZE or len(body) < reply_size - OUT_HEADER_SIZE:
                    return self._general(readable, writable, complete)
            if header[0] != request_size:
                return self._general(readable, writable, complete)
            if len(first) >= request_size:
                args = unpack(first, 40)
            elif len(first) == 40:
                args = unpack(readable[1])
            else:
                return self._general(readable, writable, complete)
        except (IndexError, struct.error):
            return self._general(readable, writable, complete)
        try:
            reply = handler(_new_context(Context, header), args)
            if body is None:
                pack_into(out, 0, reply_size, 0, header[2], *reply)
            else:
                body_into(body, 0, *reply)
                _header_into(out, 0, reply_size, 0, header[2])
        except TryAgain:
            return self._general(readable, writable, complete)
        except Exception as error:
            return self._refuse(writable, header[2], self._errno_of(error, header[1]))
        return reply_size  # type: ignore[no-any-return]

    def _another_way(
        self, header: Any, readable: Views, writable: Views, complete: Callable[[int], None]
    ) -> int | None:
        """The short way of a request that has one and is in shape for it, else the general one."""
        way = self._short.get(header[1])
        if way is not None:
            try:
                if written := way(header, readable[0], readable, writable):
                    return written
            except TryAgain:
                pass
            except Exception as error:
                return self._refuse(writable, header[2], self._errno_of(error, header[1]))
        return self._general(readable, writable, complete)

    def _general(self, readable: Views, writable: Views, complete: Callable[[int], None]) -> int | None:
        """Any request at all."""
        available = len(readable[0]) if len(readable) == 1 else sum(map(len, readable))
        if available < _IN_HEADER_SIZE:
            return self._refuse(writable, 0, errno.EINVAL)
        head: bytes | memoryview = readable[0]
        if len(head) < _IN_HEADER_SIZE:
            head = gather(readable, 0, _IN_HEADER_SIZE)
        ctx: Context = _new_context(Context, _unpack_header(head))
        length, number, unique = ctx[:3]
        plan = self._plans.get(number)
        if plan is None:
            if number == FUSE_INIT_BSWAP_RESERVED:
                return self._refuse_foreign(writable, unique)
            return self._refuse(writable, unique, errno.ENOSYS)
        room = (len(writable[0]) if len(writable) == 1 else sum(map(len, writable))) - OUT_HEADER_SIZE
        if plan.no_reply:
            writable, room = [], 0
        elif room < 0:
            return 0
        try:
            check_length(length, available)
            if number == INIT:
                return self._init(ctx, gather(readable, _IN_HEADER_SIZE, length - 40), writable, room)
            if not self.state.initialized:
                raise OSError(errno.EBADF, "no session")
            if room < plan.record_size:
                raise OSError(errno.ENOMEM, "no room for the reply")
            request = decode(plan, ctx, readable, writable, room, self.state, complete)
            if plan.handler is None:
                return self._serve_itself(request)
            result = self._unanswered.serve(request)
            return None if result is DEFERRED else self._reply(request, result)
        except Exception as error:
            return self._refuse(writable, unique, self._errno_of(error, number))

    def _serve_itself(self, request: Request) -> int:
        """DESTROY and INTERRUPT, which have no reply."""
        if request.ctx.opcode == DESTROY:
            self._end(errno.ECONNABORTED)
        else:
            self._unanswered.interrupt(request.args[0])
        return 0

    def _reply(self, request: Request, result: Any) -> int:
        """Write a result; the bytes written. OSError when it is an error or does not fit."""
        if isinstance(result, Exception):
            raise result
        plan = request.plan
        kind = plan.reply
        unique = request.ctx[2]
        if kind is Reply.RECORD:
            scatter(request.writable, plan.pack(plan.reply_size, 0, unique, *result))
            return plan.reply_size
        if kind is Reply.NONE:
            return 0
        size = OUT_HEADER_SIZE
        body: bytes | bytearray = b""
        if kind is Reply.FILL:
            size += result
        elif kind is Reply.BYTES:
            body = result
            size += len(body)
            request.need(len(body))
        scatter(request.writable, _pack_out_header(size, 0, unique) + body)
        return size

    def _finish(self, request: Request, result: Any) -> None:
        """Answer a request that was not answered at once."""
        unique = request.ctx.unique
        try:
            written = self._reply(request, result)
        except Exception as error:
            written = self._refuse(request.writable, unique, self._errno_of(error, request.ctx.opcode))
        request.complete(written)

    def _errno_of(self, error: Exception, opcode: int) -> int:
        """The errno to tell the client; faults are reported first."""
        if isinstance(error, OSError):
            number = error.errno
            return number if isinstance(number, int) and 0 < number <= _ERRNO_MAX else errno.EIO
        if self.on_fault is not None:
            self.on_fault(error, opcode)
        return errno.EIO

    @staticmethod
    def _refuse(writable: Views, unique: int, error: int) -> int:
        """A header with an errno, if there is room for it."""
        if sum(map(len, writable)) < OUT_HEADER_SIZE:
            return 0
        scatter(writable, _pack_out_header(OUT_HEADER_SIZE, -error, unique))
        return OUT_HEADER_SIZE

    @staticmethod
    def _refuse_foreign(writable: Views, unique: int) -> int:
        """EPROTO in the client's byte order to an INIT of the other one (virtio 1.3 section 5.11.6.2)."""
        if sum(map(len, writable)) < OUT_HEADER_SIZE:
            return 0
        swapped = int.from_bytes(unique.to_bytes(8, "little"), "big")
        scatter(writable, _FOREIGN_OUT_HEADER.pack(OUT_HEADER_SIZE, -errno.EPROTO, swapped))
        return OUT_HEADER_SIZE

    # -- session ---------------------------------------------------------------------------------

    def _init(self, ctx: Context, body: bytes, writable: Views, room: int) -> int:
        """INIT; a second one ends the session before it, one for a higher major version does nothing."""
        answer = negotiate(body, self.options, room)
        if answer.state is not None:
            if self.state.initialized:
                self._end(errno.ECONNABORTED)
            self.fs.init(ctx, answer.state)
            self._begin(answer.state)
        size = OUT_HEADER_SIZE + len(answer.body)
        scatter(writable, _pack_out_header(size, 0, ctx.unique) + answer.body)
        return size

    def _begin(self, state: NegotiatedState) -> None:
        self.state = state._replace(interrupted=())
        self._unanswered.interrupted = dict.fromkeys(state.interrupted)
        self._use_ways()

    def _end(self, error: int) -> None:
        """Answer who waits with ``error``, then drop all state."""
        self._unanswered.answer_all(OSError(error, "the session ended"))
        self._begin(NegotiatedState())
        self.fs.destroy()

    # -- requests that are not answered yet

    @property
    def retrying(self) -> bool:
        """Whether ``retry`` has something to do."""
        return self._unanswered.retrying

    def retry(self, most: int) -> None:
        """Serve up to ``most`` of the requests anew that had to try again."""
        self._unanswered.retry(most)

    def is_apart(self, unique: int) -> bool:
        """Whether the request is being served aside: only its end ends it."""
        return self._unanswered.is_apart(unique)

    def waiting(self) -> list[int]:
        """The uniques of the requests whose reply is still to come, oldest first."""
        return self._unanswered.uniques()

    @property
    def newest_waiting(self) -> int:
        """The unique of the request that began to wait last; -1 if none waits."""
        return self._unanswered.newest

    def park(self, uniques: Iterable[int] | None = None) -> list[int]:
        """Give up waiting requests (None: all) unanswered, and the file system's waits; their uniques.

        Those that are served aside go on. The others have had no effect: handing the same requests to
        ``handle`` again, here or on the machine that goes on, makes them wait again.
        """
        return self._unanswered.give_up(uniques)

    # -- its life elsewhere

    def reset(self) -> None:
        """The device was reset: the rings are gone, so nobody is answered any more."""
        self._unanswered.give_up(apart=True)
        self._begin(NegotiatedState())
        self.fs.destroy()

    def save(self) -> NegotiatedState:
        """The session as plain data; it goes on unchanged. Nodes, handles and locks are the file system's."""
        return self.state._replace(interrupted=tuple(self._unanswered.interrupted))

    def restore(self, state: NegotiatedState) -> None:
        """Go on with a session that was negotiated elsewhere; StreamError when this server cannot."""
        checked = check_restored(state, self.options)
        self._unanswered.give_up(apart=True)
        if checked.initialized:
            self.fs.adopt(checked._replace(interrupted=()))
        self._begin(checked)
