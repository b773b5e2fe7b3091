"""FUSE requests read from an input: mostly what a client would send, with odd values; at times any bytes."""

from __future__ import annotations

import re
import struct
from typing import Final

from reading import Reader
from shares import NAMES

from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.init_flags import LINUX_6_12_OFFER

CODES: Final = re.compile(r"\d*s|\d*x|[a-zA-Z]")
ROWS: Final = [row for row in op.OPCODES if row.number != op.INIT]
OFFERS: Final = (LINUX_6_12_OFFER, 0, (1 << 64) - 1, LINUX_6_12_OFFER & 0xFFFFFFFF)


def init_request(reader: Reader, unique: int) -> bytes:
    """INIT, by default as Linux sends it."""
    offer = reader.choice(OFFERS)
    minor = reader.choice((41, 41, 41, 38, 31, 27, 26, 5, 99))
    return client.encode(
        op.INIT, unique, 0, 0, 0, 1, (7, minor, 1 << 17, offer & 0xFFFFFFFF, offer >> 32, b"")
    )


def request(reader: Reader, unique: int) -> tuple[bytes, int]:
    """A request, and the room for its reply."""
    kind = reader.u8()
    if kind >= 250:
        return reader.take(reader.u8()), reader.u8()
    if kind >= 245:
        return init_request(reader, unique), 200
    row = reader.choice(ROWS)
    args = row.args.struct.format if row.args is not None else ""
    values = [reader.packed(code) for code in CODES.findall(args.lstrip("<")) if code[-1] != "x"]
    names = [_name(reader) for _ in range(row.names)]
    if reader.u8() < 8:
        names = names[:-1]
    body = struct.pack(args, *values) + b"".join(name + b"\0" for name in names)
    size = 0
    if row.tail or row.payload or reader.u8() < 16:
        size = reader.choice((0, 1, 16, 100, 4096))
        body += reader.take(min(size, 64)).ljust(size, b"\1")
    length = 40 + len(body)
    number, opcode = reader.number(), row.number
    if kind >= 235:
        length = reader.number() & 0xFFFFFFFF
    elif kind >= 230:
        opcode = reader.number() & 0xFFFFFFFF
    asks = reader.choice((0, 1))
    identity = reader.choice((0, 0, 1000, 0xFFFFFFFF))
    header = struct.pack(
        "<IIQQIIIHH", length, opcode, unique if reader.u8() < 250 else reader.number(), number, identity,
        identity, 7, reader.number() & 0xFFFF if kind & 1 and reader.u8() < 8 else 0, 0,
    )  # fmt: skip
    room = client.reply_room(row.number, reader.choice((0, 8, 100, 4096)))
    return header + body, room if not asks or reader.u8() < 240 else reader.number() & 0x3FFF


def _name(reader: Reader) -> bytes:
    name = reader.choice(NAMES)
    return name if reader.u8() < 250 else reader.take(reader.u8() & 31)


def seeds() -> list[bytes]:
    """One of each opcode with small numbers, and all of them together."""
    each = [bytes([kind & 0x7F, number]) + bytes(range(64)) for kind in (0, 1) for number in range(len(ROWS))]
    return [*each, b"".join(each), *(bytes([0, 0, 0]) * 40 + one * 3 for one in each[::7])]
