"""The back-end state blob of virtiofsd: a fast encoder and decoder for the records of :mod:`.records`.

The two long loops are written out by hand; the decoder hands every element of unusual shape to the schema,
which either reads it or names the offset and the field that is wrong. What follows the blob is not looked at
here: ``decode`` says where the blob ends (virtiofsd ignores the rest, we keep an :mod:`.extension` there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from vmsim.errors import StreamError, UsageError

from .postcard import SPEC, U64, Reader, is_utf8, put_varint
from .records import (
    FH,
    FILE_HANDLE,
    HANDLE,
    HANDLES,
    INODE,
    INODES,
    MOUNT_PATHS,
    NEGOTIATED,
    PATH,
    V2,
    FileHandle,
    HandleRecord,
    InodeRecord,
    StateBlob,
)


def encode(blob: StateBlob, ready: Sequence[tuple[int, int, bytes]] = ()) -> bytearray:
    """The blob's bytes, as virtiofsd 1.13.2 would write them; UsageError for values that do not fit.

    ``ready`` are more inodes, in parts that are encoded already: before which of the blob's own they stand,
    how many they are, and their bytes.
    """
    out = bytearray()
    put_varint(out, blob.version)
    put_varint(out, len(blob.inodes) + sum(count for _, count, _ in ready))
    done = 0
    for index, _, body in ready:
        _encode_inodes(out, blob.inodes[done:index])
        out += body
        done = index
    _encode_inodes(out, blob.inodes[done:] if done else blob.inodes)
    U64.encode(out, blob.next_inode)
    _encode_handles(out, blob.handles)
    U64.encode(out, blob.next_handle)
    NEGOTIATED.encode(out, blob.negotiated)
    if blob.version == V2:
        MOUNT_PATHS.encode(out, blob.mount_paths)
    return out


def encode_inodes(inodes: list[InodeRecord]) -> bytearray:
    """An inode vector alone, as it stands in a blob."""
    out = bytearray()
    put_varint(out, len(inodes))
    _encode_inodes(out, inodes)
    return out


def encode_records(inodes: list[InodeRecord]) -> bytes:
    """The same without their number."""
    out = bytearray()
    _encode_inodes(out, inodes)
    return bytes(out)


def _encode_inodes(out: bytearray, inodes: list[InodeRecord]) -> None:
    """Inode records; the shapes Path and FileHandle with small numbers are written out by hand."""
    append = out.append
    for record in inodes:
        value = record.id
        refcount = record.refcount
        location = record.location
        if value < 1 or refcount < 0 or value >> 64 or refcount >> 64 or location not in (PATH, FILE_HANDLE):
            INODE.encode(out, record)
            continue
        while value > 127:
            append(value & 127 | 128)
            value >>= 7
        append(value)
        while refcount > 127:
            append(refcount & 127 | 128)
            refcount >>= 7
        append(refcount)
        append(location)
        if location == PATH:
            value = record.parent
            name = record.name
            if value < 0 or value >> 64 or not (name.isascii() or is_utf8(name)):
                raise UsageError(f"inode {record.id}: no valid parent and UTF-8 name")
            while value > 127:
                append(value & 127 | 128)
                value >>= 7
            append(value)
            size = len(name)
            if size < 128:
                append(size)
            else:
                put_varint(out, size)
            out += name
        else:
            _encode_file_handle(out, record.handle)
        if record.file_handle is None:
            append(0)
        else:
            append(1)
            _encode_file_handle(out, record.file_handle)


def _encode_file_handle(out: bytearray, handle: FileHandle | None) -> None:
    """One file handle; by hand where type and size are small."""
    if handle is None:
        raise UsageError("a file handle location without file handle")
    mnt_id = handle.mnt_id
    raw = handle.handle
    if not (0 <= mnt_id < 1 << 64 and 0 <= handle.handle_type < 64 and len(raw) < 128):
        FH.encode(out, handle)
        return
    while mnt_id > 127:
        out.append(mnt_id & 127 | 128)
        mnt_id >>= 7
    out.append(mnt_id)
    out.append(handle.handle_type << 1)
    out.append(len(raw))
    out += raw


def _encode_handles(out: bytearray, handles: list[HandleRecord]) -> None:
    put_varint(out, len(handles))
    for record in handles:
        HANDLE.encode(out, record)


class KnownRun(Protocol):
    """Consecutive inode records whose bytes are known: their nodeids, ascending, and their bytes."""

    @property
    def ids(self) -> list[int]:
        """The nodeids."""
        ...

    @property
    def body(self) -> bytes:
        """The records as they are encoded."""
        ...


R = TypeVar("R", bound=KnownRun)


def decode(data: bytes) -> tuple[StateBlob, int]:
    """The blob at the start of ``data`` and the offset at which it ends.

    StreamError (StreamTruncated where data is missing) names offset and field.
    """
    none: list[KnownRun] = []
    state, _, end = decode_known(data, none)
    return state, end


def decode_known(data: bytes, runs: Sequence[R]) -> tuple[StateBlob, list[R], int]:
    """The same; those of ``runs`` that stand in the blob as they are are not decoded, and left out of it."""
    reader = Reader(data)
    version = reader.varint(32, "version")
    if version > V2:
        raise StreamError(
            f"unknown variant {version}", offset=0, field="version", spec=SPEC,
            hint="the state was written by a newer back-end; only V1 and V2 are known",
        )
    inodes, found = _decode_inodes(reader, runs)
    next_inode = reader.varint(64, "next_inode")
    handles = HANDLES.decode(reader, "handles")
    next_handle = reader.varint(64, "next_handle")
    negotiated = NEGOTIATED.decode(reader, "negotiated_opts")
    mount_paths = MOUNT_PATHS.decode(reader, "mount_paths") if version == V2 else {}
    blob = StateBlob(inodes, next_inode, handles, next_handle, negotiated, mount_paths, version)
    return blob, found, reader.position


def decode_inodes(data: bytes) -> tuple[list[InodeRecord], int]:
    """An inode vector alone, which must be all of ``data``, and where its first record begins."""
    reader = Reader(data)
    INODES.count(reader, "inodes")
    start, reader.position = reader.position, 0
    none: list[KnownRun] = []
    inodes, _ = _decode_inodes(reader, none)
    if reader.position != len(data):
        raise StreamError("bytes after the inodes", offset=reader.position, field="inodes", spec=SPEC)
    return inodes, start


def _decode_inodes(reader: Reader, runs: Sequence[R]) -> tuple[list[InodeRecord], list[R]]:
    """The inode vector without the runs that stand in it, and these."""
    count = INODES.count(reader, "inodes")
    inodes: list[InodeRecord] = []
    found: list[R] = []
    index = 0
    for run in runs:
        index = _decode_up_to(reader, inodes, index, count, run.ids[0])
        if index + len(run.ids) <= count and reader.data.startswith(run.body, reader.position):
            found.append(run)
            reader.position += len(run.body)
            index += len(run.ids)
    _decode_up_to(reader, inodes, index, count, 1 << 64)
    return inodes, found


def _decode_up_to(reader: Reader, inodes: list[InodeRecord], first: int, count: int, end_id: int) -> int:
    """Records from the ``first`` on, up to one whose nodeid is ``end_id`` or more: its index (or ``count``).

    Path and FileHandle inodes by hand, everything else by the schema. The hand-written part raises IndexError
    for whatever it does not understand, and the schema reads that element once more.
    """
    data = reader.data
    position = reader.position
    append = inodes.append
    make = InodeRecord
    for index in range(first, count):
        start = position
        try:
            node_id = data[position]
            position += 1
            if node_id > 127:
                node_id, position = _longer_varint(data, position, node_id)
            if node_id >= end_id:
                reader.position = start
                return index
            refcount = data[position]
            location = data[position + 1]
            if refcount > 127:
                raise IndexError
            position += 2
            if location == PATH:
                parent = data[position]
                position += 1
                if parent > 127:
                    parent, position = _longer_varint(data, position, parent)
                size = data[position]
                stop = position + 1 + size
                name = data[position + 1 : stop]
                # A slice past the end is cut short silently, but then data[stop] raises.
                verify = data[stop]
                position = stop + 1
                if size > 127 or verify > 1 or not (name.isascii() or is_utf8(name)):
                    raise IndexError
                if verify:
                    handle, position = _short_file_handle(data, position)
                    append(make(node_id, refcount, PATH, parent, name, None, handle))
                else:
                    append(make(node_id, refcount, PATH, parent, name))
            elif location == FILE_HANDLE:
                handle, position = _short_file_handle(data, position)
                if data[position]:
                    raise IndexError
                position += 1
                append(make(node_id, refcount, FILE_HANDLE, 0, b"", handle))
            else:
                raise IndexError
        except IndexError:
            reader.position = start
            record = INODE.decode(reader, f"inodes[{index}]")
            if record.id >= end_id:
                reader.position = start
                return index
            append(record)
            position = reader.position
    reader.position = position
    return count


def _longer_varint(data: bytes, position: int, value: int) -> tuple[int, int]:
    """The varint whose first byte was ``value``, up to four bytes, and where it ends; IndexError beyond.

    Unrolled rather than looped: a loop would do bignum arithmetic on a hostile run of 0xff.
    """
    octet = data[position]
    value += (octet << 7) - 0x80
    if octet > 127:
        position += 1
        octet = data[position]
        value += (octet << 14) - 0x4000
        if octet > 127:
            position += 1
            octet = data[position]
            value += (octet << 21) - 0x200000
            if octet > 127:
                raise IndexError
    return value, position + 1


def _short_file_handle(data: bytes, position: int) -> tuple[FileHandle, int]:
    """A file handle with small numbers, and where it ends; IndexError for any other."""
    mnt_id = data[position]
    position += 1
    if mnt_id > 127:
        mnt_id, position = _longer_varint(data, position, mnt_id)
    kind = data[position]
    size = data[position + 1]
    stop = position + 2 + size
    if kind > 127 or kind & 1 or size > 127 or stop > len(data):
        raise IndexError
    return FileHandle(mnt_id, kind >> 1, data[position + 2 : stop]), stop
