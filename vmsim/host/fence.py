"""The one ordering of memory accesses that two processes on one ring need and Python does not give."""

from __future__ import annotations

import threading

_LOCK = threading.Lock()


def full_fence() -> None:
    """What this CPU stored before is visible to all others before it loads anything after.

    Taking a free lock is an atomic read-modify-write: a full barrier on x86; on other CPUs releasing it and
    taking it again orders both ways. See ``Fence`` of :mod:`vmsim.virtio.ring_types`.
    """
    with _LOCK:
        pass
