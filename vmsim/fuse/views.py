"""Bytes that lie scattered over several views of guest memory."""

from __future__ import annotations

from collections.abc import Sequence


def gather(views: Sequence[memoryview], start: int, size_bytes: int) -> bytes:
    """At most ``size_bytes`` bytes from offset ``start`` on, copied once."""
    if len(views) == 1:
        return bytes(views[0][start : start + size_bytes])
    return b"".join(cut(views, start, size_bytes))


def cut(views: Sequence[memoryview], start: int, size_bytes: int) -> list[memoryview]:
    """The views of the bytes ``start`` .. ``start + size_bytes``, as far as they exist; nothing is copied."""
    if len(views) == 1:
        piece = views[0][start : start + size_bytes]
        return [piece] if len(piece) else []
    pieces = []
    for view in views:
        length = len(view)
        if start >= length:
            start -= length
            continue
        if size_bytes <= 0:
            break
        piece = view[start : start + size_bytes] if start or size_bytes < length else view
        pieces.append(piece)
        size_bytes -= len(piece)
        start = 0
    return pieces


def scatter(views: Sequence[memoryview], data: bytes | bytearray) -> None:
    """Write ``data`` over the views from the first byte on; the caller has checked that it fits."""
    size = len(data)
    if views and len(views[0]) >= size:
        views[0][:size] = data
        return
    source = memoryview(data)
    position = 0
    for view in views:
        piece = source[position : position + len(view)]
        view[: len(piece)] = piece
        position += len(piece)
        if position >= size:
            break
