"""The server's session: one request in, one reply out, and whatever the client sends, no exception.

``handle`` is the fast path: a simple row whose header and arguments, and whose reply, lie where they should.
READ, WRITE and LOOKUP have ways of their own (:mod:`vmsim.fuse.short`). Everything else takes ``_general``,
which assumes nothing.
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Callable, Container, Hashable, Iterable
from types import MethodType
from typing import Any, Protocol

from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.fuse.decoding import check_length, decode
from vmsim.fuse.filesystem import DEFERRED, Context, FileSystem, TryAgain, Views
from vmsim.fuse.handlers import HANDLERS
from vmsim.fuse.init import InitOptions, check_restored, negotiate
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.fuse.opcodes import DESTROY, FUSE_INIT_BSWAP_RESERVED, INIT, OPCODES, Reply
from vmsim.fuse.plans import Plan
from vmsim.fuse.request import FINISHED, OUT_HEADER_SIZE, RUNNING, WAITING, Request
from vmsim.fuse.short import SHORT_WAYS, ShortWay
from vmsim.fuse.views import gather, scatter
from vmsim.limits import FUSE_INTERRUPTS_MAX

_IN_HEADER_SIZE = IN_HEADER.size
_unpack_header = IN_HEADER.unpack_from
_pack_out_header = OUT_HEADER.pack
_header_into = OUT_HEADER.pack_into
_new_context = tuple.__new__
_FOREIGN_OUT_HEADER = struct.Struct(">IiQ")
_ERRNO_MAX = 4095


class Aside(Protocol):
    """Serves requests that may sleep in the host while others are served."""

    def aside_key(self, request: Request, *, again: bool = False) -> Hashable | None:
        """What may hold up this request: calls with an equal key wait for each other; None for nothing.

        ``again``: it has been tried, and raised TryAgain.
        """
        ...

    def start_aside(
        self, request: Request, key: Hashable, serve: Callable[[], Any], done: Callable[[Any], object]
    ) -> None:
        """Have ``serve()`` called aside and its result, or exception, given to ``done``, perhaps at once."""
        ...


class Session:
    """One FUSE session over ``fs``.

    ``state`` is what INIT agreed on. ``on_fault`` is told of every exception other than OSError that the file
    system raised: these become EIO and are bugs of ours.
    """

    __slots__ = (
        "_again", "_apart", "_aside", "_fast", "_interrupted", "_plans", "_routes", "_short", "_waiting",
        "_ways", "fs", "on_fault", "options", "state",
    )  # fmt: skip

    def __init__(self, fs: FileSystem, options: InitOptions | None = None) -> None:
        self.fs = fs
        self.options = options if options is not None else InitOptions()
        self.state = NegotiatedState()
        self.on_fault: Callable[[Exception, int], None] | None = None
        self._waiting: dict[int, Request] = {}
        self._again: dict[int, Request] = {}
        """Those of them that are to be served anew, the next one first."""
        self._apart: dict[int, Request] = {}
        """Those that are being served aside: they can neither be interrupted nor parked."""
        self._aside: Aside | None = None
        self._interrupted: dict[int, None] = {}
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
        self._aside = aside
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
            try:
                return self._execute(request)
            except TryAgain:
                self._keep(request)
                return None
        except Exception as error:
            return self._refuse(writable, unique, self._errno_of(error, number))

    def _execute(self, request: Request) -> int | None:
        """Run the handler and write its reply; OSError goes to the caller."""
        plan = request.plan
        if plan.handler is None:
            return self._serve_itself(request)
        if self._aside is not None and not plan.no_reply:
            key = self._aside.aside_key(request)
            if key is not None:
                return self._execute_aside(self._aside, request, key)
        if plan.row.waits:
            return self._execute_waiting(request)
        try:
            result = _serve(request)
        except TryAgain:
            key = None if self._aside is None else self._aside.aside_key(request, again=True)
            if self._aside is None or key is None:
                raise
            return self._execute_aside(self._aside, request, key)
        return self._reply(request, result)

    def _execute_aside(self, aside: Aside, request: Request, key: Hashable) -> int | None:
        """Requests that may sleep in the host; nobody else waits for them."""
        unique = request.ctx.unique
        self._check_unique(unique)
        request.on_done = self._finish
        self._start_aside(aside, request, key)
        if request.phase == RUNNING:
            request.phase = WAITING
            self._waiting[unique] = request
            return None
        return self._reply(request, request.result)

    def _start_aside(self, aside: Aside, request: Request, key: Hashable) -> None:
        self._apart[request.ctx.unique] = request
        aside.start_aside(request, key, lambda: _serve(request), lambda result: self._served(request, result))

    def _served(self, request: Request, result: Any) -> None:
        """A request that was served aside has its result, perhaps after the end of its session."""
        unique = request.ctx.unique
        if self._apart.get(unique) is not request:
            return
        del self._apart[unique]
        if isinstance(result, TryAgain):
            if unique in self._interrupted:
                del self._interrupted[unique]
                result = InterruptedError(errno.EINTR, "interrupted")
            else:
                self._again[unique] = request
                return
        request.done(result)

    def _serve_itself(self, request: Request) -> int:
        """DESTROY and INTERRUPT, which have no reply."""
        if request.ctx.opcode == DESTROY:
            self._end(errno.ECONNABORTED)
        else:
            self._interrupt(request.args[0])
        return 0

    def _execute_waiting(self, request: Request) -> int | None:
        """SETLKW and POLL, whose reply may come later."""
        unique = request.ctx.unique
        self._check_unique(unique)
        result = request.plan.handler(request)
        if result is not DEFERRED:
            request.phase = FINISHED
            return self._reply(request, result)
        if request.phase == RUNNING and unique in self._interrupted:
            del self._interrupted[unique]
            self.fs.interrupt(unique)
        if request.phase == RUNNING:
            request.on_done = self._finish
            request.phase = WAITING
            self._waiting[unique] = request
            return None
        return self._reply(request, request.result)

    def _check_unique(self, unique: int) -> None:
        if unique in self._waiting:
            raise OSError(errno.EINVAL, "a waiting request has this unique")

    def _keep(self, request: Request) -> None:
        """Keep a request that is to be served anew."""
        unique = request.ctx.unique
        self._check_unique(unique)
        if unique in self._interrupted:
            del self._interrupted[unique]
            raise InterruptedError(errno.EINTR, "interrupted")
        request.on_done = self._finish
        request.phase = WAITING
        self._waiting[unique] = self._again[unique] = request

    @property
    def retrying(self) -> bool:
        """Whether ``retry`` has something to do."""
        return bool(self._again)

    def retry(self, most: int) -> None:
        """Serve up to ``most`` of the requests anew that had to try again."""
        for unique in list(itertools.islice(self._again, most)):
            request = self._again.pop(unique, None)
            if request is None:
                continue  # ended by what another one brought about
            key = None if self._aside is None else self._aside.aside_key(request, again=True)
            if self._aside is not None and key is not None:
                self._start_aside(self._aside, request, key)
                continue
            try:
                result = _serve(request)
            except TryAgain:
                self._again[unique] = request  # behind those that have waited for their turn
                continue
            except Exception as error:
                result = error
            if result is not DEFERRED:
                request.done(result)

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
        """The file system's ``done`` for a request that waited."""
        unique = request.ctx.unique
        self._waiting.pop(unique, None)
        self._again.pop(unique, None)
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
        self._interrupted = dict.fromkeys(state.interrupted)
        self._use_ways()

    def _end(self, error: int) -> None:
        """Answer who waits with ``error``, then drop all state."""
        self._apart.clear()
        for request in list(self._waiting.values()):
            request.done(OSError(error, "the session ended"))
        self._begin(NegotiatedState())
        self.fs.destroy()

    def _interrupt(self, unique: int) -> None:
        """INTERRUPT; hiprio may overtake its request, so an unknown unique is remembered for a while."""
        if unique in self._again:
            self._waiting[unique].done(InterruptedError(errno.EINTR, "interrupted"))
            return
        if unique in self._waiting:
            self.fs.interrupt(unique)
            return
        self._interrupted[unique] = None
        if len(self._interrupted) > FUSE_INTERRUPTS_MAX:
            del self._interrupted[next(iter(self._interrupted))]

    def is_apart(self, unique: int) -> bool:
        """Whether the request is being served aside: only its end ends it."""
        return unique in self._apart

    def waiting(self) -> list[int]:
        """The uniques of the requests whose reply is still to come, oldest first."""
        return list(self._waiting)

    @property
    def newest_waiting(self) -> int:
        """The unique of the request that began to wait last; -1 if none waits."""
        return next(reversed(self._waiting), -1)

    def park(self, uniques: Iterable[int] | None = None) -> list[int]:
        """Give up waiting requests (None: all) unanswered, and the file system's waits; their uniques.

        Those that are served aside go on. The others have had no effect: handing the same requests to
        ``handle`` again, here or on the machine that goes on, makes them wait again.
        """
        parked = []
        for unique in list(self._waiting) if uniques is None else uniques:
            request = None if unique in self._apart else self._waiting.pop(unique, None)
            if request is not None:
                self._again.pop(unique, None)
                request.phase = FINISHED
                parked.append(unique)
        for unique in parked:
            self.fs.interrupt(unique)
        return parked

    def reset(self) -> None:
        """The device was reset: the rings are gone, so nobody is answered any more."""
        self._apart.clear()
        self.park()
        self._begin(NegotiatedState())
        self.fs.destroy()

    def save(self) -> NegotiatedState:
        """The session as plain data; it goes on unchanged. Nodes, handles and locks are the file system's."""
        return self.state._replace(interrupted=tuple(self._interrupted))

    def restore(self, state: NegotiatedState) -> None:
        """Go on with a session that was negotiated elsewhere; StreamError when this server cannot."""
        checked = check_restored(state, self.options)
        self._apart.clear()
        self.park()
        if checked.initialized:
            self.fs.adopt(checked._replace(interrupted=()))
        self._begin(checked)


def _serve(request: Request) -> Any:
    plan = request.plan
    return plan.handler(request.ctx, request.args) if plan.simple else plan.handler(request)
