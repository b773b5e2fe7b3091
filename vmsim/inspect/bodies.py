"""Sections whose contents we know: virtio-fs in its layouts, any other virtio device, a vmsim machine's
own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

import msgspec

from vmsim.errors import StreamError, UsageError
from vmsim.inspect.capture import Capture, Device
from vmsim.inspect.source import Cursor
from vmsim.inspect.virtio import read_virtio
from vmsim.limits import GUEST_STATE_MAX
from vmsim.machine.config import MachineConfig
from vmsim.wire.tree import Node, Piece, Severity

STATE_MAX: Final = 256 << 20
"""Bytes of a back-end's state that are taken apart; a larger one is only measured."""
STATE_NODES_MAX: Final = 1 << 20
"""Values of back-end states in one file after which a further state is only measured."""
CHUNKS_MAX: Final = 1 << 16
"""Pieces that a state may come in; QEMU's have 1 MiB each."""
DEVICES_MAX: Final = 1000
SEARCH_BYTES: Final = 1 << 20
"""How far behind damaged virtio state the back-end's is looked for."""
RFC_VERSION: Final = 1
BE32, BE64 = 4, 8


def read_device(capture: Capture, device: Device, start: int, end: int) -> int:
    """The section of a device that we know; where its state ends."""
    if len(capture.devices) >= DEVICES_MAX:
        raise StreamError(f"more than {DEVICES_MAX} virtio devices", offset=start, field=device.idstr)
    capture.devices.append(device)
    inspection = device.inspection
    assert inspection is not None
    at = read_virtio(capture, device, start, end)
    if not device.complete:
        at = _search_state(capture, device, at, end)
    if device.version == RFC_VERSION:
        return _rfc_state(capture, device, at, end)
    head = b"\x05" + bytes((len(inspection.state_subsection),)) + inspection.state_subsection.encode()
    if capture.source.read_at(at, len(head)) == head and at + len(head) <= end:
        return _upstream_state(capture, device, at, len(head), end)
    return at


def _search_state(capture: Capture, device: Device, at: int, end: int) -> int:
    """Where the back-end's state begins behind virtio state that could not be read; ``at`` if nowhere."""
    assert device.inspection is not None
    window = capture.source.read_at(at, min(end - at, SEARCH_BYTES))
    name = device.inspection.state_subsection.encode()
    found = window.find(b"\x05" + bytes((len(name),)) + name)
    return at + found if found >= 0 else at


class _Pieces:
    """The parts of a file that the state consists of; ``place`` says where a byte of it lies."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int]] = []
        self.size = 0
        self._starts: list[int] = []

    def add(self, offset: int, size: int) -> None:
        self.parts.append((offset, size))
        self._starts.append(self.size)
        self.size += size

    def place(self, position: int) -> int:
        """The offset in the file of a byte of the state, or of the end."""
        if not self.parts:
            return 0
        index = max(0, bisect_right(self._starts, position) - 1)
        return self.parts[index][0] + position - self._starts[index]


def _upstream_state(capture: Capture, device: Device, at: int, head: int, end: int) -> int:
    """``be32 n, n bytes`` repeated, then ``be32 0`` (vhost_save_backend_state)."""
    assert device.inspection is not None
    cursor = Cursor(capture.source, at + head)
    field = f"{device.idstr}/{device.inspection.state_subsection}"
    pieces = _Pieces()
    chunks: list[Piece] = [Piece(device.inspection.state_subsection, at, head + BE32, "subsection")]
    try:
        version = cursor.be32(field)
        if version:
            capture.found(
                Severity.ERROR,
                "state-version",
                f"version {version} of the subsection: QEMU takes only 0 (incoming version_id is too new)",
                field=field,
                offset=at,
                hint="use the VMM release that wrote it",
            )
        while size := cursor.be32(field):
            place = cursor.offset
            chunks.append(Piece("chunk", place - BE32, BE32, f"{size} bytes"))
            if place + size > end:
                pieces.add(place, max(0, end - place))
                raise StreamError(
                    f"a chunk of {size} bytes, {max(0, end - place)} are left", offset=place - BE32
                )
            pieces.add(place, size)
            cursor.skip(size, field)
            if len(pieces.parts) > CHUNKS_MAX:
                raise StreamError(f"more than {CHUNKS_MAX} chunks", offset=place)
        chunks.append(Piece("end", cursor.offset - BE32, BE32, "no more chunks"))
    except StreamError as error:
        cursor.offset = end
        capture.found(
            Severity.ERROR,
            "state-truncated",
            f"the back-end's state is cut off: {error.message}. A careless destination applies"
            f" what it has, and"
            " fails afterwards",
            field=field,
            offset=max(error.offset, at),
            hint="save the machine again",
        )
    node = device.node.add(device.inspection.state_subsection, offset=at, size=cursor.offset - at)
    node.add("chunks", len(pieces.parts), f"{pieces.size} bytes in {len(pieces.parts)} chunks")
    node.pieces = chunks
    _state(capture, device, node, pieces)
    return cursor.offset


def _rfc_state(capture: Capture, device: Device, at: int, end: int) -> int:
    """``be64 n``, n bytes, in the main section (the RFC of 2023)."""
    field = f"{device.idstr}/back-end"
    cursor = Cursor(capture.source, at)
    node = device.node.add("back-end", "RFC of 2023", "in the main section, as in the RFC of 2023", at)
    pieces = _Pieces()
    try:
        size = cursor.be64(field)
        pieces.add(cursor.offset, min(size, max(0, end - cursor.offset)))
        node.pieces = [Piece("length", at, BE64, str(size))]
        if size > end - cursor.offset:
            raise StreamError(f"{size} bytes announced, {max(0, end - cursor.offset)} left", offset=at)
        cursor.skip(size, field)
    except StreamError as error:
        cursor.offset = end
        capture.found(
            Severity.ERROR,
            "state-truncated",
            f"the back-end's state is cut off: {error.message}",
            field=field,
            offset=max(error.offset, at),
            hint="save the machine again",
        )
    node.size = cursor.offset - at
    _state(capture, device, node, pieces)
    return cursor.offset


def _state(capture: Capture, device: Device, node: Node, pieces: _Pieces) -> None:
    """Have the device take its back-end's state apart; offsets become those of the file."""
    assert device.inspection is not None
    if pieces.size > STATE_MAX or capture.state_nodes > STATE_NODES_MAX:
        node.add("state", pieces.size, f"{pieces.size} bytes: too many to take apart")
        return
    data = b"".join(capture.source.read_at(offset, size) for offset, size in pieces.parts)
    state, findings = device.inspection.state(data)
    device.backend = state.moved(pieces.place)
    capture.state_nodes += sum(1 for _ in state.walk())
    node.children += state.children
    node.pieces += state.pieces
    for finding in findings:
        if finding.offset >= 0:
            finding.message += f" (byte {finding.offset:#x} of the state)"
            finding.offset = pieces.place(finding.offset)
        finding.field = f"{device.idstr}/{finding.field}"
    capture.add(findings)


def read_virtio_field(capture: Capture, section: Node, node: Node, offset: int, size: int) -> bool:
    """The field ``virtio`` of any other virtio device; False if it does not look like one."""
    device = Device(section.key, Node(section.key))
    findings, counts = len(capture.findings), capture.counts.copy()
    end = read_virtio(capture, device, offset, offset + size)
    virtio = device.node.children[0]
    if not device.complete or end != offset + size:
        known = end if device.complete else virtio.offset
        del capture.findings[findings:]
        capture.counts = counts
        if not device.complete:
            return False
        virtio.add(
            "rest", offset + size - known, f"{offset + size - known} bytes that are not understood", known
        )
    node.children, node.pieces, node.text = virtio.children, virtio.pieces, virtio.text
    capture.devices.append(device)
    device.node = node
    return True


def _machine(capture: Capture, node: Node, cursor: Cursor) -> None:
    """``vmsim/machine``: be32 length, msgpack of the configuration."""
    start = cursor.offset
    data = _counted(cursor, "vmsim/machine")
    try:
        config = MachineConfig.decode(data)
        config.check()
    except (StreamError, UsageError) as error:
        capture.found(
            Severity.ERROR,
            "machine-config",
            error.message,
            field="vmsim/machine",
            offset=start + 4,
            hint=error.hint or "the stream is damaged, or of a later vmsim",
        )
        return
    capture.config = config
    _plain(node.add("configuration", offset=start + 4, size=len(data)), msgspec.to_builtins(config))


def _guest(capture: Capture, node: Node, cursor: Cursor) -> None:
    """``vmsim/guest``: be32 length, the guest's own state."""
    start = cursor.offset
    data = _counted(cursor, "vmsim/guest")
    child = node.add("state", {"bytes": len(data)}, f"{len(data)} bytes", start + 4, len(data))
    try:
        facts = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return
    if isinstance(facts, dict):
        for name, value in facts.items():
            if isinstance(value, list | dict):
                child.add(str(name), {"entries": len(value)}, f"{len(value)} entries")
            elif isinstance(value, int | str | bool):
                child.add(str(name), value)
    child.distinct()


def _programs(capture: Capture, node: Node, cursor: Cursor) -> None:
    """``vmsim/programs``: be32 length, msgpack of notes by name."""
    start = cursor.offset
    data = _counted(cursor, "vmsim/programs")
    try:
        notes = msgspec.msgpack.decode(data, type=dict[str, bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        capture.found(
            Severity.ERROR,
            "programs",
            f"notes of programs: {error}",
            field="vmsim/programs",
            offset=start + 4,
            hint="the stream is damaged",
        )
        return
    for name, note in notes.items():
        node.add(name, {"bytes": len(note), "begin": note[:32].hex()}, f"{len(note)} bytes")
    node.distinct()


def _globalstate(capture: Capture, node: Node, cursor: Cursor) -> None:
    """QEMU's ``globalstate``: be32 size, 100 bytes with the run state."""
    start = cursor.offset
    size = cursor.be32("globalstate:size")
    data = cursor.read(100, "globalstate:runstate")
    node.add("size", size, "", start, 4)
    text = data.partition(b"\0")[0].decode("ascii", "backslashreplace")
    node.add("runstate", text, "", start + 4, 100)


def name_runstate(node: Node) -> None:
    """The run state as text, of a ``globalstate`` that was read along its description."""
    child = node.find("runstate") if node.key == "globalstate" else None
    if child is not None and isinstance(child.value, str):
        child.value = bytes.fromhex(child.value).partition(b"\0")[0].decode("ascii", "backslashreplace")
        child.text = ""


def _counted(cursor: Cursor, field: str) -> bytes:
    size = cursor.be32(field)
    if size > GUEST_STATE_MAX:
        raise StreamError(f"{size} bytes announced", offset=cursor.offset - 4, field=field)
    return cursor.read(size, field)


def _plain(node: Node, value: Any) -> None:
    """Nested plain data as a tree."""
    if isinstance(value, dict):
        for name, item in value.items():
            _plain(node.add(str(name)), item)
        if not value:
            node.value = {}
    else:
        node.value = value if isinstance(value, int | str | bool | list | None) else str(value)


DECODERS: Final[dict[str, Callable[[Capture, Node, Cursor], None]]] = {
    "vmsim/machine": _machine,
    "vmsim/guest": _guest,
    "vmsim/programs": _programs,
    "globalstate": _globalstate,
}
"""By section name; each reads exactly the body."""
