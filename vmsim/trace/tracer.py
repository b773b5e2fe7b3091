"""Who listens to what. With no listener an event is not even made: emitters ask ``wants`` first."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

from vmsim.trace.events import Event, kind_of


class Entry(NamedTuple):
    """One line of the history: its number from 0, the time, where (which machine or part), and the event."""

    number: int
    now_ns: int
    where: str
    event: Event


Listener = Callable[[Entry], object]


class Subscription:
    """A listener and the kinds that it listens to; ``close`` ends it."""

    __slots__ = ("_tracer", "listener", "patterns")

    def __init__(self, tracer: Tracer, patterns: tuple[str, ...], listener: Listener) -> None:
        self._tracer = tracer
        self.patterns = patterns
        self.listener = listener

    def matches(self, kind: str) -> bool:
        """Whether it wants events of ``kind``."""
        return any(fnmatchcase(kind, pattern) for pattern in self.patterns)

    def close(self) -> None:
        """Listen no longer; may be called twice."""
        self._tracer.drop(self)


class Tracer:
    """Numbers events, stamps them with ``now_ns()`` and hands them to who subscribed.

    A listener cannot break a run: one that raises is dropped, and ``check()`` raises its error later.
    """

    def __init__(self, now_ns: Callable[[], int] = lambda: 0) -> None:
        self.now_ns = now_ns
        self.failures: list[Exception] = []
        self._subscriptions: list[Subscription] = []
        self._interested: dict[type[Event], tuple[Subscription, ...]] = {}
        self._count = 0

    def subscribe(self, patterns: str, listener: Listener) -> Subscription:
        """Have ``listener(entry)`` called for every kind that a glob of the comma-separated list matches."""
        globs = tuple(pattern.strip() for pattern in patterns.split(",") if pattern.strip())
        subscription = Subscription(self, globs, listener)
        self._subscriptions.append(subscription)
        self._interested.clear()
        return subscription

    def record(self, patterns: str = "*") -> list[Entry]:
        """A list that grows by every matching entry."""
        history: list[Entry] = []
        self.subscribe(patterns, history.append)
        return history

    def drop(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._interested.clear()

    def source(self, where: str) -> Source:
        """Where events of one machine or part come in."""
        return Source(self, where)

    def check(self) -> None:
        """Raise the first error of a listener, if there was one."""
        if self.failures:
            raise self.failures[0]

    def listeners(self, kind: type[Event]) -> tuple[Subscription, ...]:
        """Who wants events of this class."""
        found = self._interested.get(kind)
        if found is None:
            name = kind_of(kind)
            found = tuple(subscription for subscription in self._subscriptions if subscription.matches(name))
            self._interested[kind] = found
        return found

    def emit(self, where: str, event: Event) -> None:
        """Stamp an event and hand it out."""
        listeners = self.listeners(type(event))
        if not listeners:
            return
        entry = Entry(self._count, self.now_ns(), where, event)
        self._count += 1
        for subscription in listeners:
            try:
                subscription.listener(entry)
            except Exception as error:
                self.failures.append(error)
                subscription.close()


class Source:
    """One place that events come from; ``where`` is its name in the history."""

    __slots__ = ("tracer", "where")

    def __init__(self, tracer: Tracer, where: str) -> None:
        self.tracer = tracer
        self.where = where

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody listens: ask before an event is made."""
        return bool(self.tracer.listeners(kind))

    def emit(self, event: Event) -> None:
        """Hand out an event."""
        self.tracer.emit(self.where, event)


NOWHERE = Source(Tracer(), "")
"""A source that nobody listens to."""
