"""The front-end half of vhost-user as a state machine without I/O: which messages, in which order.

Its states: :mod:`vmsim.vhost.frontend_states`. The order is that of QEMU (see
tests/golden/vhost-user-*.log). Every failure is a typed error that names the
message and the device.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vmsim.errors import PeerError, StateError, VmsimError
from vmsim.memory import GuestMemory, bitmap_bytes
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.addresses import message_region, vring_addr
from vmsim.vhost.dialects.base import Dialect, StateTransferError, error_number
from vmsim.vhost.frontend_log import FrontendLog
from vmsim.vhost.frontend_states import (
    CLOSE,
    CONNECT,
    MOVE_STATE,
    NEW,
    RESET,
    RING,
    RUNNING,
    START,
    STOP,
    FrontendEvent,
    FrontendState,
    after,
)
from vmsim.vhost.kept import KeptInflight
from vmsim.vhost.messages import Ack, MessageError, Reply, Request, Row
from vmsim.vhost.seams import FrontendHost, SharedBuffer, Transport

__all__ = ["FrontendOptions", "RingSetup", "Transport", "VhostFrontend"]

PROTOCOL_FEATURES = c.protocol_bits(
    c.F_MQ, c.F_LOG_SHMFD, c.F_REPLY_ACK, c.F_BACKEND_REQ, c.F_BACKEND_SEND_FD, c.F_RESET_DEVICE,
    c.F_CONFIGURE_MEM_SLOTS, c.F_STATUS, c.F_DEVICE_STATE, c.F_INFLIGHT_SHMFD,
)
"""What this front-end makes use of. CONFIG is not among it: the device serves its configuration itself."""

VIRTIO_DRIVER_STATUS = 0x0F

BARRIERS = frozenset({"SET_VRING_ENABLE", "SET_FEATURES", "SET_VRING_ADDR"})
"""What QEMU confirms by a GET_FEATURES round trip when it cannot ask for an acknowledgement."""


@dataclass(frozen=True, slots=True)
class FrontendOptions:
    """Which protocol features to accept of those offered."""

    protocol_features: int = PROTOCOL_FEATURES


class RingSetup(NamedTuple):
    """One ring to start: number, entries, guest-physical areas, where it stands (GET_VRING_BASE's word)."""

    number: int
    size: int
    desc: int
    driver: int
    device: int
    base: int


class VhostFrontend:
    """One device's connection to its back-end; ``device`` names it in errors.

    ``connect`` once, then ``start`` and ``stop_rings`` in turn; ``features_offered`` are the virtio bits of
    the back-end.
    """

    def __init__(
        self, transport: Transport, host: FrontendHost, dialect: Dialect, device: str, ring_count: int,
        options: FrontendOptions | None = None, inflight: KeptInflight | None = None,
    ) -> None:
        self.transport = transport
        self.host = host
        self.dialect = dialect
        self.device = device
        self.ring_count = ring_count
        self.options = options or FrontendOptions()
        self.kick: Callable[[int], None] = transport.kick
        """Tell the back-end that a ring has work; the hot path, straight to the transport."""
        self.features_offered = 0
        self.protocol_features = 0
        self.inflight = inflight
        """Where back-ends record requests in flight, if they can; None: they are not asked to."""
        self.queue_max = 0
        self.memory_slots = p.MEMORY_TABLE_REGIONS_MAX
        self.log: FrontendLog | None = None
        self.log_unsure = False
        """The back-end may be logging, although nobody takes the pages: it did not confirm a stop."""
        self.state = NEW
        self.keeps_session = False
        """The back-end has a session that the guest goes on with: a transfer that fails must not end it."""
        self._transport_features = 0
        self._features = 0
        self._known: list[p.MemoryRegion] = []
        self._rings: tuple[RingSetup, ...] = ()
        self.bases: dict[int, int] = {}
        """Where each ring stood when it was last stopped."""
        self._memory: GuestMemory | None = None

    # -- messages

    def has(self, feature: int) -> bool:
        """Whether a protocol feature bit was negotiated."""
        return bool(self.protocol_features >> feature & 1)

    def exchange(self, name: str, payload: Any = None, fds: tuple[int, ...] = ()) -> Reply:
        """Send a message by name; its ``Reply``, an empty one if it has none; PeerError if refused."""
        row = self.dialect.messages[name]
        need_reply = not row.answered and self._wants_ack(row, payload)
        reply = self._send(Request(row, payload, fds, need_reply))
        if need_reply:
            code = reply.payload.value if reply.payload is not None else 0
            if code:
                raise self._error(name, f"the back-end refused it with {code}", errno=errno.EIO, code=code)
            return Reply()
        if not row.answered and self._is_barrier(row, payload):
            # Without REPLY_ACK a round trip is the only way to know that the message was worked off.
            self._send(Request(self.dialect.messages["GET_FEATURES"]))
        return reply

    def _send(self, request: Request) -> Reply:
        name = request.row.name
        try:
            reply = self.transport.request(request)
        except PeerError as error:
            raise self._error(name, error.message, errno=error_number(error)) from error
        if reply is None and (request.row.answered or request.need_reply):
            raise self._error(name, "no reply", errno=errno.EPROTO)
        return reply or Reply()

    def _wants_ack(self, row: Row, payload: Any) -> bool:
        if row.ack is Ack.ALWAYS:
            return True
        return self.has(c.F_REPLY_ACK) and self._matters(row, payload)

    def _is_barrier(self, row: Row, payload: Any) -> bool:
        return row.name in BARRIERS and self._matters(row, payload)

    @staticmethod
    def _matters(row: Row, payload: Any) -> bool:
        """Whether a message must be known to have succeeded, REPLY_ACK permitting."""
        if row.ack is Ack.LOG:
            if isinstance(payload, p.VringAddr):
                return bool(payload.flags & c.VHOST_VRING_F_LOG)
            return bool(payload.value & c.VHOST_F_LOG_ALL)
        return row.ack is not Ack.NEVER

    def _allowed(self, event: FrontendEvent) -> FrontendState:
        """The state that ``event`` leads to; StateError if it cannot be done now."""
        try:
            return after(self.state, event)
        except StateError as error:
            raise StateError(f"{self.device}: {error.message}") from None

    def _error(self, name: str, why: str, **details: Any) -> MessageError:
        return MessageError(f"{self.device}: {name}: {why}", request=name, device=self.device, **details)

    # -- connection

    def connect(self) -> None:
        """Negotiate: features, protocol features, queues, memory slots, notifiers. Once."""
        then = self._allowed(CONNECT)
        offered = self._number("GET_FEATURES")
        if offered & c.VHOST_USER_F_PROTOCOL_FEATURES:
            bits = self._number("GET_PROTOCOL_FEATURES") & self.options.protocol_features
            self.protocol_features = bits
            self.exchange("SET_PROTOCOL_FEATURES", p.Number(bits))
        self.queue_max = self._number("GET_QUEUE_NUM") if self.has(c.F_MQ) else 1
        if self.queue_max < self.ring_count:
            raise self._error("GET_QUEUE_NUM", f"{self.queue_max} queues, the device needs {self.ring_count}")
        if self.has(c.F_CONFIGURE_MEM_SLOTS):
            self.memory_slots = self._number("GET_MAX_MEM_SLOTS")
        channel = self.transport.backend_channel() if self.has(c.F_BACKEND_REQ) else -1
        if channel >= 0:
            self.exchange("SET_BACKEND_REQ_FD", None, (channel,))
        self.exchange("SET_OWNER")
        offered = self._number("GET_FEATURES")
        self._transport_features = offered & c.TRANSPORT_FEATURES
        self.features_offered = offered & ~c.TRANSPORT_FEATURES
        for index in range(self.ring_count):
            self._notifier("SET_VRING_CALL", index)
            self._notifier("SET_VRING_ERR", index)
        self.state = then

    def read_config(self, offset: int, size_bytes: int) -> bytes:
        """Part of the back-end's configuration space (feature CONFIG); MessageError if it has not all."""
        wanted = p.ConfigSpace(offset, 0, bytes(size_bytes))
        data: bytes = self.exchange("GET_CONFIG", wanted).payload.data
        if len(data) != size_bytes:
            raise self._error("GET_CONFIG", f"the back-end has no {size_bytes} bytes at {offset}")
        return data

    def reset_device(self) -> None:
        """The driver or the machine reset the device (never for stop and continue)."""
        self.state = self._allowed(RESET)
        self._rings = ()
        if self.inflight is not None:
            self.inflight.forget()
        if self.has(c.F_RESET_DEVICE):
            self.exchange("RESET_DEVICE")

    def close(self) -> None:
        """Give up the connection and the log; may be called twice."""
        self.state = self._allowed(CLOSE)
        if self.log is not None:
            self.log.close()
            self.log = None
        self.transport.close()

    def _number(self, name: str) -> int:
        value: int = self.exchange(name).payload.value
        return value

    def _notifier(self, name: str, index: int) -> None:
        fd = self.transport.notifier(name, index)
        if fd >= 0:
            self.exchange(name, p.Number(index), (fd,))
        else:
            self.exchange(name, p.Number(index | c.NO_FD))

    # -- rings

    @property
    def running(self) -> bool:
        """Whether the rings are the back-end's, those at least that the driver has not reset."""
        return self.state is RUNNING

    def start(
        self, features: int, memory: GuestMemory, rings: Sequence[RingSetup], *, kick: bool = True
    ) -> None:
        """Start these rings with the accepted ``features`` (virtio bits), and kick each once, unsolicited.

        Without ``kick`` they are ready, and nothing is processed until ``kick_all`` or the driver kicks.
        Rings without a descriptor area are skipped. StateError while rings run; after a failure none runs,
        and ``bases`` says how far those had come that ran for a moment.
        """
        then = self._allowed(START)
        rings = [ring for ring in rings if ring.desc]
        self.bases = {ring.number: ring.base for ring in rings}
        self._memory = memory
        self._features = features
        try:
            for ring in rings:
                self._notifier("SET_VRING_CALL", ring.number)
            self.exchange("SET_FEATURES", p.Number(self._feature_word()))
            self._share_memory(memory)
            if rings and self.inflight is not None and self.has(c.F_INFLIGHT_SHMFD):
                size = max(ring.size for ring in rings)
                self.inflight.give(self.exchange, self.ring_count, size)
            for ring in rings:
                self._start_ring(ring)
            for ring in rings:
                self._enable(ring.number, True)
            for ring in rings:
                self._notifier("SET_VRING_CALL", ring.number)
            if self.has(c.F_STATUS):
                self.exchange("SET_STATUS", p.Number(VIRTIO_DRIVER_STATUS))
        except BaseException:
            self._rings = tuple(rings)
            self._stop_quietly()
            raise
        self._rings = tuple(rings)
        self.state = then
        if kick:
            self.kick_all()

    def kick_all(self) -> None:
        """Kick every started ring: whatever the driver made available meanwhile is found."""
        for ring in self._rings:
            self.kick(ring.number)

    def start_ring(self, ring: RingSetup) -> None:
        """Start one more ring while the device runs (after a queue reset)."""
        self._allowed(RING)
        self._start_ring(ring)
        self._enable(ring.number, True)
        self._rings = (*self._rings, ring)
        self.kick(ring.number)

    def stop_ring(self, index: int) -> int:
        """Stop one ring (queue reset); its base word, 0 if it was not started."""
        self._allowed(RING)
        if all(ring.number != index for ring in self._rings):
            return 0
        self._enable(index, False)
        base = self._stop_ring(index)
        self._rings = tuple(ring for ring in self._rings if ring.number != index)
        return base

    def stop_rings(self) -> dict[int, int]:
        """Stop all rings, drained; ring number to base word. After a failure all go on as before."""
        then = self._allowed(STOP)
        rings = self._rings
        try:
            for ring in rings:
                self._enable(ring.number, False)
            for ring in rings:
                self._stop_ring(ring.number)
            if self.has(c.F_STATUS):
                self.exchange("SET_STATUS", p.Number(0))
            for ring in rings:
                self._notifier("SET_VRING_CALL", ring.number)
        except BaseException:
            self._restart(rings)
            raise
        self._rings = ()
        self.state = then
        return {ring.number: self.bases[ring.number] for ring in rings}

    def ask_bases(self, rings: Sequence[int]) -> dict[int, int]:
        """Where rings stand that the back-end stopped when the connection before this one ended."""
        return {index: self._stop_ring(index) for index in rings}

    def _start_ring(self, ring: RingSetup) -> None:
        self.exchange("SET_VRING_NUM", p.VringState(ring.number, ring.size))
        self.exchange("SET_VRING_BASE", p.VringState(ring.number, ring.base))
        self.exchange("SET_VRING_ADDR", self._addr(ring, self.log is not None))
        self._notifier("SET_VRING_KICK", ring.number)

    def _stop_ring(self, index: int) -> int:
        state = self.exchange("GET_VRING_BASE", p.VringState(index, 0)).payload
        if state.ring != index:
            raise self._error("GET_VRING_BASE", f"answer for ring {state.ring} instead of {index}")
        base: int = state.num
        self.bases[index] = base
        return base

    def _restart(self, rings: Sequence[RingSetup]) -> None:
        """After a failed stop: bring all rings back; what failed is going to be reported itself.

        Nobody knows which message was the last to arrive, so each ring is stopped (again) for its base.
        """
        for ring in rings:
            try:
                self._start_ring(ring._replace(base=self._stop_ring(ring.number)))
            except VmsimError:
                pass  # it could not be stopped, so it runs
            try:
                self._enable(ring.number, True)
            except VmsimError:
                continue
            self.kick(ring.number)

    def _stop_quietly(self) -> None:
        """After a failed start: whatever was started must not run."""
        rings, self._rings = self._rings, ()
        for ring in rings:
            try:
                self._stop_ring(ring.number)
            except VmsimError:
                pass

    def _enable(self, index: int, enabled: bool) -> None:
        if self._transport_features & c.VHOST_USER_F_PROTOCOL_FEATURES:
            self.exchange("SET_VRING_ENABLE", p.VringState(index, int(enabled)))

    def _feature_word(self) -> int:
        word = self._features | (self._transport_features & c.VHOST_USER_F_PROTOCOL_FEATURES)
        return word | c.VHOST_F_LOG_ALL if self.log is not None else word

    # -- memory

    def _share_memory(self, memory: GuestMemory) -> None:
        wanted = {message_region(region): region for region in memory.regions}
        if len(wanted) > self.memory_slots:
            raise self._error("ADD_MEM_REG", f"{len(wanted)} regions, the back-end takes {self.memory_slots}")
        if not self.has(c.F_CONFIGURE_MEM_SLOTS):
            if list(wanted) != self._known:
                fds = tuple(region.fd for region in wanted.values())
                self.exchange("SET_MEM_TABLE", p.MemoryTable(tuple(wanted)), fds)
                self._known = list(wanted)
            return
        for known in [known for known in self._known if known not in wanted]:
            self.exchange("REM_MEM_REG", p.SlotRegion(0, *known[:3], 0))
            self._known.remove(known)
        for message, region in wanted.items():
            if message not in self._known:
                self.exchange("ADD_MEM_REG", p.SlotRegion(0, *message), (region.fd,))
                self._known.append(message)

    def _addr(self, ring: RingSetup, log: bool) -> p.VringAddr:
        assert self._memory is not None
        return vring_addr(self._memory, ring.number, ring.desc, ring.driver, ring.device, log=log)

    # -- dirty log

    def log_blocker(self) -> str:
        """Why dirty logging is impossible with this back-end; empty if it is possible."""
        if not self.has(c.F_LOG_SHMFD):
            return "Migration disabled: vhost-user backend lacks VHOST_USER_PROTOCOL_F_LOG_SHMFD feature."
        if not self._transport_features & c.VHOST_F_LOG_ALL:
            return "Migration disabled: vhost lacks VHOST_F_LOG_ALL feature."
        return ""

    def start_log(self, memory: GuestMemory) -> Callable[[], bytes]:
        """Switch dirty logging on; what takes the pages written since from the log (vhost's layout).

        After a failure logging is off, or ``stop_log`` will tell that the back-end cannot be reached.
        """
        if self.log is not None:
            raise StateError(f"{self.device}: the dirty log is on already")
        blocker = self.log_blocker()
        if blocker:
            raise self._error("SET_LOG_BASE", blocker, errno=errno.ENOTSUP)
        self.log_unsure = True
        log = FrontendLog(
            self.host, self._use_log, bitmap_bytes(memory), shares_process=self.transport.shares_process
        )
        self.log = log
        self.log_unsure = False
        try:
            self._set_logging(True)
        except BaseException:
            self.log = None
            self.log_unsure = not self._stop_log_quietly()
            log.close()
            raise
        return log.take

    def _use_log(self, log: SharedBuffer) -> None:
        self.exchange("SET_LOG_BASE", p.LogArea(log.size_bytes, 0), (log.fd,))

    def stop_log(self) -> None:
        """Switch dirty logging off; take what the bitmap holds before. Nothing happens if it is off."""
        log, self.log = self.log, None
        unsure, self.log_unsure = self.log_unsure, False
        if log is None and not unsure:
            return
        try:
            self._set_logging(False)
        finally:
            if log is not None:
                log.close()

    def _set_logging(self, log: bool) -> None:
        self.exchange("SET_FEATURES", p.Number(self._feature_word()))
        for ring in self._rings:
            self.exchange("SET_VRING_ADDR", self._addr(ring, log))

    def _stop_log_quietly(self) -> bool:
        try:
            self._set_logging(False)
        except PeerError:
            return False
        return True

    # -- device state

    @property
    def supports_device_state(self) -> bool:
        """Whether the back-end's state can be transferred with the configured dialect."""
        return self.dialect.feature < 0 or self.has(self.dialect.feature)

    def save_backend_state(self) -> Iterator[bytes]:
        """The back-end's state as bytes of a migration stream, framing included; rings must be stopped."""
        return self.dialect.save(self)

    def load_backend_state(self, state: bytes) -> None:
        """Have the back-end apply a complete state (``Dialect.read_state``); rings must be stopped."""
        self.dialect.load(self, state)

    def require_stopped(self, what: str) -> None:
        """StateTransferError(EBUSY) while any ring runs."""
        if self.running:
            raise StateTransferError(f"{what} while the device's rings run", errno=errno.EBUSY)
        self._allowed(MOVE_STATE)

    def progress(self, fd: int, *, writing: bool) -> None:
        """Let the back-end work on its end of the channel whose end here is ``fd``."""
        self.transport.progress(fd, writing=writing)

    def abandon_load(self) -> None:
        """Make the back-end drop what it has received, without having applied it.

        One that keeps its session must not be reset: it drops a transfer at the end of the connection.
        """
        if self.keeps_session:
            return
        try:
            self.reset_device()
        except PeerError:
            pass
