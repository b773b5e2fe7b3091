"""The contract of seam S1 over a vhost-user socket."""

import pytest

from tests.contract.transport import CHECKS
from tests.support.socket_rig import SocketRig


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(SocketRig)
