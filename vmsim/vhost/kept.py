"""The in-flight buffer on the front-end's side: asked for once, handed to every back-end that comes after."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from vmsim.vhost import payloads as p
from vmsim.vhost.inflight import SPEC
from vmsim.vhost.messages import MessageError, Reply
from vmsim.vhost.seams import Fds


class KeptInflight:
    """One device's in-flight buffer; it outlives connections and back-ends, until the device is reset."""

    def __init__(self, fds: Fds) -> None:
        self._fds = fds
        self._fd = -1
        self._area = p.Inflight(0, 0, 0, 0)

    @property
    def exists(self) -> bool:
        """Whether a back-end has provided it."""
        return self._fd >= 0

    def give(self, exchange: Callable[..., Reply], queues: int, queue_size: int) -> None:
        """Have the back-end record its requests there, before its rings start.

        ``exchange`` sends a message. MessageError if the back-end has no buffer to offer, or refuses it.
        """
        if self._fd < 0:
            self._ask(exchange, queues, queue_size)
        exchange("SET_INFLIGHT_FD", self._area, (self._fd,))

    def _ask(self, exchange: Callable[..., Reply], queues: int, queue_size: int) -> None:
        reply = exchange("GET_INFLIGHT_FD", p.Inflight(0, 0, queues, queue_size))
        area: Any = reply.payload
        if len(reply.fds) != 1 or not area.mmap_size:
            for fd in reply.fds:
                self._fds.close(fd)
            raise MessageError(
                f"GET_INFLIGHT_FD: {area.mmap_size} bytes with {len(reply.fds)} descriptors",
                spec=SPEC, errno=errno.EPROTO,
            )
        self._fd = reply.fds[0]
        self._area = p.Inflight(area.mmap_size, area.mmap_offset, queues, queue_size)

    def forget(self) -> None:
        """Nothing is in flight any more (the device was reset, or is gone); may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._fds.close(fd)
