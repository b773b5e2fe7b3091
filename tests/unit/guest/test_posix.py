"""The facade against ``os``, in every kind of guest."""

from __future__ import annotations

import pytest

from tests.contract import posix
from tests.support.sampling import product
from vmsim.guest.calls.posix import mount
from vmsim.guest.config import DRIVER_FEATURES
from vmsim.virtio.constants import F_RING_PACKED, RING_FEATURES

WRITEBACK = {"writeback": True}
BARE = {"xattr": False, "locks": False, "readdirplus": False, "cache": "never"}
GUESTS = {
    "plain": {},
    "small": {
        "features": RING_FEATURES & ~F_RING_PACKED, "queue_size": 8, "linux_chains": True,
        "memory_bytes": 4 << 20,
    },
    "in-order": {"config_features": DRIVER_FEATURES, "linux_chains": True},
    "dentries": {"dentries": 64, "forget_batch": 1, "batch_forget": False},
    "write-through": {"cache": "writethrough", "cache_pages": 24, "dentries": 1024},
    "writeback": {"cache": "writeback", "cache_pages": 24, "dentries": 256, "options": WRITEBACK},
    "writeback-uncached-attributes": {"cache": "writeback", "cache_pages": 512, "options": WRITEBACK},
    "bare": {"options": BARE, "dentries": 64},
    "few descriptors": {"options": {"inode_fds": 16}},
    "found by name": {"options": {"inode_fds": 16, "inode_file_handles": "never"}, "dentries": 64},
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "guest"), product("POSIX in guests", 2, posix.CHECKS, GUESTS),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_posix(check, guest, rig, tmp_path):
    options = dict(GUESTS[guest])
    made = rig(**options) if "config_features" not in options else in_order(rig, options)
    host = tmp_path / "host"
    host.mkdir()
    check(posix.Both(made.fs, host))
    posix.left_as_by_os(made.fs, made.share, host)
    made.kernel.flush_forgets()
    assert not made.kernel.requests
    assert not made.kernel.state.broken


def in_order(rig, options):
    wanted = options.pop("config_features")
    made = rig(boot=False, **options)
    made.kernel.config.features = wanted
    made.kernel.boot()
    made.fs = mount(made.kernel)
    return made
