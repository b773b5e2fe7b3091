"""Inputs: bytes that a target reads as choices. Every input means something, and no input is too short."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

SPECIAL: Final = (
    0, 1, 2, 3, 7, 8, 16, 40, 63, 64, 127, 128, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20,
    (1 << 20) + 4096, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
"""Numbers at which something ends."""


class Reader:
    """Takes an input apart; zeros follow its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return max(len(self._data) - self._at, 0)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece + bytes(size - len(piece))

    def u8(self) -> int:
        """A byte."""
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def u16(self) -> int:
        """Two bytes."""
        return int.from_bytes(self.take(2), "little")

    def u64(self) -> int:
        """Eight bytes."""
        return int.from_bytes(self.take(8), "little")

    def choice(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.u8() % len(options)]

    def number(self) -> int:
        """Mostly a small number, at times one of SPECIAL or any."""
        kind = self.u8()
        if kind < 150:
            return kind & 7
        if kind < 215:
            return self.choice(SPECIAL)
        return self.u16() if kind < 240 else self.u64()

    def packed(self, code: str) -> bytes | int:
        """A value for one item of a struct format: ``B``, ``Q``, ``12s`` and the like."""
        if code[-1] == "s":
            return self.take(int(code[:-1] or 1))
        bits = {"b": 8, "h": 16, "i": 32, "l": 32, "q": 64}[code[-1].lower()]
        value = self.number() & ((1 << bits) - 1)
        return value - (1 << bits) if code[-1].islower() and value >> (bits - 1) else value

    def cuts(self, data: memoryview) -> list[memoryview]:
        """``data`` in up to four pieces."""
        pieces = []
        for _ in range(self.u8() & 3):
            at = min(self.choice((1, 3, 16, 24, 39, 40, 41, 63, 64, 80, 128)), len(data))
            if at:
                pieces.append(data[:at])
                data = data[at:]
        if len(data):
            pieces.append(data)
        return pieces


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Another input, a few changes away; pieces may come from ``others``."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        kind = rng.randrange(9)
        at = rng.randrange(len(out) + 1)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            out[at : at + size] = (rng.choice(SPECIAL) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 16, 64)))
        elif kind == 4:
            del out[at : at + rng.choice((1, 2, 4, 8, 16, 64))]
        elif kind == 5:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + rng.choice((4, 16, 64, 256))]
        elif kind == 6 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at:] = other[start:]
        elif kind == 7 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at:at] = other[start : start + rng.choice((4, 16, 64, 256))]
        elif kind == 8:
            size = rng.choice((1, 2, 4))
            value = int.from_bytes(out[at : at + size], "little") + rng.choice((-2, -1, 1, 2, 8, 16))
            out[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(out)
