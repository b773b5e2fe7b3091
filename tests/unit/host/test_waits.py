"""Waiting for descriptors: a wait that begins by looking finds what a sleeping one finds."""

from __future__ import annotations

import os
import re
import select
from pathlib import Path

import pytest

import vmsim
from vmsim.host.waits import MISSES_MAX, RETRY, FdWaits, wait_in_slices


@pytest.mark.parametrize("spin_ns", [0, 20_000])
def test_looking_and_sleeping_find_the_same(spin_ns):
    read_end, write_end = os.pipe()
    waits = FdWaits(spin_ns=spin_ns)
    got = []
    waits.add(read_end, select.POLLIN, lambda: got.append(os.read(read_end, 1)))
    try:
        # Long enough that looking was given up as vain, and is tried again.
        for turn in range(MISSES_MAX + 2 * RETRY):
            assert not waits.idle_for(30_000)
            os.write(write_end, b"%d" % (turn % 10))
            assert waits.idle_for(1_000_000_000)
        assert len(got) == MISSES_MAX + 2 * RETRY
    finally:
        os.close(read_end)
        os.close(write_end)


def test_nothing_to_wait_for_is_said_at_once():
    assert FdWaits(spin_ns=20_000).idle(None) is False


class Silent:
    """A poll object on which nothing ever happens, and that takes no time."""

    def __init__(self):
        self.slept = []

    def poll(self, timeout_ms):
        self.slept.append(timeout_ms)
        return []


@pytest.mark.parametrize("timeout_ms", [0, 1, 999.5, 1000, 1001, 60_000])
def test_python_looks_for_signals_every_second_of_a_long_wait(timeout_ms):
    """A signal that comes just before the system call is handled only when that returns."""
    silent = Silent()
    assert wait_in_slices(silent, timeout_ms) == []
    assert max(silent.slept) <= 1000
    assert sum(silent.slept) == timeout_ms


POLLS = re.compile(r"\bpoll\.poll\((?!0\))")
SHORT = {
    "host/waits.py": 3, "host/keeper.py": 1, "host/vhost_user/service.py": 1,
}  # fmt: skip
"""Waits that are cut into slices or short; the keeper handles no signals in Python."""


def test_every_wait_is_cut_into_slices():
    root = Path(vmsim.__file__).parent
    found = {str(path.relative_to(root)): len(POLLS.findall(path.read_text())) for path in root.rglob("*.py")}
    assert {name: count for name, count in found.items() if count} == SHORT
