"""The in-process transport: the same typed messages and descriptors as over a socket, by direct calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vmsim.errors import PeerError, VmsimError
from vmsim.schedule import Schedule
from vmsim.vhost.backend import VhostBackend
from vmsim.vhost.messages import MessageError, Reply, Request
from vmsim.vhost.seams import Fds


def _nobody(*_: object) -> None:
    """Stands for a front-end that has not said yet whom to call."""


class InProcessTransport:
    """Seam S1 within one process.

    Kicks go through the schedule to the back-end's ring, calls come back at once; neither needs a descriptor.
    Descriptors of messages are duplicated, so that both ends own theirs as they would across a socket.
    """

    shares_process = True

    def __init__(self, backend: VhostBackend, schedule: Schedule, fds: Fds) -> None:
        if backend.link is not None:
            raise PeerError("the back-end is connected already")
        self.on_call: Callable[[int], None] = _nobody
        self.on_ring_error: Callable[[int, str], None] = _nobody
        self.backend: VhostBackend | None = backend
        self._fds = fds
        self._schedule_kick = schedule.kick
        self._runs = [(ring.kicked, f"ring {ring.index}") for ring in backend.rings]
        backend.link = _Link(self, fds)

    def request(self, request: Request) -> Reply | None:
        """Have the back-end handle a message with duplicates of its descriptors."""
        backend = self._backend(request.row.name)
        fds: list[int] = []
        try:
            fds.extend(map(self._fds.dup, request.fds))
        except BaseException:
            for fd in fds:
                self._fds.close(fd)
            raise
        return backend.handle(Request(request.row, request.payload, tuple(fds), request.need_reply))

    def kick(self, ring: int) -> None:
        """Have the schedule run the ring."""
        run, what = self._runs[ring]
        self._schedule_kick(run, what)

    def notifier(self, message: str, ring: int) -> int:
        """No descriptor is needed: kicks and calls are function calls."""
        return -1

    def backend_channel(self) -> int:
        """There is none: what a back-end would ask for over it, it says to its link."""
        return -1

    def progress(self, fd: int, *, writing: bool) -> None:
        """Let the back-end move a state transfer on."""
        if not self._backend("state transfer").progress():
            raise PeerError("the state transfer is stuck: neither side can go on")

    def reason(self) -> tuple[str, str]:
        """What the back-end found wrong last, and what to do."""
        if self.backend is None:
            return "", ""
        error = self.backend.transfer.failure or self.backend.refusal
        return (error.message, error.hint) if isinstance(error, VmsimError) else (str(error or ""), "")

    def close(self) -> None:
        """Disconnect; the back-end stops its rings and keeps its session."""
        backend, self.backend = self.backend, None
        if backend is None:
            return
        self._runs = [(partial(_nobody), what) for _, what in self._runs]
        backend.close()
        backend.link = None

    def _backend(self, what: str) -> VhostBackend:
        if self.backend is None:
            raise MessageError(f"{what}: the connection is closed")
        return self.backend


class _Link:
    """The way back: calls and ring errors reach the front-end directly."""

    __slots__ = ("_fds", "_transport", "call")

    def __init__(self, transport: InProcessTransport, fds: Fds) -> None:
        self._transport = transport
        self._fds = fds
        self.call: Callable[[int], None] = self._call

    def _call(self, ring: int) -> None:
        self._transport.on_call(ring)

    def ring_error(self, ring: int, why: str) -> None:
        """Tell the front-end."""
        self._transport.on_ring_error(ring, why)

    def turn(self) -> None:
        """A driver in the same thread cannot go on while it is served: its ring is empty soon."""

    def reschedule(self, ring: int) -> None:
        """Turns have no end here."""

    def set_notifier(self, message: str, ring: int, fd: int) -> None:
        """Descriptors are not needed here."""
        if fd >= 0:
            self._fds.close(fd)

    def set_channel(self, fd: int) -> None:
        """Nor is a channel."""
        self._fds.close(fd)
