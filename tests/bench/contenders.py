"""The back-ends that are compared, each with a machine: ours in this process, ours served, and virtiofsd.

A contender is told where to run: the guest stays where this process is pinned, a back-end in a process of its
own gets the CPU that ``place`` names.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.bench.measure import CPUS
from tests.bench.memory_use import ROOT
from vmsim import Machine
from vmsim.host.processes import SERVE, BackendProcess, Command
from vmsim.host.waits import FdWaits
from vmsim.machine import RemoteBackend
from vmsim.machine.config import MachineConfig
from vmsim.machine.parts import Seams
from vmsim.schedule.immediate import ImmediateSchedule

INPROC: Final = "in-process"
SERVED: Final = "serve"
THEIRS: Final = "virtiofsd"
NAMES: Final = (INPROC, SERVED, THEIRS)
PLACES: Final = {"two": "back-end on a CPU of its own", "one": "both on one CPU"}
MISSING: Final = "virtiofsd is missing: run tools/peers"


@functools.cache
def virtiofsd() -> str:
    """The path of the real virtiofsd; empty if it has not been fetched."""
    command = [sys.executable, str(ROOT / "tools" / "peers"), "--offline", "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    facts = json.loads(done.stdout)
    return facts["paths"]["virtiofsd"] if facts["ok"] else ""


def places() -> list[str]:
    """The placements that are possible here."""
    return [place for place in PLACES if place == "one" or len(CPUS) > 1]


def command_of(name: str) -> Command:
    """How the back-end ``name`` is started."""
    if name == SERVED:
        return SERVE
    return [virtiofsd(), "--sandbox=none", "--seccomp=none", "--socket-path={socket}", "--shared-dir={dir}"]


def settle(process: BackendProcess, place: str) -> None:
    """Have ``process``, and what it started, run where ``place`` says."""
    here = os.sched_getaffinity(0)
    cpus = here if place == "one" else set(CPUS) - here
    for task in tasks_of(process.pid):
        os.sched_setaffinity(task, cpus)


def tasks_of(pid: int) -> Iterator[int]:
    """The threads of a process and of those that it started."""
    for task in os.listdir(f"/proc/{pid}/task"):
        yield int(task)
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            yield from tasks_of(int(child))


class Contender:
    """A machine on the back-end ``name``, which is started with ``words`` of virtiofsd's options.

    Without ``boot`` there is no guest yet: the back-end is as fresh as the destination of a migration.
    """

    def __init__(
        self, name: str, share: Path, words: Sequence[str] = (), *, place: str = "one", boot: bool = True
    ) -> None:
        self.name = name
        self.schedule = ImmediateSchedule()
        self.process: BackendProcess | None = None
        with ExitStack() as stack:
            backend = None
            if name != INPROC:
                self.schedule.attach(FdWaits(now_ns=self.schedule.now_ns))
                self.process = stack.enter_context(BackendProcess(str(share), command_of(name), words))
                self.process.wait_ready()
                settle(self.process, place)
                backend = RemoteBackend(self.process, str(share), self.schedule)
            if boot:
                self.machine = Machine(
                    share, memory="64M", schedule=self.schedule, backend=backend,
                    options=options_of(words) if backend is None else {},
                )  # fmt: skip
            else:
                config = MachineConfig(memory=[(0, 8 << 20)], options=options_of(words))
                seams = Seams() if backend is None else Seams(start=lambda *_: backend)
                self.machine = Machine.built(config, str(share), self.schedule, seams, None)
            stack.callback(self.machine.close)
            self._stack = stack.pop_all()

    def settle(self, place: str) -> None:
        """Move the back-end to where ``place`` says."""
        if self.process is not None:
            settle(self.process, place)

    def close(self) -> None:
        """Everything ends."""
        self._stack.close()


def options_of(words: Sequence[str]) -> dict[str, object]:
    """Options ``--like-this=value`` as a machine takes them."""
    pairs = (word.removeprefix("--").split("=", 1) for word in words)
    return {name.replace("-", "_"): value for name, value in pairs}


@contextmanager
def contenders(
    share: Path, words: Sequence[str] = (), their_words: Sequence[str] = ()
) -> Iterator[dict[str, Contender]]:
    """All of them on one share; ``their_words`` are for virtiofsd alone."""
    with ExitStack() as stack:
        found = {}
        for name in NAMES:
            found[name] = Contender(name, share, [*words, *(their_words if name == THEIRS else ())])
            stack.callback(found[name].close)
        yield found
