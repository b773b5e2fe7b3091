"""Hundreds of seeds of random file operations, with migrations in between, against an oracle.

    tools/test tests/simulation/test_voyages.py                      the usual seeds, in about a minute
    VMSIM_SEEDS=17 tools/test tests/simulation/test_voyages.py       one of them
    VMSIM_SEEDS=0-5000 tools/test tests/simulation/test_voyages.py   many more
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.voyage import Voyage

USUAL = range(240)


def seeds():
    """The seeds of this run; VMSIM_SEEDS is a number, or FIRST-LAST."""
    wanted = os.environ.get("VMSIM_SEEDS")
    if wanted is None:
        return USUAL
    first, _, last = wanted.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.sim
@pytest.mark.parametrize("seed", seeds())
def test_voyage(seed, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    Voyage(seed, share).run()
