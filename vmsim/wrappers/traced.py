"""Wrappers that show what crosses a seam. What they wrap knows nothing of them.

    transport = TracedTransport(InProcessTransport(...), tracer.source("vm1"))

Each wrapper passes everything on unchanged, in the same order, with the same errors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from vmsim.errors import VmsimError
from vmsim.fuse.opcodes import BY_NUMBER
from vmsim.migration.channel import Channel, ChannelBase
from vmsim.migration.report import Progress
from vmsim.trace import Source
from vmsim.trace.events import (
    ChannelRead,
    ChannelWrite,
    FuseForget,
    FuseReply,
    FuseRequest,
    HostCall,
    MigrationPhase,
    MigrationRound,
    RingCall,
    RingNotify,
    RingPop,
    RingPush,
    RingViolated,
    VhostReply,
    VhostRequest,
)
from vmsim.vhost.messages import Reply, Request
from vmsim.vhost.seams import BackendDevice, Transport
from vmsim.virtio.chain import Chain

TEXT_MAX = 200
_IN_HEADER = struct.Struct("<IIQQ")  # len, opcode, unique, nodeid: the start of fuse_in_header
_OUT_HEADER = struct.Struct("<IiQ")  # fuse_out_header: len, error, unique


def shorten(text: str) -> str:
    """``text`` in at most TEXT_MAX characters."""
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 3] + "..."


def payload_text(payload: object) -> str:
    """A message's payload; None is empty."""
    return "" if payload is None else shorten(repr(payload))


class TracedTransport:
    """Seam S1: vhost messages, kicks, calls and ring errors."""

    def __init__(self, inner: Transport, trace: Source) -> None:
        self._inner = inner
        self._trace = trace
        self._number = 0
        self.progress = inner.progress
        self.close = inner.close
        self.notifier = inner.notifier
        self.backend_channel = inner.backend_channel
        self.shares_process = inner.shares_process
        self.reason = inner.reason
        self.on_call: Callable[[int], None] = inner.on_call
        self.on_ring_error: Callable[[int, str], None] = inner.on_ring_error
        inner.on_call = self._called
        inner.on_ring_error = self._ring_error

    def request(self, request: Request) -> Reply | None:
        """Pass a message on; shows it, and its reply or the error."""
        trace, name = self._trace, request.row.name
        self._number += 1
        number = self._number
        if trace.wants(VhostRequest):
            payload = payload_text(request.payload)
            trace.emit(VhostRequest(number, name, payload, len(request.fds), request.need_reply))
        try:
            reply = self._inner.request(request)
        except VmsimError as error:
            if trace.wants(VhostReply):
                trace.emit(VhostReply(number, name, "", 0, str(error)))
            raise
        if reply is not None and trace.wants(VhostReply):
            trace.emit(VhostReply(number, name, payload_text(reply.payload), len(reply.fds)))
        return reply

    def kick(self, ring: int) -> None:
        """Pass a kick on."""
        if self._trace.wants(RingNotify):
            self._trace.emit(RingNotify(ring))
        self._inner.kick(ring)

    def _called(self, ring: int) -> None:
        if self._trace.wants(RingCall):
            self._trace.emit(RingCall(ring))
        self.on_call(ring)

    def _ring_error(self, ring: int, message: str) -> None:
        if self._trace.wants(RingViolated):
            self._trace.emit(RingViolated(ring, message))
        self.on_ring_error(ring, message)


class TracedDevice:
    """What a vhost back-end hands to its device: chains, and the FUSE requests in them."""

    def __init__(self, inner: BackendDevice, trace: Source) -> None:
        self._inner = inner
        self._trace = trace
        self.virtio_features = inner.virtio_features
        self.queue_count = inner.queue_count
        self.hiprio_count = inner.hiprio_count
        self.config_space = inner.config_space
        self.set_features = inner.set_features
        self.parked = inner.parked
        self.keep_parked = inner.keep_parked
        self.resume_parked = inner.resume_parked
        self.save_state = inner.save_state
        self.load_state = inner.load_state
        self.log_started = inner.log_started
        self.log_stopped = inner.log_stopped
        self.reset = inner.reset
        self.close: Callable[[], None] = getattr(inner, "close", _nothing)

    def handle(self, ring: int, chain: Chain, complete: Callable[[Chain, int], None]) -> int | None:
        """Pass a chain on; shows the request in it and its answer, now or later."""
        trace, head = self._trace, chain.head
        if trace.wants(RingPop):
            trace.emit(RingPop(ring, head, chain.readable_bytes, chain.writable_bytes))
        _, number, unique, nodeid = _IN_HEADER.unpack(_first(chain.readable, _IN_HEADER.size))
        row = BY_NUMBER.get(number)
        opcode = row.name if row is not None else str(number)
        if trace.wants(FuseRequest):
            trace.emit(FuseRequest(ring, unique, opcode, nodeid, chain.readable_bytes))

        def complete_later(chain: Chain, written: int) -> None:
            self._answered(ring, chain, unique, opcode, written, deferred=True)
            complete(chain, written)

        written = self._inner.handle(ring, chain, complete_later)
        if written is not None:
            self._answered(ring, chain, unique, opcode, written, deferred=False)
        return written

    def _answered(
        self, ring: int, chain: Chain, unique: int, opcode: str, written: int, *, deferred: bool
    ) -> None:
        trace = self._trace
        if written >= _OUT_HEADER.size:
            _, error, _ = _OUT_HEADER.unpack(_first(chain.writable, _OUT_HEADER.size))
            if trace.wants(FuseReply):
                trace.emit(FuseReply(ring, unique, opcode, -error, written, deferred))
        elif trace.wants(FuseForget):
            trace.emit(FuseForget(ring, unique, opcode))
        if trace.wants(RingPush):
            trace.emit(RingPush(ring, chain.head, written))


def _nothing() -> None:
    """What closing a device does that has nothing to give back."""


def _first(views: Sequence[memoryview], size: int) -> bytes:
    """The first ``size`` bytes of scattered views, padded with zeros if there are fewer."""
    data = b""
    for view in views:
        data += bytes(view[: size - len(data)])
        if len(data) == size:
            break
    return data.ljust(size, b"\0")


class TracedChannel(ChannelBase):
    """Seam S2: what goes into a migration channel and comes out."""

    def __init__(self, inner: Channel, trace: Source) -> None:
        self._inner = inner
        self._trace = trace
        self._written = 0
        self._read = 0
        self.duplex = inner.duplex
        self.close = inner.close

    def close_write(self) -> None:
        """As of the channel."""
        self._inner.close_write()

    def finish(self) -> None:
        """As of the channel."""
        self._inner.finish()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Pass bytes on."""
        self._inner.write(data)
        if self._trace.wants(ChannelWrite):
            self._trace.emit(ChannelWrite(self._written, len(data)))
        self._written += len(data)

    def read_some(self, limit: int) -> bytes | memoryview:
        """Pass bytes on."""
        data = self._inner.read_some(limit)
        if self._trace.wants(ChannelRead):
            self._trace.emit(ChannelRead(self._read, len(data)))
        self._read += len(data)
        return data


class TracedProgress:
    """A migration's progress callback: a phase begins, a round goes on, the commit is reached."""

    def __init__(self, trace: Source, side: str = "source") -> None:
        self._trace = trace
        self._side = side
        self._last = ("", -1)

    def __call__(self, progress: Progress) -> None:
        """Show what is new since the last report."""
        phase, number = self._last
        self._last = (progress.phase, progress.round)
        if progress.phase != phase and self._trace.wants(MigrationPhase):
            self._trace.emit(MigrationPhase(self._side, progress.phase))
        if progress.round != number and self._trace.wants(MigrationRound):
            self._trace.emit(MigrationRound(progress.round, progress.sent_bytes, progress.remaining_bytes))


class TracedHostFs:
    """Seam S3: every system call of the passthrough server, by name, with its errno."""

    def __init__(self, inner: Any, trace: Source) -> None:
        self._inner = inner
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not callable(method):
            return method
        trace = self._trace

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                result = method(*arguments, **named)
            except OSError as error:
                if trace.wants(HostCall):
                    trace.emit(HostCall(name, _call_text(arguments, named), error.errno or 0))
                raise
            if trace.wants(HostCall):
                trace.emit(HostCall(name, _call_text(arguments, named), 0))
            return result

        self.__dict__[name] = call  # found without __getattr__ from now on
        return call


def _call_text(arguments: Sequence[object], named: dict[str, object]) -> str:
    words = [_argument_text(argument) for argument in arguments]
    words += [f"{name}={_argument_text(argument)}" for name, argument in named.items()]
    return shorten(", ".join(words))


def _argument_text(argument: object) -> str:
    """Buffers by their size, since their addresses differ between two equal runs."""
    if isinstance(argument, memoryview):
        return f"<{len(argument)} bytes>"
    if isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], memoryview):
        return f"<{sum(len(view) for view in argument)} bytes>"
    return repr(argument)
