"""The back-end state blob of virtiofsd: a fast encoder and decoder for the records of :mod:`.records`.

The two long loops are written out by hand; the decoder hands every element of unusual shape to the schema,
which either reads it or names the offset and the field that is wrong. What follows the blob is not looked at
here: ``decode`` says where the blob ends (virtiofsd ignores the rest, we keep an :mod:`.extension` there).
"""

from __future__ import annotations

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


def encode(blob: StateBlob) -> bytearray:
    """The blob's bytes, as virtiofsd 1.13.2 would write them; UsageError for values that do not fit."""
    out = bytearray()
    put_varint(out, blob.version)
    _encode_inodes(out, blob.inodes)
    U64.encode(out, blob.next_inode)
    _encode_handles(out, blob.handles)
    U64.encode(out, blob.next_handle)
    NEGOTIATED.encode(out, blob.negotiated)
    if blob.version == V2:
        MOUNT_PATHS.encode(out, blob.mount_paths)
    return out


def _encode_inodes(out: bytearray, inodes: list[InodeRecord]) -> None:
    """The inode vector; the shapes Path and FileHandle with small numbers are written out by hand."""
    put_varint(out, len(inodes))
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


def decode(data: bytes) -> tuple[StateBlob, int]:
    """The blob at the start of ``data`` and the offset at which it ends.

    StreamError (StreamTruncated where data is missing) names offset and field.
    """
    reader = Reader(data)
    version = reader.varint(32, "version")
    if version > V2:
        raise StreamError(
            f"unknown variant {version}", offset=0, field="version", spec=SPEC,
            hint="the state was written by a newer back-end; only V1 and V2 are known",
        )
    inodes = _decode_inodes(reader)
    next_inode = reader.varint(64, "next_inode")
    handles = HANDLES.decode(reader, "handles")
    next_handle = reader.varint(64, "next_handle")
    negotiated = NEGOTIATED.decode(reader, "negotiated_opts")
    mount_paths = MOUNT_PATHS.decode(reader, "mount_paths") if version == V2 else {}
    blob = StateBlob(inodes, next_inode, handles, next_handle, negotiated, mount_paths, version)
    return blob, reader.position


def _decode_inodes(reader: Reader) -> list[InodeRecord]:
    """The inode vector: Path and FileHandle inodes by hand, everything else by the schema.

    The hand-written part raises IndexError for whatever it does not understand, and the schema reads that
    element once more.
    """
    count = INODES.count(reader, "inodes")
    data = reader.data
    position = reader.position
    inodes: list[InodeRecord] = []
    append = inodes.append
    make = InodeRecord
    for index in range(count):
        start = position
        try:
            node_id = data[position]
            position += 1
            if node_id > 127:
                node_id, position = _longer_varint(data, position, node_id)
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
            append(INODE.decode(reader, f"inodes[{index}]"))
            position = reader.position
    reader.position = position
    return inodes


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
