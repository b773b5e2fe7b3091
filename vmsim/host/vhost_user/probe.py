"""A front-end's end of a connection on which anything can be said: for testing back-ends. Every wait ends."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import termios
import time
from collections.abc import Callable, Sequence
from typing import Final

from vmsim.errors import HostError, PeerError
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.transport import ConnectionLost, PeerSilent
from vmsim.host.waits import wait_in_slices, wait_ready
from vmsim.vhost.framing import MessageBuffer, RawMessage

GONE: Final = (errno.EPIPE, errno.ECONNRESET)
SLICE_S: Final = 0.1
UNREAD_LOOK_S: Final = 0.0005


def wait_any(fds: Sequence[int], timeout_s: float) -> list[int]:
    """Wait until one of ``fds`` can be read; those that can, none after ``timeout_s``."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in wait_in_slices(poll, timeout_s * 1000)]


def _unread(fd: int) -> int:
    """How much of what was sent over a Unix socket lies there still (unix(7), SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class Probe:
    """Sends any bytes with any descriptors, and takes whole messages; it owns ``connection``.

    ConnectionLost once the back-end has closed it, PeerSilent after ``timeout_s`` without anything.
    """

    def __init__(
        self, connection: UnixSocket, timeout_s: float, trouble: Callable[[], str] = lambda: ""
    ) -> None:
        """``trouble`` is looked at while nothing happens: what it says ends the wait (ConnectionLost)."""
        self.timeout_s = timeout_s
        self._trouble = trouble
        self.closed = False
        """We closed it."""
        self._connection = connection
        self._buffer = MessageBuffer(os.close)

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send all of ``data``, the descriptors with its first byte."""
        rest = memoryview(data)
        while rest:
            try:
                sent = self._connection.send(rest, fds)
            except HostError as error:
                if error.errno in GONE:
                    raise ConnectionLost("the back-end closed the connection", errno=errno.EPIPE) from error
                raise
            if sent is not None:
                rest, fds = rest[sent:], ()
            elif not wait_ready(self._connection.fd, self.timeout_s, writing=True):
                raise PeerSilent("the back-end reads no messages", errno=errno.ETIMEDOUT)

    def taken(self, limit_s: float) -> bool:
        """Wait until the back-end has read everything that was sent; whether it did so within ``limit_s``."""
        deadline_s = time.monotonic() + limit_s
        while unread := _unread(self._connection.fd):
            if time.monotonic() > deadline_s:
                break
            time.sleep(UNREAD_LOOK_S)
        return not unread

    def receive(self, timeout_s: float | None = None) -> RawMessage:
        """The next message; its descriptors are the caller's."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        while True:
            if not self.wait((self._connection.fd,), limit_s):
                raise PeerSilent(f"no message within {limit_s:g} s", errno=errno.ETIMEDOUT)
            found = self._connection.receive(self._buffer.needed)
            if found is None:
                continue
            data, fds = found
            if not data:
                raise ConnectionLost("the back-end closed the connection", errno=errno.EPIPE)
            message = self._buffer.feed(data, fds)
            if message is not None:
                return message

    def wait(self, fds: Sequence[int], limit_s: float) -> list[int]:
        """Wait until one of ``fds`` can be read; those that can, none after ``limit_s``."""
        deadline_s = time.monotonic() + limit_s
        while True:
            left_s = max(deadline_s - time.monotonic(), 0)
            ready = wait_any(fds, min(left_s, SLICE_S))
            if ready or left_s <= SLICE_S:
                return ready
            if trouble := self._trouble():
                raise ConnectionLost(trouble)

    @property
    def fd(self) -> int:
        """Readable when there is a message, or the end."""
        return self._connection.fd

    @property
    def lost(self) -> bool:
        """Whether the back-end has closed the connection; what it sent meanwhile is thrown away."""
        if self.closed:
            return False
        try:
            while wait_ready(self._connection.fd, 0):
                for fd in self.receive(0).fds:
                    os.close(fd)
        except PeerSilent:
            return False
        except (PeerError, HostError):
            return True
        return False

    def close(self) -> None:
        """Close it; may be called twice."""
        self.closed = True
        self._buffer.discard()
        self._connection.close()
