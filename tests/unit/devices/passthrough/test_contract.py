"""The passthrough file system does what a shared directory must, whatever its options."""

from __future__ import annotations

import errno

import pytest

from tests.contract import filesystem

VARIANTS = {
    "default": {},
    "few descriptors": {"inode_fds": 16},
    "by name only": {"inode_fds": 16, "inode_file_handles": "never"},
    "cache never": {"cache": "never"},
    "cache always, writeback": {"cache": "always", "writeback": True},
    "no readdirplus": {"readdirplus": False},
}


@pytest.mark.parametrize("check", filesystem.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(check, variant, serve, share):
    try:
        check(serve(**VARIANTS[variant]), share)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            pytest.skip(f"the file system of the test directory does not support this: {error}")
        raise
