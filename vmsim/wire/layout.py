"""Fixed byte layouts, declared once as a NamedTuple whose field types carry the wire type.

    class ForgetIn(NamedTuple):
        "FUSE_FORGET's arguments."
        nlookup: U64

    FORGET_IN = Layout(ForgetIn)           # little-endian; Layout(ForgetIn, ">") for streams
    FORGET_IN.pack(1); FORGET_IN.unpack(view, offset).nlookup

The one row per field drives packing, printing and the tests.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:
    from typing_extensions import Buffer

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
I8 = Annotated[int, "b"]
I16 = Annotated[int, "h"]
I32 = Annotated[int, "i"]
I64 = Annotated[int, "q"]
# A byte array of n bytes is written Annotated[bytes, "36s"]; explicit padding Annotated[bytes, "4s"].

R = TypeVar("R", bound=tuple[Any, ...])


class Field(NamedTuple):
    """One field of a layout."""

    name: str
    format: str
    offset: int
    size: int


class Layout(Generic[R]):
    """Packs and unpacks one fixed-size record; ``size`` is in bytes, ``fields`` says where each field lies.

    ``pack``, ``pack_into`` and ``unpack_from`` are the compiled struct's own methods (raw tuples, the fast
    path); ``unpack`` returns the typed record.
    """

    __slots__ = ("_make", "fields", "name", "pack", "pack_into", "record", "size", "struct", "unpack_from")

    def __init__(self, record: type[R], byte_order: str = "<") -> None:
        hints = get_type_hints(record, include_extras=True)
        names: tuple[str, ...] = record._fields  # type: ignore[attr-defined]
        formats = [get_args(hints[name])[1] for name in names]
        self.name = record.__name__
        self.record = record
        self.struct = struct.Struct(byte_order + "".join(formats))
        self.size = self.struct.size
        self.pack = self.struct.pack
        self.pack_into = self.struct.pack_into
        self.unpack_from = self.struct.unpack_from
        self._make: Any = record._make  # type: ignore[attr-defined]
        fields = []
        offset = 0
        for name, fmt in zip(names, formats, strict=True):
            size = struct.calcsize(byte_order + fmt)
            fields.append(Field(name, fmt, offset, size))
            offset += size
        self.fields = tuple(fields)

    def unpack(self, buffer: Buffer, offset: int = 0) -> R:
        """The record at ``offset``; struct.error if the buffer is too short."""
        record: R = self._make(self.unpack_from(buffer, offset))
        return record

    def pack_record(self, record: R) -> bytes:
        """The record's bytes."""
        return self.pack(*record)

    def __repr__(self) -> str:
        return f"Layout({self.name}, {self.size} bytes)"
