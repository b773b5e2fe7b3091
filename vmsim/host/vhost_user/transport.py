"""The front-end's end of a vhost-user connection: seam S1 over a Unix socket and eventfds."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from typing import Final

from vmsim.errors import HostError, PeerError
from vmsim.host.eventfd import EventFd
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.channel import ChannelServer
from vmsim.host.waits import FdWaits, wait_ready
from vmsim.vhost.constants import F_INBAND_NOTIFICATIONS
from vmsim.vhost.framing import MessageBuffer, RawMessage
from vmsim.vhost.messages import (
    SPEC,
    MessageError,
    MessageSet,
    Reply,
    Request,
    Row,
    decode_reply,
    encode_request,
)
from vmsim.vhost.payloads import VringState

TIMEOUT_NS: Final = 60_000_000_000
"""How long a back-end may take to answer, unless told otherwise."""


class ConnectionLost(PeerError):
    """The back-end has closed the connection, or is gone."""


class PeerSilent(PeerError):
    """The back-end does not answer."""


def _nobody(*_: object) -> None:
    """Stands for a front-end that has not said yet whom to call."""


class VhostUserTransport:
    """Implements ``Transport`` of :mod:`vmsim.vhost.seams` over ``connection``, which it owns.

    ``messages`` are those of the dialect in use. ``waits`` has to be what the schedule idles in: calls of the
    back-end arrive there. ``timeout_ns`` bounds every wait for an answer (PeerSilent). ``explain`` is asked
    once why the back-end has gone, ``told`` what it has said lately when it refused something.
    """

    shares_process = False

    def __init__(
        self, connection: UnixSocket, messages: MessageSet, waits: FdWaits, *, timeout_ns: int = TIMEOUT_NS,
        explain: Callable[[], str] = lambda: "", told: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        self.on_call: Callable[[int], None] = _nobody
        self.on_ring_error: Callable[[int, str], None] = _nobody
        self.lost = ""
        """Why the connection is of no more use; empty while it is."""
        self._connection = connection
        self._messages = messages
        self._waits = waits
        self._timeout_ns = timeout_ns
        self._explain = explain
        self._told = told
        self._buffer = MessageBuffer(os.close)
        self._answer: RawMessage | None = None
        self._events: dict[tuple[str, int], EventFd] = {}
        self._kicks: dict[int, Callable[[], object]] = {}
        self._channel: ChannelServer | None = None
        self._inband = False
        self._asking = False
        waits.add(connection.fd, select.POLLIN, self._readable)

    # -- messages

    def request(self, request: Request) -> Reply | None:
        """Send a message and wait for its reply if it has one; PeerError if that goes wrong."""
        row = request.row
        if row.name == "SET_PROTOCOL_FEATURES":
            self._inband = bool(request.payload.value >> F_INBAND_NOTIFICATIONS & 1)
        self._asking = True
        try:
            self._send(row, encode_request(request), request.fds)
            if not row.answered and not request.need_reply:
                return None
            self._wait(lambda: self._answer is not None, row.name)
        finally:
            self._asking = False
        answer, self._answer = self._answer, None
        assert answer is not None
        try:
            return decode_reply(row, answer.header, answer.body, answer.fds)
        except MessageError as error:
            for fd in answer.fds:
                os.close(fd)
            self._lose(error.message)
            raise

    def _send(self, row: Row, data: bytes, fds: tuple[int, ...]) -> None:
        self._check(row.name)
        rest = memoryview(data)
        while rest:
            try:
                sent = self._connection.send(rest, fds)
            except HostError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
                self._lose_peer()
                self._check(row.name)
                return
            if sent is None:
                self._wait_writable(row.name)
            else:
                rest, fds = rest[sent:], ()

    def _readable(self) -> None:
        """Take what the back-end sent; a message that nobody asked for ends the connection."""
        try:
            while (found := self._connection.receive(self._buffer.needed)) is not None:
                data, fds = found
                if not data:
                    self._lose_peer()
                    return
                message = self._buffer.feed(data, fds)
                if message is None:
                    continue
                if not self._asking or self._answer is not None:
                    for fd in message.fds:
                        os.close(fd)
                    raise MessageError(f"message {message.header.request} that nobody asked for", spec=SPEC)
                self._answer = message
        except (PeerError, HostError) as error:
            self._lose(error.message)

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        while not ready():
            self._check(what)
            if time.monotonic_ns() >= deadline_ns:
                self._lose(f"no answer within {self._timeout_ns / 1e9:g} s")
                raise PeerSilent(f"{what}: {self.lost}", request=what, errno=errno.ETIMEDOUT)
            self._waits.idle_for(deadline_ns - time.monotonic_ns())

    def _wait_writable(self, what: str) -> None:
        if not wait_ready(self._connection.fd, self._timeout_ns / 1e9, writing=True):
            self._lose("the back-end reads no messages")
            raise PeerSilent(f"{what}: {self.lost}", request=what, errno=errno.ETIMEDOUT)

    def _check(self, what: str) -> None:
        if self.lost:
            raise ConnectionLost(f"{what}: {self.lost}", request=what, errno=errno.EPIPE)

    def _lose_peer(self) -> None:
        why = self._explain()
        self._lose("the back-end closed the connection" + (f": {why}" if why else ""))

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = why
        self._waits.remove(self._connection.fd)
        self._buffer.discard()
        if not self._asking:
            self.on_ring_error(0, why)

    # -- kicks, calls, the back-end's own messages

    def kick(self, ring: int) -> None:
        """Tell the back-end that a ring has available buffers."""
        signal = self._kicks.get(ring)
        if signal is not None:
            signal()
        elif self._inband and not self.lost:
            row = self._messages["VRING_KICK"]
            self.request(Request(row, VringState(ring, 0)))

    def notifier(self, message: str, ring: int) -> int:
        """The eventfd of a ring for SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR; -1 in-band."""
        self._check(message)
        if self._inband:
            return -1
        event = self._events.get((message, ring))
        if event is None:
            event = self._events[message, ring] = EventFd()
            if message == "SET_VRING_KICK":
                self._kicks[ring] = event.signal
            elif message == "SET_VRING_CALL":
                self._watch(event, lambda: self.on_call(ring))
            else:
                self._watch(event, lambda: self.on_ring_error(ring, "the back-end signalled an error"))
        return event.fd

    def _watch(self, event: EventFd, act: Callable[[], object]) -> None:
        def signalled() -> None:
            if event.drain():
                act()

        self._waits.add(event.fd, select.POLLIN, signalled)

    def backend_channel(self) -> int:
        """The back-end's end of a new channel for its own messages."""
        if self._channel is not None:
            self._channel.close()
        self._channel = ChannelServer(
            self._waits, lambda ring: self.on_call(ring),
            lambda ring: self.on_ring_error(ring, "the back-end reported an error"),
        )
        return self._channel.peer_fd

    def progress(self, fd: int, *, writing: bool) -> None:
        """Wait until ``fd`` can be read or written; PeerSilent if that takes too long."""
        if not wait_ready(fd, self._timeout_ns / 1e9, writing=writing):
            what = "takes no state" if writing else "sends no state"
            raise PeerSilent(f"the back-end {what}", errno=errno.ETIMEDOUT)

    def reason(self) -> tuple[str, str]:
        """What the back-end has said elsewhere: messages have no way to say why it refused something."""
        return self._told(), ""

    def close(self) -> None:
        """Close everything; may be called twice."""
        if not self.lost:
            self.lost = "the connection is closed"
            self._waits.remove(self._connection.fd)
        self._buffer.discard()
        if self._answer is not None:
            for fd in self._answer.fds:
                os.close(fd)
            self._answer = None
        self._connection.close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._kicks.clear()
        for event in self._events.values():
            self._waits.remove(event.fd)
            event.close()
        self._events.clear()



