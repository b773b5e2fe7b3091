"""State that goes ahead of the stop: sections ``vmsim/early``, for a destination that works on it meanwhile.

A piece names the section that it is for. It spares the destination work and means nothing by itself: the
section comes whole at the end, and is all that counts. A stream without pieces, or a destination that makes
nothing of them, is as good. After the last one the source asks with a PING (as QEMU does) and waits for the
PONG, while the guest goes on: then the destination has done what it could.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmsim.limits import EARLY_PIECE_MAX, STREAM_STRING_MAX
from vmsim.migration.stream import PING, StreamWriter
from vmsim.migration.vmio import VmReader

EARLY_IDSTR: Final = "vmsim/early"
EARLY_VERSION: Final = 1
PING_BYTES: Final = 4


class EarlyWriter:
    """Writes pieces, as FULL sections of one name that are numbered: any reader of streams can follow."""

    def __init__(self, stream: StreamWriter) -> None:
        self._stream = stream
        self._count = 0

    def write(self, target: str, piece: bytes) -> None:
        """One piece for the section ``target``."""
        with self._stream.full(EARLY_IDSTR, self._count, EARLY_VERSION) as out:
            name = target.encode("latin-1")
            out.be32("target len", len(name))
            out.buffer("target", name)
            out.be32("len", len(piece))
            out.buffer("piece", piece)
        self._count += 1
        self._stream.output.flush()

    def ask(self, answer: Callable[[], int]) -> bool:
        """Whether the destination has read all that was written: ``answer`` is the value of its PONG."""
        self._stream.command(PING, self._count.to_bytes(PING_BYTES, "big"))
        self._stream.output.flush()
        return answer() == self._count


def read_piece(src: VmReader) -> tuple[str, bytes]:
    """The target and the piece; StreamError (FieldTooLarge) for what is malformed."""
    target = src.buffer("target", src.length("be32", "target len", STREAM_STRING_MAX))
    return target.decode("latin-1"), src.buffer("piece", src.length("be32", "len", EARLY_PIECE_MAX))
