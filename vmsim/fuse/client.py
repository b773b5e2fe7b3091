"""The client's half of the codec: requests to bytes, reply bytes to typed records. Knows no virtio.

    encode(op.GETATTR, unique, nodeid, uid, gid, pid, (0, 0, 0))         -> bytes
    encode(op.WRITE, unique, nodeid, uid, gid, pid, (...), data_size=n)  -> header and arguments; the data
                                                                            follow in buffers of their own
    decode(op.GETATTR, reply, unique).body                               -> AttrOut

``reply_room`` says how many writable bytes a request needs. Names are bytes without NUL.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from vmsim.errors import PeerError
from vmsim.fuse.abi.flags import EXT_GROUPS
from vmsim.fuse.abi.headers import (
    EXT_HEADER,
    IN_HEADER,
    OUT_HEADER,
    SECCTX,
    SECCTX_HEADER,
    SUPP_GROUPS,
    rec_align,
)
from vmsim.fuse.abi.replies import (
    DIRENT,
    ENTRY_OUT,
    INIT_OUT,
    IOCTL_OUT,
    Dirent,
    EntryOut,
    InitOut,
    IoctlOut,
)
from vmsim.fuse.opcodes import BY_NUMBER, INIT, IOCTL, Opcode, Reply
from vmsim.limits import PATH_MAX

IN_HEADER_SIZE: Final = IN_HEADER.size
OUT_HEADER_SIZE: Final = OUT_HEADER.size


class Answer(NamedTuple):
    """A decoded reply: ``error`` is 0 or a positive errno; ``body`` a record, bytes, or None."""

    error: int
    body: Any


def request_struct(row: Opcode, compat: bool = False) -> struct.Struct:
    """Header and fixed arguments of ``row`` as one struct, for packing both at once."""
    args = row.compat_args if compat and row.compat_args is not None else row.args
    return struct.Struct(IN_HEADER.struct.format + (args.struct.format[1:] if args is not None else ""))


REQUEST_STRUCTS: Final = {row.number: request_struct(row) for row in BY_NUMBER.values()}
"""Header and arguments by opcode."""

UNKNOWN_REQUEST: Final = IN_HEADER.struct
"""Of an opcode that has no row."""

_COMPAT_STRUCTS: Final = {
    row.number: request_struct(row, compat=True) for row in BY_NUMBER.values() if row.compat_args is not None
}


def encode(
    opcode: int, unique: int, nodeid: int, uid: int, gid: int, pid: int,
    args: Sequence[Any] = (), names: Sequence[bytes] = (), data: bytes = b"", *,
    data_size: int = 0, extensions: bytes = b"", compat: bool = False,
) -> bytes:  # fmt: skip
    """A request: header, arguments, names, ``data``, extensions.

    ``data_size`` more bytes are counted in the header's length but left to the caller (zero copy; not
    together with extensions). ``compat`` takes the row's older argument struct. An opcode without row (of a
    newer kernel) has no arguments but ``data``. struct.error or KeyError if the arguments do not fit the
    row: that is the caller's bug.
    """
    packer = _COMPAT_STRUCTS[opcode] if compat else REQUEST_STRUCTS.get(opcode, UNKNOWN_REQUEST)
    if not (names or data or extensions):
        return packer.pack(packer.size + data_size, opcode, unique, nodeid, uid, gid, pid, 0, 0, *args)
    tail = b"".join([name + b"\0" for name in names]) + data + extensions
    length = packer.size + len(tail) + data_size
    return packer.pack(length, opcode, unique, nodeid, uid, gid, pid, len(extensions) >> 3, 0, *args) + tail


def encode_extensions(
    groups: Sequence[int] = (), security: Sequence[tuple[bytes, bytes]] | None = None
) -> bytes:
    """The extension records of a creating request; ``security`` None leaves its record out."""
    pieces = []
    if security is not None:
        body = b""
        for name, value in security:
            context = SECCTX.pack(len(value), 0) + name + b"\0" + value
            body += context.ljust(rec_align(len(context)), b"\0")
        pieces.append(SECCTX_HEADER.pack(SECCTX_HEADER.size + len(body), len(security)) + body)
    if groups:
        body = SUPP_GROUPS.pack(len(groups)) + struct.pack(f"<{len(groups)}I", *groups)
        size = rec_align(EXT_HEADER.size + len(body))
        pieces.append((EXT_HEADER.pack(size, EXT_GROUPS) + body).ljust(size, b"\0"))
    return b"".join(pieces)


def reply_room(opcode: int, size_bytes: int = 0) -> int:
    """Writable bytes that a request needs; ``size_bytes`` is what READ, READDIR, GETXATTR or IOCTL ask for.

    0 when there is no reply. READLINK needs PATH_MAX unless told otherwise.
    """
    row = BY_NUMBER[opcode]
    if row.reply is Reply.NONE:
        return 0
    body = max(size_bytes, row.record_size)
    if opcode == IOCTL:
        body = IOCTL_OUT.size + size_bytes
    elif row.name == "READLINK" and not size_bytes:
        body = PATH_MAX
    return OUT_HEADER_SIZE + body


def decode(opcode: int, reply: bytes | memoryview, unique: int, *, size_query: bool = False) -> Answer:
    """A reply as it was written (exactly the used length), checked against its request.

    ``size_query``: GETXATTR or LISTXATTR with size 0, answered with a record. PeerError when the reply is not
    one: too short, lengths that disagree, another unique, an errno out of range.
    """
    row = BY_NUMBER[opcode]
    if row.reply is Reply.NONE:
        return Answer(0, None)
    if len(reply) < OUT_HEADER_SIZE:
        raise PeerError(f"{row.name}: reply of {len(reply)} bytes has no header", spec="fuse_out_header")
    length, error, answered = OUT_HEADER.unpack_from(reply)
    if length != len(reply) or answered != unique or not -4096 < error <= 0:
        raise PeerError(
            f"{row.name}: reply says length {length}, error {error}, unique {answered}; "
            f"{len(reply)} bytes came for unique {unique}", spec="fuse_out_header")  # fmt: skip
    if error:
        return Answer(-error, None)
    return Answer(0, _decode_body(row, reply, size_query))


def _decode_body(row: Opcode, reply: bytes | memoryview, size_query: bool) -> Any:
    size = len(reply) - OUT_HEADER_SIZE
    if row.number == INIT:
        return decode_init(bytes(reply[OUT_HEADER_SIZE:]))
    if row.reply is Reply.RECORD or (row.reply is Reply.BYTES and size_query and row.record is not None):
        assert row.record is not None
        if size != row.record.size:
            raise PeerError(f"{row.name}: {size} bytes of reply, not {row.record.size}", spec=row.record.name)
        return row.record.unpack(reply, OUT_HEADER_SIZE)
    if row.reply is Reply.EMPTY:
        if size:
            raise PeerError(f"{row.name}: {size} bytes of reply where none belong")
        return None
    body = bytes(reply[OUT_HEADER_SIZE:])
    return decode_ioctl(body) if row.number == IOCTL else body


def decode_init(body: bytes) -> InitOut:
    """The INIT reply, also in the older sizes of 8 and 24 bytes; what is missing is 0."""
    if len(body) not in (8, 24, INIT_OUT.size):
        raise PeerError(f"INIT: reply of {len(body)} bytes", spec="fuse_init_out")
    return INIT_OUT.unpack(body.ljust(INIT_OUT.size, b"\0"))


def decode_ioctl(body: bytes) -> tuple[IoctlOut, bytes]:
    """The IOCTL reply: its record and the data."""
    if len(body) < IOCTL_OUT.size:
        raise PeerError(f"IOCTL: reply of {len(body)} bytes", spec="fuse_ioctl_out")
    return IOCTL_OUT.unpack(body), body[IOCTL_OUT.size :]


def decode_dirents(body: bytes) -> Iterator[tuple[Dirent, bytes]]:
    """The entries of a READDIR reply with their names."""
    position = 0
    while position < len(body):
        dirent, name, position = _dirent(body, position)
        yield dirent, name


def decode_direntplus(body: bytes) -> Iterator[tuple[EntryOut, Dirent, bytes]]:
    """The entries of a READDIRPLUS reply; nodeid 0 was not looked up."""
    position = 0
    while position < len(body):
        if len(body) - position < ENTRY_OUT.size:
            raise PeerError("READDIRPLUS: an entry is cut", spec="fuse_direntplus")
        entry = ENTRY_OUT.unpack(body, position)
        dirent, name, position = _dirent(body, position + ENTRY_OUT.size)
        yield entry, dirent, name


def _dirent(body: bytes, position: int) -> tuple[Dirent, bytes, int]:
    if len(body) - position < DIRENT.size:
        raise PeerError("READDIR: an entry is cut", spec="fuse_dirent")
    dirent = DIRENT.unpack(body, position)
    start = position + DIRENT.size
    end = position + rec_align(DIRENT.size + dirent.namelen)
    name = body[start : start + dirent.namelen]
    if end > len(body) or not name or b"/" in name or b"\0" in name:
        raise PeerError(f"READDIR: bad entry at {position}", spec="fuse_dirent")
    return dirent, name, end
