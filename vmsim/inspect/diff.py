"""What changed between two captures: by name, not by byte.

The trees of both are compared key by key; offsets do not count. Memory is compared page by page through the
places that the RAM section left, and reported as ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from vmsim.inspect.capture import Capture
from vmsim.inspect.ram import CHUNK_PAGES, NEVER, UNREADABLE, ZEROED, Block
from vmsim.inspect.render import value_text
from vmsim.inspect.source import Ahead, Bytes
from vmsim.wire.tree import Node

COMPARED_BYTES: Final = 1 << 20
RANGES_MAX: Final = 4096
"""Ranges of memory that are kept."""
SKIPPED: Final = frozenset({"records", "description", "chunks"})
"""Where the two differ without saying anything: how often memory was sent, and in what pieces a state
came.
"""
INDEX_KEYS: Final = frozenset({"last_avail_idx", "used_idx", "next_avail", "next_used"})


@dataclass(slots=True)
class Change:
    """One difference: ``kind`` is added, removed or changed; ``old`` and ``new`` are plain data."""

    kind: str
    path: tuple[str, ...]
    old: Any = None
    new: Any = None
    text: str = ""

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {"kind": self.kind, "path": list(self.path), "old": self.old, "new": self.new}


@dataclass(slots=True)
class Pages:
    """How one block of memory differs: pages, the ranges (offset, bytes) they form, pages only one file
    has.
    """

    block: str
    changed: int = 0
    unknown: int = 0
    only_a: int = 0
    only_b: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    more_ranges: bool = False
    why: str = ""

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "block": self.block, "changed_pages": self.changed, "unknown_pages": self.unknown,
            "only_in_a": self.only_a, "only_in_b": self.only_b, "ranges": [list(one) for one in self.ranges],
            "more_ranges": self.more_ranges, "reason": self.why,
        }  # fmt: skip

    @property
    def differs(self) -> bool:
        """Whether there is a difference, or no telling."""
        return bool(self.changed or self.only_a or self.only_b or self.why)


def diff(a: Capture, b: Capture) -> tuple[list[Change], list[Pages]]:
    """All differences of ``b`` from ``a``, in the order of ``a``."""
    changes = []
    if a.kind != b.kind:
        changes.append(Change("changed", ("kind",), a.kind, b.kind, f"{a.kind} → {b.kind}"))
    changes += _nodes(_state_root(a, b), _state_root(b, a), ())
    return changes, list(_memory(a, b))


def first_difference(a: Bytes, b: Bytes) -> int:
    """The offset of the first byte in which two files differ, also where one ends; -1 if none does."""
    for offset in range(0, max(a.size, b.size), COMPARED_BYTES):
        here, there = a.read_at(offset, COMPARED_BYTES), b.read_at(offset, COMPARED_BYTES)
        if here != there:
            pairs = zip(here, there, strict=False)
            short = min(len(here), len(there))
            return offset + next((at for at, (x, y) in enumerate(pairs) if x != y), short)
    return -1


def _state_root(capture: Capture, other: Capture) -> Node:
    """The tree; of a capture with one back-end that is compared with a bare state, that state alone."""
    backends = [device.backend for device in capture.devices if device.backend is not None]
    if other.state is not None and capture.state is None and len(backends) == 1:
        top = Node("file")
        backends[0].key = other.state.key
        top.children = [backends[0]]
        return top
    return capture.root


def _nodes(a: Node, b: Node, path: tuple[str, ...]) -> Iterator[Change]:
    """The differences below two nodes that stand for the same."""
    waiting = [(a, b, path)]
    while waiting:
        a, b, path = waiting.pop()
        if a.value != b.value and path:
            yield _changed(path, a, b)
        theirs = {child.key: child for child in b.children if child.key not in SKIPPED}
        below = []
        for child in a.children:
            if child.key in SKIPPED:
                continue
            here = (*path, child.key)
            peer = theirs.pop(child.key, None)
            if peer is None:
                yield Change("removed", here, _plain(child), None, value_text(child))
            else:
                below.append((child, peer, here))
        for child in theirs.values():
            yield Change("added", (*path, child.key), None, _plain(child), value_text(child))
        waiting.extend(reversed(below))


def _plain(node: Node) -> Any:
    return node.value if not node.children else {"children": len(node.children), "value": node.value}


def _changed(path: tuple[str, ...], a: Node, b: Node) -> Change:
    old, new = a.value, b.value
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [
            key for key in (*old, *(key for key in new if key not in old)) if old.get(key) != new.get(key)
        ]
        parts = [f"{key} {old.get(key)} → {new.get(key)}" for key in keys if key not in ("bits", "names")]
        if "names" in keys:
            lost, gained = set(old["names"]) - set(new["names"]), set(new["names"]) - set(old["names"])
            parts += [f"-{name}" for name in sorted(lost)] + [f"+{name}" for name in sorted(gained)]
        return Change(
            "changed", path, {k: old.get(k) for k in keys}, {k: new.get(k) for k in keys}, ", ".join(parts)
        )
    moved = ""
    if path[-1] in INDEX_KEYS and isinstance(old, int) and isinstance(new, int):
        moved = f" (moved by {((new - old + 0x8000) & 0xFFFF) - 0x8000})"
    return Change("changed", path, old, new, f"{value_text(a) or 'none'} → {value_text(b) or 'none'}{moved}")


def _memory(a: Capture, b: Capture) -> Iterator[Pages]:
    for name, block in a.ram.blocks.items():
        other = b.ram.blocks.get(name)
        if other is None:
            continue  # the trees say so
        result = Pages(name)
        if not (a.ram.comparable and b.ram.comparable):
            result.why = "too much memory to be compared"
        elif block.page_size != other.page_size:
            result.why = "pages of different sizes"
        else:
            _compare(a, block, b, other, result)
        yield result


def _compare(a: Capture, block: Block, b: Capture, other: Block, result: Pages) -> None:
    size = block.page_size
    start = end = -1
    places, others = Ahead(a.source), Ahead(b.source)
    contents, other_contents = Ahead(a.source), Ahead(b.source)
    for page in _pages(block, other):
        here, there = block.place(page, places), other.place(page, others)
        if here == there and here in (NEVER, ZEROED):
            continue
        if UNREADABLE in (here, there):
            result.unknown += 1
            continue
        if NEVER in (here, there):
            result.only_a += there == NEVER
            result.only_b += here == NEVER
            continue
        if _contents(contents, here, size) == _contents(other_contents, there, size):
            continue
        result.changed += 1
        if page != end:
            _range(result, start, end, size)
            start = page
        end = page + 1
    _range(result, start, end, size)


def _contents(source: Bytes, place: int, size: int) -> bytes:
    return bytes(size) if place == ZEROED else source.read_at(place, size)


def _pages(block: Block, other: Block) -> Iterator[int]:
    """The pages that either file may say something of."""
    last = max(block.pages, other.pages)
    chunks: set[int] = set()
    for one in (block, other):
        chunks |= set(range(-(-one.pages // CHUNK_PAGES))) if one.mapped else set(one.places.touched())
    for chunk in sorted(chunks):
        yield from range(chunk * CHUNK_PAGES, min(last, (chunk + 1) * CHUNK_PAGES))


def _range(result: Pages, start: int, end: int, size: int) -> None:
    if start < 0:
        return
    if len(result.ranges) < RANGES_MAX:
        result.ranges.append((start * size, (end - start) * size))
    else:
        result.more_ranges = True
