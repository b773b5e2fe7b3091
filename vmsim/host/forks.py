"""Whether this is the process that made something, or a forked child of it: asked often, so without a call.

A page of memory that the kernel wipes in forked children (MADV_WIPEONFORK, Linux 4.14) costs a look, also
where the fork was no Python's. A hook of :mod:`os` would be the process's and for good.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from vmsim.errors import StateError

MADV_WIPEONFORK: Final = 18


def check_owner(owner: int, what: str, hint: str) -> None:
    """StateError unless this is process ``owner``, which made ``what``."""
    if os.getpid() != owner:
        raise StateError(f"{what} belongs to process {owner}, and this is a forked child of that", hint=hint)


class Birthplace:
    """Made where something is made; ``here[0]`` is 0 in forked children (or, on old kernels, never)."""

    __slots__ = ("here", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.here = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            self.here.madvise(MADV_WIPEONFORK)
        except (OSError, ValueError):
            pass  # the slow answer of ``ours`` is right all the same
        self.here[0] = 1

    @property
    def ours(self) -> bool:
        """Whether it was made by this process."""
        return bool(self.here[0]) and os.getpid() == self.pid

    def check(self) -> None:
        """StateError unless it was made by this process."""
        if not self.ours:
            self.refuse()

    def refuse(self) -> None:
        """StateError: what was made elsewhere is of no use here."""
        raise StateError(
            f"the machine belongs to process {self.pid}, and this is a forked child of that",
            hint="make a machine here, or send that one here: send() there, receive() here",
        )
