"""Waiting for something that happens by itself: in another process, another thread, the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 60
"""Long, for the machine may be busy: it is not what the test is about."""
LOOK_S = 0.005


def until(
    ready: Callable[[], Any], what: str, limit_s: float = PATIENCE_S, *, saw: Callable[[], Any] | None = None,
    alive: Callable[[], Any] | None = None,
) -> Any:  # fmt: skip
    """What ``ready()`` gives once that is true.

    AssertionError after ``limit_s`` seconds, or as soon as ``alive`` says no. It names ``what`` was waited
    for, and what was there instead: what ``saw()`` gives, or else the last that ``ready()`` gave.
    """
    deadline = time.monotonic() + limit_s
    while True:
        gone, late = alive is not None and not alive(), time.monotonic() >= deadline
        if found := ready():
            return found
        if gone or late:
            there = saw() if saw is not None else found
            why = "what it comes from has ended" if gone else f"nothing after {limit_s:g} s"
            raise AssertionError(f"waiting for {what}: {why}; instead: {there!r}")
        time.sleep(LOOK_S)


def state_of(pid: int) -> str:
    """The letter that the kernel gives a process: S sleeps, Z has ended, D cannot be interrupted; "gone"."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
