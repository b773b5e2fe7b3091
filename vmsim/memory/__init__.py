"""Guest memory: regions, typed access, dirty log. Buffers come from outside; nothing here maps or opens."""

from __future__ import annotations

from vmsim.memory.dirty import BitmapSink, DirtyLog, bitmap_bytes, taker
from vmsim.memory.guest import PAGE_SIZE, DirtySink, GuestMemory, Region

__all__ = [
    "PAGE_SIZE", "BitmapSink", "DirtyLog", "DirtySink", "GuestMemory", "Region", "bitmap_bytes", "taker",
]  # fmt: skip
