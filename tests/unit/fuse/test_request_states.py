"""A request that is not answered at once: every input in every state, beside what comes of it."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.support.fuse_rig import Rig
from vmsim.errors import StateError
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import F_WRLCK
from vmsim.fuse.filesystem import DEFERRED, FileSystem, TryAgain
from vmsim.fuse.request_states import (
    APART,
    FINISHED,
    PUT_OFF,
    RUNNING,
    TABLE,
    WAITING,
    RequestEvent,
    RequestState,
    after,
)

UNIQUE = 100
EINTR, ABORTED = errno.EINTR, errno.ECONNABORTED
NOBODY = "nobody is answered"
STILL = "still to come"


class Locks(FileSystem):
    """Whose SETLKW does what ``next`` says, and which can be told to answer."""

    def __init__(self) -> None:
        self.next: Any = DEFERRED
        self.done: Any = None

    def setlk(self, ctx, nodeid, fh, owner, lock, lk_flags, done):
        self.done = done
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def interrupt(self, unique):
        if self.next is DEFERRED and self.done is not None:
            self.done(InterruptedError(EINTR, "interrupted"))


class Beside:
    """Serves aside what it is told to, and brings the result when it is told to."""

    def __init__(self) -> None:
        self.wanted = False
        self.serve: Any = None
        self.bring: Any = None

    def aside_key(self, request, *, again=False):
        return "key" if self.wanted else None

    def start_aside(self, request, key, serve, done):
        self.serve, self.bring = serve, done


class World:
    """A session and one SETLKW in it."""

    def __init__(self) -> None:
        self.fs, self.beside = Locks(), Beside()
        self.rig = Rig(fs=self.fs)
        self.session = self.rig.session
        self.session.serve_aside(self.beside, ())
        self.now: int | None = None
        self.reply = bytearray()

    def send(self) -> None:
        request = client.encode(op.SETLKW, UNIQUE, 1, 0, 0, 7, (1, 1, 0, 10, F_WRLCK, 7, 0, 0))
        self.now, self.reply = self.rig.raw(request, 16)

    def answer(self) -> int | str:
        """The errno that the request got, or that it got nothing."""
        if self.now is None and not self.rig.completed:
            return STILL if UNIQUE in self.session.waiting() else NOBODY
        assert UNIQUE not in self.session.waiting()
        assert (self.now is not None) + len(self.rig.completed) == 1
        return client.decode(op.SETLKW, bytes(self.reply[:16]), UNIQUE).error

    @property
    def state(self) -> RequestState:
        return self.session._unanswered._by_unique[UNIQUE].state


def waiting(world: World) -> None:
    """The method deferred it."""
    world.send()


def put_off(world: World) -> None:
    """The method raised TryAgain."""
    world.fs.next = TryAgain()
    world.send()


def apart(world: World) -> None:
    """It is served beside the loop."""
    world.beside.wanted = True
    world.send()


def finished(world: World) -> None:
    """It was answered."""
    world.send()
    world.fs.done(None)


MADE = {WAITING: waiting, PUT_OFF: put_off, APART: apart, FINISHED: finished}


def interrupt(world: World) -> None:
    world.rig.call(op.INTERRUPT, 0, (UNIQUE,))


def destroy(world: World) -> None:
    world.rig.call(op.DESTROY, 0)


def begin_anew(world: World) -> None:
    world.rig.init()


def park(world: World) -> None:
    world.session.park()


def reset(world: World) -> None:
    world.session.reset()


def load(world: World) -> None:
    world.session.restore(Rig().session.save())


def retry(world: World) -> None:
    world.fs.next = None
    world.session.retry(1)


def defer_again(world: World) -> None:
    world.fs.next = DEFERRED
    world.session.retry(1)


def move(world: World) -> None:
    world.beside.wanted = True
    world.session.retry(1)


def method_answers(world: World) -> None:
    world.fs.done(OSError(errno.EDEADLK, "deadlock"))


def method_answers_twice(world: World) -> None:
    world.fs.done(None)
    world.fs.done(OSError(errno.EDEADLK, "deadlock"))


def result_from_beside(world: World) -> None:
    if world.beside.bring is not None:
        world.beside.bring(None)


def nothing_done_beside(world: World) -> None:
    if world.beside.bring is not None:
        world.beside.bring(TryAgain())


def interrupted_and_nothing_done(world: World) -> None:
    interrupt(world)
    nothing_done_beside(world)


def interrupted_and_done(world: World) -> None:
    interrupt(world)
    result_from_beside(world)


def sent_twice(world: World) -> None:
    """The driver uses a unique that is not free."""
    used, reply = world.rig.raw(
        client.encode(op.SETLKW, UNIQUE, 1, 0, 0, 7, (1, 1, 0, 10, F_WRLCK, 7, 0, 0)), 16
    )
    assert used == 16
    assert client.decode(op.SETLKW, bytes(reply[:16]), UNIQUE).error == errno.EINVAL


S, N, OK = STILL, NOBODY, 0
#                                 WAITING  PUT_OFF  APART    what the request has got then
WHAT_COMES: dict[Any, tuple[Any, ...]] = {
    interrupt:                    (EINTR,   EINTR,   S),
    destroy:                      (ABORTED, ABORTED, ABORTED),
    begin_anew:                   (ABORTED, ABORTED, ABORTED),
    park:                         (N,       N,       S),
    reset:                        (N,       N,       N),
    load:                         (N,       N,       N),
    retry:                        (S,       OK,      S),
    defer_again:                  (S,       S,       S),
    move:                         (S,       S,       S),
    result_from_beside:           (S,       S,       OK),
    nothing_done_beside:          (S,       S,       S),
    interrupted_and_nothing_done: (EINTR,   EINTR,   EINTR),
    interrupted_and_done:         (EINTR,   EINTR,   OK),
    sent_twice:                   (S,       S,       S),
}  # fmt: skip
BECOMES = {
    (PUT_OFF, defer_again): WAITING, (PUT_OFF, move): APART, (APART, nothing_done_beside): PUT_OFF,
}  # fmt: skip
"""The states that these lead to, where the request is still to be answered."""


@pytest.mark.parametrize("act", WHAT_COMES, ids=lambda act: act.__name__)
@pytest.mark.parametrize("state", [WAITING, PUT_OFF, APART], ids=lambda state: state.name)
def test_every_input_in_every_state(state, act):
    world = World()
    MADE[state](world)
    assert world.state is state
    act(world)
    answer = world.answer()
    assert answer == WHAT_COMES[act][(WAITING, PUT_OFF, APART).index(state)]
    if answer is STILL:
        assert world.state is BECOMES.get((state, act), state)
    elif world.beside.bring is not None:  # whatever comes after the end is nobody's
        world.beside.bring(None)
        assert world.answer() == answer
    assert not world.session.save().interrupted or (state, act) == (APART, interrupt)


@pytest.mark.parametrize("act", [interrupt, park, reset, retry, method_answers], ids=lambda act: act.__name__)
def test_what_is_finished_stays_so(act):
    world = World()
    finished(world)
    act(world)
    assert world.answer() == OK
    assert not world.session.retrying


def test_a_method_answers_once():
    for act, wanted in ((method_answers, errno.EDEADLK), (method_answers_twice, OK)):
        world = World()
        waiting(world)
        act(world)
        assert world.answer() == wanted


def test_the_answer_to_what_was_given_up_is_not_written():
    world = World()
    waiting(world)
    done = world.fs.done
    world.session.park()
    done(None)
    assert world.answer() == NOBODY
    assert bytes(world.reply) == b"\xa5" * 16


@pytest.mark.parametrize("state", RequestState, ids=lambda state: state.name)
@pytest.mark.parametrize("event", RequestEvent, ids=lambda event: event.name)
def test_what_is_not_in_the_table_is_refused(state, event):
    if event in TABLE[state]:
        assert after(state, event) is TABLE[state][event]
    else:
        with pytest.raises(StateError, match="cannot be"):
            after(state, event)


def test_every_state_is_reached():
    assert set(TABLE) == set(RequestState)
    reached = {then for row in TABLE.values() for then in row.values()}
    assert reached == set(RequestState)
    assert RUNNING not in {then for event, then in TABLE[RUNNING].items()}
