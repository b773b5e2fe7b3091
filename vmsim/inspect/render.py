"""A capture for people: indented text, a tree of rich, and hex dumps that say what the bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from vmsim.inspect.capture import Capture
from vmsim.wire.hexdump import Span, render
from vmsim.wire.tree import Node, Piece

if TYPE_CHECKING:
    from rich.tree import Tree

LIST_LINES: Final = 40
"""Entries of a long list that are shown unless all are asked for."""
HEX_BYTES: Final = 256
"""Bytes of one field that a dump shows."""


def printable(text: str) -> str:
    """Text of a file for a terminal: nothing in it moves the cursor."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def value_text(node: Node) -> str:
    """A node's value as people read it."""
    if node.text:
        return printable(node.text)
    value = node.value
    if value is None:
        return ""
    if isinstance(value, dict):
        return printable(", ".join(f"{key} {_short(item)}" for key, item in value.items()))
    return printable(_short(value))


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = " ".join(str(item) for item in value[:16])
        return f"{head} … ({len(value)})" if len(value) > 16 else head or "none"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 16:
        return f"{value} ({value:#x})"
    return "yes" if value is True else "no" if value is False else str(value)


def label(node: Node) -> str:
    """One line about a node."""
    value = value_text(node)
    where = f"  [{node.offset:#x}{f' + {node.size}' if node.size else ''}]" if node.offset >= 0 else ""
    return f"{printable(node.key)}{': ' if value else ''}{value}{where}"


def _shown(node: Node, everything: bool) -> tuple[list[Node], int]:
    if everything or not node.long or len(node.children) <= LIST_LINES:
        return node.children, 0
    return node.children[:LIST_LINES], len(node.children) - LIST_LINES


def selected(capture: Capture, globs: tuple[str, ...]) -> list[Node]:
    """The nodes to show: all at the top, or the sections (and parts of the file) whose names match."""
    if not globs:
        return capture.root.children
    sections = capture.root.find("sections")
    nodes = [node for node in capture.root.children if node is not sections]
    nodes += sections.children if sections is not None else []
    return [node for node in nodes if any(fnmatchcase(node.key, glob) for glob in globs)]


def lines(nodes: list[Node], everything: bool) -> Iterator[str]:
    """Plain text, two spaces a level."""
    waiting: list[tuple[Node | str, int]] = [(node, 0) for node in reversed(nodes)]
    while waiting:
        node, depth = waiting.pop()
        indent = "  " * depth
        if isinstance(node, str):
            yield indent + node
            continue
        yield indent + label(node)
        children, more = _shown(node, everything)
        if more:
            waiting.append((f"… and {more} more (--all shows them)", depth + 1))
        waiting.extend((child, depth + 1) for child in reversed(children))


def tree(title: str, nodes: list[Node], everything: bool) -> Tree:
    """The same as a tree for a terminal."""
    from rich.text import Text
    from rich.tree import Tree

    def styled(node: Node) -> Text:
        value = value_text(node)
        text = Text(printable(node.key), style="bold" if node.children else "")
        if value:
            text.append(f": {value}", style="not bold cyan")
        if node.offset >= 0:
            text.append(f"  {node.offset:#x}", style="not bold dim")
        return text

    top = Tree(Text(title, style="bold"))
    waiting = [(top, node) for node in reversed(nodes)]
    while waiting:
        parent, node = waiting.pop()
        branch = parent.add(styled(node))
        children, more = _shown(node, everything)
        waiting.extend((branch, child) for child in reversed(children))
        if more:
            waiting.insert(0, (branch, Node(f"… and {more} more", text="--all shows them")))
    return top


def hex_dump(capture: Capture, nodes: list[Node]) -> Iterator[str]:
    """Every field's bytes with its name, offset and value, in the order of the file."""
    for node in nodes:
        yield label(node)
        pieces = sorted(_pieces(node, ""), key=lambda piece: (piece.offset, piece.size))
        for piece in pieces:
            data = capture.source.read_at(piece.offset, min(piece.size, HEX_BYTES))
            yield render([Span(printable(piece.name), piece.offset, data, printable(piece.value))])
            if piece.size > HEX_BYTES:
                yield f"    … {piece.size - HEX_BYTES} bytes more"


def _pieces(node: Node, path: str) -> Iterator[Piece]:
    waiting = [(node, path)]
    while waiting:
        node, path = waiting.pop()
        for piece in node.pieces:
            yield Piece(f"{path}{piece.name}", piece.offset, piece.size, piece.value)
        # What is divided already is not told twice: only the elements of lists are added to pieces.
        if node.offset >= 0 and node.size and not node.children and not node.pieces:
            yield Piece(path.rstrip(".") or node.key, node.offset, node.size, value_text(node))
        covered = {(piece.offset, piece.size) for piece in node.pieces}
        ends = [(piece.offset, piece.offset + piece.size) for piece in node.pieces]
        for child in node.children:
            inside = ends and not child.children and (
                (child.offset, child.size) in covered or child.offset < 0
                or (node.key == "virtio" and any(a <= child.offset < b for a, b in ends))
            )  # fmt: skip
            if not inside and not (
                node.pieces and child.key in ("queues", "config", "transport", "subsections")
            ):
                waiting.append((child, f"{path}{child.key}."))
