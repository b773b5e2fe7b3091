"""The file system that the other tests stand on keeps the contract itself."""

from __future__ import annotations

import pytest

from tests.contract.filesystem_suite import CHECKS
from tests.support.memory_fs import MemoryFs


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(MemoryFs)
