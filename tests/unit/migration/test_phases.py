"""The phases of a migration: the table, and that what really happens keeps to it."""

from __future__ import annotations

import pytest

from vmsim.errors import StateError
from vmsim.migration import phases

BEFORE_THE_GO = (phases.SETUP, phases.PRECOPY, phases.STOP, phases.DEVICE, phases.READY)


@pytest.mark.parametrize("then", phases.TABLE)
@pytest.mark.parametrize("phase", phases.TABLE)
def test_every_phase_after_every_other(phase, then):
    if then in phases.TABLE[phase]:
        assert phases.follow(phase, then) == then
    else:
        with pytest.raises(StateError, match=f"{phase} cannot come to {then}"):
            phases.follow(phase, then)


def test_the_source_goes_on_after_every_failure_before_the_go_and_a_doubt_is_only_after_it():
    for phase in BEFORE_THE_GO:
        assert phases.FAILED in phases.TABLE[phase]
        assert phases.DOUBT not in phases.TABLE[phase]
        assert phases.DONE not in phases.TABLE[phase]
        assert phase not in phases.TOO_LATE
    assert phases.TABLE[phases.COMMIT] == {phases.DONE, phases.FAILED, phases.DOUBT}
    assert phases.TABLE.keys() - set(BEFORE_THE_GO) == phases.TOO_LATE
