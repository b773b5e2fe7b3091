"""Framing of QEMU's migration stream (``QEVM``, version 3): records, sections, footers, description."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any, Final, NamedTuple

from vmsim.errors import StreamError, UsageError
from vmsim.limits import VMDESC_MAX
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.errors import BadFooter, BadMagic, UnexpectedRecord
from vmsim.migration.vmio import Row, VmWriter

MAGIC: Final = 0x5145564D
VERSION: Final = 3

EOF: Final = 0x00
SECTION_START: Final = 0x01
SECTION_PART: Final = 0x02
SECTION_END: Final = 0x03
SECTION_FULL: Final = 0x04
VMDESCRIPTION: Final = 0x06
CONFIGURATION: Final = 0x07
COMMAND: Final = 0x08
SECTION_FOOTER: Final = 0x7E

COMMANDS: Final = {
    1: ("OPEN_RETURN_PATH", 0), 2: ("PING", 4), 3: ("POSTCOPY_ADVISE", -1), 4: ("POSTCOPY_LISTEN", 0),
    5: ("POSTCOPY_RUN", 0), 6: ("POSTCOPY_RAM_DISCARD", -1), 7: ("PACKAGED", 4), 8: ("ENABLE_COLO", 0),
    9: ("POSTCOPY_RESUME", 0), 10: ("RECV_BITMAP", -1), 11: ("SWITCHOVER_START", 0),
}
"""MIG_CMD numbers: name and length of the data (-1: varies)."""
PING: Final = 2
SWITCHOVER_START: Final = 11

NAME_MAX: Final = 127
"""Longest name that QEMU's analyser reads (it takes the length byte as signed)."""
MACHINE_NAME_MAX: Final = 1024

_HEADER = Struct(">II")
_ID = Struct(">BI")
_COMMAND = Struct(">HH")
_VERSIONS = Struct(">II")
_BE32 = Struct(">I")


class SectionHead(NamedTuple):
    """The head of a START, PART, END or FULL record; PART and END repeat what START said."""

    kind: int
    section_id: int
    idstr: str
    instance_id: int
    version_id: int


class Command(NamedTuple):
    """A MIG_CMD record."""

    number: int
    data: bytes

    @property
    def name(self) -> str:
        """The command's name in QEMU."""
        return COMMANDS[self.number][0]


Record = SectionHead | Command


class StreamWriter:
    """Writes the records of a stream and collects its description."""

    def __init__(self, output: StreamOutput, page_size: int = 4096) -> None:
        self.output = output
        self.sizes: dict[str, int] = {}
        """Bytes of each section so far, by idstr."""
        self._devices: list[Row] = []
        self._configuration: Row | None = None
        self._page_size = page_size
        self._next_id = 0

    def header(self, machine_type: str) -> None:
        """Magic, version and the configuration section."""
        out = self.output
        out.write(_HEADER.pack(MAGIC, VERSION))
        out.write(bytes((CONFIGURATION,)))
        name = machine_type.encode("ascii")
        body = VmWriter(out)
        body.be32("len", len(name))
        body.buffer("name", name)
        self._configuration = {"vmsd_name": "configuration", "version": 1, **body.description}

    @contextmanager
    def _section(self, kind: int, head: SectionHead) -> Iterator[VmWriter]:
        out = self.output
        start = out.offset
        out.write(_ID.pack(kind, head.section_id))
        if kind in (SECTION_START, SECTION_FULL):
            name = _checked_name(head.idstr)
            out.write(bytes((len(name),)) + name + _VERSIONS.pack(head.instance_id, head.version_id))
        body = VmWriter(out)
        yield body
        out.write(_ID.pack(SECTION_FOOTER, head.section_id))
        self.sizes[head.idstr] = self.sizes.get(head.idstr, 0) + out.offset - start

    def new_section(self, idstr: str, instance_id: int, version_id: int) -> SectionHead:
        """A head with the next free section id, for a section that comes in parts."""
        head = SectionHead(SECTION_START, self._next_id, idstr, instance_id, version_id)
        self._next_id += 1
        return head

    @contextmanager
    def part(self, kind: int, head: SectionHead) -> Iterator[StreamOutput]:
        """One START, PART or END record of an iterated section; write its body inside."""
        with self._section(kind, head):
            yield self.output

    @contextmanager
    def full(self, idstr: str, instance_id: int, version_id: int, vmsd_name: str = "") -> Iterator[VmWriter]:
        """A FULL record; write the fields inside. They become the section's row in the description."""
        head = self.new_section(idstr, instance_id, version_id)
        with self._section(SECTION_FULL, head) as body:
            yield body
        row: Row = {
            "name": idstr, "instance_id": instance_id, "vmsd_name": vmsd_name or idstr.rpartition("/")[2],
            "version": version_id, "fields": [],
        }
        self._devices.append(row | body.description)

    def command(self, number: int, data: bytes = b"") -> None:
        """A MIG_CMD record."""
        self.output.write(bytes((COMMAND,)) + _COMMAND.pack(number, len(data)) + data)

    def end(self) -> None:
        """The end mark, the description, and everything handed to the channel."""
        text: Row = {"page_size": self._page_size, "devices": self._devices}
        if self._configuration is not None:
            text = {"configuration": self._configuration} | text
        self.output.write(bytes((EOF,)) + encode_description(text))
        self.output.flush()


def _checked_name(idstr: str) -> bytes:
    name = idstr.encode("ascii")
    if not 0 < len(name) <= NAME_MAX:
        raise UsageError(f"the section name {idstr!r} has {len(name)} bytes; 1 to {NAME_MAX} are allowed")
    return name


def encode_description(description: Row) -> bytes:
    """``06``, length, JSON.

    QEMU's analyser looks for the last NUL of the file and takes the first ``{`` behind it as the beginning of
    the JSON. A length byte behind that NUL must therefore not be 0x7b (``{``): spaces lengthen the JSON.
    UsageError if it does not fit into the last 10 MiB, where the analyser looks.
    """
    text = json.dumps(description).encode("ascii")
    while b"{" in _BE32.pack(len(text)).rpartition(b"\0")[2]:
        text += b" "
    if len(text) > VMDESC_MAX - 5:
        raise UsageError(f"the description of the stream has {len(text)} bytes; at most {VMDESC_MAX - 5}")
    return bytes((VMDESCRIPTION,)) + _BE32.pack(len(text)) + text


class StreamReader:
    """Reads record after record; the caller reads each section's body and then calls :meth:`footer`."""

    def __init__(self, source: StreamInput) -> None:
        self.input = source
        self._heads: dict[int, SectionHead] = {}
        self._started: set[tuple[str, int]] = set()

    def header(self) -> str:
        """Magic, version and configuration; the machine type."""
        source = self.input
        magic, version = _HEADER.unpack(source.read(8, "header"))
        if magic != MAGIC:
            raise BadMagic(f"not a migration stream: it begins with {magic:#010x}", offset=0, field="magic")
        if version != VERSION:
            raise BadMagic(f"stream version {version} is not {VERSION}", offset=4, field="version")
        if source.u8("configuration") != CONFIGURATION:
            raise UnexpectedRecord("no configuration section", offset=8, field="configuration")
        size = source.bounded(source.be32("configuration:len"), MACHINE_NAME_MAX, "configuration:len")
        return source.read(size, "configuration:name").decode("latin-1")

    def next(self) -> Record | None:
        """The next record, None at the end mark; StreamError for anything else."""
        source = self.input
        at = source.offset
        kind = source.u8("record type")
        if kind == EOF:
            return None
        if kind in (SECTION_START, SECTION_FULL):
            return self._new_section(kind)
        if kind in (SECTION_PART, SECTION_END):
            section_id = source.be32("section id")
            head = self._heads.get(section_id)
            if head is None:
                message = f"section {section_id} was never started"
                raise UnexpectedRecord(message, offset=at, field="section id")
            if kind == SECTION_END:
                del self._heads[section_id]
            return head._replace(kind=kind)
        if kind == COMMAND:
            return self._command()
        raise UnexpectedRecord(f"record type {kind:#04x}", offset=at, field="record type")

    def _new_section(self, kind: int) -> SectionHead:
        source = self.input
        at = source.offset
        section_id = source.be32("section id")
        idstr = source.counted_string("section name")
        instance_id, version_id = _VERSIONS.unpack(source.read(8, "section version"))
        if section_id in self._heads or (idstr, instance_id) in self._started:
            message = f"section {section_id} {idstr!r} comes twice"
            raise UnexpectedRecord(message, offset=at, field="section id")
        self._started.add((idstr, instance_id))
        head = SectionHead(kind, section_id, idstr, instance_id, version_id)
        if kind == SECTION_START:
            self._heads[section_id] = head
        return head

    def _command(self) -> Command:
        source = self.input
        at = source.offset
        number, size = _COMMAND.unpack(source.read(4, "command"))
        if number not in COMMANDS:
            raise UnexpectedRecord(f"command {number}", offset=at, field="command")
        name, expected = COMMANDS[number]
        if expected not in (-1, size):
            raise UnexpectedRecord(f"{name} with {size} bytes, not {expected}", offset=at, field="command")
        return Command(number, source.read(size, name))

    def footer(self, head: SectionHead) -> None:
        """Read and check the footer of the section just read."""
        source = self.input
        at = source.offset
        mark = source.u8(f"footer of {head.idstr}")
        if mark != SECTION_FOOTER:
            raise BadFooter(
                f"expected the footer of section {head.section_id} ({head.idstr}), found {mark:#04x}",
                offset=at, field=head.idstr,
            )
        found = source.be32(f"footer of {head.idstr}")
        if found != head.section_id:
            raise BadFooter(
                f"footer of section {found} after section {head.section_id} ({head.idstr})",
                offset=at, field=head.idstr,
            )

    def open_sections(self) -> list[str]:
        """Sections that were started and not ended."""
        return [head.idstr for head in self._heads.values()]

    def description(self) -> Row:
        """The JSON description after the end mark."""
        source = self.input
        at = source.offset
        if source.u8("description") != VMDESCRIPTION:
            raise UnexpectedRecord("no description after the end mark", offset=at, field="description")
        size = source.bounded(source.be32("description:len"), VMDESC_MAX, "description:len")
        return decode_description(source.read(size, "description"), at + 5)


def decode_description(text: bytes, offset: int = -1) -> Row:
    """The description as plain data; StreamError unless it is a JSON object."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"the description is not JSON: {error}"
        raise StreamError(message, offset=offset, field="description") from None
    if not isinstance(value, dict):
        raise StreamError("the description is not a JSON object", offset=offset, field="description")
    return value
