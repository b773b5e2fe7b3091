"""How long the state of a machine is going to take, before its guest stops for it.

Nothing is saved for that: a sample of the guest's inodes is encoded, which says how fast this host is today,
and a table says what the other steps cost compared with that.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from vmsim.migration.downtime import Forecast

if TYPE_CHECKING:
    from vmsim.machine.machine import Machine
    from vmsim.migration.downtime import Clock

SAMPLE: Final = 512
"""Inodes of the guest that are encoded to see how long one takes."""
LEAST: Final = 32
"""Of fewer there is nothing to be learnt, and nothing to be feared."""

GUEST_LOAD: Final = 9.0
SAVE: Final = {"find-paths": 7.8, "file-handles": 4.0}
LOAD: Final = {"find-paths": 10.5, "file-handles": 14.0}
"""What an inode costs in each step, compared with its encoding in the guest's state."""
STATE_BYTES: Final = 40
"""Of one inode in the back-end's state, about."""
NO_STATE: Final = "external"


def forecast(machine: Machine, clock: Clock) -> Forecast:
    """What saving and loading ``machine`` is expected to take, by ``clock``."""
    nodes = machine.kernel.state.nodes
    count = len(nodes)
    if count < LEAST:
        return Forecast()
    sample = list(islice(nodes.values(), SAMPLE))
    began = clock()
    encoded = msgspec.msgpack.encode(sample)
    each_ns = (clock() - began) / len(sample)
    size = len(encoded) * count // len(sample)
    guest_ns, load_ns, device_ns = each_ns, each_ns * GUEST_LOAD, 0.0
    if not machine.keeps_backend:
        mode = str(machine.config.options.get("migration_mode", "find-paths"))
        device_ns = each_ns * SAVE.get(mode, SAVE["find-paths"])
        load_ns += each_ns * LOAD.get(mode, LOAD["find-paths"])
        size += STATE_BYTES * count
    return Forecast(
        guest_ns=int(guest_ns * count), device_ns=int(device_ns * count), load_ns=int(load_ns * count),
        state_bytes=size, because=f"{count} inodes",
    )  # fmt: skip
