"""What INIT agreed on, as plain data that is saved and restored with the session."""

from __future__ import annotations

from typing import NamedTuple


class NegotiatedState(NamedTuple):
    """The result of INIT: everything that changes how later requests are read or answered.

    ``minor`` is the lower one of both sides. ``flags`` is the 64-bit set that both agreed on (flags2 above
    bit 31). Sizes are in bytes, ``time_gran`` in ns, ``map_alignment`` the exponent of a power of two.
    ``initialized`` is False before INIT and after DESTROY; then the other fields mean nothing.
    ``interrupted`` are the uniques whose INTERRUPT came before the request itself.
    """

    initialized: bool = False
    major: int = 0
    minor: int = 0
    flags: int = 0
    max_readahead: int = 0
    max_write: int = 0
    max_pages: int = 0
    max_background: int = 0
    congestion_threshold: int = 0
    time_gran: int = 1
    map_alignment: int = 0
    interrupted: tuple[int, ...] = ()

    def has(self, mask: int) -> bool:
        """Whether all flags of ``mask`` were agreed on."""
        return self.flags & mask == mask
