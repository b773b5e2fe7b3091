"""What was found in a file: a tree of named values with their places, and findings about them.

Decoders of every layer build these; printing, JSON, hex dumps and comparisons are made from them alone.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

NOWHERE: Final = -1
"""The offset of what stands for no bytes of its own."""


class Severity(enum.IntEnum):
    """How bad a finding is: an error keeps a destination from going on as the source did."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


@dataclass(slots=True)
class Finding:
    """One thing that is wrong or worth knowing.

    ``code`` names the kind of finding and does not change between releases. ``offset`` is where in the file,
    ``field`` what it is about, ``message`` what is so and what follows from it, ``hint`` what to do.
    """

    severity: Severity
    code: str
    message: str
    field: str = ""
    offset: int = NOWHERE
    hint: str = ""

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "severity": self.severity.name.lower(), "code": self.code, "field": self.field,
            "offset": self.offset if self.offset >= 0 else None, "message": self.message, "hint": self.hint,
        }  # fmt: skip


@dataclass(slots=True)
class Piece:
    """Bytes of a hex dump with a name of their own: place, length in bytes, and value as text."""

    name: str
    offset: int
    size: int
    value: str = ""


@dataclass(slots=True)
class Node:
    """A named value: ``key`` is unique among its siblings, ``value`` is plain data (None of a mere group).

    ``text`` is how people read the value, where its plain form does not say it. ``offset`` and ``size`` are
    the bytes that it was read from. ``pieces`` divide them for a hex dump where the children do not.
    ``long`` marks a list that may be shortened for people.
    """

    key: str
    value: Any = None
    text: str = ""
    offset: int = NOWHERE
    size: int = 0
    children: list[Node] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    long: bool = False

    def add(self, key: str, value: Any = None, text: str = "", offset: int = NOWHERE, size: int = 0) -> Node:
        """Append a child and return it."""
        child = Node(key, value, text, offset, size)
        self.children.append(child)
        return child

    def get(self, *keys: str) -> Node:
        """The descendant at a path of keys; KeyError."""
        node = self
        for key in keys:
            node = next((child for child in node.children if child.key == key), None) or _missing(key)
        return node

    def find(self, *keys: str) -> Node | None:
        """The descendant at a path of keys, if it is there."""
        try:
            return self.get(*keys)
        except KeyError:
            return None

    def walk(self) -> Iterator[Node]:
        """This node and everything below it, parents first."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def moved(self, place: Callable[[int], int]) -> Node:
        """This node, with every offset changed to ``place(offset)``, and sizes accordingly."""
        for node in self.walk():
            if node.offset >= 0:
                start = place(node.offset)
                node.size = place(node.offset + node.size) - start if node.size else 0
                node.offset = start
            for piece in node.pieces:
                start = place(piece.offset)
                piece.size = place(piece.offset + piece.size) - start
                piece.offset = start
        return self

    def distinct(self) -> Node:
        """This node, with keys that siblings share numbered."""
        counts: dict[str, int] = {}
        for child in self.children:
            key = child.key
            while child.key in counts:  # what is numbered may have the name of another
                counts[key] += 1
                child.key = f"{key}#{counts[key]}"
            counts[child.key] = 1
        return self

    def facts(self) -> Any:
        """As plain data: a value, or an object of the children with the place of their bytes."""
        if not self.children:
            return self.value
        result: dict[str, Any] = {}
        if self.offset >= 0:
            result["@offset"], result["@size"] = self.offset, self.size
        if self.value is not None:
            result["@value"] = self.value
        for child in self.children:
            result[child.key] = child.facts()
        return result


def _missing(key: str) -> Node:
    raise KeyError(key)
