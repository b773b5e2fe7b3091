"""Faults at the seams: fail, cut or delay the Nth operation. What is wrapped stays pristine underneath.

    plan = FaultPlan()                       # no fault: counts
    run(FaultyTransport(transport, plan))    # plan.steps now lists every operation in order
    for step in plan.steps:                  # and each of them can be made to fail
        run(FaultyTransport(transport, FaultPlan([Fault.at(step, "fail")])))

A fault is raised as what the seam really raises (PeerError, ChannelError, OSError), so nobody can tell.
"""

from __future__ import annotations

import errno as codes
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from vmsim.errors import PeerError, UsageError
from vmsim.migration.channel import Channel, ChannelBase
from vmsim.migration.errors import ChannelError
from vmsim.schedule import Schedule
from vmsim.trace import NOWHERE, Source
from vmsim.trace.events import SimFault
from vmsim.vhost.messages import Reply, Request
from vmsim.vhost.seams import Transport


class Kind(NamedTuple):
    """What a kind of fault does to an operation; every wrapper goes by these four alone."""

    happens: bool = False
    """It is carried out underneath, whatever is said of it."""
    fails: bool = True
    """Whoever asked is told an error."""
    cuts: bool = False
    """The seam is dead from here on. Only of what fails: whoever is told an error looks after the rest."""
    waits: bool = False
    """It takes ``delay_ns`` longer."""


KINDS: Final[dict[str, Kind]] = {
    "fail": Kind(),  # refused, nothing happened
    "lose": Kind(happens=True),  # it happened, and the answer was lost
    "cut": Kind(cuts=True),
    "delay": Kind(happens=True, fails=False, waits=True),
}
"""By name. A row is all that a new one takes: plans, wrappers and campaigns know no kind in particular."""


class Step(NamedTuple):
    """One operation that crossed a seam; ``number`` counts those of its seam from 1."""

    seam: str
    operation: str
    number: int

    def __str__(self) -> str:
        return f"{self.seam} {self.number} ({self.operation})"


class Fault(NamedTuple):
    """What happens to the ``number``-th of the operations that the two globs match."""

    seam: str
    operation: str
    number: int
    kind: str
    errno: int = codes.EIO
    delay_ns: int = 0

    @property
    def does(self) -> Kind:
        """What its kind means."""
        return KINDS[self.kind]

    @classmethod
    def at(cls, step: Step, kind: str, *, errno: int = codes.EIO, delay_ns: int = 0) -> Fault:
        """A fault at a step that another run recorded."""
        return cls(step.seam, "*", step.number, kind, errno, delay_ns)


class FaultPlan:
    """Counts the operations of all seams that share it, and says which of them fail.

    ``steps`` lists what crossed, ``injected`` what was done about it: a campaign that injected nothing
    tested nothing.
    """

    def __init__(
        self, faults: Iterable[Fault] = (), *, schedule: Schedule | None = None, trace: Source = NOWHERE
    ) -> None:
        self.steps: list[Step] = []
        self.injected: list[tuple[Step, Fault]] = []
        self._schedule = schedule
        self._trace = trace
        self._left = [(fault, fault.number) for fault in faults]
        if unknown := {fault.kind for fault, _ in self._left} - KINDS.keys():
            raise UsageError(f"no fault {min(unknown)!r}", hint=f"one of: {', '.join(KINDS)}")
        self._numbers: dict[str, int] = {}
        self._cut: set[str] = set()

    def is_cut(self, seam: str) -> bool:
        """Whether a seam is dead."""
        return seam in self._cut

    def cross(self, seam: str, operation: str) -> Fault | None:
        """Count one operation; the fault to raise there. A delay has passed when this returns."""
        number = self._numbers[seam] = self._numbers.get(seam, 0) + 1
        step = Step(seam, operation, number)
        self.steps.append(step)
        if seam in self._cut:
            return Fault(seam, operation, number, "cut", codes.EPIPE)
        fault = self._due(step)
        if fault is None:
            return None
        self.injected.append((step, fault))
        if self._trace.wants(SimFault):
            self._trace.emit(SimFault(seam, operation, number, fault.kind))
        if fault.does.waits and self._schedule is not None:
            self._schedule.sleep_ns(fault.delay_ns)
        if fault.does.cuts:
            self._cut.add(seam)
        return fault if fault.does.fails else None

    def _due(self, step: Step) -> Fault | None:
        due = None
        for index, (fault, left) in enumerate(self._left):
            if fnmatchcase(step.seam, fault.seam) and fnmatchcase(step.operation, fault.operation):
                self._left[index] = (fault, left - 1)
                if left == 1:
                    due = due or fault
        return due


class FaultyTransport:
    """Seam S1: messages by name, and kicks (operation ``kick``). A cut transport is a peer that is gone."""

    def __init__(self, inner: Transport, plan: FaultPlan, seam: str = "transport") -> None:
        self._inner = inner
        self._plan = plan
        self._seam = seam
        self.close = inner.close
        self.notifier = inner.notifier
        self.backend_channel = inner.backend_channel
        self.shares_process = inner.shares_process
        self.reason = inner.reason

    @property
    def on_call(self) -> Callable[[int], None]:
        """As of the transport."""
        return self._inner.on_call

    @on_call.setter
    def on_call(self, called: Callable[[int], None]) -> None:
        self._inner.on_call = called

    @property
    def on_ring_error(self) -> Callable[[int, str], None]:
        """As of the transport."""
        return self._inner.on_ring_error

    @on_ring_error.setter
    def on_ring_error(self, failed: Callable[[int, str], None]) -> None:
        self._inner.on_ring_error = failed

    def request(self, request: Request) -> Reply | None:
        """Pass a message on, unless it is its turn to fail: PeerError."""
        name = request.row.name
        fault = self._plan.cross(self._seam, name)
        if fault is None:
            return self._inner.request(request)
        if fault.does.happens:
            lost = self._inner.request(request)
            for fd in lost.fds if lost is not None else ():
                os.close(fd)
        raise PeerError(
            f"{name}: {'the peer is gone' if fault.does.cuts else os.strerror(fault.errno)}",
            request=name, errno=fault.errno,
        )

    def kick(self, ring: int) -> None:
        """Pass a kick on; a failed kick never arrives."""
        if self._plan.cross(self._seam, "kick") is None:
            self._inner.kick(ring)

    def progress(self, fd: int, *, writing: bool) -> None:
        """Let the peer work; PeerError if it is gone."""
        if self._plan.is_cut(self._seam):
            raise PeerError("the peer is gone", errno=codes.EPIPE)
        self._inner.progress(fd, writing=writing)


class FaultyChannel(ChannelBase):
    """Seam S2: ``write``, ``read`` and ``finish`` of a migration channel; ChannelError, as channels raise it.

    A cut write leaves half of its bytes behind; after a cut, writes fail and reads find the end.
    """

    def __init__(self, inner: Channel, plan: FaultPlan, seam: str = "channel") -> None:
        self._inner = inner
        self._plan = plan
        self._seam = seam
        self.duplex = inner.duplex
        self.close = inner.close

    def close_write(self) -> None:
        """As of the channel."""
        self._inner.close_write()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Pass bytes on, unless it is this write's turn to fail."""
        was_cut = self._plan.is_cut(self._seam)
        fault = self._plan.cross(self._seam, "write")
        if fault is None:
            self._inner.write(data)
            return
        cut_now = fault.does.cuts and not was_cut
        if fault.does.happens:
            self._inner.write(data)
        elif cut_now and len(data) > 1:
            self._inner.write(bytes(data[: len(data) // 2]))
        if cut_now:
            self._inner.close()
        raise _channel_error("write to", fault)

    def read_some(self, limit: int) -> bytes | memoryview:
        """Pass bytes on, unless it is this read's turn to fail; b"" once the channel is cut."""
        was_cut = self._plan.is_cut(self._seam)
        fault = self._plan.cross(self._seam, "read")
        if fault is None:
            return self._inner.read_some(limit)
        if fault.does.happens:
            self._inner.read_some(limit)
        if fault.does.cuts:
            if not was_cut:
                self._inner.close()
            return b""
        raise _channel_error("read from", fault)

    def finish(self) -> None:
        """Finish, unless it is its turn to fail."""
        fault = self._plan.cross(self._seam, "finish")
        if fault is None or fault.does.happens:
            self._inner.finish()
        if fault is not None:
            raise _channel_error("finish", fault)


def _channel_error(verb: str, fault: Fault) -> ChannelError:
    code = codes.EPIPE if fault.does.cuts else fault.errno
    return ChannelError(f"cannot {verb} the migration channel: {os.strerror(code)}", errno=code)


class FaultyHostFs:
    """Seam S3: every system call of the passthrough server, by name; OSError with the fault's errno.

    Calls that give something back (``close``, ``become_self``) are not made to fail.
    """

    NEVER = frozenset({"close", "become_self"})
    DESCRIPTORS = frozenset({"open_share", "open_beneath", "reopen", "open_handle", "memory_file", "create",
                             "open_parent", "clone_mount"})
    """What gives a descriptor; one that is lost must not stay open."""

    def __init__(self, inner: Any, plan: FaultPlan, seam: str = "host") -> None:
        self._inner = inner
        self._plan = plan
        self._seam = seam

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not callable(method) or name in self.NEVER:
            return method
        plan, seam = self._plan, self._seam

        def call(*arguments: Any, **named: Any) -> Any:
            fault = plan.cross(seam, name)
            if fault is None:
                return method(*arguments, **named)
            if fault.does.happens:
                lost = method(*arguments, **named)
                if name in self.DESCRIPTORS:
                    self._inner.close(lost)
            raise OSError(fault.errno, os.strerror(fault.errno))

        self.__dict__[name] = call  # found without __getattr__ from now on
        return call
