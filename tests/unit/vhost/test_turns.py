"""A turn of a ring ends when its time is over, whatever is in the ring; nothing is lost or done twice."""

from __future__ import annotations

from collections import deque

import pytest

from tests.support.vhost_rig import BASIC, EchoDevice, Rig
from vmsim.virtio.constants import F_EVENT_IDX, F_RING_PACKED

FEATURES = pytest.mark.parametrize("features", [BASIC, BASIC | F_RING_PACKED], ids=["split", "packed"])


class ShortTurns:
    """A link whose turns are over after ``chains`` chains; who wants to go on stands in ``queue``."""

    def __init__(self, inner, chains):
        self._inner = inner
        self._chains = chains
        self.queue = deque()
        self.call = inner.call
        self.ring_error = inner.ring_error
        self.set_notifier = inner.set_notifier
        self.set_channel = inner.set_channel

    def turn(self):
        left = self._chains

        def over():
            nonlocal left
            left -= 1
            return left <= 0

        return over

    def reschedule(self, ring):
        if ring not in self.queue:
            self.queue.append(ring)


def short_turns(rig, chains=4):
    link = rig.backend.link = ShortTurns(rig.backend.link, chains)
    return link


@FEATURES
def test_new_requests(features):
    with Rig(echo=EchoDevice(features)).boot(features) as rig:
        link = short_turns(rig)
        for slot in range(30):
            rig.driver.add(b"request %d" % slot, slot=slot)
        rig.driver.rings[1].publish()
        rig.driver.kick()
        turns = 1
        while link.queue:
            assert len(rig.echo.served) == 4 * turns
            rig.backend.kicked(link.queue.popleft())
            turns += 1
        assert [data for _, data in rig.echo.served] == [b"request %d" % slot for slot in range(30)]


@FEATURES
def test_requests_that_were_parked(features):
    """What another back-end left, thousands perhaps, is no turn of its own."""
    with Rig(echo=EchoDevice(features)).boot(features) as rig:
        rig.echo.defer = {1}
        for slot in range(30):
            rig.driver.add(b"request %d" % slot, slot=slot)
        rig.driver.rings[1].publish()
        rig.driver.kick()
        rig.device.pause()
        assert rig.echo.waiting == []
        rig.echo.defer = set()
        link = short_turns(rig)
        rig.device.resume()  # says twice that the ring goes on: at most as many turns
        assert 0 < len(rig.echo.served) <= 8
        rig.device.pause()  # in the middle of it
        rig.device.resume()
        while link.queue:
            before = len(rig.echo.served)
            rig.backend.kicked(link.queue.popleft())
            assert len(rig.echo.served) <= before + 4
        assert [data for _, data in rig.echo.served] == [b"request %d" % slot for slot in range(30)]
        assert sum(rig.driver.reap() is not None for _ in range(31)) == 30


@FEATURES
def test_the_hiprio_ring_is_looked_at_between_two_requests(features):
    with Rig(echo=EchoDevice(features)).boot(features) as rig:
        short_turns(rig)
        for slot in range(3):
            rig.driver.add(b"request", slot=slot)
        rig.driver.rings[1].publish()
        rig.driver.add(b"urgent", queue=0)
        rig.driver.rings[0].publish()
        rig.driver.kick(1)
        assert [ring for ring, _ in rig.echo.served] == [1, 0, 1, 1]


@FEATURES
@pytest.mark.parametrize("extra", [0, F_EVENT_IDX], ids=["flags", "event index"])
def test_a_turn_that_ends_with_the_last_request_leaves_the_driver_free_to_notify(features, extra):
    """Between two chains no notification is wanted; whoever stops there has to ask for them again."""
    with Rig(echo=EchoDevice(features)).boot(features & ~F_EVENT_IDX | extra) as rig:
        link = short_turns(rig, chains=3)
        slot = 0
        for _ in range(10):
            for _ in range(3):
                rig.driver.add(b"request", slot=slot % 50)
                slot += 1
            rig.driver.rings[1].publish()
            assert rig.driver.rings[1].needs_kick(), f"after {slot - 3} requests no notification is asked for"
            rig.driver.kick()
            while link.queue:
                rig.backend.kicked(link.queue.popleft())
            assert len(rig.echo.served) == slot
            while rig.driver.reap():
                pass
