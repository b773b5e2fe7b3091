"""What a state-transfer dialect is made of: a front-end half, a back-end half, and its message rows."""

from __future__ import annotations

import errno as errno_names
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from vmsim.errors import PeerError, VmsimError
from vmsim.vhost.messages import MessageSet, Reply, Request
from vmsim.vhost.seams import BackendIo, DeviceState, FrontendHost

SPEC = "vhost-user 'Migrating back-end state'"

ReadExactly = Callable[[int], bytes]
"""Reads exactly n bytes of a migration stream, or raises StreamTruncated."""


class StateTransferError(PeerError):
    """A device-state transfer failed; the message says in which operation, ``errno`` why."""

    def __init__(self, message: str, *, errno: int = errno_names.EIO, **details: object) -> None:
        super().__init__(message, spec=SPEC, hint="", errno=errno, **details)
        self.errno = errno


def error_number(error: VmsimError) -> int:
    """The errno that an error carries in its details; EIO if it carries none."""
    code = error.details.get("errno")
    return code if isinstance(code, int) and code > 0 else errno_names.EIO


class StateLink(Protocol):
    """What the front-end half of a dialect uses of the front-end."""

    host: FrontendHost

    def exchange(self, name: str, payload: Any = None, fds: tuple[int, ...] = ()) -> Reply:
        """Send a message by name; its ``Reply``, an empty one if it has none; PeerError if refused."""
        ...

    def has(self, feature: int) -> bool:
        """Whether a protocol feature bit was negotiated."""
        ...

    def require_stopped(self, what: str) -> None:
        """StateTransferError(EBUSY) while any ring runs."""
        ...

    def progress(self, fd: int, *, writing: bool) -> None:
        """Let the back-end work on its end of the channel whose end here is ``fd``."""
        ...

    def abandon_load(self) -> None:
        """Make the back-end drop what it has received, without having applied it."""
        ...


class BackendTransfer(Protocol):
    """The back-end half of a dialect: one per back-end, alive from construction to ``abandon``.

    ``failure`` is why the last transfer failed, None if it did not.
    """

    failure: Exception | None

    def handle(self, request: Request, take_fd: Callable[[], int], rings_stopped: bool) -> Reply | None:
        """Answer one of the dialect's messages; ``take_fd`` hands over its next descriptor."""
        ...

    def progress(self) -> bool:
        """Move what can be moved through the channel now; whether anything moved."""
        ...

    def waits_for(self) -> tuple[int, bool] | None:
        """The descriptor that ``progress`` waits for, and whether to write to it; None: there is none."""
        ...

    def abandon(self) -> None:
        """Forget a transfer that was not finished; nothing of it is applied."""
        ...


class Dialect(Protocol):
    """A way to transfer the back-end's state; stateless, so that one object serves every machine.

    ``section_version`` and ``subsection`` say how a ``vhost-user-fs`` section of the migration stream carries
    the state: version of the section, and whether the state lies in a subsection of its own.
    """

    name: str
    messages: MessageSet
    transfer_messages: frozenset[str]
    """The names of those messages that its back-end half answers."""
    feature: int
    """The protocol feature bit that the transfer needs; -1: none exists."""
    section_version: int
    subsection: bool
    unsupported_hint: str
    """What to do when a back-end does not speak it."""

    def save(self, link: StateLink) -> Iterator[bytes]:
        """Fetch the state as the bytes that the migration stream carries, framing included."""
        ...

    def read_state(self, read: ReadExactly) -> bytes:
        """Read a state, framed as ``save`` frames it, to its end; StreamError if it is malformed or cut."""
        ...

    def load(self, link: StateLink, state: bytes) -> None:
        """Have the back-end apply a complete state."""
        ...

    def serve(self, device: DeviceState, io: BackendIo, *, own_channel: bool = False) -> BackendTransfer:
        """The back-end half for one device; ``own_channel``: answer with a descriptor of its own."""
        ...
