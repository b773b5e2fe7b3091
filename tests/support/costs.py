"""What work costs, counted instead of timed: lines and calls of Python, bytes that are allocated.

Loops inside C (a copy of a list) count as one call, so a row that may hide one measures bytes as well.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from vmsim.host.fs import LinuxFs


def work(call: Callable[[], Any]) -> int:
    """How many lines and calls ``call`` takes on this thread."""
    count = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return line

    def function(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "c_call"

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(line)
    sys.setprofile(function)
    try:
        call()
    finally:
        sys.setprofile(before[1])
        sys.settrace(before[0])
    return count


def peak_bytes(call: Callable[[], Any]) -> tuple[int, int]:
    """The most that was allocated at a time meanwhile, and what is left of it afterwards, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        result = call()
        left, peak = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return peak, left


class CountingHost:
    """The host, and how often each of its calls is made."""

    def __init__(self):
        self._host = LinuxFs()
        self.calls = Counter()

    def __getattr__(self, name):
        value = getattr(self._host, name)
        if not callable(value):
            return value

        def counted(*arguments):
            self.calls[name] += 1
            return value(*arguments)

        return counted
