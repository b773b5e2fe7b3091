"""The main job: a guest works on a directory, its machine migrates meanwhile, and everything is checked.

No printing here: a :class:`Watcher` is told what happens, and :func:`run_job` returns the facts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, Protocol

import msgspec

from vmsim.cli.options import MachineChoice
from vmsim.errors import UsageError, VmsimError
from vmsim.guest.config import GuestConfig
from vmsim.guest.posix import GuestFs
from vmsim.machine import Machine, Seams
from vmsim.migration.report import MigrationParameters, Progress
from vmsim.sim.reader import Reader, decode_reader
from vmsim.sim.seeded import SeededSchedule
from vmsim.sim.workload import Workload, decode_state
from vmsim.sim.workload_checks import Discrepancy, verify

SCRATCH: Final = "vmsim-scratch"
NOTE: Final = "workload"
WARM_UP_STEPS: Final = 60
STEPS_BETWEEN_HOPS: Final = 40
DENTRIES_SPARE: Final = 1024
"""Names that the guest remembers beside those of its many files."""

LIVE: Final = MigrationParameters(bandwidth=256 << 20, downtime_limit_ns=400_000, part_bytes=16 << 10)
"""In virtual time, in which a turn takes a microsecond: the guest gets something done while memory is sent."""


class Watcher(Protocol):
    """Who is told how the job goes on."""

    def stage(self, name: str, what: str) -> None:
        """A stage begins; the one before is done."""
        ...

    def progress(self, done: float, what: str) -> None:
        """How far the stage is, 0 to 1."""
        ...


class JobOptions(msgspec.Struct, frozen=True):
    """What the user asked for."""

    machine: MachineChoice
    share: str | None = None
    read_only: bool = False
    inodes: int = 200
    hops: int = 1
    seed: int = 1
    save: str | None = None


class Hop(msgspec.Struct):
    """One migration. Times are real ones, in nanoseconds; ``steps`` the workload did meanwhile."""

    rounds: list[dict[str, int]]
    ram_bytes: int
    pages: int
    zero_pages: int
    stream_bytes: int
    section_bytes: dict[str, int]
    total_ns: int
    downtime_ns: int
    steps: int
    requests_in_flight: int
    moved: dict[str, int]
    notes: list[str]


class JobReport(msgspec.Struct):
    """The facts, as printed and as JSON."""

    ok: bool
    share: str
    seed: int
    machine: MachineChoice
    stages: list[dict[str, Any]]
    hops: list[Hop]
    workload: dict[str, int]
    discrepancies: list[str]
    saved: str | None = None


class Note(msgspec.Struct):
    """What a saved machine's file says about the workload in it."""

    kind: str
    state: bytes
    scratch: str


class _Program:
    """The workload as a guest program: works until it is told to stop, between two steps."""

    def __init__(self, work: Workload | Reader) -> None:
        self.work = work
        self.stop = False

    def __call__(self, fs: GuestFs) -> None:
        while not self.stop:
            self.work.step(fs)


class _Contender:
    """A second process that waits for a lock of the first, across every migration."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.got_it = False

    def __call__(self, fs: GuestFs) -> None:
        fd = fs.open(self.path, os.O_RDWR)
        fs.lockf(fd, os.F_LOCK, 0)
        self.got_it = True
        fs.close(fd)


class Job:
    """Carries it out once; everything that it made is gone afterwards, unless the machine was saved."""

    def __init__(self, options: JobOptions, watcher: Watcher) -> None:
        self.options = options
        self.watcher = watcher
        self.schedule = SeededSchedule(options.seed, turns_max=1 << 62)
        self.hops: list[Hop] = []
        self.stages: list[dict[str, Any]] = []
        self.seams: Callable[[str], Seams] | None = None
        """Wrappers for the machine of that name."""
        self._began = time.monotonic()
        self._stack = ExitStack()
        self._machine: Machine | None = None

    def run(self) -> JobReport:
        """Do all stages; VmsimError or OSError if one cannot be done."""
        options = self.options
        with self._stack:
            share = self._share()
            self._stage("boot", "a machine on " + share)
            machine = self._boot(share)
            self._stage("work", f"the guest makes {'nothing, it reads' if options.read_only else 'its files'}")
            fs = machine.mount()
            work = self._start_work(fs)
            program = _Program(work)
            task = machine.spawn("workload", program)
            contender, lock_fd = self._contend(machine, fs)
            self._work_on(work, WARM_UP_STEPS, task)
            for number in range(options.hops):
                machine = self._hop(machine, number, work)
                self._work_on(work, STEPS_BETWEEN_HOPS, task)
            self._stage("verify", "every handle, offset, lock and byte against the record")
            program.stop = True
            self.schedule.wait(lambda: task.done, "the workload's last step")
            task.result()
            fs = machine.mount()
            found = self._verify(work, machine, share)
            found += self._settle_contender(machine, fs, contender, lock_fd)
            counts = work.counts()
            saved = self._save(machine, work, share)
            self._stage("done", "")
            return JobReport(
                ok=not found, share=share, seed=options.seed, machine=options.machine, stages=self.stages,
                hops=self.hops, workload=counts, discrepancies=[str(each) for each in found], saved=saved,
            )

    # Stages

    def _stage(self, name: str, what: str) -> None:
        now = time.monotonic()
        if self.stages:
            self.stages[-1]["seconds"] = round(now - self._began, 6)
        self._began = now
        if name != "done":
            self.stages.append({"name": name, "what": what, "seconds": 0.0})
            self.watcher.stage(name, what)

    def _share(self) -> str:
        options = self.options
        if options.share is not None:
            if not os.path.isdir(options.share):
                raise UsageError(f"{options.share} is not a directory", hint="name the directory to share")
            return os.path.realpath(options.share)
        made = tempfile.mkdtemp(prefix="vmsim-share-")
        if options.save is None:
            self._stack.callback(shutil.rmtree, made, ignore_errors=True)
        _make_small_tree(made)
        return made

    def _boot(self, share: str) -> Machine:
        options = self.options
        seams = self.seams("vm1") if self.seams else None
        arguments = options.machine.arguments()
        if options.read_only:
            arguments["options"]["readonly"] = True
        guest = GuestConfig(cache="writethrough", dentries=options.inodes + DENTRIES_SPARE)
        self._machine = machine = Machine(share, schedule=self.schedule, seams=seams, guest=guest, **arguments)
        self._stack.callback(self._close_machine)
        self._stack.callback(self.schedule.close)
        return machine

    def _close_machine(self) -> None:
        if self._machine is not None:
            self._machine.close()

    def _start_work(self, fs: GuestFs) -> Workload | Reader:
        options = self.options
        if options.read_only:
            return Reader.start(fs, options.seed, files=options.inodes)
        folder = f"/{SCRATCH}-{os.getpid()}"
        work = Workload.start(fs, folder, options.seed, inodes=options.inodes)
        if options.save is None:
            self._stack.callback(self._remove_scratch, folder)
        return work

    def _remove_scratch(self, folder: str) -> None:
        machine = self._machine
        if machine is not None:
            shutil.rmtree(os.path.join(machine.share, folder.lstrip("/")), ignore_errors=True)

    def _work_on(self, work: Workload | Reader, steps: int, task: Any) -> None:
        """Let the workload do that many more steps."""
        first, target = work.state.steps, work.state.steps + steps

        def far_enough() -> bool:
            self.watcher.progress((work.state.steps - first) / steps, f"{work.state.steps} operations")
            return task.done or work.state.steps >= target

        self.schedule.wait(far_enough, "the workload")
        if task.done:
            task.result()

    def _hop(self, machine: Machine, number: int, work: Workload | Reader) -> Machine:
        self._stage("migrate", f"hop {number + 1} of {self.options.hops}, the guest works on")
        total = sum(size for _, size in machine.config.memory)
        steps = work.state.steps
        began = time.monotonic_ns()
        stopped = began

        def progress(report: Progress) -> None:
            nonlocal stopped
            if report.phase == "stop":
                stopped = time.monotonic_ns()
            self.watcher.progress(min(report.sent_bytes / total, 1.0), f"{report.phase}, round {report.round + 1}")

        seams = self.seams(f"vm{number + 2}") if self.seams else None
        self._machine = machine = machine.migrate(progress=progress, seams=seams, parameters=LIVE)
        now = time.monotonic_ns()
        stats = machine.migration_stats
        assert stats is not None
        self.hops.append(
            Hop(
                rounds=[{"memory_bytes": r.memory_bytes, "dirty_bytes": r.dirty_bytes} for r in stats.rounds],
                ram_bytes=total, pages=stats.pages, zero_pages=stats.zero_pages, stream_bytes=stats.stream_bytes,
                section_bytes=stats.section_bytes, total_ns=now - began, downtime_ns=now - stopped,
                steps=work.state.steps - steps, requests_in_flight=machine.arrived_requests,
                moved=machine.facts(), notes=machine.notes(),
            )
        )
        return machine

    def _contend(self, machine: Machine, fs: GuestFs) -> tuple[_Contender | None, int]:
        """A lock, and somebody who waits for it: a request in flight that outlives every hop."""
        if self.options.read_only:
            return None, -1
        path = f"/{SCRATCH}-{os.getpid()}.lock"
        fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._stack.callback(self._remove_file, path)
        fs.lockf(fd, os.F_TLOCK, 0)
        contender = _Contender(path)
        machine.spawn("contender", contender, pid=2)
        return contender, fd

    def _remove_file(self, path: str) -> None:
        machine = self._machine
        if machine is not None:
            try:
                os.unlink(os.path.join(machine.share, path.lstrip("/")))
            except OSError:
                pass

    def _settle_contender(
        self, machine: Machine, fs: GuestFs, contender: _Contender | None, lock_fd: int
    ) -> list[Discrepancy]:
        if contender is None:
            return []
        found = []
        if contender.got_it:
            found.append(Discrepancy("the contended lock", "held by process 1", "process 2 has it"))
        fs.lockf(lock_fd, os.F_ULOCK, 0)
        try:
            self.schedule.wait(lambda: contender.got_it, "process 2 to get the lock")
        except VmsimError as error:
            found.append(Discrepancy("the request that waits for the lock", "answered", str(error)))
        fs.close(lock_fd)
        return found

    def _verify(self, work: Workload | Reader, machine: Machine, share: str) -> list[Discrepancy]:
        fs = machine.mount()
        if isinstance(work, Reader):
            return work.verify(fs, share)
        return verify(work, fs, share, peer=machine.mount(3))

    def _save(self, machine: Machine, work: Workload | Reader, share: str) -> str | None:
        if self.options.save is None:
            return None
        self._stage("save", self.options.save)
        kind = "reader" if isinstance(work, Reader) else "workload"
        scratch = "" if isinstance(work, Reader) else work.state.folder
        machine.programs[NOTE] = msgspec.msgpack.encode(Note(kind, work.encode(), scratch))
        machine.save(self.options.save, keep_running=False)
        return self.options.save


def continue_job(machine: Machine, watcher: Watcher) -> tuple[Workload | Reader, list[Discrepancy]]:
    """Verify the workload of a restored machine, let it work on, and verify it again.

    UsageError if the machine was not saved by this job.
    """
    note = machine.programs.get(NOTE)
    if note is None:
        raise UsageError(
            "the saved machine has no workload to verify", hint="save one with: vmsim migrate --save FILE DIR"
        )
    told = msgspec.msgpack.decode(note, type=Note)
    fs = machine.mount()
    work: Workload | Reader
    if told.kind == "reader":
        work = Reader(decode_reader(told.state))
    else:
        work = Workload(decode_state(told.state))
    watcher.stage("verify", "every handle, offset, lock and byte against the record in the file")
    found = _check(work, machine)
    watcher.stage("work", "the guest goes on")
    for number in range(STEPS_BETWEEN_HOPS):
        work.step(fs)
        watcher.progress((number + 1) / STEPS_BETWEEN_HOPS, f"{work.state.steps} operations")
    watcher.stage("verify", "once more")
    found += _check(work, machine)
    return work, found


def _check(work: Workload | Reader, machine: Machine) -> list[Discrepancy]:
    if isinstance(work, Reader):
        return work.verify(machine.mount(), machine.share)
    return verify(work, machine.mount(), machine.share, peer=machine.mount(3))


def _make_small_tree(folder: str) -> None:
    """Something to look at in a directory that we made ourselves."""
    for name, text in (
        ("README", "A directory that vmsim shares with its guest.\n"),
        ("docs/one.txt", "one\n"), ("docs/two.txt", "two\n" * 500), ("docs/deep/er/three.txt", "three\n"),
    ):
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    os.symlink("docs/one.txt", os.path.join(folder, "link"))
