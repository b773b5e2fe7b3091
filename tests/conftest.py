"""What of the process belongs to nobody: every test leaves it as it found it, and may change it meanwhile."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import sampling

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--whole``: see :mod:`tests.support.sampling`."""
    parser.addoption("--whole", action="store_true", help="run all of each enumeration, not a seeded part")


@pytest.hookimpl(trylast=True)  # after pytest-randomly, which knows the seed
def pytest_configure(config: pytest.Config) -> None:
    """However the tests are started, the modes of what they make are the usual ones."""
    os.umask(UMASK)
    sampling.begin(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The tests stay to the end: garbage collections need not look at them, each for half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the one who started it what was left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = sampling.Run.left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended; it may have crashed, and said nothing."""
    for name, numbers in getattr(node, "workeroutput", {}).get("left_out", {}).items():
        sampling.Run.left_out[name] = tuple(numbers)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the run did not look at."""
    lines = sampling.told(sampling.Run.left_out)
    if lines:
        terminalreporter.section("taken in part")
        for line in lines:
            terminalreporter.write_line(line)


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
