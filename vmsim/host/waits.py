"""Waiting for the world outside this process: descriptors, and what to do when one of them is ready."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Final

PATIENCE_NS: Final = 60_000_000_000
"""How long a silent other end outside this process is waited for."""
SPIN_NS: Final = 60_000
"""How long it pays to look again and again before sleeping: somewhat more than waking another CPU costs."""
MISSES_MAX: Final = 8
RETRY: Final = 64
"""After MISSES_MAX vain tries only each 64th wait begins by looking."""
AWAY_NS: Final = 10_000
"""Who was off the CPU for longer while looking did not have it to itself."""


SLICE_MS: Final = 1000
"""Of a long wait."""


def wait_in_slices(poll: select.poll, timeout_ms: float | None) -> list[tuple[int, int]]:
    """``poll.poll(timeout_ms)``, but Python gets to look for signals meanwhile.

    It does so between two of its instructions. A signal that comes after that look, and before the system
    call sleeps, interrupts nothing: its handler would run when something else wakes us, or never.
    """
    while timeout_ms is None or timeout_ms > SLICE_MS:
        if found := poll.poll(SLICE_MS):
            return found
        if timeout_ms is not None:
            timeout_ms -= SLICE_MS
    return poll.poll(timeout_ms)


def wait_ready(fd: int, timeout_s: float | None, *, writing: bool = False) -> bool:
    """Wait until ``fd`` can be read (or written); whether it could within ``timeout_s``, for ever if None."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT if writing else select.POLLIN)
    return bool(wait_in_slices(poll, None if timeout_s is None else timeout_s * 1e3))


class FdWaits:
    """The descriptors that somebody waits for; :meth:`idle` is how a schedule waits for the outside.

    ``now_ns`` is the clock that the schedule's deadlines belong to. With ``spin_ns`` a wait begins by looking
    for that long without sleeping, as long as that is worth while: a peer on another CPU answers sooner then.
    """

    def __init__(
        self, patience_ns: int = PATIENCE_NS, now_ns: Callable[[], int] = time.monotonic_ns, *,
        spin_ns: int = 0,
    ) -> None:  # fmt: skip
        self._patience_ns = patience_ns
        self._now_ns = now_ns
        self._ready: dict[int, Callable[[], object] | None] = {}
        self._poll = select.poll()
        self._later: list[Callable[[], object]] = []
        self.spin_ns = spin_ns
        self._misses = 0

    def add(self, fd: int, events: int, ready: Callable[[], object] | None = None) -> None:
        """Wait for one of ``events`` (of select.poll) on ``fd``; ``idle`` then calls ``ready``."""
        self._ready[fd] = ready
        self._poll.register(fd, events)

    def remove(self, fd: int) -> None:
        """Nobody waits for ``fd`` any more; nothing happens if nobody did."""
        if fd in self._ready:
            del self._ready[fd]
            self._poll.unregister(fd)

    def later(self, act: Callable[[], object]) -> None:
        """Call ``act`` once, after all descriptors that are ready have been served."""
        self._later.append(act)

    def idle(self, deadline_ns: int | None) -> bool:
        """Wait for one of the descriptors, at most until ``deadline_ns``; whether one of them was ready."""
        if not self._ready and not self._later:
            return False
        limit_ns = self._patience_ns if deadline_ns is None else deadline_ns - self._now_ns()
        return self._serve(max(limit_ns, 0) / 1e6)

    def idle_for(self, limit_ns: int) -> bool:
        """Wait for one of the descriptors, at most ``limit_ns`` of real time; whether one was ready."""
        return self._serve(max(limit_ns, 0) / 1e6)

    def settle(self) -> None:
        """Serve what is ready now, until nothing is."""
        while (self._ready or self._later) and self._serve(0):
            pass

    def _serve(self, timeout_ms: float) -> bool:
        later, self._later = self._later, []
        if later:
            timeout_ms = 0
        found = self._look(timeout_ms) if self.spin_ns and timeout_ms else []
        found = found or wait_in_slices(self._poll, timeout_ms)
        for fd, _ in found:
            ready = self._ready.get(fd)
            if ready is not None:
                ready()
        for act in later:
            act()
        return bool(found or later)

    def _look(self, timeout_ms: float) -> list[tuple[int, int]]:
        """What became ready while we looked, without sleeping."""
        if self._misses >= MISSES_MAX:
            self._misses += 1
            if self._misses % RETRY:
                return []
        poll, now_ns = self._poll.poll, time.monotonic_ns
        if found := poll(0):
            return found
        began_ns, ran_ns = now_ns(), time.thread_time_ns()
        end_ns = began_ns + min(self.spin_ns, int(timeout_ms * 1e6))
        while not (found := poll(0)):
            if now_ns() >= end_ns:
                self._misses += 1
                return found
        # A peer that shares our CPU answers only when it gets it: looking has just kept it waiting.
        away_ns = now_ns() - began_ns - (time.thread_time_ns() - ran_ns)
        self._misses = 0 if away_ns < AWAY_NS else self._misses + 1
        return found
