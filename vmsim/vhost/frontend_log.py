"""The dirty log on the front-end's side: what takes the bits that a back-end sets, without losing one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmsim.memory import taker
from vmsim.vhost.seams import FrontendHost, SharedBuffer

RETIRED_MAX: Final = 8
"""Former logs that are looked at again: a thread of the back-end that was about to set a bit when the log
changed does so within moments, each of these stands for a whole round of RAM."""


class FrontendLog:
    """One device's log while a migration runs; ``announce`` makes a back-end use a buffer (SET_LOG_BASE)."""

    def __init__(
        self, host: FrontendHost, announce: Callable[[SharedBuffer], object], size_bytes: int, *,
        shares_process: bool,
    ) -> None:  # fmt: skip
        self._host = host
        self._announce = announce
        self._size_bytes = size_bytes
        self._shares_process = shares_process
        self._closed = False
        self._retired: list[tuple[SharedBuffer, int]] = []
        self._current = self._switch()

    def _switch(self) -> SharedBuffer:
        fresh = self._host.shared_memory("vhost-log", self._size_bytes, sealed=True)
        try:
            self._announce(fresh)
        except BaseException:
            fresh.close()
            raise
        return fresh

    def take(self) -> bytes:
        """Return the dirty bits and clear them. Errors are those of ``announce``: it is as before then.

        Bits that another process sets meanwhile must not be lost, and Python has no atomic exchange: the
        back-end gets a new log. When it has answered, it marks nothing more in the former one, except what
        its threads are in the middle of, so former logs are looked at again.
        """
        if self._closed:
            return b""
        if self._shares_process:
            return taker(self._current.view)()
        fresh = self._switch()
        self._retired.append((self._current, 0))
        self._current = fresh
        found = 0
        for index, (log, seen) in enumerate(self._retired):
            bits = int.from_bytes(log.view, "little")
            if bits != seen:
                found |= bits & ~seen
                self._retired[index] = log, bits
        if len(self._retired) > RETIRED_MAX:
            self._retired.pop(0)[0].close()
        return found.to_bytes(self._size_bytes, "little")

    def close(self) -> None:
        """Forget everything, there is nothing to take any more; may be called twice."""
        self._closed = True
        for log, _ in self._retired:
            log.close()
        self._retired.clear()
        self._current.close()
