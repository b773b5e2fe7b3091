"""Bytes that are read by place, and a cursor that reads them in order through a window."""

from __future__ import annotations

from struct import Struct
from typing import Final, Protocol

from vmsim.errors import StreamTruncated

AHEAD_BYTES: Final = 1 << 16
"""How much is read at least where pages are looked at one by one."""
WINDOW_BYTES: Final = 1 << 20
"""How much a cursor holds at a time."""

_BE16 = Struct(">H")
_BE32 = Struct(">I")
_BE64 = Struct(">Q")


class Bytes(Protocol):
    """A file, or what stands for one."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` bytes from ``offset`` on; fewer only at the end."""
        ...


class MemoryBytes:
    """Bytes that are in memory anyway."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """The slice."""
        return self._data[offset : offset + size_bytes]


class Ahead:
    """``source``, read a little further than asked for: pages mostly follow one another."""

    __slots__ = ("_base", "_held", "size", "source")

    def __init__(self, source: Bytes) -> None:
        self.source = source
        self.size = source.size
        self._held = b""
        self._base = 0

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """As the source."""
        at = offset - self._base
        if at < 0 or at + size_bytes > len(self._held):
            self._held = self.source.read_at(offset, max(size_bytes, AHEAD_BYTES))
            self._base, at = offset, 0
        return self._held[at : at + size_bytes]


class Cursor:
    """A position in ``source``; every read names its field, StreamTruncated if the source ends first."""

    __slots__ = ("_base", "_window", "offset", "source")

    def __init__(self, source: Bytes, offset: int = 0) -> None:
        self.source = source
        self.offset = offset
        self._window = b""
        self._base = 0

    def window(self, size_bytes: int) -> tuple[bytes, int]:
        """A buffer and the index of the present position in it; it holds ``size_bytes`` more if there are."""
        at = self.offset - self._base
        if at < 0 or at + size_bytes > len(self._window):
            self._window = self.source.read_at(self.offset, max(size_bytes, WINDOW_BYTES))
            self._base = self.offset
            at = 0
        return self._window, at

    def peek(self, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` bytes without consuming them."""
        window, at = self.window(size_bytes)
        return window[at : at + size_bytes]

    def read(self, size_bytes: int, field: str = "") -> bytes:
        """Exactly ``size_bytes`` bytes. What a stream only claims is compared with the source's size
        first.
        """
        left = self.source.size - self.offset
        if size_bytes > left:
            raise StreamTruncated(
                f"the file ends {size_bytes - max(left, 0)} bytes before the end of a field of"
                f" {size_bytes} bytes",
                offset=self.offset, field=field,
            )  # fmt: skip
        window, at = self.window(size_bytes)
        data = window[at : at + size_bytes]
        if len(data) < size_bytes:
            raise StreamTruncated("the file became shorter", offset=self.offset, field=field)
        self.offset += size_bytes
        return data

    def skip(self, size_bytes: int, field: str = "") -> None:
        """Pass over bytes that have to be there."""
        if size_bytes > self.source.size - self.offset:
            raise StreamTruncated(
                f"the file ends inside a field of {size_bytes} bytes", offset=self.offset, field=field
            )
        self.offset += size_bytes

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
        """A u8 length and that many bytes, as latin-1."""
        return self.read(self.u8(field), field).decode("latin-1")

    def at_end(self) -> bool:
        """Whether no byte follows."""
        return self.offset >= self.source.size
