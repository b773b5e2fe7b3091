"""The back-end half of vhost-user as a state machine without I/O.

``handle`` takes one message and gives its reply; ``kicked`` works a ring off. Descriptors that come with a
message belong to the back-end from then on: what a message does not keep is closed when it has been handled.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vmsim.errors import HostError, StallError, StateError, VmsimError, contained
from vmsim.limits import MEMORY_REGIONS_MAX, QUEUE_SIZE_MAX
from vmsim.memory import BitmapSink, bitmap_bytes
from vmsim.schedule import Schedule
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.backend_memory import BackendMemory
from vmsim.vhost.backend_ring import BackendRing, Policy
from vmsim.vhost.dialects.base import BackendTransfer, Dialect
from vmsim.vhost.inflight import region_bytes, region_of
from vmsim.vhost.messages import SPEC, MessageError, Reply, Request, check_fds
from vmsim.vhost.seams import BackendDevice, BackendIo, BackendLink
from vmsim.virtio.constants import F_RING_PACKED
from vmsim.virtio.ring_types import Fence

__all__ = ["BackendDevice", "BackendIo", "BackendOptions", "VhostBackend"]

PROTOCOL_FEATURES = c.protocol_bits(
    c.F_MQ, c.F_LOG_SHMFD, c.F_REPLY_ACK, c.F_BACKEND_REQ, c.F_BACKEND_SEND_FD, c.F_RESET_DEVICE,
    c.F_CONFIGURE_MEM_SLOTS, c.F_DEVICE_STATE,
)
"""What a back-end offers unless told otherwise: the same as virtiofsd 1.13.2."""

IMPLEMENTED = PROTOCOL_FEATURES | c.protocol_bits(
    c.F_STATUS, c.F_INBAND_NOTIFICATIONS, c.F_INFLIGHT_SHMFD, c.F_CONFIG
)
"""Everything that there is. CONFIG is offered only for a device that has a configuration space."""


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What a back-end offers beyond its device.

    ``log_shared``: another process harvests the dirty log. ``keeps_session``: front-ends come and go, and the
    guest of one may go on with the next (external migration), which resets the device before its rings have
    run: that leaves the session alone. If it brings a state, as QEMU always does, the device takes that
    instead of the session. ``fence``: what another process needs of our rings, see ``Fence`` of
    :mod:`vmsim.virtio.ring_types`. ``own_state_channel``: SET_DEVICE_STATE_FD is
    answered with a channel of the back-end's own.
    """

    protocol_features: int = PROTOCOL_FEATURES
    policy: Policy = "strict"
    log_shared: bool = False
    keeps_session: bool = False
    fence: Fence | None = None
    own_state_channel: bool = False


class VhostBackend:
    """One device behind one transport.

    ``link``, set by the transport, is the way back to the front-end. ``refusal`` keeps the reason of the last
    message that was refused by an acknowledgement.
    """

    def __init__(
        self, device: BackendDevice, io: BackendIo, schedule: Schedule, dialect: Dialect,
        options: BackendOptions | None = None,
    ) -> None:
        self.device = device
        self.dialect = dialect
        self.options = options or BackendOptions()
        if self.options.protocol_features & ~IMPLEMENTED:
            names = c.describe_features(self.options.protocol_features & ~IMPLEMENTED)
            raise ValueError(f"protocol features that are not implemented: {names}")
        self.features_offered = device.virtio_features | c.TRANSPORT_FEATURES
        self.features = 0
        self.protocol_features = 0
        self.status = 0
        self.refusal: VmsimError | None = None
        self.memory = BackendMemory(io)
        self.transfer: BackendTransfer = dialect.serve(
            _Transferred(self), io, own_channel=self.options.own_state_channel
        )
        self.rings = [
            BackendRing(index, device, schedule, self.options.policy, self.options.fence)
            for index in range(device.queue_count)
        ]
        for ring in self.rings[device.hiprio_count :]:
            ring.others = self.rings[: device.hiprio_count]
        self._io = io
        self._link: BackendLink | None = None
        self._fds: list[int] = []
        self._log_view: memoryview | None = None
        self._inflight_view: memoryview | None = None
        self._used = False
        """Whether this front-end has set up a ring."""
        self._handlers: dict[str, Callable[[Any], Any]] = {
            name: getattr(self, "_" + name.lower())
            for name in dialect.messages.by_name
            if hasattr(self, "_" + name.lower())
        }
        self._transfer_messages = dialect.transfer_messages

    @property
    def link(self) -> BackendLink | None:
        """The way back to the front-end."""
        return self._link

    @link.setter
    def link(self, link: BackendLink | None) -> None:
        self._link = link
        for ring in self.rings:
            ring.link = link

    def kicked(self, ring: int) -> None:
        """The driver says that a ring has work."""
        self.rings[ring].kicked()

    def progress(self) -> bool:
        """Move a state transfer on; whether anything moved."""
        return self.transfer.progress()

    def handle(self, request: Request) -> Reply | None:
        """Carry out one message; its reply if it has one.

        A refusal is an acknowledgement with a non-zero number if one was asked for, else a MessageError: a
        connection would end there.
        """
        row = request.row
        acked = request.need_reply and not row.answered and self._has(c.F_REPLY_ACK)
        self._fds = list(request.fds)
        try:
            check_fds(row, len(request.fds))
            if row.feature >= 0 and not self._has(row.feature):
                feature = c.PROTOCOL_FEATURES[row.feature]
                raise MessageError(f"{row.name} without protocol feature {feature}", spec=SPEC)
            reply = self._dispatch(request)
        except Exception as raised:
            self.refusal = error = contained(raised)
            if not acked:
                raise _as_message_error(row.name, error) from raised
            return Reply(p.Number(_code(error)))
        finally:
            fds, self._fds = self._fds, []
            for fd in fds:
                self._io.close(fd)
        return Reply(p.Number(0)) if acked else reply

    def close(self) -> None:
        """The front-end is gone: stop the rings, unmap everything; the device keeps its session."""
        for ring in self.rings:
            try:
                ring.stop()
            except StallError:
                ring.reset()  # nobody is left who would wait for these requests
            ring.enabled = False
        self.transfer.abandon()
        self._drop_log()
        self._apply()
        self.memory.close()
        self._apply()
        self._use_inflight(None, ())
        self.protocol_features = 0
        self._used = False

    @property
    def rings_stopped(self) -> bool:
        """Whether the device is suspended: no ring may touch guest memory."""
        return not any(ring.running for ring in self.rings)

    # -- helpers

    def _has(self, feature: int) -> bool:
        return bool(self.protocol_features >> feature & 1)

    def _dispatch(self, request: Request) -> Reply | None:
        name = request.row.name
        if name in self._transfer_messages:
            return self.transfer.handle(request, self._take_fd, self.rings_stopped)
        handler = self._handlers.get(name)
        if handler is None:
            raise MessageError(f"{name} is not supported by this back-end", spec=SPEC)
        answer = handler(request.payload)
        if request.row.answered:
            return answer if isinstance(answer, Reply) else Reply(answer)
        return None

    def _take_fd(self) -> int:
        if not self._fds:
            raise MessageError("a descriptor is missing", spec=SPEC)
        return self._fds.pop(0)

    def _ring(self, index: int) -> BackendRing:
        if index >= len(self.rings):
            raise MessageError(f"ring {index} of {len(self.rings)}", spec=SPEC)
        return self.rings[index]

    def _apply(self) -> None:
        """Give every ring the present memory, features and log."""
        sink = None
        if self._log_view is not None and self.features & c.VHOST_F_LOG_ALL:
            sink = BitmapSink(self._log_view, shared=self.options.log_shared)
        features = self.features & ~c.TRANSPORT_FEATURES
        for ring in self.rings:
            ring.set_memory(self.memory.memory, features, sink)

    def _drop_log(self) -> None:
        if self._log_view is not None:
            view, self._log_view = self._log_view, None
            self._io.unmap(view)

    # -- features

    def _get_features(self, _: None) -> p.Number:
        return p.Number(self.features_offered)

    def _set_features(self, payload: p.Number) -> None:
        features = payload.value
        extra = features & ~self.features_offered
        if extra:
            raise MessageError(f"SET_FEATURES: {extra:#x} was not offered", spec=SPEC)
        before, hidden = self.features, c.TRANSPORT_FEATURES
        if (before ^ features) & ~hidden and any(ring.started for ring in self.rings):
            raise MessageError("SET_FEATURES: virtio features cannot change while rings run", spec=SPEC)
        self.features = features
        self.device.set_features(features & ~hidden)
        self._apply()
        if not features & c.VHOST_USER_F_PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.set_enabled(True)
        if features & c.VHOST_F_LOG_ALL and not before & c.VHOST_F_LOG_ALL:
            self.device.log_started()
        elif before & c.VHOST_F_LOG_ALL and not features & c.VHOST_F_LOG_ALL:
            self.device.log_stopped()

    def _get_protocol_features(self, _: None) -> p.Number:
        return p.Number(self._offered())

    def _offered(self) -> int:
        """The protocol features that this device has a use for."""
        hidden = 0 if self.device.config_space else c.protocol_bits(c.F_CONFIG)
        return self.options.protocol_features & ~hidden

    def _set_protocol_features(self, payload: p.Number) -> None:
        features = payload.value
        extra = features & ~self._offered()
        if extra:
            names = c.describe_features(extra)
            raise MessageError(f"SET_PROTOCOL_FEATURES: {names} was not offered", spec=SPEC)
        if features >> c.F_INBAND_NOTIFICATIONS & 1 and not (
            features >> c.F_BACKEND_REQ & 1 and features >> c.F_REPLY_ACK & 1
        ):
            raise MessageError(
                "SET_PROTOCOL_FEATURES: INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK", spec=SPEC
            )
        self.protocol_features = features

    def _get_queue_num(self, _: None) -> p.Number:
        return p.Number(len(self.rings))

    def _get_max_mem_slots(self, _: None) -> p.Number:
        return p.Number(MEMORY_REGIONS_MAX)

    def _set_backend_req_fd(self, _: None) -> None:
        self._keep_fd(lambda link, fd: link.set_channel(fd))

    def _set_owner(self, _: None) -> None:
        """Ownership means nothing here: there is one front-end per transport."""

    def _reset_owner(self, _: None) -> None:
        """Deprecated; the specification lets a back-end ignore it."""

    # -- memory and log

    def _add_mem_reg(self, payload: p.SlotRegion) -> None:
        fd = self._take_fd()
        try:
            self.memory.add(payload.region, fd)
        finally:
            self._io.close(fd)
        self._apply()

    def _rem_mem_reg(self, payload: p.SlotRegion) -> None:
        self.memory.remove(payload.region)
        self._apply()

    def _set_mem_table(self, payload: p.MemoryTable) -> None:
        self.memory.replace(payload.regions, self._fds)
        self._apply()

    def _set_log_base(self, payload: p.LogArea) -> p.LogArea:
        if not self._has(c.F_LOG_SHMFD):
            raise MessageError("SET_LOG_BASE without protocol feature LOG_SHMFD", spec=SPEC)
        needed = bitmap_bytes(self.memory.memory)
        if payload.mmap_size < needed:
            raise MessageError(f"SET_LOG_BASE: {payload.mmap_size} bytes, memory needs {needed}", spec=SPEC)
        fd = self._take_fd()
        try:
            view = self._io.map(fd, payload.mmap_size, payload.mmap_offset)
        finally:
            self._io.close(fd)
        former, self._log_view = self._log_view, view
        self._apply()
        if former is not None:
            self._io.unmap(former)
        return payload

    def _set_log_fd(self, _: None) -> None:
        """The descriptor would be signalled after each write to the log; polling the log is enough."""

    # -- requests in flight

    def _get_inflight_fd(self, payload: p.Inflight) -> Reply:
        queues, size = self._inflight_shape("GET_INFLIGHT_FD", payload)
        # Which format its rings will have may not be known yet: entries of packed ones are the larger.
        packed = not self.features or bool(self.features & F_RING_PACKED)
        size_bytes = queues * region_bytes(size, packed=packed)
        buffer = self._io.shared_memory("vhost-inflight", size_bytes, sealed=True)
        try:
            fd = self._io.dup(buffer.fd)
        finally:
            buffer.close()
        return Reply(p.Inflight(size_bytes, 0, queues, size), (fd,))

    def _set_inflight_fd(self, payload: p.Inflight) -> None:
        queues, _ = self._inflight_shape("SET_INFLIGHT_FD", payload)
        if any(ring.started for ring in self.rings):
            raise MessageError("SET_INFLIGHT_FD while rings run", spec=SPEC)
        fd = self._take_fd()
        try:
            view = self._io.map(fd, payload.mmap_size, payload.mmap_offset)
        finally:
            self._io.close(fd)
        try:
            regions = [region_of(view, queue, queues) for queue in range(queues)]
        except MessageError:
            self._io.unmap(view)
            raise
        self._use_inflight(view, regions)

    def _inflight_shape(self, message: str, payload: p.Inflight) -> tuple[int, int]:
        queues, size = payload.num_queues, payload.queue_size
        if not 1 <= queues <= len(self.rings) or not 1 <= size <= QUEUE_SIZE_MAX:
            raise MessageError(f"{message}: {queues} queues of {size} entries", spec=SPEC)
        return queues, size

    def _use_inflight(self, view: memoryview | None, regions: Sequence[memoryview]) -> None:
        for ring in self.rings:
            ring.set_inflight(regions[ring.index] if ring.index < len(regions) else None)
        former, self._inflight_view = self._inflight_view, view
        if former is not None:
            self._io.unmap(former)

    # -- configuration space

    def _get_config(self, payload: p.ConfigSpace) -> p.ConfigSpace:
        """Part of the configuration space; without bytes if it is not all inside."""
        start, size = payload.offset, len(payload.data)
        data = self.device.config_space[start : start + size]
        return p.ConfigSpace(start, payload.flags, data if len(data) == size else b"")

    def _set_config(self, payload: p.ConfigSpace) -> None:
        raise MessageError("SET_CONFIG: this device's configuration cannot be written", spec=SPEC)

    # -- rings

    def _set_vring_num(self, payload: p.VringState) -> None:
        self._ring(payload.ring).set_num(payload.num)

    def _set_vring_base(self, payload: p.VringState) -> None:
        self._ring(payload.ring).set_base(payload.num)

    def _set_vring_addr(self, payload: p.VringAddr) -> None:
        self._ring(payload.ring).set_addr(payload)

    def _get_vring_base(self, payload: p.VringState) -> p.VringState:
        if payload.num:
            raise MessageError(f"GET_VRING_BASE with number {payload.num}", spec=SPEC)
        return p.VringState(payload.ring, self._ring(payload.ring).stop())

    def _set_vring_enable(self, payload: p.VringState) -> None:
        if payload.num > 1:
            raise MessageError(f"SET_VRING_ENABLE: {payload.num}", spec=SPEC)
        if not self.features & c.VHOST_USER_F_PROTOCOL_FEATURES:
            raise MessageError("SET_VRING_ENABLE without feature bit 30", spec=SPEC)
        self._ring(payload.ring).set_enabled(bool(payload.num))

    def _set_vring_kick(self, payload: p.Number) -> None:
        ring = self._notifier("SET_VRING_KICK", payload)
        ring.expect_kicks()
        self._used = True
        # A state transfer that nobody checked is not going to be: the device starts without it.
        self.transfer.abandon()

    def _set_vring_call(self, payload: p.Number) -> None:
        self._notifier("SET_VRING_CALL", payload)

    def _set_vring_err(self, payload: p.Number) -> None:
        self._notifier("SET_VRING_ERR", payload)

    def _notifier(self, message: str, payload: p.Number) -> BackendRing:
        ring = self._ring(payload.value & c.VRING_INDEX_MASK)
        without = bool(payload.value & c.NO_FD)
        if without == bool(self._fds):
            raise MessageError(f"{message}: {len(self._fds)} descriptors, flag says otherwise", spec=SPEC)
        if without and self._link is not None:
            self._link.set_notifier(message, ring.index, -1)
        elif not without:
            self._keep_fd(lambda link, fd: link.set_notifier(message, ring.index, fd))
        return ring

    def _keep_fd(self, give: Callable[[BackendLink, int], None]) -> None:
        if self._link is not None:
            give(self._link, self._take_fd())

    def _vring_kick(self, payload: p.VringState) -> None:
        self._ring(payload.ring).expect_kicks()
        self.kicked(payload.ring)

    # -- status

    def _reset_device(self, _: None) -> None:
        self.transfer.abandon()
        for ring in self.rings:
            ring.reset()
            ring.forget_inflight()
        self.status = 0
        if self._used or not self.options.keeps_session:
            self.device.reset()

    def _set_status(self, payload: p.Number) -> None:
        """Remembered only: 0 also means "stopped for now", which must not lose the session."""
        self.status = payload.value & 0xFF

    def _get_status(self, _: None) -> p.Number:
        return p.Number(self.status)


class _Transferred:
    """The device's state, for the dialect."""

    def __init__(self, backend: VhostBackend) -> None:
        self._backend = backend

    def save_state(self) -> Iterator[bytes]:
        """As the device does."""
        return self._backend.device.save_state()

    def load_state(self, blob: bytes) -> None:
        """As the device does; the session of a front-end that has gone gives way."""
        backend = self._backend
        try:
            backend.device.load_state(blob)
        except StateError:
            if backend._used or not backend.options.keeps_session:
                raise
            backend.device.reset()
            backend.device.load_state(blob)


def _code(error: VmsimError) -> int:
    """The non-zero number of an acknowledgement: the errno if the error has one."""
    code = error.details.get("errno", 0)
    return code if isinstance(code, int) and code > 0 else errno.EINVAL


def _as_message_error(name: str, error: VmsimError) -> MessageError:
    if isinstance(error, MessageError):
        return error
    code = error.errno if isinstance(error, HostError) else errno.EINVAL
    return MessageError(f"{name}: {error.message}", spec=SPEC, request=name, errno=code)
