"""The requests of a session that are not answered at once; what each is waiting for: ``request_states``."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Protocol

from vmsim.fuse.filesystem import DEFERRED, FileSystem, TryAgain
from vmsim.fuse.request import Request
from vmsim.fuse.request_states import (
    ANSWER,
    APART,
    DEFER,
    FINISHED,
    GIVE_UP,
    MOVE,
    PUT_OFF,
    RETRY,
    RUNNING,
    TRY_AGAIN,
    WAITING,
)
from vmsim.limits import FUSE_INTERRUPTS_MAX

INTERRUPTED: Final = "interrupted"


class Aside(Protocol):
    """Serves requests that may sleep in the host while others are served."""

    def aside_key(self, request: Request, *, again: bool = False) -> Hashable | None:
        """What may hold up this request: calls with an equal key wait for each other; None for nothing.

        ``again``: it has been tried, and raised TryAgain.
        """
        ...

    def start_aside(
        self, request: Request, key: Hashable, serve: Callable[[], Any], done: Callable[[Any], object]
    ) -> None:
        """Have ``serve()`` called aside and its result, or exception, given to ``done``, perhaps at once."""
        ...


class Unanswered:
    """Serves requests, and keeps those whose answer is still to come, by unique, the oldest first.

    ``finish`` is told of each of these that gets its result.
    """

    def __init__(self, fs: FileSystem, finish: Callable[[Request, Any], None]) -> None:
        self.aside: Aside | None = None
        self._fs = fs
        self._finish = finish
        self._by_unique: dict[int, Request] = {}
        self._put_off: dict[int, Request] = {}
        """Those of them that are to be served anew, the next one first."""
        self.interrupted: dict[int, None] = {}
        """INTERRUPTs that are still to take effect: hiprio may overtake the request, or it is APART."""

    def serve(self, request: Request) -> Any:
        """The request's result, or DEFERRED: ``finish`` is told of it then. Raises what the method raises."""
        plan = request.plan
        aside = self.aside
        if aside is not None and not plan.no_reply:
            key = aside.aside_key(request)
            if key is not None:
                return self._begin_apart(request, key)
        try:
            return self._begin_waiting(request) if plan.row.waits else _call(request)
        except TryAgain:
            key = self._key_again(request)
            return self._begin_put_off(request) if key is None else self._begin_apart(request, key)

    def _begin_apart(self, request: Request, key: Hashable) -> Any:
        self._require_new(request)
        self._move(request, key)
        return self._later(request)

    def _begin_waiting(self, request: Request) -> Any:
        """SETLKW and POLL."""
        self._require_new(request)
        result = request.plan.handler(request)
        if result is not DEFERRED:
            request.become(ANSWER)
            return result
        unique = request.ctx.unique
        if request.state is RUNNING and unique in self.interrupted:
            del self.interrupted[unique]
            self._fs.interrupt(unique)
        if request.state is RUNNING:
            request.become(DEFER)
        return self._later(request)

    def _begin_put_off(self, request: Request) -> Any:
        self._require_new(request)
        self._put_off_or_interrupt(request)
        return self._later(request)

    def _require_new(self, request: Request) -> None:
        if request.ctx.unique in self._by_unique:
            raise OSError(errno.EINVAL, "a waiting request has this unique")

    def _later(self, request: Request) -> Any:
        """DEFERRED, unless the result has come meanwhile."""
        if request.state is FINISHED:
            return request.result
        request.on_done = self._answered
        self._by_unique[request.ctx.unique] = request
        return DEFERRED

    def _answered(self, request: Request, result: Any) -> None:
        unique = request.ctx.unique
        for kept in (self._by_unique, self._put_off, self.interrupted):
            kept.pop(unique, None)
        self._finish(request, result)

    # -- serving anew, and beside the loop

    def _key_again(self, request: Request) -> Hashable | None:
        return None if self.aside is None else self.aside.aside_key(request, again=True)

    def _move(self, request: Request, key: Hashable) -> None:
        assert self.aside is not None
        request.become(MOVE)
        self.aside.start_aside(
            request, key, lambda: _call(request), lambda result: self._served_apart(request, result)
        )

    def _served_apart(self, request: Request, result: Any) -> None:
        """It has its result, perhaps after the end of its session."""
        if request.state is not APART:
            return
        if isinstance(result, TryAgain):
            self._put_off_or_interrupt(request)
        else:
            request.done(result)

    def _put_off_or_interrupt(self, request: Request) -> None:
        unique = request.ctx.unique
        if unique in self.interrupted:
            del self.interrupted[unique]
            request.done(InterruptedError(errno.EINTR, INTERRUPTED))
        else:
            request.become(TRY_AGAIN)
            self._put_off[unique] = request

    @property
    def retrying(self) -> bool:
        """Whether ``retry`` has something to do."""
        return bool(self._put_off)

    def retry(self, most: int) -> None:
        """Serve up to ``most`` of the requests anew that had to try again."""
        for unique in list(itertools.islice(self._put_off, most)):
            request = self._put_off.pop(unique, None)
            if request is None:
                continue  # ended by what another one brought about
            request.become(RETRY)
            key = self._key_again(request)
            if key is not None:
                self._move(request, key)
                continue
            try:
                result = _call(request)
            except TryAgain:
                request.become(TRY_AGAIN)
                self._put_off[unique] = request  # behind those that have waited for their turn
                continue
            except Exception as error:
                result = error
            if result is not DEFERRED:
                request.done(result)
            elif request.state is RUNNING:
                request.become(DEFER)

    # -- the end of waiting

    def interrupt(self, unique: int) -> None:
        """INTERRUPT; one that takes no effect yet is remembered, so many of them at most."""
        request = self._by_unique.get(unique)
        if request is not None and request.state is PUT_OFF:
            request.done(InterruptedError(errno.EINTR, INTERRUPTED))
        elif request is not None and request.state is WAITING:
            self._fs.interrupt(unique)
        else:
            self.interrupted[unique] = None
            if len(self.interrupted) > FUSE_INTERRUPTS_MAX:
                del self.interrupted[next(iter(self.interrupted))]

    def uniques(self) -> list[int]:
        """Of those whose answer is still to come, the oldest first."""
        return list(self._by_unique)

    @property
    def newest(self) -> int:
        """The unique of the request that began to wait last; -1 if none waits."""
        return next(reversed(self._by_unique), -1)

    def is_apart(self, unique: int) -> bool:
        """Whether the request is being served beside the loop: only its end ends it."""
        request = self._by_unique.get(unique)
        return request is not None and request.state is APART

    def give_up(self, uniques: Iterable[int] | None = None, *, apart: bool = False) -> list[int]:
        """Let go of requests (None: all) unanswered; their uniques. Those that are APART only if told so."""
        given_up = []
        for unique in self.uniques() if uniques is None else uniques:
            request = self._by_unique.get(unique)
            if request is not None and (apart or request.state is not APART):
                del self._by_unique[unique]
                self._put_off.pop(unique, None)
                request.become(GIVE_UP)
                given_up.append(unique)
        for unique in given_up:
            self._fs.interrupt(unique)
        return given_up

    def answer_all(self, error: OSError) -> None:
        """The session ends: whoever waits is told so, also those that are APART."""
        for request in list(self._by_unique.values()):
            request.done(error)


def _call(request: Request) -> Any:
    plan = request.plan
    return plan.handler(request.ctx, request.args) if plan.simple else plan.handler(request)
