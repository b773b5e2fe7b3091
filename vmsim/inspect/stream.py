"""Reading a migration stream record by record: what is understood becomes a tree, what is not a finding.

Nothing here raises for the bytes of a file. With a description at the end every section's extent is known;
without it (a stream that went through a pipe) a section that nobody knows ends where its footer is found.
"""

from __future__ import annotations

import itertools
from typing import Final

from vmsim.errors import StreamError
from vmsim.inspect.bodies import DECODERS, name_runstate, read_device, read_virtio_field
from vmsim.inspect.capture import MACHINE, MAPPED_RAM, Capture, Device
from vmsim.inspect.description import Description, find_description
from vmsim.inspect.fields import FieldWalker, raw_value
from vmsim.inspect.source import Bytes, Cursor
from vmsim.machine.installed import device_types
from vmsim.migration.ram import RAM_IDSTR, RAM_VERSION
from vmsim.migration.stream import (
    COMMAND,
    COMMANDS,
    CONFIGURATION,
    EOF,
    MACHINE_NAME_MAX,
    MAGIC,
    SECTION_END,
    SECTION_FOOTER,
    SECTION_FULL,
    SECTION_PART,
    SECTION_START,
    VERSION,
    VMDESCRIPTION,
    SectionHead,
)
from vmsim.migration.vmio import SUBSECTION
from vmsim.vhost.device_type import DeviceInspection
from vmsim.wire.tree import Node, Severity

RECORDS_MAX: Final = 2000
"""Records of memory that are listed one by one."""
SECTIONS_MAX: Final = 20000
ROUNDS_MAX: Final = 1 << 20
KINDS: Final = {SECTION_START: "START", SECTION_PART: "PART", SECTION_END: "END", SECTION_FULL: "FULL"}
RECORD_TYPES: Final = frozenset((EOF, COMMAND, *KINDS))
PAGE_SIZES: Final = frozenset(1 << shift for shift in range(9, 17))
SEARCH_FIRST: Final = 1 << 12
"""Most sections are short: a search begins with a small window."""
SEARCH_STEP: Final = 1 << 20
CUT: Final = "the file is cut off, or damaged from here on"


def read_stream(source: Bytes, name: str) -> Capture:
    """Everything that can be said of the stream in ``source``."""
    capture = Capture(name, source)
    reader = _Reader(capture)
    try:
        reader.run()
    except StreamError as error:
        capture.found(
            Severity.ERROR, "stream-ends", f"decoding ends here: {error.message}", field=error.field,
            offset=error.offset if error.offset >= 0 else reader.cursor.offset, hint=error.hint or CUT,
        )  # fmt: skip
    capture.end = reader.cursor.offset
    reader.finish()
    return capture


class _Reader:
    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.cursor = Cursor(capture.source)
        self.heads: dict[int, SectionHead] = {}
        self.seen: set[tuple[str, int]] = set()
        self.sections = Node("sections")
        self.ram_node: Node | None = None
        self.description = Description()
        self.footers: bool | None = None
        self.inspections: dict[str, DeviceInspection] = {
            kind.inspection.vmsd_name: kind.inspection for kind in device_types()
        }

    # -- the stream as a whole

    def run(self) -> None:
        """Read to the end mark and what follows it; StreamError where nothing more can be made out."""
        capture, cursor = self.capture, self.cursor
        magic, version = cursor.be32("magic"), cursor.be32("version")
        if magic != MAGIC or version != VERSION:
            raise StreamError(
                f"not a stream of version {VERSION}: {magic:#010x}, version {version}",
                offset=0,
                field="magic",
                hint="only streams of QEMU 2.4 and later are read",
            )
        capture.root.add("version", version, f"QEVM, version {version}", 0, 8)
        self.description = find_description(capture)
        if cursor.peek(1) == bytes((CONFIGURATION,)):
            self.configuration()
        self.page_size()
        capture.root.children.append(self.sections)
        walker = FieldWalker(cursor, self.field_hook)
        for count in itertools.count():
            if count > ROUNDS_MAX or len(self.sections.children) > SECTIONS_MAX:
                raise StreamError(
                    f"more than {SECTIONS_MAX} sections", offset=cursor.offset, hint="no VMM writes so many"
                )
            start = cursor.offset
            kind = cursor.u8("record type")
            if kind == EOF:
                self.end(start)
                return
            if kind == COMMAND:
                self.command(start)
            elif kind in KINDS:
                self.section(kind, start, walker)
            else:
                raise StreamError(f"record type {kind:#04x}", offset=start, field="record type")

    def configuration(self) -> None:
        """The machine type and what else the two ends have to agree on."""
        capture, cursor = self.capture, self.cursor
        start = cursor.offset
        cursor.u8("configuration")
        size = cursor.be32("configuration:len")
        if size > MACHINE_NAME_MAX:
            raise StreamError(f"a machine type of {size} bytes", offset=start, field="configuration:len")
        node = capture.root.add("configuration", offset=start)
        machine = cursor.read(size, "configuration:name").decode("latin-1")
        capture.machine_type = machine
        node.add("machine_type", machine, "", start + 5, size)
        while cursor.peek(1) == bytes((SUBSECTION,)):
            self.configuration_part(node)
        node.size = cursor.offset - start

    def configuration_part(self, node: Node) -> None:
        """One subsection of the configuration; StreamError for one that is not known."""
        capture, cursor = self.capture, self.cursor
        start = cursor.offset
        cursor.u8()
        name = cursor.counted_string("configuration:subsection")
        cursor.be32(name)
        if name == "configuration/target-page-bits":
            bits = cursor.be32(name)
            node.add("target_page_bits", bits, "", start, cursor.offset - start)
            if 1 << bits % 64 in PAGE_SIZES and bits < 64:
                capture.page_size = 1 << bits
        elif name == "configuration/capabilities":
            count = min(cursor.be32(name), 256)
            names = [cursor.counted_string(name) for _ in range(count)]
            node.add("capabilities", names, ", ".join(names) or "none", start, cursor.offset - start)
            capture.ram.mapped = "mapped-ram" in names
            capture.ram.ignore_shared = "x-ignore-shared" in names
            if capture.ram.mapped:
                capture.kind = MAPPED_RAM
        elif name == "configuration/uuid":
            node.add("uuid", cursor.read(16, name).hex(), "", start, cursor.offset - start)
        else:
            raise StreamError(f"unknown subsection {name!r}", offset=start, field="configuration")

    def page_size(self) -> None:
        """Of the guest: the description says it."""
        capture = self.capture
        told = self.description.row.get("page_size")
        if isinstance(told, int) and told in PAGE_SIZES:
            capture.page_size = told
        capture.ram.page_size = capture.page_size
        capture.root.add("page_size", capture.page_size)

    def command(self, start: int) -> None:
        """A MIG_CMD record."""
        cursor = self.cursor
        number, size = cursor.be16("command"), cursor.be16("command:len")
        name = COMMANDS.get(number, (f"command {number}", -1))[0]
        data = cursor.read(size, name)
        self.sections.add(name, data.hex(), f"command{', ' + data[:32].hex(' ') if data else ''}",
                          start, cursor.offset - start)  # fmt: skip
        if number not in COMMANDS:
            self.capture.found(
                Severity.ERROR,
                "unknown-command",
                f"command {number} is not known: QEMU refuses the stream",
                field="command",
                offset=start,
                hint="use the VMM release that wrote it",
            )

    def end(self, start: int) -> None:
        """The end mark, the description, and whether anything follows."""
        capture, cursor = self.capture, self.cursor
        capture.root.add("end", True, "end mark", start, 1)
        if cursor.peek(1) == bytes((VMDESCRIPTION,)) and self.description.offset == cursor.offset:
            cursor.offset = self.description.end
        rest = capture.source.size - cursor.offset
        if rest:
            capture.found(
                Severity.WARNING,
                "trailing-bytes",
                f"{rest} bytes follow the end of the stream",
                field="stream",
                offset=cursor.offset,
                hint="something else was appended, or the end is damaged",
            )
        for head in self.heads.values():
            capture.found(
                Severity.ERROR,
                "section-open",
                f"section {head.section_id} was started and never ended",
                field=head.idstr,
                offset=start,
                hint=CUT,
            )

    # -- sections

    def section(self, kind: int, start: int, walker: FieldWalker) -> None:
        """One record of a section with its body and footer."""
        capture, cursor = self.capture, self.cursor
        head = self.head(kind, start)
        body = cursor.offset
        if head.idstr == RAM_IDSTR:
            self.ram(head, start)
        elif kind != SECTION_FULL:
            node = self.node(head, start)
            self.unknown(node, head)
        else:
            node = self.node(head, start)
            try:
                self.body(head, node, walker)
            except StreamError as error:
                capture.found(
                    Severity.ERROR,
                    "section-body",
                    error.message,
                    field=error.field or head.idstr,
                    offset=error.offset if error.offset >= 0 else body,
                    hint=error.hint or CUT,
                )
                cursor.offset = body
                self.unknown(node, head)
            node.size = cursor.offset - start
        self.footer(head)

    def head(self, kind: int, start: int) -> SectionHead:
        """The head of a record."""
        cursor = self.cursor
        section_id = cursor.be32("section id")
        if kind in (SECTION_PART, SECTION_END):
            found = self.heads.get(section_id)
            if found is None:
                raise StreamError(f"section {section_id} was never started", offset=start, field="section id")
            if kind == SECTION_END:
                del self.heads[section_id]
            return found._replace(kind=kind)
        idstr = cursor.counted_string("section name")
        head = SectionHead(kind, section_id, idstr, cursor.be32("instance"), cursor.be32("section version"))
        if (idstr, head.instance_id) in self.seen or section_id in self.heads:
            self.capture.found(
                Severity.ERROR,
                "section-twice",
                f"section {section_id} {idstr!r} comes twice",
                field=idstr,
                offset=start,
                hint="the stream is damaged, or two were joined",
            )
        self.seen.add((idstr, head.instance_id))
        if kind == SECTION_START:
            self.heads[section_id] = head
        return head

    def node(self, head: SectionHead, start: int) -> Node:
        """The section's node; PART and END of one that is not memory get their own."""
        key = f"{head.idstr}[{head.instance_id}]" if head.instance_id else head.idstr
        if head.kind in (SECTION_PART, SECTION_END):
            key = f"{key} {KINDS[head.kind]}"
        text = f"section {head.section_id}, version {head.version_id}"
        return self.sections.add(key, {"id": head.section_id, "version": head.version_id}, text, start)

    def ram(self, head: SectionHead, start: int) -> None:
        """A record of the RAM section."""
        ram, cursor = self.capture.ram, self.cursor
        if head.version_id != RAM_VERSION:
            raise StreamError(
                f"RAM version {head.version_id} is not {RAM_VERSION}", offset=start, field="ram"
            )
        node = self.ram_node
        if node is None:
            node = self.ram_node = self.node(head, start)
            node.add("records").long = True
        ram.rounds += head.kind == SECTION_PART
        try:
            ram.read_body(cursor)
        finally:
            records = node.get("records")
            if len(records.children) < RECORDS_MAX:
                size = cursor.offset - start
                kind = KINDS[head.kind]
                records.add(f"{len(records.children)} {kind}", size, f"{size} bytes", start, size)

    def body(self, head: SectionHead, node: Node, walker: FieldWalker) -> None:
        """The body of a FULL section; StreamError if it cannot be taken apart."""
        capture, cursor = self.capture, self.cursor
        start = cursor.offset
        row = self.description.devices.get((head.idstr, head.instance_id))
        end = start + self.description.sizes.get((head.idstr, head.instance_id), 0) if row else 0
        inspection = self.inspections.get(head.idstr.rpartition("/")[2])
        decoder = DECODERS.get(head.idstr) if row is None or head.idstr.startswith("vmsim/") else None
        if inspection is not None:
            limit = self.limit(head, end)
            device = Device(head.idstr, node, version=head.version_id, inspection=inspection)
            consumed = read_device(capture, device, start, limit)
            self.compare_extent(head, consumed, end if row else 0)
            cursor.offset = self.believed(head, consumed, limit)
        elif decoder is not None:
            decoder(capture, node, cursor)
            self.compare_extent(head, cursor.offset, end if row else 0)
        elif row is None:
            if self.description.row:
                capture.found(
                    Severity.WARNING,
                    "not-described",
                    "the description does not have this section",
                    field=head.idstr,
                    offset=start,
                    hint="the description is of another stream",
                )
            self.unknown(node, head)
        else:
            walker.section(row, node)
            name_runstate(node)

    def compare_extent(self, head: SectionHead, consumed: int, described: int) -> None:
        """Whether the description agrees on a section's length."""
        if described and consumed != described:
            what = "too many" if consumed < described else "missing"
            self.capture.found(
                Severity.ERROR,
                "section-length",
                f"{abs(described - consumed)} bytes {what}: the description has the section end"
                f" at {described:#x}",
                field=head.idstr,
                offset=min(consumed, described),
                hint="the state is truncated, has trailing bytes, or the description is of another stream",
            )

    def believed(self, head: SectionHead, consumed: int, limit: int) -> int:
        """Where a section ends: where its state does, unless its footer is only found elsewhere."""
        if not self.footers or self.footer_at(head, consumed) or not self.footer_at(head, limit):
            return consumed
        return limit

    def footer_at(self, head: SectionHead, place: int) -> bool:
        """Whether the section's footer is there."""
        footer = bytes((SECTION_FOOTER,)) + head.section_id.to_bytes(4, "big")
        return self.capture.source.read_at(place, len(footer)) == footer

    def limit(self, head: SectionHead, described: int) -> int:
        """How far a section may reach: to its footer, where the description or a search finds it."""
        if described and self.footer_at(head, described):
            return described
        if self.footers is False:
            return min(described or self.capture.source.size, self.capture.source.size)
        found = find_footer(self.capture.source, self.cursor.offset, head.section_id)
        return found if found >= 0 else min(described or self.capture.source.size, self.capture.source.size)

    def unknown(self, node: Node, head: SectionHead) -> None:
        """A body that nobody can take apart: it ends where its footer is found; StreamError if there is
        none.
        """
        cursor = self.cursor
        start = cursor.offset
        end = find_footer(self.capture.source, start, head.section_id)
        if end < 0:
            why = "the stream has no description" if not self.description.row else "it is damaged"
            raise StreamError(
                f"the end of section {head.section_id} ({head.idstr}) cannot be found: {why}",
                offset=start,
                field=head.idstr,
                hint="save to a file: URI; then the description is kept",
            )
        child = node.add("undecoded", offset=start, size=end - start)
        child.value, child.text = raw_value(cursor, end - start, head.idstr)
        child.text += " (its end was found by its footer)"
        node.size = end - node.offset

    def footer(self, head: SectionHead) -> None:
        """The footer of a section, if the stream has footers."""
        cursor = self.cursor
        start = cursor.offset
        mark = cursor.peek(5)
        if mark[:1] != bytes((SECTION_FOOTER,)):
            if self.footers or (mark and mark[0] not in RECORD_TYPES):
                raise StreamError(
                    f"no footer of section {head.section_id}, but {mark[:1].hex() or 'the end'}: bad footer",
                    offset=start,
                    field=head.idstr,
                    hint="the section is longer or shorter than it should be",
                )
            self.footers = False
            return
        self.footers = True
        cursor.u8()
        found = cursor.be32("footer")
        if found != head.section_id:
            self.capture.found(
                Severity.ERROR,
                "bad-footer",
                f"footer of section {found} after section {head.section_id}",
                field=head.idstr,
                offset=start,
                hint="the stream is damaged: QEMU refuses it here",
            )

    def field_hook(self, node: Node, offset: int, size: int) -> bool:
        """Decode the field ``virtio`` of devices that we have no inspection for."""
        if node.key != "virtio":
            return False
        return read_virtio_field(self.capture, self.sections.children[-1], node, offset, size)

    def finish(self) -> None:
        """What can be said at the end."""
        capture = self.capture
        if self.ram_node is not None:
            describe_ram(capture, self.ram_node)
        if capture.config is not None:
            capture.kind = MACHINE
        self.sections.distinct()
        if self.description.node is not None:
            capture.root.children.append(self.description.node)
        elif capture.source.size > 8:
            capture.found(
                Severity.NOTE, "no-description", "no description at the end: unknown sections stay undecoded",
                field="description", offset=capture.end,
                hint="QEMU leaves it out when it migrates live; a stream saved with file: has it",
            )  # fmt: skip


def describe_ram(capture: Capture, node: Node) -> None:
    """The summary of memory."""
    ram = capture.ram
    capture.add(ram.findings)
    node.add("rounds", ram.rounds)
    blocks = node.add("blocks")
    for block in ram.blocks.values():
        pages, zeros = block.counts()
        what = f"{block.size} bytes: {pages} pages with contents, {zeros} of zeros"
        child = blocks.add(block.name, None, what, block.offset)
        child.add("size", block.size)
        child.add("pages", pages)
        child.add("zero_pages", zeros)
        child.add("never_sent", block.pages - pages - zeros)
        if block.mapped:
            child.add("bitmap_offset", block.bitmap_offset, f"{block.bitmap_offset:#x}")
            child.add("pages_offset", block.pages_offset, f"{block.pages_offset:#x}")
        else:
            child.add("page_records", block.page_records)
            child.add("zero_records", block.zero_records)
    node.children.append(node.children.pop(0))  # the records last


def find_footer(source: Bytes, start: int, section_id: int) -> int:
    """The first place from ``start`` on where the footer of a section and a plausible record lie; else -1."""
    wanted = bytes((SECTION_FOOTER,)) + section_id.to_bytes(4, "big")
    base, step = start, SEARCH_FIRST
    while base < source.size:
        window = source.read_at(base, step + 8)
        at = window.find(wanted)
        while 0 <= at < step:
            after = source.read_at(base + at + 5, 6)
            if not after or (
                after[0] in RECORD_TYPES and (after[0] not in KINDS or _near(after, section_id))
            ):
                return base + at
            at = window.find(wanted, at + 1)
        base += step
        step = min(8 * step, SEARCH_STEP)
    return -1


def _near(after: bytes, section_id: int) -> bool:
    """Whether the record that begins with ``after`` has an id as a next section would."""
    return int.from_bytes(after[1:5], "big") <= section_id + 1024
