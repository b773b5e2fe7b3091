"""Signals that end a command: one exception, once, so that everything is cleaned up undisturbed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FATAL: Final = 128
"""What a shell adds to the number of the signal that ended a command."""


class Interrupted(KeyboardInterrupt):
    """Somebody wants us to end; ``status`` is the exit status that says so."""

    status = FATAL + signal.SIGINT

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = FATAL + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this, the first signal raises Interrupted; those that follow are ignored: we are ending.

    Signals that were ignored stay so (``nohup``), and other threads than the main one get none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def end(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    try:
        for number in handled:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def only_this_line() -> Iterator[None]:
    """Within this, SIGINT raises KeyboardInterrupt each time: it ends a typed line, not us."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within this, signals are ignored: it cleans up, and is over soon."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def clearing_up(stack: ExitStack, before: Callable[[], None]) -> Iterator[None]:
    """At the end call ``before()`` and close ``stack``, undisturbed, whatever happened."""
    try:
        try:
            yield
        finally:
            before()
            with undisturbed():
                stack.close()
    finally:
        stack.close()  # if the signal came just before we were undisturbed
