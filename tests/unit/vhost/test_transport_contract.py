"""The in-process transport passes the contract of seam S1; under a seeded schedule nothing is lost either."""

import pytest

from tests.contract.transport import CHECKS
from tests.support.vhost_rig import PACKED, EchoDevice, Rig
from vmsim.schedule.seeded import SeededSchedule
from vmsim.virtio.constants import F_EVENT_IDX, F_VERSION_1


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(Rig)


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_EVENT_IDX, PACKED | F_EVENT_IDX])
@pytest.mark.parametrize("seed", range(12))
def test_stopping_and_going_on_at_any_moment_loses_nothing(seed, features):
    """A program keeps four requests in flight, a device answers late, the machine stops again and again."""
    schedule = SeededSchedule(seed)
    rng = schedule.rng("test")
    echo = EchoDevice(features)
    with Rig(echo=echo, schedule=schedule) as rig:
        rig.boot(features)
        answered = []

        def program():
            ring = rig.driver.rings[1]
            for batch in range(10):
                owners = {}
                for slot in range(4):
                    owners[rig.driver.add(b"%d.%d" % (batch, slot), 1, slot)] = slot
                    ring.publish()
                    if ring.needs_kick():
                        rig.driver.kick()
                    schedule.checkpoint("between two requests")
                while owners:
                    used = []
                    schedule.wait(lambda used=used: bool(used) or reap(used), "an answer")
                    slot = owners.pop(used[0][0])
                    answered.append(rig.driver.answer(used[0][1], 1, slot)[::-1])

        def reap(used):
            found = rig.driver.reap()
            if found is not None:
                used.append(found)
            return bool(used)

        def late(ring):
            if rng.random() < 0.3:
                schedule.checkpoint("within a request")
            echo.defer = {1} if rng.random() < 0.4 else set()

        def finisher():
            for _ in range(200):
                schedule.sleep_ns(3000)
                echo.finish()

        echo.during = late
        task = schedule.spawn("program", program)
        schedule.spawn("late answers", finisher)
        while not task.done:
            schedule.sleep_ns(rng.randrange(1, 60_000))
            rig.device.pause()
            count = len(echo.served)
            schedule.sleep_ns(rng.randrange(1, 60_000))
            assert len(echo.served) == count, "a suspended device is silent"
            rig.device.resume()
        task.result()
        sent = [b"%d.%d" % (batch, slot) for batch in range(10) for slot in range(4)]
        assert sorted(answered) == sent
        assert sorted(data for _, data in echo.served) == sorted(answered), "each was done exactly once"
