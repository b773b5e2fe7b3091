"""What a guest's facade must do: the same as Python's ``os`` on the directory itself.

Each check does everything twice: with ``os`` in a directory of the host, and with the guest's functions in
its mount of another one. Results and errnos must be equal.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_posix(check, fs, tmp_path):
        check(Both(fs, tmp_path))
"""

from __future__ import annotations

from tests.contract import posix_content, posix_names
from tests.support.posix_both import Both, tree

__all__ = ["CHECKS", "Both", "tree"]

CHECKS = [
    value
    for module in (posix_content, posix_names)
    for name, value in vars(module).items()
    if name.startswith("check_")
]
