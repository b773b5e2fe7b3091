"""A whole migration stream as plain data, without loss: any QEMU stream whose description is at its end.

Devices that vmsim does not know are taken apart along the description; writing the result gives the same
bytes. This is for tools and tests. Migrations use :mod:`vmsim.migration.stream` directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from vmsim.errors import StreamError, StreamTruncated
from vmsim.limits import VMDESC_MAX
from vmsim.memory.guest import PAGE_SIZE
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.errors import BadField, BadMagic, FieldTooLarge, UnexpectedRecord, UnknownSection
from vmsim.migration.ram import (
    CONTINUE,
    EOS,
    FLAG_MASK,
    MEM_SIZE,
    MULTIFD_FLUSH,
    PAGE,
    RAM_IDSTR,
    RAM_VERSION,
    ZERO,
)
from vmsim.migration.stream import (
    COMMAND,
    CONFIGURATION,
    EOF,
    MAGIC,
    SECTION_FOOTER,
    SECTION_FULL,
    SECTION_START,
    VERSION,
    VMDESCRIPTION,
    Command,
    SectionHead,
    StreamReader,
    decode_description,
)
from vmsim.migration.vmio import SUBSECTION, Row

DEPTH_MAX: Final = 64
"""Structures within structures that a description may have."""
VALUES_MAX: Final = 1 << 22
"""Fields and elements that the devices of a stream may have altogether."""

_BE32 = Struct(">I")
_BE64 = Struct(">Q")
_HEADER = Struct(">II")


@dataclass(slots=True)
class Value:
    """One field (or one element of an array field): raw bytes, or the fields of a structure."""

    name: str
    type: str
    raw: bytes = b""
    struct: Fields | None = None


@dataclass(slots=True)
class Fields:
    """The fields and subsections of one vmstate; ``version`` is what a subsection's header says."""

    vmsd_name: str
    version: int
    values: list[Value] = field(default_factory=list)
    subsections: list[Fields] = field(default_factory=list)

    def get(self, name: str) -> Value:
        """The first field of that name; KeyError."""
        for value in self.values:
            if value.name == name:
                return value
        raise KeyError(name)


@dataclass(slots=True)
class RamRecord:
    """One record of a RAM body: block list (``blocks``), page (``data``), zero page (``fill``) or mark."""

    word: int
    name: str | None = None
    blocks: list[tuple[str, int]] = field(default_factory=list)
    data: memoryview | bytes = b""
    fill: int = 0


@dataclass(slots=True)
class Section:
    """One START, PART, END or FULL record with its body."""

    head: SectionHead
    body: Fields | list[RamRecord]
    footer: bool


@dataclass(slots=True)
class Document:
    """A stream: configuration (if any), records in order, description text (if any)."""

    configuration: Fields | None = None
    records: list[Section | Command] = field(default_factory=list)
    description_text: bytes = b""
    description: Row = field(default_factory=dict)

    def device(self, idstr: str, instance_id: int = 0) -> Fields:
        """The fields of a device's section; KeyError."""
        for record in self.records:
            if isinstance(record, Section) and isinstance(record.body, Fields):
                head = record.head
                if (head.idstr, head.instance_id) == (idstr, instance_id):
                    return record.body
        raise KeyError(idstr)


class _Whole:
    """A source that gives everything at once."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read_some(self, limit: int) -> memoryview:
        data, self._data = self._data, self._data[:0]
        return data


def find_description(data: memoryview) -> bytes:
    """The JSON text at the end of a stream; StreamError if there is none.

    JSON holds no NUL, and its length (below 16 MiB) at least one: the last NUL is one of the length's bytes.
    """
    tail = data[-VMDESC_MAX:].tobytes()
    last = tail.rfind(b"\0")
    for at in range(last - 1, max(last - 5, -1), -1):
        size = len(tail) - at - 5
        if tail[at] == VMDESCRIPTION and size >= 0 and _BE32.unpack_from(tail, at + 1)[0] == size:
            return tail[at + 5 :]
    raise StreamError("no description at the end of the stream", offset=len(data), field="description")


def read_document(buffer: bytes | memoryview) -> Document:
    """Take a whole stream apart; StreamError naming offset and field for anything that does not fit."""
    data = memoryview(buffer)
    text = find_description(data)
    document = Document(description_text=text, description=decode_description(text, len(data) - len(text)))
    source = StreamInput(_Whole(data[: len(data) - len(text) - 5]))
    fields = _FieldReader(source)
    magic, version = _HEADER.unpack(source.read(8, "header"))
    if (magic, version) != (MAGIC, VERSION):
        raise BadMagic(f"not a migration stream of version {VERSION}", offset=0, field="header")
    if source.peek(1) == bytes((CONFIGURATION,)):
        source.skip(1)
        row = document.description.get("configuration")
        if not isinstance(row, dict):
            raise UnknownSection("the description lacks the configuration", offset=8, field="configuration")
        document.configuration = fields.fields(row, "configuration")
    devices = _dicts(document.description, "devices")
    rows = {(str(row.get("name")), str(row.get("instance_id"))): row for row in devices}
    reader = StreamReader(source)
    while (record := reader.next()) is not None:
        if isinstance(record, Command):
            document.records.append(record)
            continue
        body = _read_body(source, fields, record, rows)
        footer = source.peek(1) == bytes((SECTION_FOOTER,))
        if footer:
            reader.footer(record)
        document.records.append(Section(record, body, footer))
    if not source.at_end():
        raise UnexpectedRecord("bytes between the end mark and the description", offset=source.offset)
    return document


def _read_body(
    source: StreamInput, fields: _FieldReader, head: SectionHead, rows: dict[tuple[str, str], Row]
) -> Fields | list[RamRecord]:
    if head.idstr == RAM_IDSTR:
        if head.version_id != RAM_VERSION:
            message = f"RAM version {head.version_id} is not {RAM_VERSION}"
            raise BadField(message, offset=source.offset, field="ram")
        return list(_read_ram(source))
    row = rows.get((head.idstr, str(head.instance_id)))
    if row is None:
        message = f"the description lacks section {head.idstr!r} instance {head.instance_id}"
        raise UnknownSection(message, offset=source.offset, field=head.idstr)
    return fields.fields(row, head.idstr)


def _dicts(row: Row, key: str) -> list[Row]:
    found = row.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise StreamError(f"{key!r} in the description is no list of objects", field="description")
    return found


def _number(row: Row, key: str, default: int | None = None) -> int:
    value = row.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise StreamError(f"{key!r} in the description is no size", field=str(row.get("name", "")))
    return value


class _FieldReader:
    """Reads device sections along their description, which is as hostile as the rest of a stream."""

    def __init__(self, source: StreamInput) -> None:
        self._source = source
        self._left = VALUES_MAX

    def fields(self, row: Row, where: str, depth: int = 0) -> Fields:
        """The fields and subsections that ``row`` describes."""
        if depth > DEPTH_MAX:
            raise StreamError("the description nests too deeply", offset=self._source.offset, field=where)
        result = Fields(str(row.get("vmsd_name", "")), _number(row, "version", 0))
        for entry in _dicts(row, "fields"):
            name, size = str(entry.get("name", "")), _number(entry, "size")
            count = _number(entry, "array_len", 1)
            for _ in range(count if size else min(count, 1)):
                result.values.append(self._value(entry, size, f"{where}/{name}", depth))
        for entry in _dicts(row, "subsections"):
            result.subsections.append(self._subsection(entry, where, depth))
        return result

    def _value(self, entry: Row, size: int, where: str, depth: int) -> Value:
        source = self._source
        start = source.offset
        self._left -= 1
        if self._left < 0:
            raise FieldTooLarge(f"more than {VALUES_MAX} fields", offset=start, field=where)
        value = Value(str(entry.get("name", "")), str(entry.get("type", "")))
        struct = entry.get("struct")
        if value.type != "struct" or not isinstance(struct, dict):
            value.raw = source.read(size, where)
            return value
        value.struct = self.fields(struct, where, depth + 1)
        if source.offset - start != size:
            message = f"a structure of {source.offset - start} bytes is described as {size}"
            raise StreamError(message, offset=start, field=where)
        return value

    def _subsection(self, entry: Row, where: str, depth: int) -> Fields:
        source = self._source
        start = source.offset
        if source.u8(where) != SUBSECTION:
            raise UnexpectedRecord(f"no subsection {entry.get('vmsd_name')!r}", offset=start, field=where)
        name = source.counted_string(where)
        if name != entry.get("vmsd_name"):
            message = f"subsection {name!r} instead of {entry.get('vmsd_name')!r}"
            raise UnexpectedRecord(message, offset=start, field=where)
        version = source.be32(name)
        result = self.fields(entry, name, depth + 1)
        result.version = version
        return result


def _read_ram(source: StreamInput) -> Iterator[RamRecord]:
    while True:
        record = RamRecord(source.be64("ram"))
        flags = record.word & FLAG_MASK
        if flags == MEM_SIZE:
            left = record.word & ~FLAG_MASK
            while left > 0:
                name, size = source.counted_string("ram:block name"), source.be64("ram:block size")
                if not size:
                    raise BadField(f"memory block {name!r} has no bytes", offset=source.offset, field="ram")
                record.blocks.append((name, size))
                left -= size
        elif flags & ~CONTINUE in (PAGE, ZERO):
            if not flags & CONTINUE:
                record.name = source.counted_string("ram:block name")
            if flags & ZERO:
                record.fill = source.u8("ram:fill")
            else:
                record.data = source.available()[:PAGE_SIZE]
                if len(record.data) < PAGE_SIZE:
                    raise StreamTruncated("the stream ends inside a page", offset=source.offset, field="ram")
                source.skip(PAGE_SIZE)
        elif flags not in (EOS, MULTIFD_FLUSH):
            raise UnexpectedRecord(f"RAM record {record.word:#x}", offset=source.offset - 8, field="ram")
        yield record
        if flags == EOS:
            return


def write_document(document: Document, out: StreamOutput) -> None:
    """Write a stream; byte for byte what :func:`read_document` read."""
    out.write(_HEADER.pack(MAGIC, VERSION))
    if document.configuration is not None:
        out.write(bytes((CONFIGURATION,)))
        _write_fields(document.configuration, out)
    for record in document.records:
        if isinstance(record, Command):
            out.write(Struct(">BHH").pack(COMMAND, record.number, len(record.data)) + record.data)
            continue
        head = record.head
        out.write(Struct(">BI").pack(head.kind, head.section_id))
        if head.kind in (SECTION_START, SECTION_FULL):
            out.write(_counted(head.idstr) + Struct(">II").pack(head.instance_id, head.version_id))
        if isinstance(record.body, Fields):
            _write_fields(record.body, out)
        else:
            _write_ram(record.body, out)
        if record.footer:
            out.write(Struct(">BI").pack(SECTION_FOOTER, head.section_id))
    text = document.description_text
    out.write(bytes((EOF, VMDESCRIPTION)) + _BE32.pack(len(text)) + text)
    out.flush()


def _counted(name: str) -> bytes:
    encoded = name.encode("latin-1")
    return bytes((len(encoded),)) + encoded


def _write_fields(fields: Fields, out: StreamOutput) -> None:
    for value in fields.values:
        if value.struct is None:
            out.write(value.raw)
        else:
            _write_fields(value.struct, out)
    for subsection in fields.subsections:
        out.write(bytes((SUBSECTION,)) + _counted(subsection.vmsd_name) + _BE32.pack(subsection.version))
        _write_fields(subsection, out)


def _write_ram(records: list[RamRecord], out: StreamOutput) -> None:
    for record in records:
        flags = record.word & FLAG_MASK
        out.write(_BE64.pack(record.word))
        if flags == MEM_SIZE:
            for name, size in record.blocks:
                out.write(_counted(name) + _BE64.pack(size))
            continue
        if record.name is not None:
            out.write(_counted(record.name))
        if flags & ZERO:
            out.write(bytes((record.fill,)))
        elif flags & PAGE:
            out.write(record.data)
