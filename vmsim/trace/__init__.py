"""One history of typed events; everything visible is a view of it."""

from __future__ import annotations

from vmsim.trace.events import EVENTS, KINDS, Event
from vmsim.trace.jsonl import JsonlWriter, read_jsonl
from vmsim.trace.printer import render
from vmsim.trace.tracer import NOWHERE, Entry, Source, Subscription, Tracer

__all__ = [
    "EVENTS", "KINDS", "NOWHERE", "Entry", "Event", "JsonlWriter", "Source", "Subscription", "Tracer",
    "read_jsonl", "render",
]
