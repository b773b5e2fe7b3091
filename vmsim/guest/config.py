"""What a guest is told at boot: the part of its configuration that travels with it."""

from __future__ import annotations

from typing import Final

import msgspec

from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_NOTIFICATION_DATA,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
)

CACHE_NONE: Final = "none"
CACHE_WRITETHROUGH: Final = "writethrough"
CACHE_WRITEBACK: Final = "writeback"
DRIVER_FEATURES: Final = (
    F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_RING_PACKED | F_IN_ORDER | F_NOTIFICATION_DATA
    | F_RING_RESET
)  # fmt: skip
"""What the driver can do; the device's own bit 0 (notification queue) is not among it, as in Linux."""
CACHES: Final = (CACHE_NONE, CACHE_WRITETHROUGH, CACHE_WRITEBACK)


class GuestConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Options of one guest; plain data, saved with the guest.

    ``heap`` are the (guest-physical address, size in bytes) ranges that the guest's allocator may use; empty
    means all of guest memory except its first page. ``features`` are the virtio feature bits that the driver
    accepts when offered (IN_ORDER only on demand, as in Linux). ``indirect`` lets it use indirect tables,
    ``linux_chains`` has headers and arguments in descriptors of their own as Linux' driver has.
    ``queue_size`` bounds the entries of a ring, ``request_queues`` the number of request queues in use (0:
    all), ``slots`` the requests in flight per queue. ``cache`` is the page cache's mode, ``cache_pages`` its
    size, ``dentries`` the entries of the dentry cache (0: none; then attributes are not cached either).
    ``protected_hardlinks`` is the guest's fs.protected_hardlinks, on as distributions have it: who does not
    own a file links it only if it could write it.
    ``realtime_ns`` is the wall clock time when the schedule's clock read zero.
    """

    heap: list[tuple[int, int]] = []
    features: int = DRIVER_FEATURES & ~F_IN_ORDER
    queue_size: int = 128
    request_queues: int = 0
    slots: int = 64
    indirect: bool = True
    linux_chains: bool = False
    cache: str = CACHE_NONE
    cache_pages: int = 1024
    dentries: int = 0
    readahead_pages: int = 32
    max_transfer: int = 1 << 20
    readdirplus: bool = True
    batch_forget: bool = True
    forget_batch: int = 32
    remote_locks: bool = True
    default_permissions: bool = True
    protected_hardlinks: bool = True
    fuse_minor: int = 41
    realtime_ns: int = 0
    device_number: int = 0x2B
