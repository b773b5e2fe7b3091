"""The POSIX suite. What a guest's facade must do: the same as Python's ``os`` on the directory itself.

Each check does everything twice: with ``os`` in a directory of the host, and with the guest's functions in
its mount of another one. Results and errnos must be equal.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_posix(check, fs, tmp_path):
        check(Both(fs, tmp_path))

What only the shared directory shows is in ``WITH_OTHERS``, for guests without caches and for the bare server:

    @pytest.mark.parametrize("check", WITH_OTHERS, ids=lambda check: check.__name__)
    def test_share(check, fs, share):
        supported(check, fs, share)
"""

from __future__ import annotations

import errno

import pytest

from tests.contract import posix_content, posix_names, posix_share
from tests.support.posix_both import Both, tree

__all__ = ["CHECKS", "WITH_OTHERS", "Both", "left_as_by_os", "supported"]

CHECKS = [
    value
    for module in (posix_content, posix_names)
    for name, value in vars(module).items()
    if name.startswith("check_")
]
WITH_OTHERS = posix_share.CHECKS


def supported(check, *words):
    """Run a check; skipped where the test directory's file system lacks what it needs."""
    try:
        check(*words)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip(f"the file system of the test directory does not support this: {error}")


def left_as_by_os(fs, share, host):
    """Each effect is on the host; a check that did nothing there is about the guest alone."""
    fs.sync()
    expected = tree(host)
    assert not expected or tree(share) == expected
