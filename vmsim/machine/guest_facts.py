"""What a guest knows of its share, in numbers: all that there is to know of a back-end that tells nothing."""

from __future__ import annotations

from typing import Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.guest.kernel.kernel import GuestKernel

LOCKS: Final = init_flags.POSIX_LOCKS | init_flags.FLOCK_LOCKS


def guest_facts(kernel: GuestKernel) -> dict[str, int]:
    """``inodes``, ``handles`` and requests (or calls) ``waiting`` for locks.

    ``locks`` only of a guest that keeps its locks itself: the others are known to the server alone.
    """
    state = kernel.state
    waiting = sum(request.opcode == op.SETLKW for request in kernel.requests.values())
    facts = {
        "inodes": len(state.nodes),
        "handles": sum(file.fh is not None for file in state.files.values()),
        "waiting": waiting + len(kernel.cell.lock_waits),
    }
    if not state.session.flags & LOCKS:
        facts["locks"] = len(state.local_locks)
    return facts


def left_to_guest(kernel: GuestKernel) -> list[str]:
    """What the server did not offer at INIT and the guest does (or goes without) itself, in words."""
    flags = kernel.state.session.flags
    return [
        what
        for flag, what in (
            (init_flags.POSIX_LOCKS, "POSIX locks are the guest's own: the back-end takes no part in them"),
            (init_flags.FLOCK_LOCKS, "flock locks are the guest's own: the back-end takes no part in them"),
        )
        if not flags & flag
    ]
