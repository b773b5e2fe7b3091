"""Requests that wait while the device migrates: the state of their rings, as the last part of the state.

It is read from its end, so that what comes before it need not know of it, and virtiofsd, which ignores what
follows its own blob, is not disturbed:

    … state … | msgpack {ring: RingState} | payload length u64 | CRC-32 u32 | "VMSRINGS"
"""

from __future__ import annotations

import zlib
from typing import Annotated, Final, NamedTuple

import msgspec

from vmsim.errors import StateError, StreamError
from vmsim.limits import QUEUE_SIZE_MAX, STATE_PARKED_MAX, VIRTIO_QUEUE_MAX
from vmsim.virtio.rings import RingState
from vmsim.wire.layout import U32, U64, Layout

MAGIC: Final = b"VMSRINGS"
SPEC: Final = "vmsim parked rings"


class Footer(NamedTuple):
    """What follows the payload."""

    length: U64
    checksum: U32
    magic: Annotated[bytes, "8s"]


FOOTER: Final = Layout(Footer)
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(dict[int, RingState])


def encode(rings: dict[int, RingState]) -> bytes:
    """The section; nothing at all if no ring has a chain in flight. StateError if they take too much."""
    if not rings:
        return b""
    payload = _encoder.encode(rings)
    if len(payload) > STATE_PARKED_MAX:
        raise StateError(
            f"the requests that wait take {len(payload)} bytes, {STATE_PARKED_MAX} may travel",
            hint="fewer requests of the guest must wait for locks",
        )
    return payload + FOOTER.pack(len(payload), zlib.crc32(payload), MAGIC)


def split(state: bytes, ring_count: int) -> tuple[bytes, dict[int, RingState]]:
    """The state without the section, and what the section says; StreamError if it is damaged."""
    if not state.endswith(MAGIC) or len(state) < FOOTER.size:
        return state, {}
    end = len(state) - FOOTER.size
    footer = FOOTER.unpack(state, end)
    begin = end - footer.length
    if begin < 0:
        raise StreamError("longer than the state", offset=end, field="rings.length", spec=SPEC)
    if footer.length > STATE_PARKED_MAX:
        raise StreamError(
            f"{footer.length} bytes where {STATE_PARKED_MAX} are allowed", offset=end, field="rings.length",
            spec=SPEC,
        )
    payload = memoryview(state)[begin:end]
    if zlib.crc32(payload) != footer.checksum:
        raise StreamError("checksum is wrong", offset=end + 8, field="rings.checksum", spec=SPEC)
    try:
        rings = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise StreamError(str(error), offset=begin, field="rings", spec=SPEC) from None
    for index, ring in rings.items():
        if not 0 <= index < min(ring_count, VIRTIO_QUEUE_MAX):
            raise StreamError(
                f"ring {index} of a device with {ring_count}", offset=begin, field="rings", spec=SPEC,
                hint="give the destination as many queues as the source has",
            )
        _check(ring, begin)
    return state[:begin], rings


def _check(ring: RingState, offset: int) -> None:
    """Bounds; addresses are checked against guest memory when the chains are built."""
    if len(ring.in_flight) > QUEUE_SIZE_MAX or len(ring.completed) > QUEUE_SIZE_MAX:
        raise StreamError("too many chains", offset=offset, field="rings.in_flight", spec=SPEC)
    numbers = [ring.next_avail, ring.next_used, ring.avail_wrap, ring.used_wrap]
    for chain in ring.in_flight:
        numbers += (chain.head, chain.count)
    if not all(0 <= number < 1 << 16 for number in numbers):
        raise StreamError("an index is no 16-bit number", offset=offset, field="rings", spec=SPEC)
    for chain in ring.in_flight:
        if len(chain.descriptors) > QUEUE_SIZE_MAX or not all(
            0 <= gpa < 1 << 64 and 0 <= size < 1 << 32 for gpa, size, _ in chain.descriptors
        ):
            raise StreamError("bad descriptors", offset=offset, field="rings.in_flight", spec=SPEC)
