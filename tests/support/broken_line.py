"""A line between the two ends of a migration that breaks at one byte of one direction, in every way.

``told`` says where it breaks: at the channel itself, so that whoever writes beyond the byte is refused; or
behind a tunnel, which takes what is written and passes nothing on.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from vmsim.migration.channel import MemoryChannel
from vmsim.migration.errors import ChannelError

FORTH, BACK = "forth", "back"
ENDINGS = ("reset", "end", "silence")
PATIENCE_NS = 60_000_000_000


class Break(NamedTuple):
    """After ``passed`` bytes of ``direction`` nothing passes any more, in either direction."""

    direction: str
    passed: int
    ending: str
    told: bool

    def __str__(self) -> str:
        where = "at the channel" if self.told else "behind a tunnel"
        return f"{self.ending} after {self.passed} bytes {self.direction}, {where}"


def breaks(direction: str, positions: Any) -> Iterator[Break]:
    """Every way to break at each of ``positions``."""
    for passed, ending, told in itertools.product(positions, ENDINGS, (True, False)):
        if ending != "silence" or not told:  # who is silent tells nobody
            yield Break(direction, passed, ending, told)


class BrokenLine:
    """Both ends: ``source`` and ``destination`` are channels; ``passed`` counts bytes by direction."""

    def __init__(self, schedule: Any, broken: Break | None = None, capacity: int = 1 << 16) -> None:
        self.schedule = schedule
        self.broken = broken
        self.is_broken = False
        self.passed = {FORTH: 0, BACK: 0}
        one, other = MemoryChannel.pair(schedule, capacity)
        self.source = End(self, one, FORTH)
        self.destination = End(self, other, BACK)

    def room(self, direction: str) -> int | None:
        """How many more bytes pass; None for any number."""
        if self.broken is None or self.broken.direction != direction:
            return None
        return self.broken.passed - self.passed[direction]

    def break_now(self) -> None:
        self.is_broken = True
        assert self.broken is not None
        if self.broken.ending != "silence":
            for end in (self.source, self.destination):
                end.inner.close_write()  # what has passed is read, and then the end


class End:
    """One end, which a migration uses."""

    duplex = True

    def __init__(self, line: BrokenLine, inner: MemoryChannel, direction: str) -> None:
        self.line = line
        self.inner = inner
        self.direction = direction

    def write(self, data: Any) -> None:
        line, data = self.line, bytes(data)
        if not line.is_broken:
            room = line.room(self.direction)
            if room is None or len(data) <= room:
                self._pass(data)
                return
            self._pass(data[:room])
            line.break_now()
            data = data[room:]
            if not line.broken.told:
                return  # it is in the tunnel
        if line.broken.ending == "silence":
            return  # it is in some buffer
        reset = line.broken.ending == "reset"
        raise ChannelError("cannot write", errno=errno.ECONNRESET if reset else errno.EPIPE)

    def _pass(self, data: bytes) -> None:
        if data:
            self.inner.write(data)
            self.line.passed[self.direction] += len(data)

    def read_some(self, limit: int) -> Any:
        line, inner = self.line, self.inner
        if not inner._in.pieces and not inner._in.closed_read:
            line.schedule.wait(self._can_read, "bytes of the line")
        if not line.is_broken or inner._in.pieces:
            return inner.read_some(limit)
        if line.broken.ending == "silence":
            line.schedule.sleep_ns(PATIENCE_NS)
            raise ChannelError("no bytes for a long time", errno=errno.ETIMEDOUT)
        if line.broken.ending == "reset":
            raise ChannelError("cannot read", errno=errno.ECONNRESET)
        return b""

    def _can_read(self) -> bool:
        pipe = self.inner._in
        return self.line.is_broken or bool(pipe.pieces) or pipe.closed_write or pipe.closed_read

    def close_write(self) -> None:
        if not self.line.is_broken:
            self.inner.close_write()

    def close(self) -> None:
        if not self.line.is_broken:
            self.inner.close()
