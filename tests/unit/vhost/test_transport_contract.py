"""The in-process transport passes the contract of seam S1, under both schedules that exist."""

import pytest

from tests.contract.transport import CHECKS
from tests.contract.vhost_rig import Rig


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(Rig)
