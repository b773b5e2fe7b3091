"""Host calls that may sleep for long: made on other threads, while everything else stays on one.

A request that may have to sleep runs *aside*: its handler is a greenlet, each of its host calls is handed to
a pool of threads, and until the result is there the loop serves the others. The tables are only ever touched
by the loop's thread, but other requests run between two host calls of this one:

* What a run has used is not closed before its end (``hold``), so that no number becomes another file's.
* The guest's memory is not touched by a thread: data are copied when a call begins and when it has ended.
* The ids that a run takes on are taken on by the thread, for each call.
* ``abandon`` ends runs where they wait: their session is over. What a call still opens is closed.

What is called outside a run on a descriptor that may hang (while a state is collected, say) waits, for
SLOW_CALL_NS at most; after that the same mount is not waited for again until one of its calls has ended.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import greenlet

from vmsim.limits import ASIDE_MAX, SLOW_CALL_NS

from .host_calls import HostFs

FD_PLACES: Final = {
    "rename": (0, 2), "link": (0, 1), "symlink": (1,), "copy_file_range": (0, 2),
}  # fmt: skip
"""Which arguments are descriptors, where it is not the first alone."""

OPENS: Final = frozenset({"open_beneath", "reopen", "open_handle"})
STEPS: Final = 10
"""In so many steps is a call waited for."""

CALLS: Final = (
    "open_beneath", "reopen", "file_handle", "file_handle_at", "open_handle", "fstat", "identify",
    "identify_name", "identify_at", "birth", "birth_at", "statx", "fstatvfs", "chmod", "chown", "utimens",
    "access", "getxattr", "setxattr", "listxattr", "removexattr", "mkdir", "mknod", "symlink", "link",
    "unlink", "rmdir", "rename", "readlink", "getdents", "ftruncate", "fsync", "flush", "syncfs",
    "fallocate", "lseek", "copy_file_range", "ioctl", "poll", "flock", "set_lock", "get_lock",
)  # fmt: skip


class Pool(Protocol):
    """Who runs calls on other threads; see :class:`vmsim.host.workers.Workers`."""

    pending: int

    @property
    def fd(self) -> int:
        """Readable when results wait."""
        ...

    def submit(
        self, key: Hashable, call: Callable[[Any], Any], done: Callable[[Any, BaseException | None], object]
    ) -> None:
        """Run ``call(host calls of that thread)``; ``join`` hands the result to ``done``."""
        ...

    def join(self) -> bool:
        """Hand over the results that are there."""
        ...

    def wait(self, limit_ns: int) -> bool:
        """Wait for some, then hand them over."""
        ...

    def wake(self) -> None:
        """Make ``fd`` readable."""
        ...

    def close(self) -> None:
        """No more."""
        ...


class Abandoned(BaseException):
    """Raised in a run whose session is over."""


class Run:
    """A request that runs aside."""

    __slots__ = ("body", "done", "held", "ids", "key", "over")

    def __init__(self, key: Hashable, done: Callable[[Any], object]) -> None:
        self.key = key
        self.done = done
        self.body: greenlet.greenlet | None = None
        self.held: list[int] = []
        self.ids: tuple[int, int, tuple[int, ...], bool] | None = None
        self.over = False


class AsideHost:
    """The host calls of ``inner``, those of runs on the threads of ``pool``."""

    def __init__(self, inner: HostFs, pool: Pool) -> None:
        self.inner = inner
        self.pool = pool
        self.run: Run | None = None
        self._runs: dict[Run, None] = {}
        self._holds: dict[int, int] = {}
        self._doomed: set[int] = set()
        self._slow: dict[int, Hashable] = {}
        """Descriptors that a run has opened, and the mount that may hang."""
        self.names: frozenset[bytes] = frozenset()
        """Names at which such mounts lie, in whatever directory."""
        self._dead: set[Hashable] = set()
        self._bounding = False
        self._late: list[Callable[[], None]] = []
        """What landed while the loop waited for something else."""
        self.privileged = inner.privileged
        for name in CALLS:
            setattr(self, name, self._wrapped(name, getattr(inner, name)))

    def __getattr__(self, name: str) -> Any:
        """What is left: paths, limits, memory files."""
        return getattr(self.inner, name)

    # -- runs ------------------------------------------------------------------------------------

    def start(self, key: Hashable, serve: Callable[[], Any], done: Callable[[Any], object]) -> None:
        """Run ``serve()`` aside; ``done`` gets its result, or its exception, perhaps at once."""
        if self.pool.pending >= ASIDE_MAX:
            done(OSError(errno.EAGAIN, "too many calls sleep"))
            return
        run = Run(key, done)

        def body() -> Any:
            try:
                return serve()
            except Exception as error:
                return error

        run.body = greenlet.greenlet(body)
        self._runs[run] = None
        self._go_on(run, None)

    def _go_on(self, run: Run, outcome: Any) -> None:
        """Switch to a run until it waits or ends."""
        body = run.body
        assert body is not None
        body.parent = greenlet.getcurrent()
        before, self.run = self.run, run
        try:
            value = body.switch(outcome) if body else body.switch()
        finally:
            self.run = before
        if not body.dead:
            name, call = value
            self.pool.submit(run.key, call, lambda result, error: self._landed(run, name, result, error))
            return
        del self._runs[run]
        self._let_go(run)
        run.done(value)

    def _landed(self, run: Run, name: str, result: Any, error: BaseException | None) -> None:
        self._dead.discard(run.key)
        if self._bounding:
            self._late.append(lambda: self._landed(run, name, result, error))
            return
        if run.over:
            if name in OPENS and error is None:
                self._close_slowly(run.key, result)
            self._let_go(run)
            return
        self._go_on(run, (result, error))

    def join(self) -> None:
        """Go on with the runs whose calls have ended."""
        late, self._late = self._late, []
        for landed in late:
            landed()
        self.pool.join()

    def abandon(self) -> None:
        """The session is over: end all runs where they wait; what their calls use is let go later."""
        for run in list(self._runs):
            body = run.body
            if body is None or run is self.run:
                continue
            run.over = True
            del self._runs[run]
            body.parent = greenlet.getcurrent()
            before, self.run = self.run, run
            try:
                body.throw(Abandoned())
            except Abandoned:
                pass
            finally:
                self.run = before
            run.body, run.done = None, _nobody  # they keep the guest's memory mapped

    @contextmanager
    def inline(self) -> Iterator[None]:
        """Within this, calls are the loop's, whoever makes them."""
        before, self.run = self.run, None
        try:
            yield
        finally:
            self.run = before

    def may_hang(self, fd: int, key: Hashable) -> None:
        """Calls on ``fd`` may not be made by the loop."""
        self._slow[fd] = key

    def hangs(self, fd: int) -> bool:
        """Whether that was said of ``fd``."""
        return fd in self._slow

    def hold(self, fd: int) -> None:
        """Whatever closes ``fd`` before the present run has ended, it stays open until then."""
        run = self.run
        if run is not None and not run.over:
            run.held.append(fd)
            self._holds[fd] = self._holds.get(fd, 0) + 1

    def _let_go(self, run: Run) -> None:
        held, run.held = run.held, []
        for fd in held:
            left = self._holds.pop(fd) - 1
            if left:
                self._holds[fd] = left
            elif fd in self._doomed:
                self._doomed.discard(fd)
                self.close(fd)

    # -- calls -----------------------------------------------------------------------------------

    def _wrapped(self, name: str, direct: Callable[..., Any]) -> Callable[..., Any]:
        places = FD_PLACES.get(name, (0,))
        opens = name in OPENS

        def call(*words: Any, **named: Any) -> Any:
            run = self.run
            if run is not None:
                for place in places:
                    self.hold(words[place])
                result = self._aside(run, name, lambda host: getattr(host, name)(*words, **named))
                if opens:
                    self._slow[result] = run.key
                return result
            if self._slow or self.names:
                key = self._hangs(words, places)
                if key is not None:
                    result = self._bounded(key, name, lambda host: getattr(host, name)(*words, **named))
                    if opens:
                        self._slow[result] = key
                    return result
            return direct(*words, **named)

        return call

    def _hangs(self, words: tuple[Any, ...], places: tuple[int, ...]) -> Hashable | None:
        """What a call with these arguments may wait for; None: nothing."""
        for place in places:
            key = self._slow.get(words[place])
            if key is not None:
                return key
        for word in words:
            if isinstance(word, bytes) and not self.names.isdisjoint(word.split(b"/")):
                return word
        return None

    def _aside(self, run: Run, name: str, call: Callable[[HostFs], Any]) -> Any:
        """Have ``call`` made by a thread; the loop goes on meanwhile."""
        if run.over:
            raise Abandoned
        assert run.body is not None
        assert run.body.parent is not None
        result, error = run.body.parent.switch((name, _as(run.ids, call)))
        if error is not None:
            raise error
        return result

    def _bounded(self, key: Hashable, name: str, call: Callable[[HostFs], Any]) -> Any:
        """Have it made by a thread, and wait for it, but not for ever."""
        if key in self._dead:
            raise OSError(errno.ETIMEDOUT, "the host does not answer")
        landed: list[tuple[Any, BaseException | None]] = []
        over = False

        def done(result: Any, error: BaseException | None) -> None:
            self._dead.discard(key)
            if over and name in OPENS and error is None:
                self._close_slowly(key, result)
            landed.append((result, error))

        self.pool.submit(key, call, done)
        patience = STEPS
        before, self._bounding = self._bounding, True  # or other requests would go on in the middle of this
        try:
            while not landed and patience:
                if not self.pool.wait(SLOW_CALL_NS // STEPS):
                    patience -= 1
        finally:
            self._bounding = before
            if self._late:
                self.pool.wake()
        if not landed:
            over = True
            self._dead.add(key)
            raise OSError(errno.ETIMEDOUT, "the host does not answer")
        result, error = landed[0]
        if error is not None:
            raise error
        return result

    def close(self, fd: int) -> None:
        """Close, once nobody uses it; where closing may hang, somebody else does it."""
        if fd in self._holds:
            self._doomed.add(fd)
            return
        key = self._slow.pop(fd, None)
        if key is None:
            self.inner.close(fd)
        else:
            self._close_slowly(key, fd)

    def _close_slowly(self, key: Hashable, fd: int) -> None:
        self.pool.submit(key, lambda host: host.close(fd), lambda result, error: None)

    # -- data ------------------------------------------------------------------------------------

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Read; the guest's memory is written when the data are there."""
        run = self.run
        if run is None:
            return self.inner.preadv(fd, views, offset)
        self.hold(fd)
        data = memoryview(bytearray(sum(map(len, views))))
        count: int = self._aside(run, "preadv", lambda host: host.preadv(fd, [data], offset))
        left = data[:count]
        for view in views:
            part = left[: len(view)]
            view[: len(part)] = part
            left = left[len(part) :]
        return count

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Write what the guest's memory holds now."""
        run = self.run
        if run is None:
            return self.inner.pwritev(fd, views, offset)
        self.hold(fd)
        data = memoryview(b"".join(views))
        count: int = self._aside(run, "pwritev", lambda host: host.pwritev(fd, [data], offset))
        return count

    def appendv(self, fd: int, views: Sequence[memoryview]) -> int:
        """The same, at the end."""
        run = self.run
        if run is None:
            return self.inner.appendv(fd, views)
        self.hold(fd)
        data = memoryview(b"".join(views))
        count: int = self._aside(run, "appendv", lambda host: host.appendv(fd, [data]))
        return count

    # -- who acts --------------------------------------------------------------------------------

    def become(self, uid: int, gid: int, groups: tuple[int, ...], override: bool) -> None:
        """Act as somebody else: in a run its calls do, elsewhere this thread."""
        if self.run is None:
            self.inner.become(uid, gid, groups, override)
        else:
            self.run.ids = (uid, gid, groups, override)

    def become_self(self) -> None:
        """Undo it."""
        if self.run is None:
            self.inner.become_self()
        else:
            self.run.ids = None


def _nobody(_: Any) -> None:
    """Nobody waits for the result any more."""


def _as(
    ids: tuple[int, int, tuple[int, ...], bool] | None, call: Callable[[HostFs], Any]
) -> Callable[[HostFs], Any]:
    """``call`` as somebody else, on the thread that makes it and for that long."""
    if ids is None:
        return call

    def acted(host: HostFs) -> Any:
        host.become(*ids)
        try:
            return call(host)
        finally:
            host.become_self()

    return acted
