"""Seam S2: the channel that a migration stream goes through, and the one that lies in memory.

Files, sockets, pipes and commands are in :mod:`vmsim.host.channels`; all pass ``tests/contract/channel.py``.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from vmsim.errors import StateError, StreamTruncated
from vmsim.migration.errors import ChannelError
from vmsim.schedule import Schedule

MEMORY_CHANNEL_BYTES: Final = 1 << 20
"""How much an end may write ahead of the reader of the other end."""


class Channel(Protocol):
    """Bytes in order, both ways if ``duplex``.

    All methods raise ChannelError when the other end or the system refuses, and StateError after ``close``.
    """

    duplex: bool
    """Whether the other end can answer (a file cannot)."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over all of ``data``, waiting while there is no room.

        The caller may change the buffer afterwards. If this raises, a single byte was not delivered; of
        longer data the other end may see a beginning.
        """
        ...

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes, waiting for the first; b"" once the other end will write no more.

        The bytes are stable until the next call.
        """
        ...

    def read(self, size_bytes: int) -> bytes:
        """Exactly ``size_bytes``; StreamTruncated if the other end closes first."""
        ...

    def close_write(self) -> None:
        """Write no more; the other end reads b"" once it has read everything. May be called twice."""
        ...

    def finish(self) -> None:
        """Close writing and make it count: a file gets its name, a command must have succeeded."""
        ...

    def close(self) -> None:
        """Give up both directions; what was not finished is discarded. May be called twice."""
        ...


class ChannelBase:
    """What every channel has in common; a subclass moves the bytes."""

    duplex = True

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes; b"" at the end."""
        raise NotImplementedError

    def read(self, size_bytes: int) -> bytes:
        """Exactly ``size_bytes``; StreamTruncated if the other end closes first."""
        parts = []
        left = size_bytes
        while left:
            piece = self.read_some(left)
            if not len(piece):
                raise StreamTruncated(f"the channel ends {left} bytes before the end of {size_bytes}")
            parts.append(bytes(piece))
            left -= len(piece)
        return b"".join(parts)

    def close_write(self) -> None:
        """Write no more."""
        raise NotImplementedError

    def finish(self) -> None:
        """Close writing; nothing else is needed here."""
        self.close_write()


class _Pipe:
    """One direction: pieces on their way."""

    __slots__ = ("closed_read", "closed_write", "pieces", "size_bytes")

    def __init__(self) -> None:
        self.pieces: deque[memoryview] = deque()
        self.size_bytes = 0
        self.closed_read = False
        self.closed_write = False


class MemoryChannel(ChannelBase):
    """One end of a channel inside this process. Whoever has to wait lets the schedule run the other end."""

    def __init__(
        self, name: str, schedule: Schedule, incoming: _Pipe, outgoing: _Pipe, capacity: int
    ) -> None:
        self.name = name
        self._schedule = schedule
        self._in = incoming
        self._out = outgoing
        self._capacity = capacity

    @classmethod
    def pair(
        cls, schedule: Schedule, capacity: int = MEMORY_CHANNEL_BYTES
    ) -> tuple[MemoryChannel, MemoryChannel]:
        """Two connected ends, each able to write ``capacity`` bytes ahead."""
        there, back = _Pipe(), _Pipe()
        source = cls("source", schedule, back, there, capacity)
        return source, cls("destination", schedule, there, back, capacity)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Pass ``data`` to the other end; ChannelError once that is closed."""
        pipe = self._out
        view = memoryview(data)
        changeable = not isinstance(data, bytes)
        done = 0
        while True:
            if pipe.closed_write:
                raise StateError(f"the {self.name}'s end of the channel is closed for writing")
            if pipe.closed_read:
                raise ChannelError("the other end of the channel is closed")
            room = self._capacity - pipe.size_bytes
            if room > 0:
                piece = view[done : done + room]
                pipe.pieces.append(memoryview(bytes(piece)) if changeable else piece)
                pipe.size_bytes += len(piece)
                done += len(piece)
            if done == len(view):
                return
            self._schedule.wait(
                lambda: pipe.size_bytes < self._capacity or pipe.closed_read or pipe.closed_write,
                f"room in the channel from the {self.name}",
            )

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes; b"" once the other end is closed and all is read."""
        pipe = self._in
        if pipe.closed_read:
            raise StateError(f"the {self.name}'s end of the channel is closed")
        if not pipe.pieces and not pipe.closed_write:
            self._schedule.wait(
                lambda: bool(pipe.pieces) or pipe.closed_write or pipe.closed_read,
                f"bytes in the channel to the {self.name}",
            )
        if not pipe.pieces:
            return b""
        piece = pipe.pieces[0]
        if len(piece) > limit:
            pipe.pieces[0] = piece[limit:]
            piece = piece[:limit]
        else:
            pipe.pieces.popleft()
        pipe.size_bytes -= len(piece)
        return piece

    def close_write(self) -> None:
        """Write no more."""
        self._out.closed_write = True

    def close(self) -> None:
        """Give up both directions; what the other end wrote and nobody read is discarded."""
        self._out.closed_write = True
        self._in.closed_read = True
        self._in.pieces.clear()
        self._in.size_bytes = 0
