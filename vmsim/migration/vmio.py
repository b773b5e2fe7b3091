"""VmWriter and VmReader: the fields and subsections of one device section, and their description.

Every write also records its row of the JSON description ("vmdesc") that follows a stream, so that the
description cannot disagree with the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Any, Final, NamedTuple, NoReturn

from vmsim.errors import StreamTruncated
from vmsim.migration.byteio import CHUNK_BYTES, StreamInput, StreamOutput
from vmsim.migration.errors import BadField, UnexpectedRecord, UnknownSubsection, VersionTooNew

SUBSECTION: Final = 0x05
CHUNK_MAX: Final = 1 << 20
"""Largest piece that :meth:`VmWriter.chunks` writes (vhost_save_backend_state of QEMU)."""


class Number(NamedTuple):
    """One kind of number in a section: its name here, its type in the description, its bytes."""

    name: str
    vmdesc_type: str
    code: str
    struct: Struct


NUMBERS: Final[Mapping[str, Number]] = {
    name: Number(name, vmdesc_type, code, Struct(">" + code))
    for name, vmdesc_type, code in (
        ("u8", "uint8", "B"), ("be16", "uint16", "H"), ("be32", "uint32", "I"), ("be64", "uint64", "Q"),
        ("i32", "int32", "i"), ("i64", "int64", "q"), ("bool", "bool", "?"),
    )
}

Row = dict[str, Any]


class VmWriter:
    """Writes one section's body; ``description`` is its entry of the vmdesc (fields, subsections)."""

    __slots__ = ("_levels", "_opaque", "description", "output")

    def __init__(self, output: StreamOutput) -> None:
        self.output = output
        self.description: Row = {}
        self._levels: list[Row] = [self.description]
        self._opaque = 0

    def _record(self, name: str, vmdesc_type: str, size_bytes: int, **more: object) -> None:
        if not self._opaque:
            row = {"name": name, "type": vmdesc_type, "size": size_bytes, **more}
            self._levels[-1].setdefault("fields", []).append(row)

    def _number(self, kind: Number, name: str, value: int) -> None:
        self.output.write(kind.struct.pack(value))
        self._record(name, kind.vmdesc_type, kind.struct.size)

    def u8(self, name: str, value: int) -> None:
        """One byte."""
        self._number(NUMBERS["u8"], name, value)

    def be16(self, name: str, value: int) -> None:
        """A 16-bit number."""
        self._number(NUMBERS["be16"], name, value)

    def be32(self, name: str, value: int) -> None:
        """A 32-bit number."""
        self._number(NUMBERS["be32"], name, value)

    def be64(self, name: str, value: int) -> None:
        """A 64-bit number."""
        self._number(NUMBERS["be64"], name, value)

    def flag(self, name: str, value: bool) -> None:
        """A truth value in one byte."""
        self._number(NUMBERS["bool"], name, value)

    def number(self, kind: str, name: str, value: int) -> None:
        """A number of a kind of :data:`NUMBERS`."""
        self._number(NUMBERS[kind], name, value)

    def array(self, kind: str, name: str, values: Sequence[int]) -> None:
        """Numbers of one kind, without their count."""
        row = NUMBERS[kind]
        self.output.write(Struct(f">{len(values)}{row.code}").pack(*values))
        if values:
            self._record(name, row.vmdesc_type, row.struct.size, array_len=len(values))

    def buffer(self, name: str, data: bytes | bytearray | memoryview, *, type: str = "buffer") -> None:  # noqa: A002
        """Raw bytes, without their count."""
        self.output.write(data)
        self._record(name, type, len(data))

    def chunks(self, name: str, pieces: Iterable[bytes | memoryview], *, type: str) -> int:  # noqa: A002
        """Pieces as ``be32 n, n bytes``, closed by ``be32 0`` (vhost_save_backend_state); bytes of data."""
        start = self.output.offset
        total = 0
        be32 = NUMBERS["be32"].struct
        for piece in pieces:
            view = memoryview(piece)
            for begin in range(0, len(view), CHUNK_MAX):
                part = view[begin : begin + CHUNK_MAX]
                self.output.write(be32.pack(len(part)))
                self.output.write(part)
            total += len(view)
        self.output.write(be32.pack(0))
        self._record(name, type, self.output.offset - start)
        return total

    @contextmanager
    def opaque(self, name: str, type: str) -> Iterator[None]:  # noqa: A002
        """Everything written inside is one field of the description, subsections included."""
        start = self.output.offset
        self._opaque += 1
        try:
            yield
        finally:
            self._opaque -= 1
        self._record(name, type, self.output.offset - start)

    @contextmanager
    def struct(self, name: str, vmsd_name: str, version: int) -> Iterator[None]:
        """The fields written inside form one structure of the description; it adds no bytes."""
        start = self.output.offset
        level: Row = {"vmsd_name": vmsd_name, "version": version, "fields": []}
        self._levels.append(level)
        try:
            yield
        finally:
            self._levels.pop()
        self._record(name, "struct", self.output.offset - start, struct=level)

    @contextmanager
    def subsection(self, name: str, version: int) -> Iterator[None]:
        """``05``, name, version, and what is written inside."""
        encoded = name.encode("ascii")
        self.output.write(bytes((SUBSECTION, len(encoded))) + encoded + NUMBERS["be32"].struct.pack(version))
        level: Row = {"vmsd_name": name, "version": version, "fields": []}
        self._levels.append(level)
        try:
            yield
        finally:
            self._levels.pop()
        if not self._opaque:
            self._levels[-1].setdefault("subsections", []).append(level)


class VmReader:
    """Reads one section's body. Errors name the offset and the field, prefixed with ``where``."""

    __slots__ = ("input", "where")

    def __init__(self, source: StreamInput, where: str = "") -> None:
        self.input = source
        self.where = where

    @property
    def offset(self) -> int:
        """The position in the stream."""
        return self.input.offset

    def _field(self, name: str) -> str:
        return f"{self.where}:{name}" if self.where else name

    def number(self, kind: str, name: str) -> int:
        """A number of a kind of :data:`NUMBERS`."""
        layout = NUMBERS[kind].struct
        value: int = layout.unpack(self.input.read(layout.size, self._field(name)))[0]
        return value

    def u8(self, name: str) -> int:
        """One byte."""
        return self.input.u8(self._field(name))

    def be16(self, name: str) -> int:
        """A 16-bit number."""
        return self.input.be16(self._field(name))

    def be32(self, name: str) -> int:
        """A 32-bit number."""
        return self.input.be32(self._field(name))

    def be64(self, name: str) -> int:
        """A 64-bit number."""
        return self.input.be64(self._field(name))

    def flag(self, name: str) -> bool:
        """A truth value; BadField unless the byte is 0 or 1."""
        value = self.u8(name)
        if value > 1:
            self.refuse(name, f"{value:#x} is not a truth value")
        return value == 1

    def array(self, kind: str, name: str, count: int) -> tuple[int, ...]:
        """``count`` numbers of one kind."""
        row = NUMBERS[kind]
        data = self.input.read(count * row.struct.size, self._field(name))
        return Struct(f">{count}{row.code}").unpack(data)

    def buffer(self, name: str, size_bytes: int) -> bytes:
        """Raw bytes."""
        return self.input.read(size_bytes, self._field(name))

    def length(self, kind: str, name: str, limit: int) -> int:
        """A length; FieldTooLarge beyond ``limit``."""
        return self.input.bounded(self.number(kind, name), limit, self._field(name))

    def pieces(self, name: str, size_bytes: int) -> Iterator[bytes]:
        """``size_bytes`` raw bytes as they arrive, in bounded pieces; StreamTruncated if they do not."""
        while size_bytes:
            part = min(size_bytes, CHUNK_BYTES)
            yield self.input.read(part, self._field(name))
            size_bytes -= part

    def chunks(self, name: str, limit: int) -> Iterator[bytes]:
        """The data written by :meth:`VmWriter.chunks`, in bounded pieces.

        The iterator ends only at the terminator: a cut stream raises StreamTruncated, more than ``limit``
        bytes FieldTooLarge.
        """
        field = self._field(name)
        left = limit
        while size := self.input.bounded(self.input.be32(field), left, field):
            left -= size
            yield from self.pieces(name, size)

    def next_subsection(self, vmsd_name: str) -> tuple[str, int] | None:
        """Name and version of the next subsection of ``vmsd_name``, consumed; None if there is none here.

        The rule of vmstate_subsection_load: a subsection belongs here if its name is longer than, and begins
        with, the enclosing description's name; any other belongs to the parent.
        """
        head = self.input.peek(2)
        if not head or head[0] != SUBSECTION:
            return None
        name = self.input.peek(2 + head[-1])[2:].decode("latin-1")
        if len(head) < 2 or len(name) < head[1]:
            raise StreamTruncated("the stream ends in a name", offset=self.offset, field=self.where)
        if len(name) <= len(vmsd_name) or not name.startswith(vmsd_name):
            return None
        self.input.read(2 + head[1], self._field(name))
        return name, self.input.be32(self._field(name))

    def subsections(self, vmsd_name: str, known: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """All subsections of ``vmsd_name`` that follow, each once, at most at the version in ``known``.

        The caller reads the fields of each before it goes on. UnknownSubsection, VersionTooNew, or
        UnexpectedRecord for a second one of the same name.
        """
        seen: set[str] = set()
        while (found := self.next_subsection(vmsd_name)) is not None:
            name, version = found
            if name not in known:
                raise UnknownSubsection(f"unknown subsection {name!r}", offset=self.offset, field=self.where)
            if version > known[name]:
                raise VersionTooNew(
                    f"{name}: incoming version_id {version} is too new for local version_id {known[name]}",
                    offset=self.offset, field=self.where,
                )
            if name in seen:
                raise UnexpectedRecord(f"subsection {name!r} twice", offset=self.offset, field=self.where)
            seen.add(name)
            yield name, version

    def refuse(self, name: str, message: str, **more: Any) -> NoReturn:
        """Raise BadField for a field just read."""
        raise BadField(message, offset=self.offset, field=self._field(name), **more)
