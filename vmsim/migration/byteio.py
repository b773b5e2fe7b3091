"""Counted, buffered byte streams on both ends of a channel, with peeking and bounded reads."""

from __future__ import annotations

from struct import Struct
from typing import Final, Protocol

from vmsim.errors import StreamTruncated
from vmsim.migration.errors import FieldTooLarge

CHUNK_BYTES: Final = 1 << 18
"""How much small writes gather before they are sent."""
READ_BYTES: Final = 1 << 20
"""How much one read of a channel asks for."""

_BE16 = Struct(">H")
_BE32 = Struct(">I")
_BE64 = Struct(">Q")


class ByteSink(Protocol):
    """Whatever takes the bytes of a stream."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take all of ``data``; the caller may change the buffer afterwards."""
        ...


class ByteSource(Protocol):
    """Whatever gives the bytes of a stream."""

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes, stable until the next call; b"" at the end of the stream."""
        ...


class StreamOutput:
    """Gathers small writes and counts bytes; ``offset`` is the position of the next byte."""

    __slots__ = ("_pending", "_sent", "_sink")

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self._pending = bytearray()
        self._sent = 0

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._sent + len(self._pending)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``, a contiguous buffer of bytes."""
        if len(data) >= CHUNK_BYTES >> 2:
            self.flush()
            self._sink.write(data)
            self._sent += len(data)
            return
        self._pending += data
        if len(self._pending) >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything gathered to the channel."""
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            self._sink.write(pending)
            self._sent += len(pending)


class StreamInput:
    """Reads exactly what is asked for and knows where it is.

    Every read names its field for the error message. StreamTruncated if the stream ends first. Memory grows
    with the bytes that arrive, never with a length that the stream only claims.
    """

    __slots__ = ("_base", "_buffer", "_position", "_source")

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._buffer = memoryview(b"")
        self._position = 0
        self._base = 0

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._base + self._position

    def read(self, size_bytes: int, field: str = "") -> bytes:
        """Exactly ``size_bytes`` bytes."""
        position = self._position
        end = position + size_bytes
        if end <= len(self._buffer):
            self._position = end
            return self._buffer[position:end].tobytes()
        start = self.offset
        parts = []
        left = size_bytes
        while left:
            piece = self.available()
            if not len(piece):
                raise StreamTruncated(
                    f"the stream ends {left} bytes before the end of a field of {size_bytes} bytes",
                    offset=start, field=field,
                )
            taken = piece[:left]
            parts.append(taken.tobytes())
            self.skip(len(taken))
            left -= len(taken)
        return b"".join(parts)

    def read_into(self, view: memoryview, field: str = "") -> None:
        """Fill ``view`` from the stream."""
        done = 0
        while done < len(view):
            piece = self.available()[: len(view) - done]
            if not len(piece):
                raise StreamTruncated("the stream ends early", offset=self.offset, field=field)
            view[done : done + len(piece)] = piece
            done += len(piece)
            self.skip(len(piece))

    def available(self) -> memoryview:
        """What is buffered, at least one byte unless the stream has ended; take it with :meth:`skip`."""
        if self._position == len(self._buffer):
            self._base += self._position
            self._position = 0
            self._buffer = memoryview(self._source.read_some(READ_BYTES))
        return self._buffer[self._position :] if self._position else self._buffer

    def skip(self, size_bytes: int) -> None:
        """Consume bytes that :meth:`available` or :meth:`peek` has shown."""
        self._position += size_bytes

    def peek(self, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` bytes without consuming them; fewer only if the stream ends there."""
        while len(self._buffer) - self._position < size_bytes:
            held = self._buffer[self._position :].tobytes()  # stable only until the source is asked again
            self._base += self._position
            self._position = 0
            self._buffer = memoryview(held)
            piece = self._source.read_some(READ_BYTES)
            if not len(piece):
                break
            self._buffer = memoryview(b"".join((held, piece)))
        return self._buffer[self._position : self._position + size_bytes].tobytes()

    def held(self, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` bytes that have arrived and are not consumed; asks for no more."""
        return self._buffer[self._position : self._position + size_bytes].tobytes()

    def at_end(self) -> bool:
        """Whether no byte follows (waits for one, or for the end)."""
        return not len(self.available())

    def u8(self, field: str = "") -> int:
        """One byte."""
        return self.read(1, field)[0]

    def be16(self, field: str = "") -> int:
        """A big-endian 16-bit number."""
        value: int = _BE16.unpack(self.read(2, field))[0]
        return value

    def be32(self, field: str = "") -> int:
        """A big-endian 32-bit number."""
        value: int = _BE32.unpack(self.read(4, field))[0]
        return value

    def be64(self, field: str = "") -> int:
        """A big-endian 64-bit number."""
        value: int = _BE64.unpack(self.read(8, field))[0]
        return value

    def counted_string(self, field: str = "") -> str:
        """A u8 length and that many bytes; latin-1 keeps every byte, so that writing gives the same bytes."""
        return self.read(self.u8(field), field).decode("latin-1")

    def bounded(self, size_bytes: int, limit: int, field: str) -> int:
        """``size_bytes``, a length just read; FieldTooLarge if it exceeds ``limit``."""
        if size_bytes > limit:
            raise FieldTooLarge(
                f"the stream announces {size_bytes} bytes where at most {limit} are allowed",
                offset=self.offset, field=field, limit=limit,
            )
        return size_bytes
