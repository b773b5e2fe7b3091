"""The fields of devices that we do not know, along the description at the end of the stream (vmdesc)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from vmsim.errors import StreamError
from vmsim.inspect.source import Cursor
from vmsim.migration.document import DEPTH_MAX
from vmsim.migration.errors import FieldTooLarge, UnexpectedRecord
from vmsim.migration.vmio import SUBSECTION, Row
from vmsim.wire.tree import Node

NODES_MAX: Final = 1 << 19
"""Fields that the devices of one stream may have altogether."""
LIST_MAX: Final = 8192
"""Numbers of an array that are kept as numbers; longer ones are summarised."""
RAW_MAX: Final = 256
"""Bytes that are shown in full."""
NUMBERS: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}

Hook = Callable[[Node, int, int], bool]
"""Decodes a field in place, given its node, offset and size; False if it is not for it."""


def raw_value(cursor: Cursor, size: int, where: str) -> tuple[Any, str]:
    """Bytes as plain data and for people: in full if they are few, else length, beginning and a hash."""
    if size <= RAW_MAX:
        data = cursor.read(size, where)
        if size > 8 and not any(data):
            return data.hex(), f"{size} bytes of zeros"
        return data.hex(), _readable(data)
    begin = cursor.peek(16)
    digest = hashlib.blake2b(digest_size=8)
    zeros = True
    left = size
    while left:
        piece = cursor.read(min(left, 1 << 18), where)
        digest.update(piece)
        zeros = zeros and not any(piece)
        left -= len(piece)
    value = {"bytes": size, "begin": begin.hex(), "hash": digest.hexdigest(), "zeros": zeros}
    return value, f"{size} bytes of zeros" if zeros else f"{size} bytes: {begin.hex(' ')} …"


def _readable(data: bytes) -> str:
    text = data.rstrip(b"\0")
    if len(text) > 2 and text.isascii() and text.decode("ascii").isprintable():
        return repr(text.decode("ascii"))
    return data.hex(" ") if len(data) <= 32 else f"{data[:32].hex(' ')} … ({len(data)} bytes)"


class FieldWalker:
    """Reads sections along their description, which is as hostile as the rest of a stream."""

    def __init__(self, cursor: Cursor, hook: Hook | None = None) -> None:
        self._cursor = cursor
        self._left = NODES_MAX
        self._hook = hook

    def section(self, row: Row, node: Node, depth: int = 0) -> None:
        """The fields and subsections that ``row`` describes, as children of ``node``; StreamError."""
        if depth > DEPTH_MAX:
            raise StreamError("the description nests too deeply", offset=self._cursor.offset, field=node.key)
        for entry in _dicts(row, "fields"):
            self._field(entry, node, depth)
        for entry in _dicts(row, "subsections"):
            self._subsection(entry, node, depth)
        node.distinct()

    def _field(self, entry: Row, node: Node, depth: int) -> None:
        cursor = self._cursor
        name, size, kind = str(entry.get("name", "")), _number(entry, "size"), str(entry.get("type", ""))
        count = _number(entry, "array_len", 1)
        if isinstance(entry.get("index"), int):
            name = f"{name}[{entry['index']}]"
        if not size:
            count = min(count, 1)
        struct = entry.get("struct")
        if kind == "struct" and isinstance(struct, dict):
            for index in range(count):
                child = self._child(node, f"{name}[{index}]" if count > 1 else name)
                self.section(struct, child, depth + 1)
                child.size = cursor.offset - child.offset
                if child.size != size:
                    raise StreamError(
                        f"a structure of {child.size} bytes is described as {size}",
                        offset=child.offset, field=f"{node.key}/{name}",
                    )  # fmt: skip
            return
        child = self._child(node, name)
        child.size = size * count
        if self._hook is not None and count == 1 and self._hook(child, cursor.offset, size):
            cursor.offset = child.offset + size
        elif kind.startswith(("int", "uint", "bool")) and size in NUMBERS and count <= LIST_MAX:
            code = NUMBERS[size] if kind.startswith(("u", "bool")) else NUMBERS[size].lower()
            # "int32 le" is big-endian too: a destination takes what is less than or equal to its own.
            numbers = Struct(f">{count}{code}").unpack(cursor.read(child.size, name))
            child.value = numbers[0] if "array_len" not in entry else list(numbers)
            if kind == "bool":
                child.value = child.value if numbers[0] > 1 else child.value == 1
        else:
            child.value, child.text = raw_value(cursor, child.size, name)

    def _subsection(self, entry: Row, node: Node, depth: int) -> None:
        cursor = self._cursor
        start = cursor.offset
        name = str(entry.get("vmsd_name", ""))
        if cursor.u8(name) != SUBSECTION:
            raise UnexpectedRecord(f"no subsection {name!r}", offset=start, field=node.key)
        found = cursor.counted_string(name)
        if found != name:
            raise UnexpectedRecord(f"subsection {found!r} instead of {name!r}", offset=start, field=node.key)
        child = self._child(node, name)
        child.offset = start
        child.value = {"version": cursor.be32(name)}
        child.text = f"subsection, version {child.value['version']}"
        self.section(entry, child, depth + 1)
        child.size = cursor.offset - start

    def _child(self, node: Node, name: str) -> Node:
        self._left -= 1
        if self._left < 0:
            raise FieldTooLarge(f"more than {NODES_MAX} fields", offset=self._cursor.offset, field=node.key)
        return node.add(name, offset=self._cursor.offset)


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
