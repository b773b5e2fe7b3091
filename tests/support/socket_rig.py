"""The contract rig with a vhost-user connection between its halves, both served by one poller."""

from __future__ import annotations

from types import SimpleNamespace

from tests.support.vhost_rig import Recorder, Rig
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.server import VhostUserServer
from vmsim.host.vhost_user.transport import VhostUserTransport
from vmsim.host.waits import FdWaits
from vmsim.schedule.immediate import ImmediateSchedule


class SocketRig(Rig):
    """As ``Rig``; a kick returns when everything that it set off has been done."""

    tells_reasons = False

    def __init__(self, *arguments, schedule=None, **options):
        self.waits = FdWaits(patience_ns=5_000_000_000)
        schedule = schedule or ImmediateSchedule(descriptors=self.waits)
        # In a process of its own a back-end waits for nobody.
        super().__init__(*arguments, schedule=schedule, backend_schedule=ImmediateSchedule(), **options)

    def connect(self):
        ours, theirs = UnixSocket.pair()
        self.server = VhostUserServer(self.backend, theirs, self.waits)
        inner = VhostUserTransport(ours, self.dialect.messages, self.waits, timeout_ns=5_000_000_000)
        self.transport = Recorder(Settling(inner, self.waits))

    def cut(self):
        self.server.backend = SimpleNamespace(close=lambda: None)
        self.server.close("killed")


class Settling:
    """A transport that lets the other half work after each kick and each message."""

    def __init__(self, inner, waits):
        self.inner = inner
        self.waits = waits
        for name in ("notifier", "backend_channel", "reason", "shares_process"):
            setattr(self, name, getattr(inner, name))

    on_call = property(lambda self: self.inner.on_call, lambda self, f: setattr(self.inner, "on_call", f))
    on_ring_error = property(
        lambda self: self.inner.on_ring_error, lambda self, f: setattr(self.inner, "on_ring_error", f)
    )

    def request(self, request):
        reply = self.inner.request(request)
        self.waits.settle()
        return reply

    def kick(self, ring):
        self.inner.kick(ring)
        self.waits.settle()

    def progress(self, fd, *, writing):
        self.waits.settle()

    def close(self):
        self.inner.close()
        self.waits.settle()
