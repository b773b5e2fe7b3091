from __future__ import annotations

import pytest

from tests.support.guest_rig import GuestRig


@pytest.fixture
def rig(tmp_path):
    """Makes guests on ``tmp_path/share`` with the given options."""
    share = tmp_path / "share"
    share.mkdir()
    rigs = []

    def make(**options):
        made = GuestRig(share, **options)
        made.share = share
        rigs.append(made)
        return made

    yield make
    for made in rigs:
        made.close()
