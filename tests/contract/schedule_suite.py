"""What every schedule (seam S4) has to do; a test module calls ``check_schedule(make)``."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from vmsim.errors import StallError, StateError
from vmsim.schedule import TaskKilled
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.tasks import LOOK_NS, TurnTaking

Make = Callable[[], TurnTaking]


def check_wait_lets_others_run(make: Make) -> None:
    """Whoever waits goes on when another activity has made its condition true."""
    schedule, box, got = make(), [], []

    def consume() -> None:
        for _ in range(5):
            schedule.wait(lambda: bool(box), "an item")
            got.append(box.pop())

    def produce() -> None:
        for item in range(5):
            schedule.wait(lambda: not box, "room")
            box.append(item)

    consumer = schedule.spawn("consumer", consume)
    schedule.spawn("producer", produce)
    schedule.join(consumer)
    assert got == [0, 1, 2, 3, 4]
    schedule.settle()
    assert schedule.waits() == {}


def check_descriptors_are_waited_for(make: Make) -> None:
    """While nobody can go on, whoever was attached waits; there is one at most."""
    schedule, asked = make(), []

    class Arrivals:
        def idle(self, deadline_ns: int | None) -> bool:
            asked.append(deadline_ns)
            return True

    arrivals = Arrivals()
    assert schedule.descriptors is None
    assert schedule.attach(arrivals)
    assert schedule.descriptors is arrivals
    assert not schedule.attach(Arrivals())
    schedule.wait(lambda: bool(asked), "a packet")
    assert asked[0] is None


def check_kick_runs_once_more_when_kicked_inside(make: Make) -> None:
    """A kick is never lost and never nested, however it arrives."""
    schedule, calls, depth = make(), [], []

    def answer() -> None:
        assert not depth
        depth.append(1)
        calls.append(1)
        if len(calls) < 4:
            schedule.kick(answer, "again")
        depth.pop()

    schedule.kick(answer, "first")
    schedule.wait(lambda: len(calls) == 4, "four answers")
    schedule.settle()
    assert len(calls) == 4


def check_stall_names_everybody(make: Make) -> None:
    """When nobody can go on, the error says who waits for what, and the schedule stays usable."""
    schedule = make()
    schedule.spawn("left", lambda: schedule.wait(lambda: False, "the right"))
    schedule.spawn("right", lambda: schedule.wait(lambda: False, "the left"))
    with pytest.raises(StallError) as caught:
        schedule.wait(lambda: False, "either")
    waits = caught.value.details["waits"]
    assert waits == {"left": "the right", "right": "the left", "main": "either"}
    for name, what in waits.items():
        assert f"{name} waits for {what}" in caught.value.message
    schedule.close()
    assert schedule.waits() == {}


def check_errors_belong_to_the_task(make: Make) -> None:
    """What an activity raises is raised by result() and join(), and disturbs nobody else."""
    schedule = make()

    def fail() -> None:
        schedule.checkpoint("before")
        raise ValueError("broken")

    failing, fine = schedule.spawn("failing", fail), schedule.spawn("fine", lambda: 7)
    with pytest.raises(StateError):
        failing.result()
    assert schedule.join(fine) == 7
    with pytest.raises(ValueError, match="broken"):
        schedule.join(failing)


def check_condition_that_raises(make: Make) -> None:
    """An error of ``ready`` reaches the one who waits, not whoever happens to poll it."""
    schedule, armed, seen = make(), [], []

    def ready() -> bool:
        if armed:
            raise OSError(5, "gone")
        return False

    def waiter() -> None:
        try:
            schedule.wait(ready, "a channel")
        except OSError as error:
            seen.append(error.errno)

    task = schedule.spawn("waiter", waiter)
    schedule.spawn("breaker", lambda: armed.append(1))
    schedule.join(task)
    assert seen == [5]


def check_kill(make: Make) -> None:
    """A killed activity unwinds where it waits; one that never ran never runs."""
    schedule, trail = make(), []

    def victim() -> None:
        try:
            schedule.wait(lambda: False, "rescue")
        except Exception:
            trail.append("caught")
        finally:
            trail.append("unwound")

    task = schedule.spawn("victim", victim)
    schedule.settle()
    schedule.kill(task)
    schedule.settle()
    assert trail == ["unwound"]
    assert task.done
    with pytest.raises(StateError, match="killed"):
        task.result()
    unborn = schedule.spawn("unborn", lambda: trail.append("ran"))
    schedule.kill(unborn)
    schedule.settle()
    assert trail == ["unwound"]
    assert unborn.done

    def kills_itself() -> None:
        schedule.kill(suicide)

    suicide = schedule.spawn("suicide", kills_itself)
    schedule.settle()
    assert isinstance(suicide.error, TaskKilled)


def check_sleep_passes_time(make: Make) -> None:
    """Sleepers wake, not before their deadlines; in virtual time, where none is late, in their order."""
    schedule, woken = make(), []

    def sleeper(duration_ns: int) -> None:
        began = schedule.now_ns()
        schedule.sleep_ns(duration_ns)
        woken.append(duration_ns)
        assert schedule.now_ns() - began >= duration_ns

    durations = (3_000_000, 1_000_000, 2_000_000)
    tasks = [schedule.spawn(f"sleeper {n}", lambda n=n: sleeper(n)) for n in durations]
    for task in tasks:
        schedule.join(task)
    assert sorted(woken) == [1_000_000, 2_000_000, 3_000_000]
    if isinstance(schedule.clock, VirtualClock):
        assert woken == sorted(woken)


def check_what_is_watched_keeps_waiting_from_stalling(make: Make) -> None:
    """As long as a look says that something outside is waited for, nobody stalls; sleepers still wake."""
    schedule, looks, woken = make(), [], []

    def look() -> bool:
        looks.append(schedule.now_ns())
        return len(looks) <= 5

    schedule.watch(look)
    schedule.wait(lambda: len(looks) == 3, "the third look")
    assert all(late - soon >= LOOK_NS for soon, late in itertools.pairwise(looks))
    sleeper = schedule.spawn("sleeper", lambda: (schedule.sleep_ns(LOOK_NS // 2), woken.append(1)))
    schedule.join(sleeper)
    with pytest.raises(StallError):
        schedule.wait(lambda: False, "more than that")
    assert len(looks) == 6
    schedule.unwatch(look)
    schedule.unwatch(look)
    with pytest.raises(StallError):
        schedule.wait(lambda: False, "nothing")
    assert len(looks) == 6


def check_spawn_and_wait_inside_tasks(make: Make) -> None:
    """Activities start others and wait for them; deep stacks switch like shallow ones."""
    schedule = make()

    def fib(n: int) -> int:
        if n < 2:
            schedule.checkpoint("a leaf")
            return n
        left, right = (schedule.spawn(f"fib {n - k}", lambda k=k: fib(n - k)) for k in (1, 2))
        return int(str(schedule.join(left))) + int(str(schedule.join(right)))

    assert schedule.join(schedule.spawn("fib", lambda: fib(7))) == 13


def check_schedule(make: Make) -> None:
    """All of the above."""
    for check in CHECKS:
        check(make)


CHECKS = (
    check_wait_lets_others_run, check_kick_runs_once_more_when_kicked_inside, check_stall_names_everybody,
    check_errors_belong_to_the_task, check_condition_that_raises, check_kill, check_sleep_passes_time,
    check_spawn_and_wait_inside_tasks, check_descriptors_are_waited_for,
    check_what_is_watched_keeps_waiting_from_stalling,
)
