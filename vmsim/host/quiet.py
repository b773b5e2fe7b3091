"""Writes whose failure is an error and nothing else, whatever the program does with signals.

A write to a pipe without a reader raises SIGPIPE, and one beyond RLIMIT_FSIZE SIGXFSZ. Python ignores both,
but a program may have put them back to their default, which ends it, or handle them, or embed Python without
them ignored. Their dispositions belong to the process. The mask of signals belongs to the thread: the signal
is blocked on this thread for the write, and taken off it again if the write raised it (both are sent to the
thread that writes, never to another one).
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

RAISED: Final = {errno.EPIPE: signal.SIGPIPE, errno.EFBIG: signal.SIGXFSZ}
SIGNALS: Final = frozenset(RAISED.values())
NONE: Final[frozenset[signal.Signals]] = frozenset()

P = ParamSpec("P")
T = TypeVar("T")


def without_signal(call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """``call(*args)``, which may fail with EPIPE or EFBIG but raises no signal."""
    # Asked beforehand: an interrupt may arrive between blocking and the line after it.
    before = SIGNALS & signal.pthread_sigmask(signal.SIG_BLOCK, NONE)
    pending = SIGNALS & signal.sigpending() if before else NONE
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return call(*args, **more)
        except OSError as error:
            raised = RAISED.get(error.errno or 0)
            if raised is not None and raised not in pending:
                signal.sigtimedwait((raised,), 0)
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS - before)


def write(fd: int, data: bytes | bytearray | memoryview) -> int:
    """``os.write`` that raises no signal."""
    return without_signal(os.write, fd, data)
