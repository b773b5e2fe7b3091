"""A reader of virtio state that notes where every field lies, and goes on where a destination would
refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmsim.inspect.source import Bytes
from vmsim.migration.byteio import StreamInput
from vmsim.migration.errors import BadField
from vmsim.migration.vmio import NUMBERS, VmReader
from vmsim.virtio.vmstate import HEAD
from vmsim.wire.hexdump import shown, spans_of
from vmsim.wire.tree import Finding, Piece, Severity

STRUCTURAL: Final = frozenset({"config_len", "queues", "version_id"})
"""Fields without which what follows cannot be found: a bad one ends the reading."""
SUBSECTION_HEAD: Final = re.compile(rb"\x05[\x08-\x40](?=virtio[/_])")
SUBSECTIONS_MAX: Final = 64
"""Subsections that one device may have; QEMU knows about ten."""
SEARCH_BYTES: Final = 1 << 20
"""How far the subsections are looked for behind the data of a device's own."""


class _Part:
    """The bytes of a file from ``offset`` to ``end``."""

    def __init__(self, source: Bytes, offset: int, end: int) -> None:
        self._source, self._offset, self._end = source, offset, end

    def read_some(self, limit: int) -> bytes:
        data = self._source.read_at(self._offset, min(limit, self._end - self._offset, 1 << 18))
        self._offset += len(data)
        return data


class PlacedInput(StreamInput):
    """A part of a file; its offsets are those in the file."""

    __slots__ = ("end", "source", "start")

    def __init__(self, source: Bytes, start: int, end: int) -> None:
        super().__init__(_Part(source, start, end))
        self.source, self.start, self.end = source, start, end

    @property
    def offset(self) -> int:
        """The position in the file."""
        return self.start + self._base + self._position


class RecordingReader(VmReader):
    """Notes a Piece per field in ``spans``, and what a destination would refuse in ``findings``."""

    __slots__ = ("_prefix", "_queue", "features", "findings", "placed", "spans", "subsection_places")

    def __init__(self, source: Bytes, start: int, end: int, where: str) -> None:
        self.placed = PlacedInput(source, start, end)
        super().__init__(self.placed, where)
        self.spans: list[Piece] = []
        self.findings: list[Finding] = []
        self.subsection_places: list[tuple[str, int, int]] = []
        """Name, version, offset."""
        self.features: int | None = None
        """What the device took, where the registers may say something else."""
        self._prefix = ""
        self._queue = -1

    def _note(self, name: str, start: int, value: object) -> None:
        if name == "num":
            self._queue += 1
        prefix = self._prefix or (f"queues[{self._queue}]." if self._queue >= 0 else "")
        self.spans.append(Piece(prefix + name, start, self.offset - start, shown(value)))

    def number(self, kind: str, name: str) -> int:
        """As VmReader, noted."""
        start = self.offset
        value = super().number(kind, name)
        self._note(name, start, value)
        return value

    def u8(self, name: str) -> int:
        """As VmReader, noted."""
        return self.number("u8", name)

    def be16(self, name: str) -> int:
        """As VmReader, noted."""
        return self.number("be16", name)

    def be32(self, name: str) -> int:
        """As VmReader, noted."""
        return self.number("be32", name)

    def be64(self, name: str) -> int:
        """As VmReader, noted."""
        value = self.number("be64", name)
        if name == "guest_features":
            self.features = value
        return value

    def array(self, kind: str, name: str, count: int) -> tuple[int, ...]:
        """As VmReader, noted."""
        start = self.offset
        values = super().array(kind, name, count)
        width = NUMBERS[kind].struct.size * 2
        self._note(name, start, " ".join(f"{value:#0{width + 2}x}" for value in values[:8]))
        return values

    def buffer(self, name: str, size_bytes: int) -> bytes:
        """As VmReader, noted; the head of virtio_save by its fields."""
        start = self.offset
        data = super().buffer(name, size_bytes)
        if name == "head":
            self.spans += [
                Piece(span.name.removeprefix("Head."), start + span.offset, len(span.data), span.value)
                for span in spans_of(HEAD, data)
            ]
        else:
            self._note(name, start, data if size_bytes <= 64 else f"{size_bytes} bytes")
        return data

    def next_subsection(self, vmsd_name: str) -> tuple[str, int] | None:
        """As VmReader, noted."""
        start = self.offset
        found = super().next_subsection(vmsd_name)
        if found is not None:
            self._prefix = f"{found[0]}."
            self.spans.append(Piece(found[0], start, self.offset - start, f"subsection, version {found[1]}"))
            self.subsection_places.append((*found, start))
            if len(self.subsection_places) > SUBSECTIONS_MAX:
                raise BadField(
                    f"more than {SUBSECTIONS_MAX} subsections", offset=start, field=self._field(found[0])
                )
        return found

    def subsections(self, vmsd_name: str, known: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """As VmReader; what is unknown or too new is a finding, and passed over."""
        while True:
            start = self.offset
            found = self.next_subsection(vmsd_name)
            if found is None:
                if vmsd_name == "virtio" and self._pass_over():
                    continue
                return
            name, version = found
            if name in known and version <= known[name]:
                yield name, version
                continue
            what = f"is of version {version}" if name in known else "is not known here"
            self.findings.append(Finding(
                Severity.WARNING, "unknown-subsection",
                f"subsection {name!r} {what}: a destination that does not know it either refuses the stream",
                f"{self.where}/{name}", start, "migrate to the same or a later release of the VMM",
            ))  # fmt: skip
            if not self._pass_over():
                return

    def _pass_over(self) -> bool:
        """Go on to the next subsection of virtio, if there is one: devices have data of their own before."""
        window = self.placed.peek(min(SEARCH_BYTES, self.placed.end - self.offset))
        for match in SUBSECTION_HEAD.finditer(window):
            at, size = match.start(), window[match.start() + 1]
            if (
                window[at + 2 : at + 2 + size].isascii()
                and window[at + 2 + size : at + 5 + size] == b"\0\0\0"
            ):
                start = self.offset
                if at:
                    self.placed.read(at)
                    self.spans.append(Piece("device's own data", start, at, f"{at} bytes"))
                return True
        return False

    def refuse(self, name: str, message: str, **more: Any) -> None:  # type: ignore[override]
        """A finding instead of an error, unless nothing behind the field could be found."""
        if name in STRUCTURAL:
            raise BadField(message, offset=self.offset, field=self._field(name), **more)
        piece = self.spans[-1] if self.spans else None
        self.findings.append(Finding(
            Severity.ERROR, "bad-field", f"{message}: a destination refuses it", f"{self.where}/{name}",
            piece.offset if piece else self.offset, "the state is damaged, or of a defective VMM",
        ))  # fmt: skip
