"""A virtio device's state as a tree: features by name, status, registers of the transport, rings."""

from __future__ import annotations

from typing import Any, Final

from vmsim.errors import StreamError
from vmsim.inspect.capture import Capture, Device
from vmsim.inspect.recording import RecordingReader
from vmsim.vhost.device_type import DeviceInspection
from vmsim.virtio.constants import FEATURE_ROWS, status_names
from vmsim.virtio.state import VirtioQueueState, VirtioState
from vmsim.virtio.vmstate import MmioTransport, TransportState, virtio_load
from vmsim.virtio.vmstate_pci import PciTransport, msix_vectors
from vmsim.wire.tree import Node, Piece, Severity

RESERVED: Final = {row.bit: row.name for row in FEATURE_ROWS}
NO_VECTOR: Final = 0xFFFF


def named_features(features: int, inspection: DeviceInspection | None) -> list[str]:
    """The names of feature bits, those of the device's own by its table."""
    own = inspection.feature_names if inspection is not None else {}
    return [
        own.get(bit) or RESERVED.get(bit, f"bit {bit}")
        for bit in range(features.bit_length())
        if features >> bit & 1
    ]


def read_virtio(capture: Capture, device: Device, start: int, end: int) -> int:
    """Read virtio_save's bytes in ``start`` to ``end`` into ``device``; where they end.

    What was read before an error is kept, and the error is a finding.
    """
    pci = "virtio-mmio" not in device.idstr
    transport: MmioTransport | PciTransport = PciTransport() if pci else MmioTransport()
    reader = RecordingReader(capture.source, start, end, device.idstr)
    state = device.state = VirtioState(started=False)
    try:
        virtio_load(reader, transport, state)
        device.complete = True
    except StreamError as error:
        capture.found(
            Severity.ERROR, "virtio-state", f"the virtio state ends here: {error.message}",
            field=device.idstr, offset=max(error.offset, start),
            hint="the section is cut off or damaged; what came before it is shown",
        )  # fmt: skip
    state.guest_features = state.guest_features if reader.features is None else reader.features
    state.host_features |= state.guest_features
    capture.add(reader.findings)
    node = device.node.add("virtio", offset=start, size=reader.offset - start)
    node.pieces = reader.spans
    _describe(node, device, transport, reader)
    return reader.offset


def _describe(node: Node, device: Device, transport: TransportState, reader: RecordingReader) -> None:
    state = device.state
    places = {piece.name: piece for piece in reversed(reader.spans)}

    def leaf(parent: Node, key: str, value: Any, text: str = "", piece: str = "") -> None:
        place = places.get(piece or key)
        parent.add(key, value, text, *((place.offset, place.size) if place else ()))

    leaf(
        node, "status", state.status, f"{state.status:#04x} {' '.join(status_names(state.status)) or 'reset'}"
    )
    names = named_features(state.guest_features, device.inspection)
    features = node.add(
        "features", state.guest_features, f"{state.guest_features:#x} {' '.join(names) or 'none'}"
    )
    place = places.get("virtio/64bit_features.guest_features") or places.get("guest_features_low")
    if place:
        features.offset, features.size = place.offset, place.size
    features.value = {"bits": state.guest_features, "names": names}
    for key in ("isr", "queue_sel"):
        leaf(node, key, getattr(state, key))
    for key in ("started", "broken", "disabled"):
        if getattr(state, key) or key == "started":
            leaf(node, key, getattr(state, key), "", f"virtio/{key}.{key}")
    if state.device_endian is not None:
        leaf(node, "device_endian", {1: "little", 2: "big"}.get(state.device_endian, state.device_endian))
    _config(node, device, places.get("config"))
    _registers(node, state, transport)
    queues = node.add("queues")
    for index, queue in enumerate(state.queues):
        _queue(queues, index, queue, device, places)
    subsections = node.add("subsections")
    for name, version, offset in reader.subsection_places:
        subsections.add(name, version, f"version {version}", offset)
    subsections.distinct()


def _config(node: Node, device: Device, place: Piece | None) -> None:
    config = device.state.config
    child = node.add("config", None, "", *((place.offset, place.size) if place else ()))
    if not any(config):
        child.value, child.text = config.hex(), f"{len(config)} bytes of zeros: the guest has not read them"
    elif device.inspection is not None:
        child.children = device.inspection.config(config)
    else:
        child.value = config.hex()


def _registers(node: Node, state: VirtioState, transport: TransportState) -> None:
    kind = "pci" if isinstance(transport, PciTransport) else "mmio"
    registers = node.add("transport", kind)
    registers.add("host_features_sel", state.host_features_sel)
    registers.add("guest_features_sel", state.guest_features_sel)
    if not isinstance(transport, PciTransport):
        registers.add("guest_page_shift", state.guest_page_shift)
        return
    config = transport.config
    if len(config) < 64:
        return
    vendor, identity = (int.from_bytes(config[at : at + 2], "little") for at in (0, 2))
    command = int.from_bytes(config[4:6], "little")
    registers.add("function", f"{vendor:04x}:{identity:04x}", f"{vendor:04x}:{identity:04x}"
                  f"{', PCIe' if len(config) > 256 else ''}")  # fmt: skip
    registers.add("command", command, f"{command:#06x}")
    for index in range(6):
        bar = int.from_bytes(config[16 + 4 * index : 20 + 4 * index], "little")
        if bar:
            registers.add(f"bar{index}", bar, f"{bar:#x}")
    registers.add("irq_state", list(transport.irq_state))
    vectors = msix_vectors(config)
    if vectors:
        msix = registers.add("msix", vectors, f"{vectors} vectors")
        msix.add("config_vector", transport.config_vector, _vector(transport.config_vector))
        texts = [_vector(vector) for vector in transport.queue_vectors]
        msix.add("queue_vectors", transport.queue_vectors, ", ".join(texts) or "none")
        msix.add("pending", transport.msix_pending.hex())
        for index in range(vectors):
            entry = transport.msix_table[16 * index : 16 * index + 16]
            if len(entry) == 16 and any(entry):
                low, high, data, control = (int.from_bytes(entry[i : i + 4], "little") for i in (0, 4, 8, 12))
                masked = ", masked" if control & 1 else ""
                msix.add(f"vector {index}", entry.hex(), f"{high << 32 | low:#x} = {data:#x}{masked}")


def _vector(vector: int) -> str:
    return "none" if vector == NO_VECTOR else str(vector)


def _queue(
    queues: Node, index: int, queue: VirtioQueueState, device: Device, places: dict[str, Piece]
) -> None:
    place = places.get(f"queues[{index}].num")
    role = device.inspection.queue_name(index, device.state.guest_features) if device.inspection else ""
    ready = "enabled" if queue.enabled else ("in use" if queue.desc else "not set up")
    node = queues.add(str(index), None, f"{role + ', ' if role else ''}{queue.num} entries, {ready}")
    last = places.get(f"queues[{index}].last_avail_idx")
    if place:
        node.offset, node.size = (
            place.offset,
            (last.offset + last.size if last else place.offset) - place.offset,
        )
    if role:
        node.add("role", role)
    node.add("num", queue.num)
    if queue.num_default != queue.num:
        node.add("num_default", queue.num_default)
    node.add("enabled", bool(queue.enabled))
    for key in ("desc", "avail", "used"):
        node.add(key, getattr(queue, key), f"{getattr(queue, key):#x}")
    node.add("last_avail_idx", queue.last_avail_idx, "", *((last.offset, last.size) if last else ()))
    if device.packed:
        for key in ("last_avail_wrap", "used_idx", "used_wrap", "inuse"):
            node.add(key, getattr(queue, key))
