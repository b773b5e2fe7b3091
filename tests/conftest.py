"""What of the process belongs to nobody: every test leaves it as it found it, and may change it meanwhile."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

UMASK = 0o022
SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGALRM})
"""SIGALRM is pytest-timeout's."""


def umask() -> int:
    """The process's; there is no call that only looks."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


LOOKS: dict[str, Callable[[], object]] = {
    "umask": umask,
    "working directory": os.getcwd,
    "signals": lambda: [signal.getsignal(number) for number in SIGNALS],
    "blocked signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    "environment": lambda: {key: text for key, text in os.environ.items() if not key.startswith("PYTEST_")},
    "descriptor limit": lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
    "ids": lambda: (os.getresuid(), os.getresgid(), os.getgroups()),
}


def threads() -> set[threading.Thread]:
    """Those that the program's end would wait for."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


def pytest_configure() -> None:
    """However the tests are started, the modes of what they make are the usual ones."""
    os.umask(UMASK)


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    """Fails the test that leaves something of the process changed, and not the one that comes after."""
    found, running = {name: look() for name, look in LOOKS.items()}, threads()
    yield
    left = {name: look() for name, look in LOOKS.items()}
    changed = {name: (found[name], left[name]) for name in LOOKS if left[name] != found[name]}
    os.umask(UMASK)
    if "working directory" in changed:
        os.chdir(str(found["working directory"]))
    assert not changed, "the test leaves the process changed: name, before, after"
    assert not threads() - running, "the test leaves threads running"


@pytest.fixture
def set_umask() -> Iterator[Callable[[int], int]]:
    """``os.umask``, undone at the end of the test."""
    before = umask()
    yield os.umask
    os.umask(before)
