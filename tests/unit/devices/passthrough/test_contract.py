"""The passthrough file system shows the share as it is, whatever its options, to a client without caches.

All that a guest does with it is compared with ``os`` in tests/unit/guest/test_posix.py.
"""

from __future__ import annotations

import pytest

from tests.contract import posix

VARIANTS = {
    "default": {},
    "few descriptors": {"inode_fds": 16},
    "by name only": {"inode_fds": 16, "inode_file_handles": "never"},
    "cache never": {"cache": "never"},
    "cache always, writeback": {"cache": "always", "writeback": True},
    "no readdirplus": {"readdirplus": False},
}


@pytest.mark.parametrize("check", posix.WITH_OTHERS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_alone(check, variant, serve, share):
    posix.supported(check, serve(**VARIANTS[variant]), share)
