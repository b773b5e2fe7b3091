"""The leg as an unprivileged user really runs as one, and finds everything that it needs."""

from __future__ import annotations

import os

import pytest

import vmsim

ROOT_ONLY_CAPABILITIES = "0000000000000000"


@pytest.mark.unprivileged
@pytest.mark.skipif(os.geteuid() == 0, reason="says something only in the unprivileged leg")
def test_no_privilege_is_left():
    with open("/proc/self/status") as status:
        facts = dict(line.rstrip("\n").split(":\t") for line in status if ":\t" in line)
    assert facts["CapEff"] == facts["CapPrm"] == ROOT_ONLY_CAPABILITIES
    assert os.access(vmsim.__file__, os.R_OK)
