"""Notifications: what the server tells the client unasked, through the notification queue.

On the wire a notification is a reply header with ``unique`` 0 and the positive code in ``error``.

    encode(NOTIFY_INVAL_INODE, InvalInodeOut(5, 0, -1)) -> bytes;  decode(bytes).record -> InvalInodeOut
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from vmsim.errors import PeerError
from vmsim.fuse.abi.headers import OUT_HEADER
from vmsim.limits import FUSE_MAX_WRITE, NAME_MAX
from vmsim.wire.layout import I64, U32, U64, Layout


class PollWakeupOut(NamedTuple):
    """fuse_notify_poll_wakeup_out."""

    kh: U64


class InvalInodeOut(NamedTuple):
    """fuse_notify_inval_inode_out: ``off`` below 0: attributes only; ``len`` below 1: to the end."""

    ino: U64
    off: I64
    len: I64


class InvalEntryOut(NamedTuple):
    """fuse_notify_inval_entry_out: a name and a NUL follow."""

    parent: U64
    namelen: U32
    flags: U32


class DeleteOut(NamedTuple):
    """fuse_notify_delete_out: a name and a NUL follow."""

    parent: U64
    child: U64
    namelen: U32
    padding: U32


class StoreOut(NamedTuple):
    """fuse_notify_store_out: ``size`` bytes follow."""

    nodeid: U64
    offset: U64
    size: U32
    padding: U32


class RetrieveOut(NamedTuple):
    """fuse_notify_retrieve_out: answered by the request NOTIFY_REPLY with this unique."""

    notify_unique: U64
    nodeid: U64
    offset: U64
    size: U32
    padding: U32


class Notification(NamedTuple):
    """One row: ``tail`` is "name" (NUL-terminated, length in ``namelen``), "data" (in ``size``) or ""."""

    code: int
    name: str
    layout: Layout[Any] | None
    tail: str = ""


NOTIFY_POLL: Final = 1
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_STORE: Final = 4
NOTIFY_RETRIEVE: Final = 5
NOTIFY_DELETE: Final = 6
NOTIFY_RESEND: Final = 7

NOTIFICATIONS: Final = (
    Notification(NOTIFY_POLL, "POLL", Layout(PollWakeupOut)),
    Notification(NOTIFY_INVAL_INODE, "INVAL_INODE", Layout(InvalInodeOut)),
    Notification(NOTIFY_INVAL_ENTRY, "INVAL_ENTRY", Layout(InvalEntryOut), "name"),
    Notification(NOTIFY_STORE, "STORE", Layout(StoreOut), "data"),
    Notification(NOTIFY_RETRIEVE, "RETRIEVE", Layout(RetrieveOut)),
    Notification(NOTIFY_DELETE, "DELETE", Layout(DeleteOut), "name"),
    Notification(NOTIFY_RESEND, "RESEND", None),
)
"""All notification codes of minor 41."""

BY_CODE: Final = {row.code: row for row in NOTIFICATIONS}
"""Rows by code."""

NOTIFY_BUF_SIZE: Final = 4096
"""Bytes that hold the header and every notification but a bigger STORE (virtio 1.3 section 5.11.4)."""

Record: TypeAlias = PollWakeupOut | InvalInodeOut | InvalEntryOut | DeleteOut | StoreOut | RetrieveOut


class Decoded(NamedTuple):
    """A notification: ``tail`` is the name without NUL, or the data."""

    code: int
    record: Record | None
    tail: bytes


def encode(code: int, record: Record | None = None, tail: bytes = b"") -> bytes:
    """A notification as bytes; ``namelen`` or ``size`` of the record must be the tail's length.

    Names are of 1 to 255 bytes, data of at most 1 MiB; KeyError for an unknown code and ValueError for a
    record that does not fit are the caller's bugs.
    """
    row = BY_CODE[code]
    if _tail_length(row, record) != len(tail):
        raise ValueError(f"{row.name}: the tail has {len(tail)} bytes, the record says otherwise")
    body = row.layout.pack(*record) if row.layout is not None and record is not None else b""
    body += tail + (b"\0" if row.tail == "name" else b"")
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body


def decode(data: bytes | memoryview) -> Decoded:
    """A notification of exactly ``len(data)`` bytes; PeerError says what is wrong with it."""
    if len(data) < OUT_HEADER.size:
        raise PeerError(f"a notification of {len(data)} bytes has no header", spec="fuse_out_header")
    length, code, unique = OUT_HEADER.unpack_from(data)
    row = BY_CODE.get(code)
    if length != len(data) or unique != 0 or row is None:
        raise PeerError(f"not a notification: length {length} of {len(data)}, code {code}, unique {unique}")
    if row.layout is None:
        return Decoded(code, None, b"")
    if len(data) < OUT_HEADER.size + row.layout.size:
        raise PeerError(f"{row.name}: notification of {len(data)} bytes is cut", spec=row.layout.name)
    record: Record = row.layout.unpack(data, OUT_HEADER.size)
    tail = bytes(data[OUT_HEADER.size + row.layout.size :])
    if row.tail == "name":
        if not tail.endswith(b"\0") or b"\0" in tail[:-1] or len(tail) < 2:
            raise PeerError(f"{row.name}: the name is not NUL-terminated", spec=row.layout.name)
        tail = tail[:-1]
    if len(tail) != _tail_length(row, record):
        raise PeerError(f"{row.name}: tail of {len(tail)} bytes is not the record's", spec=row.layout.name)
    return Decoded(code, record, tail)


def _tail_length(row: Notification, record: Record | None) -> int:
    """The length that the record states, or -1 when it is beyond the limits."""
    if isinstance(record, InvalEntryOut | DeleteOut):
        return record.namelen if 0 < record.namelen <= NAME_MAX else -1
    if isinstance(record, StoreOut):
        return record.size if record.size <= FUSE_MAX_WRITE else -1
    return 0 if (record is None) == (row.layout is None) else -1
