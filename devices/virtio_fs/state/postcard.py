"""The postcard wire format as virtiofsd uses it: plain values in declaration order, integers as LEB128.

A schema is built from the types below; it encodes into one growing bytearray and decodes with errors that
name the offset and the field. Nothing in the format describes itself, so the schema is the only truth
(reference section 1.1). Loops that must be fast are written out by hand in :mod:`.blob` and fall back on the
schema for everything unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from vmsim.errors import StreamError, StreamTruncated, UsageError

SPEC = "postcard 1.0 wire format"

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
T_co = TypeVar("T_co", covariant=True)


class Reader:
    """A position in a byte string; every refusal is a StreamError with the offset and the field."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def byte(self, field: str) -> int:
        """One raw byte."""
        position = self.position
        if position >= len(self.data):
            raise StreamTruncated("state ends", offset=position, field=field, spec=SPEC)
        self.position = position + 1
        return self.data[position]

    def take(self, size_bytes: int, field: str) -> bytes:
        """``size_bytes`` raw bytes."""
        start = self.position
        if size_bytes > len(self.data) - start:
            raise StreamTruncated(
                f"{size_bytes} bytes announced, {len(self.data) - start} left",
                offset=start, field=field, spec=SPEC,
            )
        self.position = start + size_bytes
        return self.data[start : start + size_bytes]

    def varint(self, bits: int, field: str) -> int:
        """A LEB128 integer of at most ``bits`` bits; overlong forms are fine, overflowing ones are not."""
        start = self.position
        value = 0
        last = (bits + 6) // 7 - 1
        for index in range(last + 1):
            octet = self.byte(field)
            value |= (octet & 0x7F) << (7 * index)
            if octet < 0x80:
                if value >> bits:
                    break
                return value
        raise StreamError(f"integer does not fit {bits} bits", offset=start, field=field, spec=SPEC)


class Codec(Protocol[T_co]):
    """One postcard type; ``minimum`` is the least number of bytes a value takes."""

    @property
    def minimum(self) -> int:
        """The least number of bytes that a value takes."""
        ...

    def encode(self, out: bytearray, value: Any) -> None:
        """Append ``value``."""
        ...

    def decode(self, reader: Reader, field: str) -> T_co:
        """Read one value; StreamError names ``field``."""
        ...


def put_varint(out: bytearray, value: int) -> None:
    """Append ``value`` in its shortest LEB128 form."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


class Unsigned:
    """u16, u32, u64 and usize."""

    __slots__ = ("bits", "minimum")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.minimum = 1

    def encode(self, out: bytearray, value: int) -> None:
        """Append ``value``; UsageError if it is out of range."""
        if value < 0 or value >> self.bits:
            raise UsageError(f"{value} is no u{self.bits}", spec=SPEC)
        put_varint(out, value)

    def decode(self, reader: Reader, field: str) -> int:
        """Read one integer."""
        return reader.varint(self.bits, field)


class Signed:
    """i16, i32 and i64: zigzag, then as the unsigned type."""

    __slots__ = ("bits", "minimum")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.minimum = 1

    def encode(self, out: bytearray, value: int) -> None:
        """Append ``value``; UsageError if it is out of range."""
        if not -(1 << self.bits - 1) <= value < 1 << self.bits - 1:
            raise UsageError(f"{value} is no i{self.bits}", spec=SPEC)
        put_varint(out, value << 1 if value >= 0 else (~value << 1) | 1)

    def decode(self, reader: Reader, field: str) -> int:
        """Read one integer."""
        raw = reader.varint(self.bits, field)
        return (raw >> 1) ^ -(raw & 1)


class Bool:
    """One byte, 00 or 01."""

    minimum = 1

    def encode(self, out: bytearray, value: bool) -> None:
        """Append ``value``."""
        out.append(1 if value else 0)

    def decode(self, reader: Reader, field: str) -> bool:
        """Read one bool; any byte but 00 and 01 is an error."""
        octet = reader.byte(field)
        if octet > 1:
            raise StreamError(f"bool is {octet:#04x}", offset=reader.position - 1, field=field, spec=SPEC)
        return octet == 1


class Bytes:
    """Vec<u8>: a count and raw bytes; longer than ``maximum`` is refused."""

    __slots__ = ("maximum", "minimum")

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.minimum = 1

    def encode(self, out: bytearray, value: bytes) -> None:
        """Append ``value``; UsageError if it is too long."""
        if len(value) > self.maximum:
            raise UsageError(f"{len(value)} bytes where {self.maximum} fit", spec=SPEC)
        put_varint(out, len(value))
        out += value

    def decode(self, reader: Reader, field: str) -> bytes:
        """Read one byte string."""
        start = reader.position
        size_bytes = reader.varint(64, field)
        data = reader.take(size_bytes, field)
        if size_bytes > self.maximum:
            raise StreamError(
                f"{size_bytes} bytes where {self.maximum} fit", offset=start, field=field, spec=SPEC
            )
        return data


class Text:
    """String: a byte count and UTF-8. Values are bytes (file names are bytes), checked to be UTF-8."""

    minimum = 1

    def encode(self, out: bytearray, value: bytes) -> None:
        """Append ``value``; UsageError unless it is UTF-8."""
        if not is_utf8(value):
            raise UsageError(f"{value!r} is not UTF-8", spec=SPEC)
        put_varint(out, len(value))
        out += value

    def decode(self, reader: Reader, field: str) -> bytes:
        """Read one string as its UTF-8 bytes."""
        data = reader.take(reader.varint(64, field), field)
        if not is_utf8(data):
            start = reader.position - len(data)
            raise StreamError("string is not UTF-8", offset=start, field=field, spec=SPEC)
        return data


def is_utf8(value: bytes) -> bool:
    """Whether ``value`` is strict UTF-8."""
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class Option(Generic[T]):
    """00, or 01 and the value."""

    __slots__ = ("inner", "minimum")

    def __init__(self, inner: Codec[T]) -> None:
        self.inner = inner
        self.minimum = 1

    def encode(self, out: bytearray, value: T | None) -> None:
        """Append ``value``."""
        if value is None:
            out.append(0)
        else:
            out.append(1)
            self.inner.encode(out, value)

    def decode(self, reader: Reader, field: str) -> T | None:
        """Read one optional value."""
        octet = reader.byte(field)
        if octet == 0:
            return None
        if octet != 1:
            start = reader.position - 1
            raise StreamError(f"option tag is {octet:#04x}", offset=start, field=field, spec=SPEC)
        return self.inner.decode(reader, field)


class Vector(Generic[T]):
    """Vec<T>: a count and the elements; a count that cannot fit into what is left is refused at once."""

    __slots__ = ("inner", "maximum", "minimum")

    def __init__(self, inner: Codec[T], maximum: int) -> None:
        self.inner = inner
        self.maximum = maximum
        self.minimum = 1

    def count(self, reader: Reader, field: str) -> int:
        """Read and check the element count."""
        start = reader.position
        count = reader.varint(64, field)
        left = len(reader.data) - reader.position
        if count * self.inner.minimum > left:
            raise StreamTruncated(
                f"{count} elements announced, {left} bytes left", offset=start, field=field, spec=SPEC
            )
        if count > self.maximum:
            raise StreamError(
                f"{count} elements where {self.maximum} are allowed", offset=start, field=field, spec=SPEC
            )
        return count

    def encode(self, out: bytearray, value: Sequence[T]) -> None:
        """Append ``value``."""
        put_varint(out, len(value))
        for element in value:
            self.inner.encode(out, element)

    def decode(self, reader: Reader, field: str) -> list[T]:
        """Read one vector."""
        count = self.count(reader, field)
        return [self.inner.decode(reader, f"{field}[{index}]") for index in range(count)]


class Map(Generic[K, V]):
    """A count and key, value pairs; order is the writer's, a repeated key's last value counts (HashMap)."""

    __slots__ = ("minimum", "pairs")

    def __init__(self, key: Codec[K], value: Codec[V], maximum: int) -> None:
        self.pairs: Vector[tuple[K, V]] = Vector(Record(tuple, (("key", key), ("value", value))), maximum)
        self.minimum = 1

    def encode(self, out: bytearray, value: dict[K, V]) -> None:
        """Append ``value`` in its own order."""
        self.pairs.encode(out, list(value.items()))

    def decode(self, reader: Reader, field: str) -> dict[K, V]:
        """Read one map."""
        return dict(self.pairs.decode(reader, field))


class Record(Generic[T]):
    """A struct: its fields in order. ``make`` takes the list of values, ``split`` gives them back."""

    __slots__ = ("fields", "make", "minimum", "split")

    def __init__(
        self, make: Callable[[list[Any]], T], fields: Sequence[tuple[str, Codec[Any]]],
        split: Callable[[T], Sequence[Any]] = lambda value: value,  # type: ignore[assignment,return-value]
    ) -> None:
        self.make = make
        self.fields = tuple(fields)
        self.split = split
        self.minimum = sum(codec.minimum for _, codec in self.fields)

    def encode(self, out: bytearray, value: T) -> None:
        """Append ``value``."""
        for (_, codec), element in zip(self.fields, self.split(value), strict=True):
            codec.encode(out, element)

    def decode(self, reader: Reader, field: str) -> T:
        """Read one record."""
        prefix = field + "." if field else ""
        return self.make([codec.decode(reader, prefix + name) for name, codec in self.fields])


class Variant(Generic[T]):
    """An enum: a varint(u32) discriminant and that variant's fields; a value is (discriminant, fields)."""

    __slots__ = ("minimum", "rows")

    def __init__(self, rows: Sequence[tuple[str, Codec[Any]]]) -> None:
        self.rows = tuple(rows)
        self.minimum = 1

    def encode(self, out: bytearray, value: tuple[int, Any]) -> None:
        """Append ``value``."""
        put_varint(out, value[0])
        self.rows[value[0]][1].encode(out, value[1])

    def decode(self, reader: Reader, field: str) -> tuple[int, Any]:
        """Read one value; a discriminant that no row has is an error."""
        start = reader.position
        tag = reader.varint(32, field)
        if tag >= len(self.rows):
            raise StreamError(f"unknown variant {tag}", offset=start, field=field, spec=SPEC)
        name, codec = self.rows[tag]
        return tag, codec.decode(reader, f"{field}.{name}" if field else name)


U64 = Unsigned(64)
U32 = Unsigned(32)
I32 = Signed(32)
BOOL = Bool()
TEXT = Text()
UNIT: Record[tuple[()]] = Record(lambda values: (), ())
