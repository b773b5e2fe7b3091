"""Machines whose back-ends are other processes: all of them known, to be killed, and none left behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.leaks import no_leaks
from vmsim.host.processes import BackendProcess
from vmsim.machine import RemoteBackend, Seams
from vmsim.wrappers.faults import Fault, FaultyTransport


def children() -> set[int]:
    """The processes that this one has started and that have not ended."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """No descriptor, mapping, process, socket or temporary folder of what runs inside stays; they are made in
    ``folder``."""
    before, temporary = children(), tempfile.tempdir
    folder.mkdir()
    tempfile.tempdir = str(folder)
    try:
        with no_leaks():
            yield
        assert children() <= before
        assert os.listdir(folder) == []
    finally:
        tempfile.tempdir = temporary


class Moment:
    """Stands in for a plan of faults: does something just before the given message, and loses none."""

    def __init__(self, message: str = "", act: Callable[[], object] = lambda: None) -> None:
        self.message = message
        self.act = act
        self.seen: list[str] = []
        self.on = False
        self.passed = False

    def cross(self, seam: str, operation: str) -> Fault | None:
        if self.on:
            self.seen.append(operation)
            if operation == self.message and not self.passed:
                self.passed = True
                self.act()
        return None

    def is_cut(self, seam: str) -> bool:
        return False


class Side:
    """How one side of a migration starts its back-ends; ``moment`` sees their messages while it is on."""

    def __init__(self, moment: Moment | None = None, command: Any = None) -> None:
        self.moment = moment or Moment()
        self.started: list[RemoteBackend] = []
        self._command = command
        plan: Any = self.moment
        self.seams = Seams(transport=lambda inner: FaultyTransport(inner, plan), start=self._start)

    def _start(self, config: Any, share: str, schedule: Any, seams: Seams) -> RemoteBackend:
        backend = RemoteBackend.start(config, share, schedule, seams, self._command)
        self.started.append(backend)
        return backend

    @property
    def process(self) -> BackendProcess:
        """The one that was started last."""
        process = self.started[-1].process
        assert process is not None
        return process

    def kill_at(self, message: str) -> None:
        """Kill its back-end just before it gets ``message``."""
        self.moment.message, self.moment.act, self.moment.on = message, lambda: self.process.kill(), True
