"""What ``vmsim serve`` offers and another back-end does not, and what that costs a guest that moves there.

A guest keeps what it has negotiated. Where the other back-end lacks it, QEMU refuses the move (virtio
features), or the guest's calls fail there (FUSE). One row is one difference; ``--compatible-with`` applies
them, and ``devices/virtio_fs/README.md`` has them as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from vmsim.errors import UsageError
from vmsim.virtio.constants import F_IN_ORDER, F_NOTIFICATION_DATA, F_RING_PACKED, F_RING_RESET


class Difference(NamedTuple):
    """One thing that the other back-end lacks.

    ``taken`` says when a guest in QEMU gets it, ``cost`` what then happens on the way there; on the
    way from there the guest does not have it, which costs nothing. ``virtio`` are feature bits, ``options``
    values of the server's options that leave it out.
    """

    name: str
    taken: str
    cost: str
    virtio: int = 0
    options: Mapping[str, object] = {}


REFUSED: Final = "QEMU refuses: Features … unsupported"

COMPATIBLE: Final[Mapping[str, tuple[Difference, ...]]] = {
    "virtiofsd": (
        Difference("VIRTIO_F_RING_RESET", "with `--ring-reset`, unless QEMU is told `queue_reset=off`",
                   REFUSED, F_RING_RESET),
        Difference("VIRTIO_F_RING_PACKED", "if QEMU is told `packed=on`", REFUSED, F_RING_PACKED),
        Difference("VIRTIO_F_IN_ORDER", "if QEMU is told `in_order=on`", REFUSED, F_IN_ORDER),
        Difference("VIRTIO_F_NOTIFICATION_DATA", "in monitors that ask for it; QEMU 10.0 does not", REFUSED,
                   F_NOTIFICATION_DATA),
        Difference("FUSE_POSIX_LOCKS, FUSE_FLOCK_LOCKS", "unless `--no-locks`",
                   "fcntl and flock fail with ENOSYS there; locks that are held are lost",
                   options={"locks": False}),
    ),
}  # fmt: skip
"""By back-end."""


def virtio_hidden(values: Mapping[str, Any]) -> int:
    """The virtio feature bits that are not offered with these options of ``serve``."""
    hidden = F_RING_PACKED if values["no_packed"] else 0
    hidden |= 0 if values["ring_reset"] else F_RING_RESET
    for row in COMPATIBLE.get(values["compatible_with"] or "", ()):
        hidden |= row.virtio
    return hidden


def adapted(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of ``serve``'s options as ``--compatible-with`` wants them; UsageError if they clash."""
    found = dict(values)
    other = values["compatible_with"]
    if other and values["ring_reset"]:
        raise UsageError(
            f"--ring-reset offers what {other} lacks",
            hint=f"leave out --ring-reset or --compatible-with {other}",
        )
    for row in COMPATIBLE.get(other or "", ()):
        found.update(row.options)
    return found


def table(other: str) -> str:
    """The differences as a Markdown table."""
    lines = ["| offered by `vmsim serve` | a guest in QEMU has it | then, on the way to " + other + " |",
             "|---|---|---|"]  # fmt: skip
    lines += [f"| {row.name} | {row.taken} | {row.cost} |" for row in COMPATIBLE[other]]
    return "\n".join(lines) + "\n"
