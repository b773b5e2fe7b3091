"""What the guest was told of files that a migration made anew, and is told from then on.

An unlinked file that arrives on a host gets another inode number there, another birth and a new ctime. To
the guest it is the same open file: programs compare numbers (tail -F, SQLite, cp) and times. So the server
goes on telling the old ones: the ctime until the file changes, the number for as long as the file is known.

The host may give the old number to another file. The guest must not take the two for one, so from then on
that other file has the number with its highest bit flipped, here and wherever the machine moves.

The share's root gets a new ctime as well, where something other than a regular file is made anew: only in a
directory can that be done. It keeps its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from vmsim.limits import STATE_UNLINKED_MAX

from .host_calls import CTIME, CTIME_NS, INO, SECOND, HostAttr

OTHER: Final = 1 << 63


class Told(NamedTuple):
    """Of one file: its number; its ctime while the host's is ``since_ns``; when it was born.

    Number and birth 0: as the host says.
    """

    ino: int
    since_ns: int
    ctime_ns: int
    birth_ns: int


class ToldTable:
    """By nodeid; ``numbers`` are all that were ever told, at most STATE_UNLINKED_MAX."""

    __slots__ = ("by_id", "numbers")

    def __init__(self) -> None:
        self.by_id: dict[int, Told] = {}
        self.numbers: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.numbers or self.by_id)

    def clear(self) -> None:
        """A new session."""
        self.by_id.clear()
        self.numbers.clear()

    def add(self, nodeid: int, told: Told) -> None:
        """From now on; beyond the bound the file has its new number."""
        if not told.ino:
            self.by_id[nodeid] = told
        elif told.ino in self.numbers or len(self.numbers) < STATE_UNLINKED_MAX:
            self.numbers.add(told.ino)
            self.by_id[nodeid] = told

    def reserve(self, numbers: Sequence[int]) -> None:
        """Numbers that were told of files before: whatever else the host gives them to shows others."""
        self.numbers.update(numbers[: STATE_UNLINKED_MAX - len(self.numbers)])

    def forget(self, nodeid: int) -> None:
        """The guest does not know the file any more; its number stays told."""
        self.by_id.pop(nodeid, None)

    def number(self, nodeid: int, ino: int) -> int:
        """The number that the guest is told of a file; ``nodeid`` 0: of one that it need not know."""
        told = self.by_id.get(nodeid)
        if told is not None and told.ino:
            return told.ino
        return ino ^ OTHER if ino in self.numbers else ino

    def ctime(self, nodeid: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
        """The ctime that the guest is told."""
        told = self.by_id.get(nodeid)
        if told is None or told.since_ns != seconds * SECOND + nanoseconds:
            return seconds, nanoseconds
        return divmod(told.ctime_ns, SECOND)

    def birth(self, nodeid: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
        """The birth time that the guest is told."""
        told = self.by_id.get(nodeid)
        if told is None or not told.birth_ns:
            return seconds, nanoseconds
        return divmod(told.birth_ns, SECOND)

    def attr(self, nodeid: int, attr: HostAttr) -> HostAttr:
        """The attributes as the guest is told them."""
        shown = list(attr)
        shown[INO] = self.number(nodeid, attr[INO])
        shown[CTIME], shown[CTIME_NS] = self.ctime(nodeid, attr[CTIME], attr[CTIME_NS])
        return tuple(shown)
