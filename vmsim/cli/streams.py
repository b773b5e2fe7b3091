"""The standard streams of a command: closed, full or broken ones are told of, and never end it half-way.

Only ``main`` uses this, whose process is its own.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from vmsim.errors import HostError

STDIN, STDOUT, STDERR = 0, 1, 2
CLOSED: Final = {STDIN: os.O_RDONLY, STDOUT: os.O_RDONLY, STDERR: os.O_WRONLY}
"""How /dev/null takes a closed stream's place, which would otherwise go to the next file that we open.

Writing to standard output fails then as it does when it is closed; what goes to standard error is for whoever
wants it, and is lost.
"""
HINTS: Final = {
    errno.EPIPE: "whoever read it has gone",
    errno.ENOSPC: "free some space where it goes to",
    errno.EBADF: "it is closed: give it a place, such as /dev/null",
}


class OutputLost(HostError):
    """The standard output takes no more; not an OSError, so that nobody takes it for one of the share's."""


class _Output(io.FileIO):
    """Fails once; what is written afterwards, at the latest when the interpreter ends, is dropped."""

    lost: OutputLost | None = None

    def write(self, data: Any, /) -> int:
        if self.lost is not None:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            number = error.errno or errno.EIO
            self.lost = OutputLost("writing standard output", errno=number, hint=HINTS.get(number, ""))
            raise self.lost from error


class _Diagnosis(io.FileIO):
    """Whether anybody hears of progress and errors changes nothing about them."""

    def write(self, data: Any, /) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Streams that can be used whatever we were started with; OutputLost at the end for what is not written.

    Names of files are any bytes: what is no text is escaped.
    """
    for fd, mode in CLOSED.items():
        _fill(fd, mode)
    sys.stdin = _text(io.FileIO(STDIN, "r", closefd=False), "surrogateescape")
    output = _Output(STDOUT, "w", closefd=False)
    sys.stdout = _text(output, "backslashreplace")
    sys.stderr = _text(_Diagnosis(STDERR, "w", closefd=False), "backslashreplace")
    yield
    sys.stdout.flush()
    if output.lost is not None:
        raise output.lost  # whoever came across it has kept it to himself


def _fill(fd: int, mode: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        place = os.open(os.devnull, mode)
        if place != fd:  # a lower one was closed as well, and has been filled before
            os.dup2(place, fd)
            os.close(place)
        os.set_inheritable(fd, True)


def _text(raw: io.FileIO, errors: str) -> io.TextIOWrapper:
    """As Python opens them: line by line on a terminal, and for diagnosis."""
    buffered = io.BufferedReader(raw) if raw.readable() else io.BufferedWriter(raw)
    lines = raw.fileno() == STDERR or raw.isatty()
    return io.TextIOWrapper(buffered, errors=errors, line_buffering=lines)  # the locale's encoding
