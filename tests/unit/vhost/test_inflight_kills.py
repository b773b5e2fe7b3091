"""A back-end killed between any two lines: each request is answered exactly once, as the driver sees it."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.dying import boot, die, dies, lines_of
from tests.support.leaks import Held
from tests.support.sampling import sample
from tests.support.vhost_rig import PACKED
from vmsim.virtio.constants import F_EVENT_IDX, F_IN_ORDER, F_VERSION_1
from vmsim.virtio.ring_types import QueueFull

FORMATS = {
    "split": F_VERSION_1,
    "split, in order, event index": F_VERSION_1 | F_IN_ORDER | F_EVENT_IDX,
    "packed": PACKED,
    "packed, in order, event index": PACKED | F_IN_ORDER | F_EVENT_IDX,
}
SIZE = 8


class Requests:
    """What the driver has asked for; every answer must be that of a request that has none yet."""

    def __init__(self, rig):
        self.rig = rig
        self.open = {}
        self.number = 0
        self.answered = 0

    def add(self):
        """One more request, not visible yet; nothing if there is no room."""
        slot = self.number % SIZE
        if slot in {slot for slot, _ in self.open.values()}:
            return
        data = b"request %03d" % self.number
        try:
            self.open[self.rig.driver.add(data, 1, slot)] = slot, data
        except QueueFull:
            return
        self.number += 1

    def reap(self):
        while (used := self.rig.driver.reap()) is not None:
            slot, data = self.open.pop(used[0])  # KeyError: answered twice
            assert self.rig.driver.answer(used[1], 1, slot) == data[::-1]
            self.answered += 1

    def go_on(self):
        """While there is no back-end: take what has been answered, fill the ring again."""
        self.reap()
        for _ in range(SIZE):
            self.add()
        self.rig.driver.rings[1].publish()

    def kick(self):
        self.rig.driver.rings[1].publish()
        self.rig.driver.kick()


def hold_back_all_but_the_next(echo):
    served = len(echo.served)

    def during(ring):
        if len(echo.served) > served:
            echo.defer.add(1)

    echo.during = during


def out_of_order(rig):
    """Requests 1 and 2 wait, and come back in the other order."""
    rig.echo.waiting.reverse()
    rig.echo.finish()


def waiting_work(rig, requests):
    """Requests are made; what has them answered, two of them backwards."""
    for _ in range(3):
        requests.add()
        requests.kick()
        requests.reap()
    for _ in range(3):
        requests.add()
    hold_back_all_but_the_next(rig.echo)

    def work():
        requests.kick()
        out_of_order(rig)

    return work


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("features", FORMATS.values(), ids=FORMATS)
def test_any_line(features, goes_on, request):
    """Three requests at once, around the ring's end, of which two are held back and answered backwards."""
    before = Held()
    with boot(features, SIZE) as rig:
        count = lines_of(waiting_work(rig, Requests(rig)))
        rig.echo.during = None
    assert count > 100
    for line in sample(range(count + 1), 60, f"lines to die at: {request.node.name}"):
        with boot(features, SIZE) as rig:
            requests = Requests(rig)
            died = dies(waiting_work(rig, requests), line)
            assert died == (line < count)
            outstanding = len(requests.open)
            if died:
                interrupts = rig.interrupts
                die(rig)
                if goes_on:
                    requests.go_on()
                rig.attach_again()
                assert rig.interrupts > interrupts, "whoever waits for an interrupt gets one"
            requests.reap()
            assert not requests.open, f"line {line}"
            assert outstanding
            rig.echo.during = None
            rig.echo.defer.clear()
            assert rig.driver.call(b"next") == b"txen"
    assert before.more() == []


class Lives(RuleBasedStateMachine):
    """A driver works while back-ends come, die and are stopped in an orderly way."""

    features = F_VERSION_1

    def __init__(self):
        super().__init__()
        self.rig = boot(self.features, SIZE)
        self.requests = Requests(self.rig)
        self.paused = False

    def act(self, what, line):
        """Do it with a back-end that dies at that line, if it comes to it; then the next one takes over."""
        if not dies(what, line):
            return
        die(self.rig)
        if line % 2:
            self.requests.go_on()
        if dies(self.rig.attach_again, line // 3):
            die(self.rig)
            self.rig.attach_again()

    lines = st.one_of(st.just(10_000), st.integers(0, 400))

    @rule(count=st.integers(1, 4), lines=lines, defer=st.booleans())
    @precondition(lambda self: not self.paused)
    def send(self, count, lines, defer):
        self.rig.echo.defer = {1} if defer else set()
        for _ in range(count):
            self.requests.add()
        self.act(self.requests.kick, lines)

    @rule(lines=lines, backwards=st.booleans())
    @precondition(lambda self: not self.paused)
    def finish(self, lines, backwards):
        if backwards:
            self.rig.echo.waiting.reverse()
        self.act(self.rig.echo.finish, lines)

    @rule()
    def reap(self):
        self.requests.reap()

    @rule()
    @precondition(lambda self: not self.paused)
    def pause(self):
        self.rig.device.pause()
        self.paused = True

    @rule(lines=lines)
    @precondition(lambda self: self.paused)
    def resume(self, lines):
        self.paused = False
        self.rig.echo.defer.clear()
        self.act(self.rig.device.resume, lines)

    @rule()
    @precondition(lambda self: self.paused)
    def die_while_stopped(self):
        die(self.rig)
        self.rig.device.running = False
        self.paused = False
        self.rig.attach_again()

    @rule()
    @precondition(lambda self: not self.paused)
    def connection_breaks(self):
        """The back-end lives on, stops its rings, and is asked where they stand."""
        self.rig.transport.close()
        self.rig.device.detach()
        self.rig.attach_to_the_same()

    @invariant()
    def nothing_is_invented(self):
        assert len(self.requests.open) <= SIZE

    def teardown(self):
        if self.paused:
            self.rig.device.resume()
        self.rig.echo.defer.clear()
        self.rig.echo.finish()
        self.requests.add()
        self.requests.kick()
        self.requests.reap()
        open_ = dict(self.requests.open)
        total = self.requests.number
        assert not open_, "every request is answered"
        assert self.requests.answered == total
        self.rig.close()


def lives(name, features):
    machine = type(name, (Lives,), {"features": features})
    case = machine.TestCase
    case.settings = settings(
        max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    return case


TestSplit = lives("Split", F_VERSION_1 | F_EVENT_IDX)
TestSplitInOrder = lives("SplitInOrder", F_VERSION_1 | F_IN_ORDER)
TestPacked = lives("Packed", PACKED | F_EVENT_IDX)
TestPackedInOrder = lives("PackedInOrder", PACKED | F_IN_ORDER)
