"""Saving and loading a device's life cycle: what QEMU's virtio_save carries, checked like virtio_load."""

from __future__ import annotations

from vmsim.errors import MemoryAccessError, StreamError
from vmsim.limits import QUEUE_SIZE_MAX, VIRTIO_QUEUE_MAX
from vmsim.memory import GuestMemory
from vmsim.virtio.constants import (
    F_RING_PACKED,
    ISR_CONFIG_CHANGE,
    STATUS_DEVICE_NEEDS_RESET,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
)
from vmsim.virtio.device import QueueConfig, VirtioDevice
from vmsim.virtio.ring_types import ring_areas
from vmsim.virtio.state import VirtioQueueState, VirtioState


def base_word(queue: VirtioQueueState, packed: bool) -> int:
    """Where the ring stands, in the encoding of vhost's GET_VRING_BASE."""
    if not packed:
        return queue.last_avail_idx
    avail = queue.last_avail_idx | queue.last_avail_wrap << 15
    return avail | (queue.used_idx | queue.used_wrap << 15) << 16


def save_state(device: VirtioDevice, memory: GuestMemory | None = None) -> VirtioState:
    """The device as plain data; its rings must be stopped and ``base`` of each queue be true.

    With ``memory``, a device whose rings the driver has broken there is saved as one that needs a reset.
    """
    packed = bool(device.features_accepted & F_RING_PACKED)
    state = VirtioState(
        status=device.status,
        isr=device.isr,
        queue_sel=device.queue_sel,
        guest_features=device.features_accepted,
        host_features=device.features_offered,
        config=bytes(device.config),
        queues=[_save_queue(queue, packed) for queue in device.queues],
        host_features_sel=device.device_features_sel,
        guest_features_sel=device.driver_features_sel,
        broken=bool(device.status & STATUS_DEVICE_NEEDS_RESET),
        started=bool(device.status & STATUS_DRIVER_OK),
    )
    if memory is not None and device.live and not packed:
        # Here we know that the indices were right: if they are not, it was the driver. The destination could
        # only suspect that memory or state have come through wrong.
        for queue in state.queues:
            state.broken |= bool(queue.enabled) and _used_is_wrong(queue, memory)
    return state


def _save_queue(queue: QueueConfig, packed: bool) -> VirtioQueueState:
    state = VirtioQueueState(
        num=queue.size, num_default=queue.size_max, desc=queue.desc, avail=queue.driver, used=queue.device,
        enabled=int(queue.ready),
    )
    if not packed:
        state.last_avail_idx = queue.base & 0xFFFF
        return state
    base = queue.base
    state.last_avail_idx, state.last_avail_wrap = base & 0x7FFF, base >> 15 & 1
    state.used_idx, state.used_wrap = base >> 16 & 0x7FFF, base >> 31 & 1
    if queue.ready:
        state.inuse = _in_use(state)
    else:
        state.last_avail_wrap = state.used_wrap = 1
    return state


def load_state(device: VirtioDevice, state: VirtioState, memory: GuestMemory | None = None) -> None:
    """Become what ``state`` says, checked field by field; no hook is called.

    With ``memory`` the ring indices in guest memory are checked as well. StreamError, and the device is
    unchanged, if a field is impossible.
    """
    used = [queue for queue in state.queues if queue.num]
    _check_device(device, state, used)
    packed = bool(state.guest_features & F_RING_PACKED)
    broken = state.broken
    stopped = STATUS_DEVICE_NEEDS_RESET | STATUS_FAILED
    will_run_as_saved = bool(state.status & STATUS_DRIVER_OK) and not state.status & stopped
    will_run = will_run_as_saved and not broken
    for index, queue in enumerate(used):
        _check_queue(index, queue, packed, bool(state.status & STATUS_FEATURES_OK))
        # What a driver says about rings that do not run is its own affair; a migration does not fail for it.
        if memory is not None and queue.enabled and will_run:
            broken |= _check_rings(index, queue, state.guest_features, memory)
    device.status = state.status | (STATUS_DEVICE_NEEDS_RESET if broken else 0)
    device.reset_reason = "the state says so" if broken else ""
    news = broken and will_run_as_saved
    device.isr = state.isr | (ISR_CONFIG_CHANGE if news else 0)
    device.queue_sel = state.queue_sel
    device.device_features_sel = state.host_features_sel
    device.driver_features_sel = state.guest_features_sel
    device.features_accepted = state.guest_features
    device.live = bool(device.status & STATUS_DRIVER_OK) and not device.status & stopped
    for own in device.queues:
        own.reset()
    for own, queue in zip(device.queues, used, strict=False):
        own.size_max = max(own.size_max, queue.num)
        own.size = queue.num
        own.ready = bool(queue.enabled)
        own.desc, own.driver, own.device = queue.desc, queue.avail, queue.used
        own.base = base_word(queue, packed)


def _refuse(message: str, field: str, hint: str = "") -> StreamError:
    return StreamError(message, field=f"virtio/{field}", spec="QEMU virtio_load", hint=hint)


def _check_device(device: VirtioDevice, state: VirtioState, used: list[VirtioQueueState]) -> None:
    # Until FEATURES_OK the driver may have written anything; then it is checked as always.
    if state.status & STATUS_FEATURES_OK and state.guest_features & ~device.features_offered:
        raise _refuse(
            f"Features {state.guest_features:#x} unsupported. Allowed features: {device.features_offered:#x}",
            "guest_features", "give the destination's device and back-end the features of the source",
        )
    if state.status > 0xFF or state.isr > 3:
        raise _refuse(f"status {state.status:#x}, interrupt status {state.isr:#x}", "status")
    if state.queue_sel >= VIRTIO_QUEUE_MAX:
        raise _refuse(f"queue_sel {state.queue_sel}", "queue_sel")
    if len(used) > len(device.queues):
        raise _refuse(
            f"{len(used)} queues, this device has {len(device.queues)}", "queues",
            "give the destination as many request queues as the source",
        )
    if state.device_endian not in (None, 1):
        raise _refuse("only little-endian guests are supported", "device_endian")
    if state.disabled:
        raise _refuse("the device is disabled", "disabled")


def _check_queue(index: int, queue: VirtioQueueState, packed: bool, negotiated: bool) -> None:
    field = f"queues[{index}]"
    size = queue.num
    if size > QUEUE_SIZE_MAX or (negotiated and queue.enabled and not packed and size & (size - 1)):
        raise _refuse(f"queue {index} of {size} entries", field)
    if not queue.desc and queue.last_avail_idx:
        raise _refuse(
            f"VQ {index} address 0x0 inconsistent with Host index {queue.last_avail_idx:#x}", field
        )
    limit = 0x7FFF if packed else 0xFFFF
    if packed and max(queue.last_avail_idx, queue.used_idx) >= size:
        raise _refuse(f"VQ {index} index {queue.last_avail_idx:#x} in {size} entries", field)
    for name in ("last_avail_idx", "used_idx"):
        if not 0 <= getattr(queue, name) <= limit:
            raise _refuse(f"VQ {index} {name} {getattr(queue, name):#x}", field)
    for name in ("last_avail_wrap", "used_wrap", "enabled"):
        if getattr(queue, name) not in (0, 1):
            raise _refuse(f"VQ {index} {name} {getattr(queue, name)}", field)
    if packed and queue.enabled and _in_use(queue) < 0:
        raise _refuse(f"VQ {index} has {_in_use(queue)} entries in use", field)


def _in_use(queue: VirtioQueueState) -> int:
    """Entries of a packed ring that the device has taken up and not used."""
    round_trip = 0 if queue.last_avail_wrap == queue.used_wrap else queue.num
    return queue.last_avail_idx + round_trip - queue.used_idx


def _check_rings(index: int, queue: VirtioQueueState, features: int, memory: GuestMemory) -> bool:
    """Compare the indices with those in guest memory; whether the driver has broken the ring."""
    field = f"queues[{index}]"
    areas = ring_areas(queue.num, features)
    for area, gpa in zip(areas, (queue.desc, queue.avail, queue.used), strict=True):
        if gpa % area.align or not memory.holds(gpa, area.size_bytes):
            raise _refuse(f"VQ {index} {area.name} at {gpa:#x} is not in guest memory", field)
    if features & F_RING_PACKED:
        return False
    try:
        avail_idx, used_idx = memory.load_u16(queue.avail + 2), memory.load_u16(queue.used + 2)
    except MemoryAccessError as error:
        raise _refuse(f"VQ {index}: {error.message}", field) from error
    if _used_is_wrong(queue, memory):
        indices = f"last_avail_idx {queue.last_avail_idx:#x} - used_idx {used_idx:#x}"
        raise _refuse(f"VQ {index} size {queue.num:#x} < {indices}", field)
    return (avail_idx - queue.last_avail_idx) & 0xFFFF > queue.num


def _used_is_wrong(queue: VirtioQueueState, memory: GuestMemory) -> bool:
    """Whether a split ring's used index cannot be where the device has got to; or is not in memory."""
    try:
        used_idx = memory.load_u16(queue.used + 2)
    except MemoryAccessError:
        return True
    return (queue.last_avail_idx - used_idx) & 0xFFFF > queue.num
