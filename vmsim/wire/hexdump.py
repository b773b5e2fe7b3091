"""Hex dumps that say what the bytes are, field by field, driven by the same rows as packing.

    print(annotate(data, [(IN_HEADER, "header"), (GETATTR_IN, "arguments")]))

    header.len        0000  38 00 00 00              56
    header.opcode     0004  03 00 00 00              3
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from vmsim.wire.layout import Layout

ROW_BYTES: Final = 16
VALUE_BYTES_MAX: Final = 8


class Span(NamedTuple):
    """A named stretch of bytes: where it starts, its bytes, and the value that they stand for, as text."""

    name: str
    offset: int
    data: bytes
    value: str


def spans_of(
    layout: Layout[Any], data: bytes | memoryview, offset: int = 0, name: str = ""
) -> Iterator[Span]:
    """One span per field of ``layout`` at ``offset``; a field that is cut off at the end is "missing"."""
    byte_order = layout.struct.format[0]
    for field in layout.fields:
        start = offset + field.offset
        piece = bytes(data[start : start + field.size])
        value = "missing"
        if len(piece) == field.size:
            value = shown(struct.unpack(byte_order + field.format, piece)[0])
        yield Span(f"{name or layout.name}.{field.name}", start, piece, value)


def shown(value: object) -> str:
    """A field's value: numbers decimal, and hexadecimal from 256 on; bytes as text if they are text."""
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return repr(text.decode("ascii")) if text.isascii() and text.decode("ascii").isprintable() else ""
    if isinstance(value, int) and value >= 256:
        return f"{value} ({value:#x})"
    return str(value)


def annotate(data: bytes | memoryview, layouts: Iterable[tuple[Layout[Any], str]]) -> str:
    """A dump of ``data`` read as ``layouts`` one after another, each with the name to show; then the rest."""
    spans: list[Span] = []
    offset = 0
    for layout, name in layouts:
        spans += spans_of(layout, data, offset, name)
        offset += layout.size
    if offset < len(data):
        spans.append(Span("(rest)", offset, bytes(data[offset:]), ""))
    return render(spans)


def render(spans: Iterable[Span]) -> str:
    """Columns: name, offset, bytes, value; long spans take several lines."""
    listed = list(spans)
    width = max((len(span.name) for span in listed), default=0)
    return "\n".join(line for span in listed for line in _lines(span, width))


def _lines(span: Span, width: int) -> Iterator[str]:
    step = ROW_BYTES if len(span.data) > VALUE_BYTES_MAX else VALUE_BYTES_MAX
    for start in range(0, max(1, len(span.data)), step):
        piece = span.data[start : start + step]
        name = span.name if start == 0 else ""
        value = (span.value if start == 0 else "") or printable(piece)
        yield f"{name:<{width}}  {span.offset + start:04x}  {piece.hex(' '):<{step * 3}} {value}".rstrip()


def printable(data: bytes) -> str:
    """ASCII with dots for everything else."""
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def hexdump(data: bytes | memoryview, base: int = 0) -> str:
    """The classic dump, 16 bytes a line; ``base`` is the address of the first."""
    return "\n".join(
        f"{base + start:08x}  {bytes(data[start : start + ROW_BYTES]).hex(' '):<{ROW_BYTES * 3}} "
        f"{printable(bytes(data[start : start + ROW_BYTES]))}"
        for start in range(0, len(data), ROW_BYTES)
    )
