"""What virtiofsd's blob has no room for, in a versioned section after the blob's end.

virtiofsd ignores what follows its blob, so a state with this section still loads there. A state without it
(from virtiofsd, or saved with ``extension=False``) loads here with the defaults of
:func:`.negotiation.assumed`. ::

    blob | magic 8 | version u32 | crc32 u32 | length u64 | msgpack of Extension (length bytes)

Little-endian. The checksum covers the msgpack bytes; nothing may follow them.
"""

from __future__ import annotations

import stat
import zlib
from typing import Annotated, NamedTuple, TypeAlias

import msgspec

from vmsim.errors import StreamError, StreamTruncated
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.limits import (
    LOCK_RANGES_MAX,
    LOCK_WAITERS_MAX,
    NAME_MAX,
    PATH_MAX,
    STATE_EXTENTS_MAX,
    STATE_HANDLES_MAX,
    STATE_INODES_MAX,
    STATE_UNLINKED_MAX,
    UNLINKED_CONTENT_MAX,
    XATTR_SIZE_MAX,
    XATTRS_MAX,
)
from vmsim.wire.layout import U32, U64, Layout

from .options import Mode

MAGIC = b"\x89vmsim\r\n"
"""Begins the section; no text and no postcard blob of virtiofsd continues like this by chance."""

VERSION = 1
SPEC = "vmsim state extension"

Word: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Int32: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
Name: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1, max_length=NAME_MAX)]
Xattr: TypeAlias = tuple[Name, Annotated[bytes, msgspec.Meta(max_length=XATTR_SIZE_MAX)]]
Extent: TypeAlias = tuple[Size, bytes]


class Header(NamedTuple):
    """What precedes the msgpack bytes."""

    magic: Annotated[bytes, "8s"]
    version: U32
    checksum: U32
    length: U64


HEADER = Layout(Header)


class HandleExtra(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """An open file's effective flags and those that the guest asked for (defects D3 and D4 of virtiofsd)."""

    id: Word
    effective_flags: Int32
    guest_flags: Int32


class PosixLock(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A byte range that the guest has locked: ``end`` inclusive, ``kind`` F_RDLCK or F_WRLCK."""

    inode: Word
    owner: Word
    start: Size
    end: Size
    kind: Annotated[int, msgspec.Meta(ge=0, le=1)]
    pid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class Flock(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A whole-file lock of a handle: ``kind`` LOCK_SH or LOCK_EX."""

    fh: Word
    kind: Annotated[int, msgspec.Meta(ge=1, le=2)]


class Anonymous(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An unlinked file that the guest still uses: attributes, and the data that is no hole.

    ``flags`` are those of FS_IOC_GETFLAGS. ``ino``, ``ctime_ns`` and ``birth_ns`` are what the guest was told
    (0: unknown), ``blocks`` its sectors.
    """

    id: Word
    mode: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    gid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    rdev: Word = 0
    size: Size = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    xattrs: Annotated[list[Xattr], msgspec.Meta(max_length=XATTRS_MAX)] = []
    extents: Annotated[list[Extent], msgspec.Meta(max_length=STATE_EXTENTS_MAX)] = []
    target: Annotated[bytes, msgspec.Meta(max_length=PATH_MAX)] = b""
    flags: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    ino: Word = 0
    ctime_ns: int = 0
    birth_ns: int = 0
    blocks: Size = 0


class ToldOf(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What the guest is told of an inode that an earlier migration made anew (:mod:`..passthrough.told`)."""

    id: Word
    ino: Word
    since_ns: int
    ctime_ns: int
    birth_ns: int


class RawName(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The place of an inode whose name is not UTF-8, which the blob can only call Invalid."""

    id: Word
    parent: Word
    name: Name


class Loss(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """An inode that the source knew it could not carry, and why."""

    id: Word
    reason: str


class ModeInfo(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How the state was collected; for reports."""

    mode: Mode = "find-paths"
    verify_handles: bool = False
    confirm_paths: bool = False


class Extension(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Version 1 of the section.

    Generations are not in it: nodeids are never reused, so all are 0. ``waiting`` are the uniques of requests
    that wait for a lock; the front-end parks and resubmits them. ``stale`` are inodes that were gone at the
    source already, and that nobody had open: the guest gets ESTALE for them there and here.
    """

    negotiated: NegotiatedState = NegotiatedState()
    info: ModeInfo = msgspec.field(default_factory=ModeInfo)
    handles: Annotated[list[HandleExtra], msgspec.Meta(max_length=STATE_HANDLES_MAX)] = []
    locks: Annotated[list[PosixLock], msgspec.Meta(max_length=LOCK_RANGES_MAX)] = []
    flocks: Annotated[list[Flock], msgspec.Meta(max_length=STATE_HANDLES_MAX)] = []
    waiting: Annotated[list[Word], msgspec.Meta(max_length=LOCK_WAITERS_MAX)] = []
    anonymous: Annotated[list[Anonymous], msgspec.Meta(max_length=STATE_UNLINKED_MAX)] = []
    raw_names: Annotated[list[RawName], msgspec.Meta(max_length=STATE_INODES_MAX)] = []
    losses: Annotated[list[Loss], msgspec.Meta(max_length=STATE_INODES_MAX)] = []
    stale: Annotated[list[Word], msgspec.Meta(max_length=STATE_INODES_MAX)] = []
    told: Annotated[list[ToldOf], msgspec.Meta(max_length=STATE_UNLINKED_MAX)] = []
    numbers: Annotated[list[Word], msgspec.Meta(max_length=STATE_UNLINKED_MAX)] = []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Extension)


def encode(extension: Extension) -> bytes:
    """The section's bytes, header included."""
    payload = _encoder.encode(extension)
    return HEADER.pack(MAGIC, VERSION, zlib.crc32(payload), len(payload)) + payload


def decode(data: bytes, offset: int) -> Extension | None:
    """The section at ``offset``, where the blob ends; None if something else or nothing follows the blob.

    StreamError names offset and field of what is wrong in a section that begins with our magic.
    """
    start = data[offset : offset + len(MAGIC)]
    if start != MAGIC:
        if len(start) > 1 and MAGIC.startswith(start):
            raise StreamTruncated("state ends", offset=len(data), field="extension.magic", spec=SPEC)
        return None
    if len(data) - offset < HEADER.size:
        raise StreamTruncated("state ends", offset=len(data), field="extension.header", spec=SPEC)
    header = HEADER.unpack(data, offset)
    if not 0 < header.version <= VERSION:
        raise StreamError(
            f"version {header.version} is not known, only up to {VERSION}", offset=offset + 8,
            field="extension.version", spec=SPEC,
            hint="load the state with the vmsim that wrote it, or save it without the extension",
        )
    begin = offset + HEADER.size
    left = len(data) - begin
    if header.length > left:
        raise StreamTruncated(
            f"{header.length} bytes announced, {left} left",
            offset=offset + 16, field="extension.length", spec=SPEC,
        )
    if header.length < left:
        raise StreamError(
            f"{left - header.length} bytes too many",
            offset=begin + header.length, field="extension", spec=SPEC,
        )
    payload = memoryview(data)[begin:]
    if zlib.crc32(payload) != header.checksum:
        raise StreamError("checksum is wrong", offset=offset + 12, field="extension.checksum", spec=SPEC)
    try:
        extension = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StreamError(str(error), offset=begin, field="extension", spec=SPEC) from None
    _check(extension, begin)
    return extension


def _check(extension: Extension, offset: int) -> None:
    """What the types do not say: bounds of counts and contents, and the sense of the values."""

    def refuse(field: str, message: str) -> StreamError:
        return StreamError(message, offset=offset, field=f"extension.{field}", spec=SPEC)

    content = 0
    for file in extension.anonymous:
        position = 0
        for begin, data in file.extents:
            if begin < position or begin + len(data) > file.size:
                raise refuse("anonymous.extents", f"inode {file.id}: extents overlap or leave the file")
            position = begin + len(data)
            content += len(data)
        if file.extents and not stat.S_ISREG(file.mode):
            raise refuse("anonymous.mode", f"inode {file.id}: only a regular file has contents")
        if b"\0" in file.target or any(b"\0" in name for name, _ in file.xattrs):
            raise refuse("anonymous", f"inode {file.id}: a NUL in a symlink's target or an attribute's name")
    if content > UNLINKED_CONTENT_MAX:
        raise refuse("anonymous.extents", f"{content} bytes where {UNLINKED_CONTENT_MAX} are allowed")
    for raw in extension.raw_names:
        if b"/" in raw.name or b"\0" in raw.name or raw.name in (b".", b".."):
            raise refuse("raw_names.name", f"inode {raw.id}: {raw.name!r} is no file name")
    for lock in extension.locks:
        if lock.start > lock.end:
            raise refuse("locks.start", f"inode {lock.inode}: a lock ends before it starts")
