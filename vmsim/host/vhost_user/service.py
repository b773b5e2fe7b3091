"""A back-end as a service: one front-end after the other, requests and everything beside them in one loop."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Final, Protocol

from vmsim.errors import VmsimError
from vmsim.host.sockets import Listener, UnixSocket
from vmsim.host.vhost_user.server import VhostUserServer
from vmsim.host.waits import FdWaits
from vmsim.host.workers import Workers
from vmsim.limits import DRAIN_NS
from vmsim.vhost.backend import VhostBackend

GOING_NS: Final = 200_000_000
"""How long requests that sleep in the host are waited for when nobody is left who wants their answers."""

LOOK_NS: Final = 1_000_000
"""Between two looks at what no descriptor announces: a lock of somebody outside, a ring without kick."""


class Background(Protocol):
    """What goes on beside requests."""

    @property
    def busy(self) -> bool:
        """Whether there is any."""
        ...

    def idle(self) -> bool:
        """Do a little of it; whether there is more to be done at once."""
        ...

    def join_aside(self) -> None:
        """Go on with requests whose calls on other threads have ended."""
        ...

    def mounts_changed(self) -> None:
        """Something was mounted or unmounted."""
        ...


class Service:
    """Serves ``backend`` until ``stop``; ``background`` gets its turns when no descriptor is ready."""

    def __init__(
        self, backend: VhostBackend, background: Background, waits: FdWaits,
        log: Callable[[str], object] = lambda line: None, pool: Workers | None = None,
    ) -> None:  # fmt: skip
        self.backend = backend
        self.server: VhostUserServer | None = None
        self._background = background
        self._waits = waits
        self._log = log
        self._stopped = False
        self._pool = pool
        self._mounts = -1
        if pool is not None:
            waits.add(pool.fd, select.POLLIN, background.join_aside)

    def watch_mounts(self, proc: bytes) -> None:
        """Tell the device of mounts that come and go; ``proc`` is this process in a /proc file system."""
        try:
            self._mounts = os.open(proc + b"/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._log(f"mounts that come later are not noticed: {error}")
            return
        self._waits.add(self._mounts, select.POLLPRI, self._background.mounts_changed)

    def close(self) -> None:
        """Look for mounts no more; may be called twice."""
        if self._mounts >= 0:
            self._waits.remove(self._mounts)
            os.close(self._mounts)
            self._mounts = -1

    def drain(self) -> bool:
        """Wait for a request that sleeps in the host, so that its ring can stop; whether one ended."""
        pool = self._pool
        if pool is None or not pool.pending:
            return False
        going = self.server is not None and not self.server.ended and not self._stopped
        ended = pool.wait(DRAIN_NS if going else GOING_NS)
        self._background.join_aside()
        return ended

    def stop(self) -> None:
        """Have ``run`` return soon."""
        self._stopped = True

    def serve(self, connection: UnixSocket) -> VhostUserServer:
        """Serve one front-end until it is gone; the server, which says why it ended."""
        self.server = VhostUserServer(self.backend, connection, self._waits, self._log)
        try:
            self._loop(self.server)
        finally:
            self.server.close("the service stops")
        return self.server

    def listen(self, listener: Listener, *, reconnect: bool) -> VmsimError | None:
        """Serve who connects: the first one only, or one after the other (``reconnect``) until ``stop``.

        What the last front-end did wrong, if that ended its connection. A second one that connects meanwhile
        waits for its turn.
        """
        while not self._stopped:
            connection = self._accept(listener)
            if connection is None:
                break
            server = self.serve(connection)
            self._log(f"front-end gone: {server.ended}")
            if not reconnect:
                return server.failure
        return None

    def _accept(self, listener: Listener) -> UnixSocket | None:
        poll = select.poll()
        poll.register(listener.fd, select.POLLIN)
        while not self._stopped:
            busy = self._background.busy
            if poll.poll(LOOK_NS / 1e6 if busy else 1000):
                connection = listener.accept()
                if connection is not None:
                    return connection
            if busy:
                self._background.idle()
        return None

    def _loop(self, server: VhostUserServer) -> None:
        try:
            self._turns(server)
        except Exception as error:
            # A bug of ours in a message, a ring or beside them: this front-end's session is over. The process
            # serves others, or says to its supervisor how it ended.
            server.fail(error)
            self.backend.device.reset()

    def _turns(self, server: VhostUserServer) -> None:
        idle, background, polled = self._waits.idle, self._background, server.polled
        more = False
        while not server.ended and not self._stopped:
            if not (polled and server.poll()) and not background.busy:
                idle(None)
            elif not idle(time.monotonic_ns() + (0 if more else LOOK_NS)):
                more = background.busy and background.idle()
