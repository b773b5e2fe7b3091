"""A second failure while the first one is undone: the guest goes on all the same, or hears of it."""

from __future__ import annotations

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import FEW_KINDS, Campaign, Kind, Life
from tests.support.sampling import in_pairs
from vmsim.errors import MigrationError
from vmsim.machine import Seams
from vmsim.machine.states import RUNNING
from vmsim.wrappers.faults import Fault, Step

FAULTS = ("fail", "lose", "cut")
REFUSED = Fault("vhost destination *", "GET_FEATURES", 1, "fail")
LATE = Fault("channel source", "read", 1, "cut")
"""Early and late reasons to go back: before the guest stops, and after everything is saved."""


def steps_after(share, kind: Kind, trigger: Fault) -> list[Step]:
    """The messages that the source sends after the failure, in order."""
    campaign = Campaign(share, kind, [trigger])
    Life(campaign.vm)
    assert campaign.migrate() is None
    campaign.vm.close()
    plan = campaign.plan
    steps = plan.steps[plan.steps.index(plan.injected[0][0]) :]
    return [step for step in steps if step.seam.startswith("vhost source")]


@pytest.mark.parametrize("kind", FEW_KINDS[:2], ids=str)
@pytest.mark.parametrize("trigger", [REFUSED, LATE], ids=["early", "late"])
def test_every_message_of_the_way_back_fails(tmp_path, kind, trigger, request):
    """With the connection broken the source connects again to the back-end, which kept the session."""
    (tmp_path / "count").mkdir()
    steps = steps_after(tmp_path / "count", kind, trigger)
    operations = [step.operation for step in steps]
    assert operations[-3:] == ["SET_FEATURES", "SET_VRING_ADDR", "SET_VRING_ADDR"], "logging ends last"
    assert trigger is REFUSED or "SET_VRING_KICK" in operations
    rows = [(at + way, step, fault) for at, step in enumerate(steps) for way, fault in enumerate(FAULTS)]
    taken = in_pairs([position for position, *_ in rows], len(FAULTS), f"two failures: {request.node.name}")
    with no_leaks():
        for _, step, fault in (rows[at] for at in taken):
            share = tmp_path / f"{step.number}{fault}"
            share.mkdir()
            goes_back(share, kind, [trigger, Fault.at(step, fault)])


def goes_back(share, kind: Kind, faults: list[Fault]) -> None:
    """Both faults strike, and the guest goes on at the source and at its next destination."""
    campaign = Campaign(share, kind, faults)
    life = Life(campaign.vm)
    assert campaign.migrate() is None
    assert len(campaign.plan.injected) == 2, faults
    vm = campaign.vm
    assert vm.state == RUNNING
    life.check(vm)
    life.go_on(vm)
    vm2 = vm.migrate(seams=Seams())
    life.check(vm2)
    life.finish(vm2)
    vm2.close()
    vm.close()


def test_a_back_end_that_cannot_be_reached_any_more_is_reported_to_the_guest(tmp_path):
    """Every later message fails, on every connection: the device needs a reset, and requests end with EIO."""
    dead = [Fault("vhost source *", "SET_VRING_NUM", number, "fail") for number in range(1, 60)]
    with no_leaks():
        campaign = Campaign(tmp_path, FEW_KINDS[0], [LATE, *dead])
        life = Life(campaign.vm, waiter=False)
        assert campaign.migrate() is None
        assert isinstance(campaign.error, MigrationError)
        assert campaign.vm.device.virtio.status & 64, "DEVICE_NEEDS_RESET"
        assert "cannot be reached" in campaign.vm.device.virtio.reset_reason
        with pytest.raises(OSError, match="Input/output error"):
            campaign.vm.mount().pread(life.fd, 1, 0)
        campaign.vm.close()
        del campaign
