"""Requests, replies and notifications as one line of text, from the same rows that decode them."""

from __future__ import annotations

import errno
import struct
from typing import Any

from vmsim.errors import PeerError
from vmsim.fuse import notify
from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.fuse.opcodes import BY_NUMBER, Reply

_QUIET = ("padding", "dummy", "unused", "spare", "reserved")


def opcode_name(number: int) -> str:
    """The opcode's name, or its number when it has none."""
    row = BY_NUMBER.get(number)
    return row.name if row is not None else f"opcode {number}"


def errno_name(number: int) -> str:
    """ENOENT and the like, or the number."""
    return errno.errorcode.get(number, str(number))


def describe_record(record: Any) -> str:
    """``field=value`` of a typed record; fields that mean nothing are left out, modes are octal."""
    return " ".join(
        f"{name}={_value(name, value)}"
        for name, value in zip(record._fields, record, strict=True)
        if not name.startswith(_QUIET) and not name.endswith("_reserved")
    )


def _value(name: str, value: Any) -> str:
    if isinstance(value, int):
        if name in ("mode", "umask"):
            return f"{value:#o}"
        return f"{value:#x}" if name.endswith("flags") or name == "valid" else str(value)
    return repr(value)


def describe_request(data: bytes | memoryview) -> str:
    """``LOOKUP unique=7 node=1 'name'``; what is cut or unknown is said, nothing is raised."""
    raw = bytes(data)
    if len(raw) < IN_HEADER.size:
        return f"request of {len(raw)} bytes without header"
    header = IN_HEADER.unpack(raw)
    text = f"{opcode_name(header.opcode)} unique={header.unique} node={header.nodeid}"
    row = BY_NUMBER.get(header.opcode)
    if row is None:
        return text
    if len(raw) < IN_HEADER.size + row.args_size:
        return f"{text} (cut)"
    if row.args is not None and row.compat_args is None:
        text += f" {describe_record(row.args.unpack(raw, IN_HEADER.size))}".rstrip()
    if row.names and row.compat_args is None:
        names = raw[IN_HEADER.size + row.args_size :].split(b"\0", row.names)[: row.names]
        text += "".join(f" {name.decode('utf-8', 'backslashreplace')!r}" for name in names)
    return text


def describe_reply(opcode: int, data: bytes | memoryview) -> str:
    """``GETATTR unique=7 -> ENOENT`` or its record, or the size of its data."""
    if not len(data):
        return f"{opcode_name(opcode)} -> nothing"
    try:
        length, error, unique = OUT_HEADER.unpack_from(data)
    except struct.error:
        return f"{opcode_name(opcode)} -> {len(data)} bytes without header"
    text = f"{opcode_name(opcode)} unique={unique} ->"
    if error:
        return f"{text} {errno_name(-error)}"
    row = BY_NUMBER.get(opcode)
    if (
        row is not None and row.record is not None and row.reply is Reply.RECORD
        and length == len(data) == OUT_HEADER.size + row.record_size
    ):  # fmt: skip
        return f"{text} {describe_record(row.record.unpack(data, OUT_HEADER.size))}"
    return f"{text} {length - OUT_HEADER.size} bytes" if length > OUT_HEADER.size else f"{text} ok"


def describe_notification(data: bytes | memoryview) -> str:
    """``INVAL_ENTRY parent=1 namelen=4 'name'``."""
    try:
        found = notify.decode(data)
    except PeerError as error:
        return f"bad notification: {error}"
    text = notify.BY_CODE[found.code].name
    if found.record is not None:
        text += f" {describe_record(found.record)}"
    return f"{text} {found.tail[:64]!r}" if found.tail else text
