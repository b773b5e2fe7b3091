"""Hundreds of seeds of random file operations, with migrations in between, against an oracle.

    tools/test tests/simulation/test_voyages.py                      the usual seeds, in about a minute
    VMSIM_SEEDS=17 tools/test tests/simulation/test_voyages.py       one of them
    VMSIM_SEEDS=0-5000 tools/test tests/simulation/test_voyages.py   many more
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.voyage import Voyage
from vmsim.guest.kernel import GuestKernel
from vmsim.memory import DirtyLog

USUAL = range(360)


def seeds():
    """The seeds of this run; VMSIM_SEEDS is a number, or FIRST-LAST."""
    wanted = os.environ.get("VMSIM_SEEDS")
    if wanted is None:
        return USUAL
    first, _, last = wanted.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.sim
@pytest.mark.parametrize("seed", seeds())
def test_voyage(seed, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    Voyage(seed, share).run()


def loses_pages(monkeypatch):
    """The last rounds of memory."""
    monkeypatch.setattr(DirtyLog, "harvest", lambda log: [])


def loses_offsets(monkeypatch):
    restore = GuestKernel.restore

    def forgetful(kernel, saved):
        restore(kernel, saved)
        for file in kernel.state.files.values():
            file.offset = 0

    monkeypatch.setattr(GuestKernel, "restore", forgetful)


@pytest.mark.sim
@pytest.mark.parametrize("defect", [loses_pages, loses_offsets])
def test_a_voyage_finds_what_is_lost(defect, tmp_path, monkeypatch):
    """And says how to see it again."""
    defect(monkeypatch)
    for seed in range(60):
        share = tmp_path / str(seed)
        share.mkdir()
        try:
            Voyage(seed, share).run()
        except Exception as error:
            assert f"VMSIM_SEEDS={seed} tools/test" in "".join(error.__notes__)  # noqa: PT017
            return
    pytest.fail("sixty voyages, and nobody has missed anything")
