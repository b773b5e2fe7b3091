"""Signals that end a command: one exception, once, so that everything is cleaned up undisturbed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_S: Final = 0.01
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
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    handled = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    first = signal.SIGINT

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal first
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        first = first if number == signal.SIGALRM else signal.Signals(number)
        raise Interrupted(first)

    try:
        for number in (*handled, signal.SIGALRM):
            signal.signal(number, end)
        with _never_swallowed():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _never_swallowed() -> Iterator[None]:
    """Within this, an Interrupted that came up in a destructor, where Python drops it, comes up once more."""
    tell = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if isinstance(dropped.exc_value, Interrupted):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            tell(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = tell


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
