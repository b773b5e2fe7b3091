"""Every step of a migration fails once in every way: each message, each read and write, each host call.

The steps are those that a run without faults counted, so none is picked by hand.
"""

from __future__ import annotations

import itertools

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import FEW_KINDS, Campaign, Kind, Life
from tests.support.sampling import Run, in_pairs
from vmsim.machine import Seams
from vmsim.machine.states import FINISHED, RUNNING
from vmsim.wrappers.faults import Fault, Step

FAULTS = ("fail", "lose", "cut")
PLAIN = 6
"""A plain run takes one in so many of the failures: every other step, in one way each."""
CHANNEL_AND_MESSAGES = ("vhost source", "vhost destination", "channel source", "channel destination")
HOST_CALLS = ("host source", "host destination")
MESSAGES_SAVED = {
    "upstream": {"SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"},
    "rfc2023": {"FS_SET_STATE_FD", "FS_GET_STATE"},
}


class Shares:
    """A new empty directory for every run."""

    def __init__(self, folder) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def __call__(self):
        share = self._folder / str(next(self._numbers))
        share.mkdir()
        return share


@pytest.fixture
def shares(tmp_path):
    return Shares(tmp_path)


def count_steps(share, kind: Kind, seams: tuple[str, ...], **changes) -> list[Step]:
    """The steps of an undisturbed migration that cross these seams."""
    campaign = Campaign(share, kind, **changes)
    life = Life(campaign.vm, waiter="host source" not in seams)
    vm = campaign.migrate()
    life.check(vm)
    life.finish(vm)
    vm.close()
    campaign.vm.close()
    return [step for step in campaign.plan.steps if step.seam.startswith(seams)]


def outcome(share, kind: Kind, step: Step, fault: str, *, waiter: bool, **changes) -> str:
    """Who runs in the end; everything that the guest has is looked at on the way."""
    campaign = Campaign(share, kind, [Fault.at(step, fault)], **changes)
    source = campaign.vm
    life = Life(source, waiter=waiter)
    vm = campaign.migrate()
    assert campaign.plan.injected
    runs = "destination"
    if vm is None:
        runs = "source"
        assert source.state == RUNNING
        assert source.outgoing is None
        assert campaign.error.step
        assert campaign.error.side in ("source", "destination")
        life.check(source)
        life.go_on(source)
        vm = source.migrate(seams=Seams())
    assert source.state == FINISHED
    life.check(vm)
    life.go_on(vm)
    life.check(vm)
    life.finish(vm)
    vm.close()
    source.close()
    return runs


def enumerate_failures(shares, kind: Kind, seams: tuple[str, ...], name: str, *, one_in=1, **changes):
    """How often who ran in the end, and the number of cases. Every step fails in each way; or, one in three,
    in one way, which moves on with the steps."""
    waiter = "host source" not in seams
    steps = count_steps(shares(), kind, seams, **changes)
    assert {step.seam.rstrip(" 123") for step in steps} == set(seams)
    rows = [(at + way, step, fault) for at, step in enumerate(steps) for way, fault in enumerate(FAULTS)]
    rows = [row for row in rows if row[0] % one_in == 0]
    # The position of what is left, so that a plain run has every way at every other step.
    cases = in_pairs([position // one_in for position, *_ in rows], PLAIN, f"failures: {name}")
    rows = [rows[at] for at in cases]
    outcomes = {"source": 0, "destination": 0}
    for _, step, fault in rows:
        try:
            runs = outcome(shares(), kind, step, fault, waiter=waiter, **changes)
        except BaseException as error:
            error.add_note(f"{kind}: {fault} at {step}")
            raise
        outcomes[runs] += 1
    return outcomes, len(rows)


def expect(found, source: int, destination: int = 0) -> None:
    """At least these per cent of the failures come before commit, or do not matter and come after it."""
    outcomes, cases = found
    assert outcomes["source"] * 100 > source * cases, outcomes
    if Run.whole:  # few do, beside one another: a part may have none
        assert outcomes["destination"] * 100 >= destination * cases, outcomes


@pytest.mark.parametrize("kind", FEW_KINDS[:2], ids=str)
def test_messages_and_channel(shares, kind):
    with no_leaks():
        expect(enumerate_failures(shares, kind, CHANNEL_AND_MESSAGES, f"messages, {kind}"), 50, 3)


@pytest.mark.parametrize("kind", FEW_KINDS[2:], ids=str)
def test_messages_and_channel_under_a_seeded_schedule(shares, kind):
    """The order of what goes on meanwhile is another, the handling of each fault the one tested above."""
    with no_leaks():
        expect(enumerate_failures(shares, kind, CHANNEL_AND_MESSAGES, f"messages, {kind}", one_in=3), 50, 1)


@pytest.mark.parametrize("kind", FEW_KINDS[:2], ids=str)
def test_host_calls(shares, kind):
    with no_leaks():
        expect(enumerate_failures(shares, kind, HOST_CALLS, f"host calls, {kind}"), 15)


@pytest.mark.parametrize(
    ("dialect", "kept"),
    [("upstream", {"migration": "external"}), ("rfc2023", {"options": {"migration_empty_state": True}})],
)
def test_with_a_back_end_that_is_kept(shares, dialect, kept):
    """Both connections are of the one back-end that the source started."""
    kind = Kind("packed", dialect, "find-paths", None)
    seams = ("vhost source", "channel source", "channel destination")
    with no_leaks():
        expect(enumerate_failures(shares, kind, seams, f"kept back-end, {dialect}", **kept), 50, 3)


@pytest.mark.parametrize("kind", FEW_KINDS, ids=str)
def test_the_steps_are_all_there(shares, kind):
    """What was counted covers the messages of the golden logs, on both sides."""
    steps = count_steps(shares(), kind, CHANNEL_AND_MESSAGES)
    told = {(step.seam[:-2], step.operation) for step in steps if step.seam.startswith("vhost")}
    source = {name for side, name in told if side == "vhost source"}
    destination = {name for side, name in told if side == "vhost destination"}
    assert source >= {"SET_LOG_BASE", "SET_FEATURES", "SET_VRING_ADDR", "SET_VRING_ENABLE", "GET_VRING_BASE"}
    assert source >= MESSAGES_SAVED[kind.dialect]
    assert destination >= {
        "GET_FEATURES", "SET_OWNER", "RESET_DEVICE", "SET_FEATURES", "ADD_MEM_REG", "SET_VRING_NUM",
        "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_ENABLE",
    }  # fmt: skip
    assert {step.operation for step in steps if step.seam == "channel source"} == {"write", "read"}
    assert {step.operation for step in steps if step.seam == "channel destination"} == {"write", "read"}
