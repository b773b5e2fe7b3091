"""The back-end's end of a vhost-user connection: messages, kicks and transfers, from one poller."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from typing import Final

from vmsim.errors import HostError, InternalFault, PeerError, VmsimError, contained
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.channel import ChannelClient
from vmsim.host.waits import FdWaits, wait_ready
from vmsim.limits import TURN_NS
from vmsim.vhost.backend import VhostBackend
from vmsim.vhost.constants import F_INBAND_NOTIFICATIONS, F_REPLY_ACK, FLAG_NEED_REPLY
from vmsim.vhost.framing import MessageBuffer, RawMessage
from vmsim.vhost.messages import (
    SPEC,
    MessageError,
    Reply,
    Row,
    decode_request,
    encode_reply,
)
from vmsim.vhost.payloads import Number

REPLY_TIMEOUT_S: Final = 10
MESSAGES_PER_TURN: Final = 32
"""Pieces of messages that are read before everything else that is ready gets its turn."""


class VhostUserServer:
    """Serves one front-end with ``backend`` until it goes away or breaks the protocol.

    ``ended`` then says why (and is empty before). Everything happens in callbacks of ``waits``. The server
    owns ``connection``. ``log`` is told of refusals, ring errors and the end.
    """

    def __init__(
        self, backend: VhostBackend, connection: UnixSocket, waits: FdWaits,
        log: Callable[[str], object] = lambda line: None,
    ) -> None:  # fmt: skip
        if backend.link is not None:
            raise PeerError("the back-end is connected already")
        self.backend = backend
        self.ended = ""
        self.failure: VmsimError | None = None
        """What the front-end did wrong, if that ended the connection."""
        self._connection = connection
        self._waits = waits
        self._log = log
        self._buffer = MessageBuffer(os.close)
        self._link = _Link(backend, waits, log)
        self.polled = self._link.polled
        """Rings that have no kick descriptor: whoever runs the loop calls ``poll`` now and then."""
        self._transfer_fd = -1
        self._failure_told: Exception | None = backend.transfer.failure
        backend.link = self._link
        waits.add(connection.fd, select.POLLIN, self._readable)

    def close(self, why: str = "closed") -> None:
        """End the connection; the device keeps its session. May be called twice."""
        if self.ended:
            return
        self.ended = why
        self._waits.remove(self._connection.fd)
        self._watch_transfer(None)
        self._buffer.discard()
        self.backend.close()
        self.backend.link = None
        self._link.close()
        self._connection.close()

    def poll(self) -> bool:
        """Look at the rings that have no kick descriptor; whether one of them could have work."""
        return self._link.poll()

    def _readable(self) -> None:
        try:
            for _ in range(MESSAGES_PER_TURN):
                if self.ended or (found := self._connection.receive(self._buffer.needed)) is None:
                    return
                data, fds = found
                if not data:
                    self.close("the front-end closed the connection")
                    return
                message = self._buffer.feed(data, fds)
                if message is not None:
                    self._handle(message)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the connection because of what the front-end, or a bug of ours, did wrong."""
        self.failure = contained(error)
        self._log(f"connection ended: {self.failure}")
        if isinstance(self.failure, InternalFault):
            self._log(self.failure.report)
        self.close(str(self.failure))

    def _handle(self, message: RawMessage) -> None:
        header = message.header
        try:
            request = decode_request(self.backend.dialect.messages, header, message.body, message.fds)
        except MessageError as error:
            for fd in message.fds:
                os.close(fd)
            acks = self.backend.protocol_features >> F_REPLY_ACK & 1
            row = self.backend.dialect.messages.by_id.get(header.request) or Row(header.request, "unknown")
            if not acks or not header.flags & FLAG_NEED_REPLY or row.answered:
                raise
            self._log(f"refused: {error}")
            self._reply(row, Reply(Number(errno.EINVAL)))
            return
        reply = self.backend.handle(request)
        self._tell_failure()
        if reply is not None:
            if request.need_reply and not request.row.answered and reply.payload.value:
                self._log(f"refused: {request.row.name}: {self.backend.refusal}")
            self._reply(request.row, reply)
        self._watch_transfer(self.backend.transfer.waits_for())

    def _reply(self, row: Row, reply: Reply) -> None:
        data = memoryview(encode_reply(row, reply))
        fds = reply.fds
        try:
            while data:
                sent = self._connection.send(data, fds)
                if sent is not None:
                    data, fds = data[sent:], ()
                    continue
                if not wait_ready(self._connection.fd, REPLY_TIMEOUT_S, writing=True):
                    raise MessageError(f"{row.name}: the front-end does not read its replies", spec=SPEC)
        finally:
            for fd in reply.fds:
                os.close(fd)

    def _watch_transfer(self, wanted: tuple[int, bool] | None) -> None:
        fd, writing = wanted or (-1, False)
        if fd == self._transfer_fd:
            return
        if self._transfer_fd >= 0:
            self._waits.remove(self._transfer_fd)
        self._transfer_fd = fd
        if fd >= 0:
            self._waits.add(fd, select.POLLOUT if writing else select.POLLIN, self._transfer)

    def _transfer(self) -> None:
        # It may close its descriptor, whose number may be taken again at once: forget it first.
        self._watch_transfer(None)
        self.backend.progress()
        self._tell_failure()
        self._watch_transfer(self.backend.transfer.waits_for())

    def _tell_failure(self) -> None:
        """Why a transfer of state failed: CHECK_DEVICE_STATE has only a number for it."""
        failure = self.backend.transfer.failure
        if failure is not None and failure is not self._failure_told:
            self._log(f"the state could not be transferred: {failure}")
        self._failure_told = failure


class _Link:
    """The way back: call and error eventfds, or messages on the back-end's channel."""

    def __init__(self, backend: VhostBackend, waits: FdWaits, log: Callable[[str], object]) -> None:
        self._backend = backend
        self._waits = waits
        self._log = log
        self._fds: dict[tuple[str, int], int] = {}
        self._calls: dict[int, int] = {}
        self._unfinished: set[int] = set()
        self.polled: set[int] = set()
        self._channel: ChannelClient | None = None

    @property
    def _inband(self) -> bool:
        return bool(self._backend.protocol_features >> F_INBAND_NOTIFICATIONS & 1)

    def call(self, ring: int) -> None:
        """Signal the ring's call eventfd, or send VRING_CALL."""
        fd = self._calls.get(ring)
        if fd is not None:
            self._signal(fd)
        elif self._inband and self._channel is not None:
            self._channel.tell("VRING_CALL", ring)

    def ring_error(self, ring: int, why: str) -> None:
        """Signal the ring's error eventfd, or send VRING_ERR."""
        self._log(f"ring {ring} is given up: {why}")
        fd = self._fds.get(("SET_VRING_ERR", ring))
        if fd is not None:
            self._signal(fd)
        elif self._inband and self._channel is not None:
            self._channel.tell("VRING_ERR", ring)

    @staticmethod
    def turn() -> Callable[[], bool]:
        """Chains cost what the guest chooses, so a turn is bounded in time."""
        now_ns = time.monotonic_ns
        end_ns = now_ns() + TURN_NS
        return lambda: now_ns() >= end_ns

    def reschedule(self, ring: int) -> None:
        """Kick the ring when everything else that is ready has been served."""
        if ring not in self._unfinished:
            self._unfinished.add(ring)
            self._waits.later(lambda: self._kick_again(ring))

    def _kick_again(self, ring: int) -> None:
        self._unfinished.discard(ring)
        if self._backend.link is self:
            self._backend.kicked(ring)

    @staticmethod
    def _signal(fd: int) -> None:
        try:
            os.eventfd_write(fd, 1)
        except (BlockingIOError, OSError):
            pass  # full is signalled; a peer's odd descriptor is the peer's loss

    def set_notifier(self, message: str, ring: int, fd: int) -> None:
        """Use the descriptor from now on; without one there are in-band kicks (or calls), or we poll."""
        self._drop(message, ring)
        if fd < 0:
            if message == "SET_VRING_KICK" and not self._inband:
                self.polled.add(ring)
            return
        try:
            os.set_blocking(fd, False)
        except OSError as error:
            os.close(fd)
            raise HostError(f"{message}: descriptor", errno=error.errno or errno.EBADF) from error
        self._fds[message, ring] = fd
        if message == "SET_VRING_CALL":
            self._calls[ring] = fd
        elif message == "SET_VRING_KICK":
            self._waits.add(fd, select.POLLIN, lambda: self._kicked(ring, fd))

    def _kicked(self, ring: int, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        except OSError as error:
            self._log(f"ring {ring}: its kick descriptor is of no use: {error}")
            self._waits.remove(fd)
            return
        self._backend.kicked(ring)

    def poll(self) -> bool:
        """Look at the rings that have no kick descriptor; whether one of them could have work."""
        found = False
        for number in self.polled:
            ring = self._backend.rings[number]
            if ring.running and ring.addr is not None and ring.num:
                found = True
                self._backend.kicked(number)
        return found

    def _drop(self, message: str, ring: int) -> None:
        if message == "SET_VRING_KICK":
            self.polled.discard(ring)
        fd = self._fds.pop((message, ring), -1)
        if fd < 0:
            return
        if message == "SET_VRING_CALL":
            self._calls.pop(ring, None)
        self._waits.remove(fd)
        os.close(fd)

    def set_channel(self, fd: int) -> None:
        """Use the channel from now on."""
        if self._channel is not None:
            self._channel.close()
        self._channel = ChannelClient(fd)

    def close(self) -> None:
        """Close everything."""
        for message, ring in list(self._fds):
            self._drop(message, ring)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
