"""One tree of errors: whose fault it is, where in the specification, and what to do next.

Every refusal in vmsim is one of these classes. ``assert`` is only for our own bugs.
"""

from __future__ import annotations

import enum
import errno as errno_names
import traceback
from typing import ClassVar


class Blame(enum.Enum):
    """Whose fault an error is."""

    GUEST = "guest"
    PEER = "peer"
    STREAM = "stream"
    HOST = "host"
    USER = "user"
    US = "us"


class VmsimError(Exception):
    """Base of all errors that vmsim raises on purpose.

    ``spec`` cites the section that was violated, ``hint`` says what to do next, and ``details`` holds the
    numbers of the message for programs that read errors as JSON.
    """

    blame: ClassVar[Blame] = Blame.US

    def __init__(self, message: str, *, spec: str = "", hint: str = "", **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.spec = spec
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} [{self.spec}]" if self.spec else self.message


class GuestViolation(VmsimError):
    """The guest driver did what the specification forbids."""

    blame = Blame.GUEST


class RingViolation(GuestViolation):
    """A virtqueue chain or index is malformed; the device needs a reset."""


class MemoryAccessError(GuestViolation):
    """An access outside guest memory; ``gpa`` and ``size_bytes`` name it."""

    def __init__(self, message: str, *, gpa: int, size_bytes: int, spec: str = "", hint: str = "") -> None:
        super().__init__(message, spec=spec, hint=hint, gpa=gpa, size_bytes=size_bytes)
        self.gpa = gpa
        self.size_bytes = size_bytes


class PeerError(VmsimError):
    """The other end of a transport broke the protocol or went away."""

    blame = Blame.PEER


class StreamError(VmsimError):
    """A migration stream or a state blob is malformed; ``offset`` is where, ``field`` is what."""

    blame = Blame.STREAM

    def __init__(
        self, message: str, *, offset: int = -1, field: str = "", spec: str = "", hint: str = "",
        **details: object,
    ) -> None:
        super().__init__(message, spec=spec, hint=hint, offset=offset, field=field, **details)
        self.offset = offset
        self.field = field

    def __str__(self) -> str:
        where = f" at offset {self.offset:#x}" if self.offset >= 0 else ""
        what = f" in {self.field}" if self.field else ""
        return f"{super().__str__()}{what}{where}"


class StreamTruncated(StreamError):
    """The stream ended before the end of what it announced."""


class HostError(VmsimError):
    """The operating system refused something that vmsim itself needs; ``errno`` says what."""

    blame = Blame.HOST

    def __init__(self, message: str, *, errno: int, spec: str = "", hint: str = "") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        super().__init__(f"{message}: {name}", spec=spec, hint=hint, errno=errno)
        self.errno = errno


class UsageError(VmsimError):
    """vmsim was asked for something that it cannot do as asked."""

    blame = Blame.USER


class StateError(VmsimError):
    """An operation that is not legal in the present state of a machine or device."""

    blame = Blame.USER


class LimitError(VmsimError):
    """A bound of the ``limits`` table was exceeded."""

    blame = Blame.GUEST


class StallError(VmsimError):
    """A deadlock: no task is runnable, and nothing outside is waited for."""

    blame = Blame.US


class InternalFault(VmsimError):
    """A bug of ours, met while a guest, peer or stream was served; ``report`` is its traceback as text.

    It ends what it happened in (a ring, a request, a session), and nothing else.
    """

    def __init__(self, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        where = f" in {last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})" if last else ""
        super().__init__(
            f"a bug in vmsim: {type(error).__name__}: {error}{where}",
            hint="this should not happen, whatever the input; please report it",
        )
        self.report = "".join(traceback.format_exception(error))


def contained(error: Exception) -> VmsimError:
    """``error`` if it was raised on purpose, else the fault that it is.

    Only text is kept of a fault: frames would keep guest memory mapped.
    """
    return error if isinstance(error, VmsimError) else InternalFault(error)


class MigrationError(VmsimError):
    """A migration failed; ``step`` names the step, ``side`` is ``source`` or ``destination``.

    Raised before commit only: the source goes on as if nothing had happened.
    """

    blame = Blame.PEER

    def __init__(
        self, message: str, *, step: str = "", side: str = "", errno: int = 0, spec: str = "", hint: str = "",
        **details: object,
    ) -> None:
        super().__init__(message, spec=spec, hint=hint, step=step, side=side, errno=errno, **details)
        self.step = step
        self.side = side
        self.errno = errno


class MigrationBlocked(MigrationError):
    """The configuration forbids this migration."""

    blame = Blame.USER


class MigrationCancelled(MigrationError):
    """The migration was cancelled on request."""

    blame = Blame.USER
