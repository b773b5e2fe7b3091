"""What this process holds of the system's: descriptors, and mappings of memfds.

A test compares what *it* left, by name, never numbers: tests before it may let go of something late, when
their garbage is collected.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def open_fds() -> set[tuple[str, str]]:
    """(number, what it is) of every open descriptor."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def mappings() -> set[tuple[str, str]]:
    """(addresses, what) of every mapped memfd."""
    with open("/proc/self/maps") as lines:
        return {(line.split()[0], line.split()[5]) for line in lines if "memfd:" in line}


class Held:
    """What the process holds at this moment; ``more`` is what it holds besides, later."""

    def __init__(self) -> None:
        self._held = open_fds() | mappings()

    def more(self) -> list[tuple[str, str]]:
        """What has come and not gone; a traceback or a circle may keep it until garbage is collected."""
        more = (open_fds() | mappings()) - self._held
        if more:
            gc.collect()
            more &= open_fds() | mappings()
        return sorted(more)


    def gone(self) -> list[tuple[str, str]]:
        """What was held then and is not any more."""
        return sorted(self._held - open_fds() - mappings())


@contextmanager
def no_leaks() -> Iterator[None]:
    """Nothing of the system's is kept by what runs inside."""
    before = Held()
    yield
    more = before.more()
    assert more == [], f"kept: {more}"
