"""What is wrong with a capture as a whole: devices, their rings, and a second file that has to fit.

Reading has found what cannot be read, and a device's inspection what is wrong with a back-end's state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vmsim.inspect.capture import Capture, Device
from vmsim.inspect.virtio import named_features
from vmsim.virtio.constants import (
    F_VERSION_1,
    STATUS_DEVICE_NEEDS_RESET,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NAMES,
)
from vmsim.virtio.state import VirtioQueueState
from vmsim.wire.tree import Finding, Node, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
DAMAGED: Final = "the state is damaged, or of a defective VMM"
BROKEN: Final = "reset the device before the migration"


def lint(capture: Capture) -> None:
    """Add the findings about devices."""
    for device in capture.devices:
        capture.add(_device(capture, device))


def _device(capture: Capture, device: Device) -> Iterator[Finding]:
    if device.inspection is not None:
        yield from _backend(capture, device)
        yield from _features(device)
    if not device.complete:
        return
    yield from _status(device)
    yield from _counts(device)
    for index, queue in enumerate(device.state.queues):
        yield from _queue(capture, device, index, queue)


def _at(device: Device, *keys: str) -> int:
    node = device.node.find("virtio", *keys) or device.node
    return node.offset if node.offset >= 0 else device.node.offset


def _backend(capture: Capture, device: Device) -> Iterator[Finding]:
    if device.backend is not None:
        return
    assert device.inspection is not None
    if capture.config is not None and capture.config.migration == "external":
        yield Finding(
            NOTE,
            "no-backend-state",
            "no back-end state, as the machine migrates externally",
            device.idstr,
            device.node.offset,
            "attach the same back-end again",
        )
        return
    yield Finding(
        ERROR,
        "no-backend-state",
        f"the subsection {device.inspection.state_subsection} is missing: QEMU loads"
        " this without a word, and the guest finds its files gone",
        device.idstr,
        device.node.offset,
        "right only for an external migration, whose back-end keeps its session and is attached again",
    )


def _features(device: Device) -> Iterator[Finding]:
    inspection, features = device.inspection, device.state.guest_features
    assert inspection is not None
    impossible = features & ~inspection.device_features
    if impossible:
        names = " ".join(named_features(impossible, inspection))
        yield Finding(
            ERROR,
            "impossible-features",
            f"the driver accepted {names} ({impossible:#x}), which such a device never"
            ' offers: the load fails with "Features … unsupported"',
            f"{device.idstr}/features",
            _at(device, "features"),
            DAMAGED,
        )
    if device.state.status & STATUS_FEATURES_OK and not features & F_VERSION_1:
        yield Finding(
            WARNING,
            "legacy-driver",
            "the driver did not accept VERSION_1",
            f"{device.idstr}/features",
            _at(device, "features"),
            "vmsim's device is modern only",
        )


def _status(device: Device) -> Iterator[Finding]:
    status, field, at = device.state.status, f"{device.idstr}/status", _at(device, "status")
    unknown = status & ~sum(STATUS_NAMES)
    if unknown:
        yield Finding(ERROR, "status-bits", f"status has unknown bits {unknown:#x}", field, at, DAMAGED)
    if (
        status & STATUS_DRIVER_OK
        and not status & STATUS_FEATURES_OK
        and device.state.guest_features & F_VERSION_1
    ):
        yield Finding(ERROR, "status-order", "DRIVER_OK without FEATURES_OK", field, at, DAMAGED)
    for bit in (STATUS_FAILED, STATUS_DEVICE_NEEDS_RESET):
        if status & bit:
            text = f"{STATUS_NAMES[bit]} is set: the device does not work, nor will it after the migration"
            yield Finding(WARNING, "status-failed", text, field, at, BROKEN)
    if device.state.broken:
        yield Finding(WARNING, "device-broken", "the device is marked broken", field, at, BROKEN)


def _counts(device: Device) -> Iterator[Finding]:
    state, inspection = device.state, device.inspection
    wanted = inspection.queues(state.config, state.guest_features) if inspection is not None else 0
    if wanted and wanted != len(state.queues):
        yield Finding(
            ERROR,
            "queue-count",
            f"{len(state.queues)} queues, but the configuration space says {wanted}",
            f"{device.idstr}/queues",
            _at(device, "queues"),
            DAMAGED,
        )


def _queue(capture: Capture, device: Device, index: int, queue: VirtioQueueState) -> Iterator[Finding]:
    field, at = f"{device.idstr}/queues/{index}", _at(device, "queues", str(index))
    limit = device.inspection.queue_size_max if device.inspection is not None else 1024
    size = queue.num
    if not 0 < size <= limit:
        yield Finding(ERROR, "queue-size", f"{size} entries; 1 to {limit} are possible", field, at, DAMAGED)
        return
    if size & (size - 1) and not device.packed:
        yield Finding(
            ERROR, "queue-size", f"{size} entries: a split ring has a power of 2", field, at, DAMAGED
        )
    if not queue.desc:
        if queue.enabled:
            yield Finding(
                ERROR, "queue-address", "enabled, but its descriptors are nowhere", field, at, DAMAGED
            )
        return
    aligned = (16, 4, 4) if device.packed else (16, 2, 4)
    for name, alignment in zip(("desc", "avail", "used"), aligned, strict=True):
        address = getattr(queue, name)
        if address % alignment:
            text = f"{name} area at {address:#x} is not aligned to {alignment} bytes"
            yield Finding(ERROR, "queue-alignment", text, field, at, DAMAGED)
    if device.packed:
        yield from _packed(queue, field, at)
    elif device.state.guest_features & F_VERSION_1:
        yield from _split(capture, queue, field, at)


def _packed(queue: VirtioQueueState, field: str, at: int) -> Iterator[Finding]:
    for name in ("last_avail_idx", "used_idx"):
        if getattr(queue, name) & 0x7FFF >= queue.num:
            text = f"{name} {getattr(queue, name):#x} is not below the {queue.num} entries"
            yield Finding(ERROR, "ring-index", text, field, at, DAMAGED)
            return
    wrapped = 0 if queue.last_avail_wrap == queue.used_wrap else queue.num
    busy = queue.last_avail_idx + wrapped - queue.used_idx
    if not 0 <= busy <= queue.num:
        text = f"{busy} entries in use of {queue.num}: the indices are further apart than the ring is long"
        yield Finding(ERROR, "ring-delta", text, field, at, DAMAGED)
    elif busy:
        yield _in_flight(busy, field, at)


def _split(capture: Capture, queue: VirtioQueueState, field: str, at: int) -> Iterator[Finding]:
    found = [capture.guest_memory(area + 2, 2) for area in (queue.avail, queue.used)]
    if found[0] is None or found[1] is None:
        return
    avail, used = (int.from_bytes(data, "little") for data in found if data is not None)
    posted = (avail - queue.last_avail_idx) & 0xFFFF
    busy = (queue.last_avail_idx - used) & 0xFFFF
    if posted > queue.num:
        yield Finding(
            ERROR,
            "ring-delta",
            f"the driver's index {avail:#x} is {posted} ahead of last_avail_idx"
            f" {queue.last_avail_idx:#x} in a ring of {queue.num}: QEMU marks the device broken",
            field,
            at,
            DAMAGED,
        )
    if busy > queue.num:
        yield Finding(
            ERROR,
            "ring-delta",
            f"last_avail_idx {queue.last_avail_idx:#x} is {busy} ahead of the used index {used:#x}"
            f" in a ring of {queue.num}: the load fails",
            field,
            at,
            DAMAGED,
        )
    elif busy:
        yield _in_flight(busy, field, at)


def _in_flight(count: int, field: str, at: int) -> Finding:
    return Finding(
        WARNING,
        "in-flight",
        f"{count} entries were taken and not used: nobody answers them after the migration,"
        " unless the back-end's state has them parked",
        field,
        at,
        "drain the rings before saving",
    )


def compare(capture: Capture, other: Capture) -> None:
    """Add to ``capture`` what of it does not fit ``other``: the machine that it is to be loaded into,
    saved.
    """
    found = capture.findings
    if capture.machine_type and other.machine_type and capture.machine_type != other.machine_type:
        found.append(
            Finding(
                ERROR,
                "machine-type",
                f"machine type {capture.machine_type}, there {other.machine_type}: QEMU refuses it",
                "configuration",
                8,
                "start the same",
            )
        )
    for name, block in capture.ram.blocks.items():
        there = other.ram.blocks.get(name)
        if other.ram.blocks and (there is None or there.size != block.size):
            size = "none" if there is None else f"{there.size} bytes"
            found.append(
                Finding(
                    ERROR,
                    "ram-size",
                    f"memory block of {block.size} bytes, there {size}",
                    f"ram/{name}",
                    block.offset,
                    "give the destination the same memory",
                )
            )
    if other.state is None:
        for device in capture.devices:
            found += _fits(device, capture, other)
    found += _options(capture, other)
    found.sort(key=lambda finding: (-finding.severity, finding.offset))


def _fits(device: Device, capture: Capture, other: Capture) -> Iterator[Finding]:
    """Whether ``other`` has the device: by name and place; else the only one of its kind, elsewhere."""
    kind = _kind(device)
    peer = next((one for one in other.devices if one.idstr == device.idstr), None)
    if peer is None:
        alone = sum(_kind(one) == kind for one in capture.devices) == 1
        alike = [one for one in other.devices if _kind(one) == kind]
        peer = alike[0] if alone and len(alike) == 1 else None
        where = f"there it is {peer.idstr}" if peer is not None else "the other has no such device"
        yield Finding(
            ERROR,
            "device-missing",
            f"{where}: QEMU refuses a section without a device of that name",
            device.idstr,
            device.node.offset,
            "start the destination with the same devices, at the same places",
        )
    if peer is not None:
        yield from _device_pair(device, peer)


def _kind(device: Device) -> str:
    return device.idstr.rpartition("/")[2]


def _device_pair(device: Device, peer: Device) -> Iterator[Finding]:
    idstr = device.idstr
    tags = [one.node.find("virtio", "config", "tag") for one in (device, peer)]
    if tags[0] is not None and tags[1] is not None and tags[0].value != tags[1].value:
        yield Finding(
            ERROR,
            "tag",
            f"tag {tags[0].value!r}, there {tags[1].value!r}: QEMU loads it without a word, and the"
            " guest cannot mount again",
            f"{idstr}/tag",
            _at(device, "config"),
            "give both the same tag",
        )
    mine, theirs = device.state.guest_features, peer.state.guest_features
    for bits, where in ((mine & ~theirs, "only here"), (theirs & ~mine, "only there")):
        if bits:
            names = " ".join(named_features(bits, device.inspection))
            yield Finding(
                WARNING,
                "features",
                f"accepted {where}: {names}",
                f"{idstr}/features",
                _at(device, "features"),
                "both back-ends have to offer the same",
            )
    queues, others = device.state.queues, peer.state.queues
    if len(queues) != len(others):
        yield Finding(
            ERROR,
            "queue-count",
            f"{len(queues)} queues, there {len(others)}",
            f"{idstr}/queues",
            _at(device, "queues"),
            "give both as many request queues",
        )
    for index, (queue, other) in enumerate(zip(queues, others, strict=False)):
        if queue.num != other.num:
            yield Finding(
                WARNING,
                "queue-size",
                f"{queue.num} entries, there {other.num}: the stream's count"
                " replaces that of the destination",
                f"{idstr}/queues/{index}",
                _at(device, "queues", str(index)),
                "give both the same queue-size",
            )
    if device.version != peer.version:
        yield Finding(
            ERROR,
            "section-version",
            f"version {device.version} of the section, there {peer.version}",
            idstr,
            device.node.offset,
            "choose the same dialect of state transfer",
        )


def _options(capture: Capture, other: Capture) -> Iterator[Finding]:
    states: list[list[Node]] = []
    for one in (capture, other):
        backends = [device.backend for device in one.devices if device.backend is not None]
        states.append([one.state] if one.state is not None else backends)
    for mine, theirs in zip(*states, strict=False):
        here, there = mine.find("negotiated"), theirs.find("negotiated")
        if here is None or there is None or here.value is None or here.value == there.value:
            continue
        yield Finding(
            WARNING,
            "options",
            f"negotiated {here.text}, there {there.text}",
            "negotiated_opts",
            here.offset,
            "start both back-ends with the same options",
        )
