"""The opcode rows, prepared for one session's speed: bound handlers, compiled structs, plain attributes."""

from __future__ import annotations

import struct
from typing import Any

from vmsim.fuse.abi.headers import IN_HEADER, OUT_HEADER
from vmsim.fuse.opcodes import Opcode, Reply

_NOTHING = struct.Struct("<")


class Plan:
    """One row and its bound handler (None: the session itself answers).

    ``unpack`` takes the arguments at an offset, ``pack`` makes header and record of the reply;
    ``request_size`` and ``reply_size`` count the headers. ``compat`` is the plan with the older arguments.
    """

    __slots__ = (
        "args_size", "compat", "handler", "no_reply", "pack", "record_size", "reply", "reply_size", "route",
        "row", "simple", "unpack",
    )  # fmt: skip

    def __init__(self, row: Opcode, handler: Any, *, compat: bool = False) -> None:
        layout = row.compat_args if compat else row.args
        arguments = layout.struct if layout is not None else _NOTHING
        body = row.record.struct if row.record is not None and row.reply is Reply.RECORD else _NOTHING
        whole = struct.Struct(OUT_HEADER.struct.format + body.format[1:])
        self.row = row
        self.handler = handler
        self.simple = row.simple
        self.reply = row.reply
        self.no_reply = row.reply is Reply.NONE
        self.unpack = arguments.unpack_from
        self.args_size = arguments.size
        self.record_size = body.size
        self.reply_size = whole.size
        self.pack = whole.pack
        request_size = IN_HEADER.size + arguments.size
        # What the session's fast path needs, as one tuple.
        self.route = (
            handler, self.unpack, request_size, whole.pack_into, self.reply_size, body.pack_into,
        )  # fmt: skip
        self.compat = self
        if row.compat_args is not None and not compat:
            self.compat = Plan(row, handler, compat=True)
