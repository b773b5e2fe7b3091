"""The sections of a stream that belong to the machine itself: the guest's state, and its programs' notes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from vmsim.errors import StreamError
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.limits import GUEST_STATE_MAX
from vmsim.migration.vmio import VmReader, VmWriter

GROUPS_IN_PIECE: Final = 16
"""Some thousand nodes: what is encoded at a time while the guest waits."""


class GuestSection:
    """What a guest keeps in its memory and we keep beside it: driver, FUSE client, processes."""

    idstr = "vmsim/guest"
    instance_id = 0
    version_id = max_version_id = 1

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel

    def save(self, out: VmWriter) -> None:
        """``be32`` length, state."""
        state = self._kernel.save_to_travel()
        out.be32("len", len(state))
        out.buffer("state", state)

    def load(self, src: VmReader, version_id: int) -> None:
        """Take it over; memory is in place already."""
        self._kernel.restore(src.buffer("state", src.length("be32", "len", GUEST_STATE_MAX)))


def early_guest(kernel: GuestKernel) -> Iterator[bytes]:
    """The nodes of a guest that runs: msgpack lists of groups, not too many at a time."""
    groups = kernel.early_groups()
    while batch := list(islice(groups, GROUPS_IN_PIECE)):
        yield msgspec.msgpack.encode(batch)


def take_early_guest(kernel: GuestKernel, piece: bytes) -> None:
    """Keep one such list for the state that is to come; StreamError if it is malformed."""
    try:
        groups = msgspec.msgpack.decode(piece, type=list[bytes])
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise StreamError(f"early nodes: {error}", field=GuestSection.idstr) from error
    for group in groups:
        kernel.known.add(group)


class ProgramsSection:
    """Plain data that guest programs want to find again after a restore, by name."""

    idstr = "vmsim/programs"
    instance_id = 0
    version_id = max_version_id = 1

    def __init__(self, programs: dict[str, bytes]) -> None:
        self._programs = programs

    def save(self, out: VmWriter) -> None:
        """``be32`` length, msgpack of a map from name to bytes."""
        notes = msgspec.msgpack.encode(self._programs)
        out.be32("len", len(notes))
        out.buffer("programs", notes)

    def load(self, src: VmReader, version_id: int) -> None:
        """Check and keep them."""
        notes = src.buffer("programs", src.length("be32", "len", GUEST_STATE_MAX))
        try:
            self._programs.update(msgspec.msgpack.decode(notes, type=dict[str, bytes]))
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StreamError(f"programs: {error}", offset=src.offset, field=self.idstr) from error
