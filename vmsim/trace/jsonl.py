"""The history as JSON lines, one entry each, and back."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from vmsim.errors import StreamError
from vmsim.trace.events import EVENTS, Event
from vmsim.trace.tracer import Entry

_ENCODER = msgspec.json.Encoder()
_ANY_EVENT = functools.reduce(operator.or_, EVENTS)
_DECODER: msgspec.json.Decoder[tuple[int, int, str, Event]] = msgspec.json.Decoder(
    tuple[int, int, str, _ANY_EVENT]  # type: ignore[valid-type]  # the table, as a union
)


class BinaryWriter(Protocol):
    """Where lines go: a binary file, or anything with its ``write``."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""
        ...


class JsonlWriter:
    """A listener that writes ``[number, now_ns, where, {"kind": ..., facts}]`` lines."""

    def __init__(self, out: BinaryWriter) -> None:
        self._out = out

    def __call__(self, entry: Entry) -> None:
        """Write one entry."""
        self._out.write(_ENCODER.encode(entry) + b"\n")


def read_jsonl(lines: Iterable[bytes]) -> Iterator[Entry]:
    """The entries of a written history; StreamError names the line that is none."""
    for number, line in enumerate(lines, 1):
        try:
            yield Entry(*_DECODER.decode(line))
        except msgspec.MsgspecError as error:
            raise StreamError(f"line {number} of a trace: {error}", field="entry") from error
