"""How long the state of a machine is going to take, before its guest stops for it.

Nothing is saved for that: a sample of the guest's inodes is encoded, which says how fast this host is today,
and a table says what the other steps cost compared with that.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import Final, NamedTuple

import msgspec

from vmsim.machine.assembled import AssembledMachine
from vmsim.migration.downtime import Clock, Forecast
from vmsim.vhost.device_type import Burden

SAMPLE: Final = 256
"""Inodes of the guest that are encoded to see how long one takes."""
TRIES: Final = 5

GUEST_SAVE: Final = 2.2


class Steps(NamedTuple):
    """What an inode costs in each step, compared with its encoding in the guest's state."""

    guest_load: float
    save: float
    load: float


AS_IT_IS: Final = {"find-paths": Steps(12.0, 25.0, 45.0), "file-handles": Steps(12.0, 25.0, 90.0)}
"""Without anything done beforehand."""
AHEAD: Final = {"find-paths": Steps(6.0, 4.0, 3.0), "file-handles": Steps(6.0, 4.0, 3.0)}
"""When state went ahead: the back-end has collected, the destination knows nodes and has found inodes."""
HANDLE: Final = Steps(0.0, 20.0, 110.0)
LOCK: Final = Steps(0.0, 10.0, 80.0)
LOOK: Final = Steps(0.0, 0.0, 0.12)
"""The host's, at a lock that is there, for another one that is taken again."""
BYTE: Final = Steps(0.0, 0.04, 0.07)
"""Of an unlinked file: it is read, sent and written."""
FIXED: Final = {True: Steps(0.0, 2500.0, 6000.0), False: Steps(0.0, 6000.0, 25000.0)}
"""Whatever there is: messages and rings of a back-end that is in this process, or in one of its own."""
STATE_BYTES: Final = 40
"""Of one inode in the back-end's state, about."""


def forecast(machine: AssembledMachine, clock: Clock, *, ahead: bool = False) -> Forecast:
    """What saving and loading ``machine`` is expected to take, by ``clock``; ``ahead``: state went ahead."""
    nodes = machine.kernel.state.nodes
    count = len(nodes)
    burden = Burden() if machine.keeps_backend else machine.backend.burden()
    if not count:
        return Forecast()
    sample = list(islice(cycle(nodes.values()), SAMPLE))  # of few inodes each several times
    encoded, took_ns = b"", []
    for _ in range(TRIES):
        began = clock()
        encoded = msgspec.msgpack.encode(sample)
        took_ns.append(clock() - began)
    each_ns = sorted(took_ns)[TRIES // 2] / len(sample)  # somebody else may have had the CPU meanwhile
    size = len(encoded) * count // len(sample)
    mode = str(machine.config.options.get("migration_mode", "find-paths"))
    # Of back-ends elsewhere nothing goes ahead: only the guest's part is as cheap then.
    here = ahead and machine.backend.in_process
    guest_load = (AHEAD if ahead else AS_IT_IS)["find-paths"].guest_load
    steps = (AHEAD if here else AS_IT_IS).get(mode, AS_IT_IS["find-paths"])
    device, load = (0.0, 0.0) if machine.keeps_backend else (steps.save, steps.load)
    if not machine.keeps_backend:
        size += STATE_BYTES * count
    all_ns = each_ns * count
    save_ns, load_ns = all_ns * device, all_ns * (guest_load + load)
    kinds = (HANDLE, LOCK, BYTE, LOOK, FIXED[machine.backend.in_process])
    for number, steps in zip((*burden, 1), kinds, strict=True):
        save_ns += each_ns * number * steps.save
        load_ns += each_ns * number * steps.load
    return Forecast(
        guest_ns=int(all_ns * GUEST_SAVE), device_ns=int(save_ns), load_ns=int(load_ns),
        state_bytes=size + burden.content_bytes, because=_because(count, burden),
    )  # fmt: skip


def _because(inodes: int, burden: Burden) -> str:
    """What there is, for whoever is told that it takes too long."""
    parts = [f"{inodes} inodes"]
    if burden.handles > inodes:
        parts.append(f"{burden.handles} open files")
    if burden.locks:
        parts.append(f"{burden.locks} locks")
    if mib := burden.content_bytes >> 20:
        parts.append(f"{mib} MiB of unlinked files")
    return ", ".join(parts)
