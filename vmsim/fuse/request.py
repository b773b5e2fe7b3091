"""One decoded request on its way through a handler, and the reply that may come later."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from vmsim.fuse.abi.headers import OUT_HEADER
from vmsim.fuse.filesystem import Context, Views
from vmsim.fuse.plans import Plan
from vmsim.fuse.request_states import ANSWER, FINISHED, RUNNING, RequestEvent, after

OUT_HEADER_SIZE: Final = OUT_HEADER.size


class Request:
    """What a handler gets: ``names`` are checked, ``tail`` is a private copy, ``views`` are guest memory.

    ``room`` is the number of bytes for the reply's body. ``flags`` are the negotiated INIT flags.
    ``on_done`` is set when it is not answered at once; ``result`` by a ``done`` that comes before that.
    """

    __slots__ = (
        "args", "complete", "ctx", "flags", "names", "on_done", "plan", "result", "room", "state", "tail",
        "views", "writable",
    )  # fmt: skip

    on_done: Callable[[Request, Any], None] | None
    result: Any

    def __init__(
        self, plan: Plan, ctx: Context, args: Any, names: list[bytes], tail: bytes, views: Views,
        writable: Views, room: int, flags: int, complete: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.plan = plan
        self.ctx = ctx
        self.args = args
        self.names = names
        self.tail = tail
        self.views = views
        self.writable = writable
        self.room = room
        self.flags = flags
        self.complete = complete
        self.state = RUNNING
        self.on_done = None

    def done(self, result: Any) -> None:
        """The file system's ``done``: at once, later, or once too often."""
        if self.state is FINISHED:
            return
        self.become(ANSWER)
        if self.on_done is None:
            self.result = result
        else:
            self.on_done(self, result)

    def become(self, event: RequestEvent) -> None:
        """What follows from ``event``; StateError if that cannot be."""
        self.state = after(self.state, event)

    def need(self, size_bytes: int) -> None:
        """OSError ENOMEM unless a body of so many bytes fits into the reply."""
        if size_bytes > self.room:
            raise OSError(errno.ENOMEM, f"a reply of {size_bytes} bytes into {self.room}")
