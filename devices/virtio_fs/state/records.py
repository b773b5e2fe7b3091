"""The records of virtiofsd's back-end state (V1 and V2) and their postcard schema.

``SCHEMA`` states the layout once, row by row (reference section 1.2). It is slow and exact: the fast loops of
:mod:`.blob` are tested against it and fall back on it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vmsim.limits import STATE_HANDLES_MAX, STATE_INODES_MAX

from .postcard import BOOL, I32, TEXT, U64, UNIT, Bytes, Map, Option, Record, Variant, Vector

FILE_HANDLE_MAX = 128
"""Bytes of one file handle (MAX_HANDLE_SZ)."""

MOUNTS_MAX = 65536
"""Mounts that one blob may name."""

ROOT, PATH, INVALID, FULL_PATH, FILE_HANDLE = range(5)
LOCATION_NAMES = ("root", "path", "invalid", "full path", "file handle")
V1, V2 = 0, 1


class FileHandle(msgspec.Struct, gc=False, frozen=True):
    """What name_to_handle_at gives: mount id, type, and opaque bytes."""

    mnt_id: int
    handle_type: int
    handle: bytes


class InodeRecord(msgspec.Struct, gc=False):
    """One inode: nodeid, migration reference count and where to find it again.

    ``location`` is ROOT, PATH (``parent``, ``name``), INVALID, FULL_PATH (``name``) or FILE_HANDLE
    (``handle``). ``file_handle`` is what the destination compares with, when the source verifies handles.
    """

    id: int
    refcount: int
    location: int
    parent: int = 0
    name: bytes = b""
    handle: FileHandle | None = None
    file_handle: FileHandle | None = None


class HandleRecord(msgspec.Struct, gc=False):
    """One open file or directory: FUSE fh, nodeid, open flags."""

    id: int
    inode: int
    flags: int


class NegotiatedOpts(msgspec.Struct, frozen=True):
    """The four negotiated options that V1 and V2 carry."""

    writeback: bool = False
    announce_submounts: bool = False
    posix_acl: bool = False
    sup_group_extension: bool = False


class StateBlob(msgspec.Struct):
    """A whole back-end state."""

    inodes: list[InodeRecord] = msgspec.field(default_factory=list)
    next_inode: int = 2
    handles: list[HandleRecord] = msgspec.field(default_factory=list)
    next_handle: int = 0
    negotiated: NegotiatedOpts = NegotiatedOpts()
    mount_paths: dict[int, bytes] = msgspec.field(default_factory=dict)
    version: int = V2


def _make_inode(values: list[Any]) -> InodeRecord:
    node_id, refcount, (tag, fields), file_handle = values
    record = InodeRecord(node_id, refcount, tag, file_handle=file_handle)
    if tag == PATH:
        record.parent, record.name = fields
    elif tag == FULL_PATH:
        (record.name,) = fields
    elif tag == FILE_HANDLE:
        (record.handle,) = fields
    return record


def _split_inode(record: InodeRecord) -> tuple[object, ...]:
    fields: tuple[object, ...] = ()
    if record.location == PATH:
        fields = (record.parent, record.name)
    elif record.location == FULL_PATH:
        fields = (record.name,)
    elif record.location == FILE_HANDLE:
        fields = (record.handle,)
    return record.id, record.refcount, (record.location, fields), record.file_handle


FH = Record(
    lambda values: FileHandle(*values),
    (("mnt_id", U64), ("handle_type", I32), ("handle", Bytes(FILE_HANDLE_MAX))),
    lambda fh: (fh.mnt_id, fh.handle_type, fh.handle),
)
LOCATION: Variant[object] = Variant((
    ("RootNode", UNIT),
    ("Path", Record(tuple, (("parent", U64), ("filename", TEXT)))),
    ("Invalid", UNIT),
    ("FullPath", Record(tuple, (("filename", TEXT),))),
    ("FileHandle", Record(tuple, (("handle", FH),))),
))
INODE = Record(
    _make_inode,
    (("id", U64), ("refcount", U64), ("location", LOCATION), ("file_handle", Option(FH))),
    _split_inode,
)
HANDLE = Record(
    lambda values: HandleRecord(values[0], values[1], values[2][1][0]),
    (
        ("id", U64), ("inode", U64),
        ("source", Variant((("OpenInode", Record(tuple, (("flags", I32),))),))),
    ),
    lambda handle: (handle.id, handle.inode, (0, (handle.flags,))),
)
INODES = Vector(INODE, STATE_INODES_MAX)
HANDLES = Vector(HANDLE, STATE_HANDLES_MAX)
NEGOTIATED = Record(
    lambda values: NegotiatedOpts(*values),
    tuple((name, BOOL) for name in NegotiatedOpts.__struct_fields__),
    lambda opts: tuple(getattr(opts, name) for name in NegotiatedOpts.__struct_fields__),
)
MOUNT_PATHS = Map(U64, TEXT, MOUNTS_MAX)
V1_FIELDS = (
    ("inodes", INODES), ("next_inode", U64), ("handles", HANDLES), ("next_handle", U64),
    ("negotiated_opts", NEGOTIATED),
)
SCHEMA: Variant[object] = Variant((
    ("V1", Record(tuple, V1_FIELDS)),
    ("V2", Record(tuple, (("v1", Record(tuple, V1_FIELDS)), ("mount_paths", MOUNT_PATHS)))),
))
"""The whole layout: ``(V1, v1 fields)`` or ``(V2, (v1 fields, mount_paths))``."""


def schema_value(blob: StateBlob) -> tuple[int, tuple[object, ...]]:
    """``blob`` as the value that ``SCHEMA`` encodes."""
    v1 = (blob.inodes, blob.next_inode, blob.handles, blob.next_handle, blob.negotiated)
    return (V1, v1) if blob.version == V1 else (V2, (v1, blob.mount_paths))


def describe(record: InodeRecord) -> str:
    """One line about an inode, for reports and errors."""
    where = LOCATION_NAMES[record.location]
    if record.location == PATH:
        where = f"path (inode {record.parent}, {record.name!r})"
    elif record.location == FULL_PATH:
        where = f"full path {record.name!r}"
    return f"inode {record.id}, {where}"
