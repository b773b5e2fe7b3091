"""Same seed, same history, event for event: machines, requests, messages, system calls, faults, turns.

What only the host decides (numbers of inodes, times, ...) is made steady at its seam, see
:mod:`vmsim.wrappers.deterministic_host`; the histories themselves are compared as they are.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.history import record
from tests.support.sampling import sample
from vmsim.trace import KINDS, render
from vmsim.trace.events import kind_of
from vmsim.wrappers.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
FAULT = Fault("channel *", "*", 9, "fail")
SEEDS = sample(range(12), 5, "histories")


@pytest.fixture
def run(tmp_path):
    """Records a seed on a fresh tree that has the same path every time."""
    share = tmp_path / "share"

    def run(seed, fault=None):
        shutil.rmtree(share, ignore_errors=True)
        share.mkdir()
        return record(seed, share, fault)

    return run


def first_difference(one, two):
    for a, b in itertools.zip_longest(one, two):
        if a != b:
            return "\n".join(render(entry) if entry else "the end" for entry in (a, b))
    return None


@pytest.mark.sim
@pytest.mark.parametrize("seed", SEEDS)
def test_same_seed_same_history(run, seed):
    _, one = run(seed)
    _, two = run(seed)
    assert first_difference(one, two) is None
    assert len(one) > 1000


@pytest.mark.sim
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_same_seed_and_fault_same_history(run, seed):
    voyage, one = run(seed, FAULT)
    _, two = run(seed, FAULT)
    assert first_difference(one, two) is None
    kinds = Counter(kind_of(type(entry.event)) for entry in one)
    assert kinds["sim.fault"] >= 1
    assert kinds["migration.failed"] >= 1
    assert any("failed" in hop for hop in voyage.hops)
    assert any("went" in hop for hop in voyage.hops)
    assert kinds["migration.commit"] >= 1


@pytest.mark.sim
def test_different_seeds_different_histories(run):
    histories = [[render(entry) for entry in run(seed)[1]] for seed in range(4)]
    for one, two in itertools.combinations(histories, 2):
        assert one != two


@pytest.mark.sim
def test_a_history_has_every_kind_of_event(run):
    kinds = set()
    for seed in (1, 3):
        kinds |= {kind_of(type(entry.event)) for entry in run(seed, FAULT)[1]}
    assert set(KINDS) - kinds == {"virtio.ring.violation"}


@pytest.mark.sim
def test_same_history_in_another_process(tmp_path):
    """Nothing hangs on addresses of objects or on the order of sets."""
    histories = []
    share = tmp_path / "share"
    for hash_seed in ("1", "2"):
        shutil.rmtree(share, ignore_errors=True)
        share.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation.history", "4", os.fspath(share), "9"],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True,
            check=False, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        histories.append(done.stdout.splitlines())
    assert len(histories[0]) > 1000
    assert next((pair for pair in zip(*histories, strict=True) if pair[0] != pair[1]), None) is None
