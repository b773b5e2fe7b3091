"""The description at the end of a stream (vmdesc): found, checked, and what it says of each section's
length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from vmsim.errors import StreamError
from vmsim.inspect.capture import Capture
from vmsim.limits import VMDESC_MAX
from vmsim.migration.document import DEPTH_MAX
from vmsim.migration.stream import VMDESCRIPTION, decode_description
from vmsim.migration.vmio import Row
from vmsim.wire.tree import Node, Severity

TAIL_BYTES: Final = 1 << 18
"""Where the beginning of the description is looked for first."""
BEGINNINGS: Final = (b'{"configuration"', b'{"page_size"', b'{"devices"', b'{ "')


@dataclass(slots=True)
class Description:
    """The description; empty if there is none. ``sizes`` are the bytes of each section's body."""

    row: Row = field(default_factory=dict)
    devices: dict[tuple[str, int], Row] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)
    node: Node | None = None
    offset: int = -1
    end: int = -1


def find_description(capture: Capture) -> Description:
    """Look for it at the end of the file; what is wrong with it is a finding."""
    source = capture.source
    for length in (TAIL_BYTES, VMDESC_MAX):
        base = max(0, source.size - length)
        tail = source.read_at(base, length)
        found = _exact(tail) or _within(tail)
        if found or not base:
            break
    if found is None:
        return Description()
    at, size = found
    text = tail[at + 5 : at + 5 + size]
    try:
        row = decode_description(text, base + at + 5)
        result = _index(row)
    except StreamError as error:
        capture.found(
            Severity.ERROR,
            "bad-description",
            error.message,
            field="description",
            offset=base + at,
            hint="sections of unknown devices cannot be taken apart",
        )
        return Description()
    result.offset, result.end = base + at, base + at + 5 + size
    count = len(result.devices)
    result.node = Node("description", {"devices": count}, f"{size} bytes of JSON, {count} devices",
                       result.offset, size + 5)  # fmt: skip
    if b"{" in size.to_bytes(4, "big").rpartition(b"\0")[2]:
        capture.found(
            Severity.NOTE,
            "analyser-length",
            f"the description's length {size} has a byte 0x7b: QEMU's analyze-migration.py does not find it",
            field="description",
            offset=result.offset + 1,
            hint="add a space to the JSON; QEMU itself does not care",
        )
    return result


def _exact(tail: bytes) -> tuple[int, int] | None:
    """``06``, length, and JSON up to the very end; JSON holds no NUL, and its length at least one."""
    last = tail.rfind(b"\0")
    for at in range(last - 1, max(last - 5, -1), -1):
        size = len(tail) - at - 5
        if tail[at] == VMDESCRIPTION and size >= 0 and int.from_bytes(tail[at + 1 : at + 5], "big") == size:
            return at, size
    return None


def _within(tail: bytes) -> tuple[int, int] | None:
    """One that something follows."""
    for beginning in BEGINNINGS:
        at = tail.rfind(beginning) - 5
        if at >= 0 and tail[at] == VMDESCRIPTION:
            size = int.from_bytes(tail[at + 1 : at + 5], "big")
            if at + 5 + size <= len(tail):
                return at, size
    return None


def _index(row: Row) -> Description:
    result = Description(row)
    devices = row.get("devices", [])
    if not isinstance(devices, list):
        raise StreamError("'devices' in the description is no list")
    for device in devices:
        if not isinstance(device, dict) or not isinstance(device.get("instance_id"), int):
            raise StreamError("a device in the description has no name and number")
        key = (str(device.get("name")), device["instance_id"])
        result.devices.setdefault(key, device)
        result.sizes[key] = body_size(device)
    return result


def body_size(row: Row, depth: int = 0) -> int:
    """How many bytes a section, structure or subsection has, without a subsection's header; StreamError."""
    if depth > DEPTH_MAX:
        raise StreamError("the description nests too deeply")
    total = 0
    for key in ("fields", "subsections"):
        entries = row.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise StreamError(f"{key!r} in the description is no list of objects")
        for entry in entries:
            if key == "subsections":
                total += 6 + len(str(entry.get("vmsd_name", ""))) + body_size(entry, depth + 1)
                continue
            size, count = entry.get("size"), entry.get("array_len", 1)
            if not isinstance(size, int) or not isinstance(count, int) or size < 0 or count < 0:
                raise StreamError(f"the field {str(entry.get('name'))[:80]!r} in the description has no size")
            total += size * count
    return total
