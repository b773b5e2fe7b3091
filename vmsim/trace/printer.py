"""The history for people: one line per entry, in columns."""

from __future__ import annotations

import errno

import msgspec

from vmsim.trace.events import kind_of
from vmsim.trace.tracer import Entry


def render(entry: Entry) -> str:
    """``time  where  kind  fact=value ...``; time in microseconds, errno by name, empty facts left out."""
    facts = []
    for name, value in msgspec.structs.asdict(entry.event).items():
        if value == "" or (name == "error" and value == 0):
            continue
        if name == "error" and isinstance(value, int):
            value = errno.errorcode.get(value, value)
        facts.append(f"{name}={value}")
    microseconds = entry.now_ns / 1000
    return f"{microseconds:>14.3f}  {entry.where:<8} {kind_of(type(entry.event)):<22} {' '.join(facts)}"
