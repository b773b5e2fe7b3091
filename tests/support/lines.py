"""The executed lines of some files: counted, and an exception before one of them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Lines:
    """How many lines have begun so far, and which; whether the error was raised."""

    def __init__(self) -> None:
        self.count = 0
        self.places: list[tuple[str, int]] = []
        self.raised = False


@contextmanager
def counted_lines(
    files: Collection[str], error: type[BaseException] | None = None, before: int = 0
) -> Iterator[Lines]:
    """Count the lines in ``files`` that the block executes; raise ``error`` before line ``before``, from 1.

    That is done once: Python stops tracing when a trace function raises, so what cleans up is not disturbed.
    """
    lines = Lines()

    def line(frame, event, argument):
        if event == "line":
            lines.count += 1
            lines.places.append((frame.f_code.co_filename, frame.f_lineno))
            if error is not None and lines.count == before:
                lines.raised = True
                raise error
        return line

    former = sys.gettrace()
    sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename in files else None)
    try:
        yield lines
    finally:
        sys.settrace(former)
