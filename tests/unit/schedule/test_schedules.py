"""Both schedules against the contract, and what each does besides."""

from __future__ import annotations

import contextlib

import pytest

from tests.contract.schedule_suite import CHECKS
from vmsim.errors import StallError, StateError
from vmsim.schedule import TaskKilled
from vmsim.schedule.clock import MonotonicClock, VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.schedule.seeded import SeededSchedule
from vmsim.trace import Tracer

MAKERS = {
    "immediate": lambda: ImmediateSchedule(VirtualClock()),
    "immediate, real time": ImmediateSchedule,
    "seeded": lambda: SeededSchedule(7),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, name):
    check(MAKERS[name])


@pytest.mark.parametrize("seed", range(30))
def test_contract_under_many_seeds(seed):
    for check in CHECKS:
        check(lambda: SeededSchedule(seed))


class TestImmediate:
    def test_a_kick_is_a_function_call(self):
        schedule, calls = ImmediateSchedule(), []
        schedule.kick(lambda: calls.append(1), "a device")
        assert calls == [1]

    def test_a_kick_raises_what_the_device_raises_and_works_again_afterwards(self):
        schedule, calls = ImmediateSchedule(), []

        def device():
            calls.append(1)
            if len(calls) == 1:
                raise OSError(5, "broken")

        with pytest.raises(OSError):
            schedule.kick(device, "a device")
        schedule.kick(device, "a device")
        assert len(calls) == 2

    def test_a_device_that_waits_inside_a_kick_can_be_kicked_by_others_meanwhile(self):
        schedule, trail, gate = ImmediateSchedule(), [], []

        def device():
            trail.append("in")
            schedule.wait(lambda: bool(gate), "the gate")
            trail.append("out")

        def other():
            schedule.kick(device, "a device")
            trail.append("kicked")
            gate.append(1)

        first = schedule.spawn("first", lambda: schedule.kick(device, "a device"))
        schedule.spawn("other", other)
        schedule.join(first)
        assert trail == ["in", "kicked", "out", "in", "out"]

    def test_turns_go_round(self):
        schedule, order = ImmediateSchedule(), []

        def work(name):
            for _ in range(3):
                order.append(name)
                schedule.checkpoint("a step")

        tasks = [schedule.spawn(name, lambda name=name: work(name)) for name in "abc"]
        for task in tasks:
            schedule.join(task)
        assert "".join(order) == "abcabcabc"

    def test_idle_brings_in_the_outside_world(self):
        arrived, asked = [], []

        def idle(deadline_ns):
            asked.append(deadline_ns)
            arrived.append(1)
            return True

        schedule = ImmediateSchedule(idle=idle)
        schedule.wait(lambda: bool(arrived), "a packet")
        assert asked == [None]

    def test_an_activity_of_another_schedule_is_refused(self):
        outer, inner = ImmediateSchedule(), ImmediateSchedule()

        def strange():
            inner.wait(lambda: False, "nothing")

        task = inner.spawn("own", lambda: outer.join(outer.spawn("strange", strange)))
        with pytest.raises(StateError, match="did not spawn"):
            inner.join(task)
        inner.close()
        outer.close()

    def test_an_interrupt_by_the_user_ends_main(self):
        schedule = ImmediateSchedule()

        def interrupted():
            raise KeyboardInterrupt

        task = schedule.spawn("interrupted", interrupted)
        with pytest.raises(KeyboardInterrupt):
            schedule.join(task)
        assert schedule.waits() == {}


def history(seed):
    """A run with kicks, sleeps, errors and kills; its history."""
    tracer = Tracer()
    entries = tracer.record()
    schedule = SeededSchedule(seed, trace=tracer.source("sim"))
    tracer.now_ns = schedule.now_ns
    box = []

    def program(name):
        numbers = schedule.rng(name)
        for _ in range(8):
            schedule.sleep_ns(numbers.randrange(5000))
            schedule.kick(lambda: box.append(name), f"device of {name}")
            schedule.checkpoint("between")
        if name == "b":
            raise ValueError("b is like that")

    tasks = [schedule.spawn(name, lambda name=name: program(name)) for name in "abcd"]
    schedule.kill(tasks[3])
    schedule.join(tasks[0])
    schedule.settle()
    schedule.wait(lambda: all(task.done for task in tasks), "all")
    schedule.settle()
    return [entry.event for entry in entries], [entry.now_ns for entry in entries], box


class TestSeeded:
    def test_same_seed_same_history(self):
        assert history(3) == history(3)

    def test_seeds_differ(self):
        assert len({repr(history(seed)) for seed in range(20)}) == 20

    def test_every_interleaving_of_two_steps_occurs(self):
        def order_of(seed):
            schedule, order = SeededSchedule(seed), []
            for name in "abc":
                schedule.spawn(name, lambda name=name: order.append(name))
            schedule.kick(lambda: order.append("k"), "a device")
            schedule.settle()
            return "".join(order)

        seen = {order_of(seed) for seed in range(40)}
        assert len(seen) > 15, "of 24 permutations"

    def test_streams_of_random_numbers_do_not_disturb_one_another(self):
        one, two = SeededSchedule(5), SeededSchedule(5)
        one.rng("x").random()
        assert one.rng("y").random() == two.rng("y").random()
        assert one.rng("x").random() != one.rng("y").random()

    def test_a_kick_comes_later_and_two_kicks_are_one(self):
        schedule, calls = SeededSchedule(1), []
        answer = lambda: calls.append(1)  # noqa: E731 - the same callable twice
        schedule.kick(answer, "a device")
        schedule.kick(answer, "a device")
        assert calls == []
        schedule.settle()
        assert calls == [1]

    def test_what_a_kicked_device_raises_ends_the_run(self):
        schedule = SeededSchedule(1)

        def broken():
            raise OSError(5, "broken")

        schedule.kick(broken, "a device")
        with pytest.raises(OSError):
            schedule.settle()

    def test_stall_names_the_seed(self):
        schedule = SeededSchedule(99)
        with pytest.raises(StallError, match="seed 99") as caught:
            schedule.wait(lambda: False, "godot")
        assert caught.value.details["seed"] == 99

    def test_a_run_without_end_is_ended(self):
        schedule = SeededSchedule(4, turns_max=100)

        def forever():
            while True:
                schedule.checkpoint("and on")

        schedule.spawn("forever", forever)
        with pytest.raises(StallError, match="no end in sight"):
            schedule.wait(lambda: False, "the end")
        schedule.close()

    def test_time_is_virtual(self):
        schedule = SeededSchedule(1)
        schedule.sleep_ns(3600 * 10**9)
        assert 3600 * 10**9 <= schedule.now_ns() < 3601 * 10**9


def test_an_activity_that_will_not_die_is_named():
    schedule = ImmediateSchedule()

    def stubborn():
        for _ in range(150):
            with contextlib.suppress(TaskKilled):
                schedule.wait(lambda: False, "nothing")

    task = schedule.spawn("stubborn", stubborn)
    schedule.settle()
    with pytest.raises(StateError, match="stubborn"):
        schedule.close()
    schedule.close()
    assert task.done


def test_an_activity_may_wait_while_it_cleans_up():
    schedule = ImmediateSchedule()
    cleaned = []

    def careful():
        try:
            schedule.wait(lambda: False, "nothing")
        finally:
            try:
                schedule.wait(lambda: False, "somebody to take it back")
            finally:
                cleaned.append(True)

    schedule.spawn("careful", careful)
    schedule.settle()
    schedule.close()
    assert cleaned == [True]


def test_clocks():
    virtual = VirtualClock(5)
    virtual.advance_to(3)
    assert virtual.now_ns() == 5
    virtual.advance_to(8)
    assert virtual.now_ns() == 8
    real = MonotonicClock()
    target = real.now_ns() + 2_000_000
    real.advance_to(target)
    assert real.now_ns() >= target


def test_close_ends_what_others_start_while_they_are_killed():
    schedule = SeededSchedule(1)
    ended = []

    def stubborn():
        try:
            schedule.wait(lambda: False, "what never comes")
        finally:
            schedule.spawn("late", lambda: schedule.wait(lambda: False, "nothing"))
            ended.append("stubborn")

    schedule.spawn("stubborn", stubborn)
    schedule.settle()
    schedule.close()
    assert ended == ["stubborn"]
    assert schedule.waits() == {}
