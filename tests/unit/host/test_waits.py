"""Waiting for descriptors: a wait that begins by looking finds what a sleeping one finds."""

from __future__ import annotations

import os
import select

import pytest

from vmsim.host.waits import MISSES_MAX, RETRY, FdWaits


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
