"""The contract of seam S1 over a vhost-user socket."""

import pytest

from tests.contract.socket_rig import SocketRig
from tests.contract.transport import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(SocketRig)
