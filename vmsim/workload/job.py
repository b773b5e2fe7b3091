"""The main job: a guest works on a directory, its machine migrates meanwhile, and everything is checked.

No printing here: a watcher is told what happens, and :meth:`Job.run` returns the facts.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, Final

import msgspec

from vmsim.errors import MigrationBlocked, UsageError
from vmsim.guest.calls.posix import GuestFs
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine, Seams
from vmsim.machine.config import MEMORY_MAX, size_text
from vmsim.machine.guest_facts import left_to_guest
from vmsim.migration.report import MigrationParameters
from vmsim.schedule import Task
from vmsim.schedule.seeded import STEP_NS, SeededSchedule
from vmsim.virtio.constants import F_RING_PACKED
from vmsim.workload.checks import Discrepancy
from vmsim.workload.choices import LimitChoice, MachineChoice
from vmsim.workload.continued import NOTE, Note
from vmsim.workload.programs import Contender, Work, Worker, check
from vmsim.workload.reader import Reader
from vmsim.workload.report import Hop, HopWatch, JobReport, Standstill
from vmsim.workload.share import Scratch, check_target, existing, make_small_tree, refused
from vmsim.workload.stages import Stages, Undisturbed, Watcher, clearing_up
from vmsim.workload.writer import Workload

WARM_UP_STEPS: Final = 60
STEPS_BETWEEN_HOPS: Final = 40
SETTLING_TURNS: Final = 10_000
"""In which a request that arrived with the machine has to wait for its lock again."""

LIVE: Final = MigrationParameters(
    bandwidth=1 << 30, memory_limit_ns=48_000, part_bytes=16 << 10, clock=time.monotonic_ns
)
"""Memory goes in virtual time, in which a turn takes a microsecond: the guest works a lot while it is sent.

What it costs that nobody runs is real time, which decides nothing about the interleaving.
"""

TURN_NS: Final = 100_000
"""Of virtual time, about what a turn really takes: where the user names a bandwidth, the guest dirties memory
at the pace of a guest in real time, and still every interleaving follows from the seed."""

LIVE_REMOTE: Final = dataclasses.replace(LIVE, memory_limit_ns=500_000)
"""Back-ends in other processes work in real time, and the guest gets more done in a round."""

ELSEWHERE: Final = ", and perhaps not at the destination either"
"""What the pre-flight report leaves open, and is certain where the destination is this process."""

DENTRIES_SPARE: Final = 1024
"""Names that the guest remembers beside those of its many files, so that it knows all of their inodes."""
DENTRY_BYTES: Final = 288
QUEUE_BYTES: Final = 144 << 10
OTHER_BYTES: Final = 5 << 20
"""What the guest needs besides: its page cache, the first two queues, buffers."""


class JobOptions(msgspec.Struct, frozen=True):
    """What the user asked for."""

    machine: MachineChoice
    share: str | None = None
    read_only: bool = False
    inodes: int = 200
    hops: int = 1
    seed: int = 1
    save: str | None = None
    keep_names: bool = False
    limits: LimitChoice = LimitChoice()

    def check(self) -> None:
        """UsageError for what cannot be, before anything has been done."""
        self.machine.check()
        if self.save is not None:
            if self.machine.migration == "external":
                raise UsageError(
                    "a saved machine cannot keep a back-end of this process",
                    hint="with --save, use --migration internal",
                )
            if self.machine.by_handle and not self.read_only:
                raise UsageError(
                    "unlinked files have no file handle any more once a saved machine has ended",
                    hint="with --save, use --migration-mode find-paths: their contents travel then",
                )
            check_target(self.save)
        if self.machine.memory > MEMORY_MAX:
            raise UsageError(
                f"--memory {size_text(self.machine.memory)} is too much",
                hint=f"at most --memory {size_text(MEMORY_MAX)}; it is given out as it is used",
            )
        names = self.inodes + DENTRIES_SPARE
        needed = OTHER_BYTES + QUEUE_BYTES * self.machine.queues + DENTRY_BYTES * names
        if self.machine.memory < needed:
            raise UsageError(
                f"--memory {size_text(self.machine.memory)} is too small for a guest with"
                f" --inodes {self.inodes} and --queues {self.machine.queues}",
                hint=f"it needs --memory {(needed >> 20) + 1}M",
            )


class Job:
    """Carries it out once; everything that it made is gone afterwards, unless the machine was saved."""

    def __init__(self, options: JobOptions, watcher: Watcher) -> None:
        options.check()
        self.options = options
        self.watcher = watcher
        step_ns = STEP_NS if options.limits.bandwidth is None else TURN_NS
        self.schedule = SeededSchedule(options.seed, turns_max=1 << 62, step_ns=step_ns)
        self.stages = Stages(watcher)
        self.hops: list[Hop] = []
        self.downtimes: list[Standstill] = []
        self.share = options.share or ""
        self.seams: Callable[[str], Seams] | None = None
        """Wrappers for the machine of that name."""
        self._stack = ExitStack()
        self._machine: Machine | None = None
        self._saved: str | None = None

    def run(self, undisturbed: Undisturbed = nullcontext) -> JobReport:
        """Do all stages; VmsimError or OSError if one cannot be done."""
        with clearing_up(self._stack, self.stages.end, undisturbed):
            return self._run()

    def so_far(self) -> dict[str, Any]:
        """The facts up to now, for a job that did not get to its report."""
        report = self._report({}, [])
        return {
            name: value
            for name, value in msgspec.to_builtins(report).items()
            if name in ("share", "seed", "machine", "stages", "hops", "downtimes")
        }

    def _run(self) -> JobReport:
        options = self.options
        self.share = share = self._find_share()
        scratch = None if options.read_only else self._scratch(share)
        self.stages.begin("boot", f"a machine on {share}")
        machine = self._boot(share)
        self.stages.begin("work", "the guest reads" if scratch is None else "the guest makes its files")
        worker = Worker(self._start_work(machine.mount(), scratch))
        task = machine.spawn("workload", worker)
        contender = None if scratch is None else self._contend(machine, scratch)
        self._work_on(worker, WARM_UP_STEPS, task)
        for number in range(options.hops):
            machine = self._hop(machine, number, worker, contender)
            self._work_on(worker, STEPS_BETWEEN_HOPS, task)
        self.stages.begin("verify", "every handle, offset, lock and byte against the record")
        worker.stop = True
        self.schedule.wait(lambda: task.done, "the workload's last operation")
        task.result()
        found = worker.found + check(worker.work, machine)
        if contender is not None:
            found += contender.settle(machine, self.schedule)
        counts = worker.work.counts()
        left_out = self._left_out(machine)
        if options.save is not None and not found:
            self._save(machine, worker.work, options.save)
        self.stages.end()
        return self._report(counts, found, left_out)

    def _left_out(self, machine: Machine) -> list[str]:
        """What the guest did without, or without its back-end, in words."""
        found = []
        if self.options.machine.ring == "packed" and not machine.kernel.state.features & F_RING_PACKED:
            found.append("the rings are split: the back-end does not offer packed ones")
        if self.options.read_only:
            return found
        if self.options.keep_names:
            found.append("nothing was unlinked or removed: --keep-names")
        return found + left_to_guest(machine.kernel)

    def _report(
        self, counts: dict[str, int], found: list[Discrepancy], left_out: Sequence[str] = ()
    ) -> JobReport:
        return JobReport(
            ok=not found, share=self.share, seed=self.options.seed, machine=self.options.machine,
            stages=self.stages.done, hops=self.hops, workload=counts,
            discrepancies=[str(each) for each in found], saved=self._saved, left_out=list(left_out),
            downtimes=self.downtimes,
        )  # fmt: skip

    # Stages

    def _find_share(self) -> str:
        if self.options.share is not None:
            return existing(self.options.share)
        made = tempfile.mkdtemp(prefix="vmsim-share-")
        self._unless_saved(lambda: shutil.rmtree(made))
        make_small_tree(made)
        return made

    def _scratch(self, share: str) -> Scratch:
        scratch = Scratch(share)
        self._unless_saved(scratch.remove_folder)
        self._stack.callback(scratch.remove_lock)
        return scratch

    def _unless_saved(self, remove: Callable[[], object]) -> None:
        self._stack.callback(lambda: None if self._saved else remove())

    def _boot(self, share: str) -> Machine:
        options = self.options
        launch = options.machine.arguments(readonly=options.read_only)
        launch["schedule"] = self.schedule
        launch["guest"] = GuestConfig(cache="writethrough", dentries=options.inodes + DENTRIES_SPARE)
        launch["seams"] = self.seams("vm1") if self.seams else None
        self._stack.callback(self._close)
        self._machine = Machine(share, **launch)
        self._refuse_handles(self._machine)
        return self._machine

    def _refuse_handles(self, machine: Machine) -> None:
        """UsageError if nothing can be found again by file handle here, and so not at the destination."""
        choice = self.options.machine
        if choice.migration != "internal" or not choice.by_handle:
            return
        for finding in machine.preflight():
            if not finding.inode and finding.severity != "info":
                raise UsageError(
                    f"--migration-mode file-handles cannot work: {finding.why.removesuffix(ELSEWHERE)}",
                    hint="use find-paths, or run with CAP_DAC_READ_SEARCH",
                )

    def _close(self) -> None:
        try:
            self.schedule.close()
        finally:
            if self._machine is not None:
                self._machine.close()

    def _start_work(self, fs: GuestFs, scratch: Scratch | None) -> Work:
        options = self.options
        if scratch is None:
            return Reader.start(fs, options.seed, files=options.inodes)
        try:
            return Workload.start(
                fs, scratch.folder, options.seed, inodes=options.inodes, keep_names=options.keep_names
            )
        except OSError as error:
            refused(self.share, error)

    def _contend(self, machine: Machine, scratch: Scratch) -> Contender:
        """A lock, and somebody who waits for it: a request in flight that outlives every hop."""
        try:
            contender = Contender(machine, scratch.lock)
        except OSError as error:
            refused(self.share, error)
        self._wait_for_waiting(machine)
        return contender

    def _wait_for_waiting(self, machine: Machine) -> None:
        """Until a request waits for a lock in the back-end, or would have long ago."""
        turns = self.schedule.turns + SETTLING_TURNS
        self.schedule.wait(
            lambda: machine.facts()["waiting"] > 0 or self.schedule.turns > turns, "a request to wait"
        )

    def _work_on(self, worker: Worker, steps: int, task: Task) -> None:
        """Let the workload do that many more steps."""
        state = worker.work.state
        first, target = state.steps, state.steps + steps

        def far_enough() -> bool:
            self.watcher.progress((state.steps - first) / steps, f"{state.steps} operations")
            return task.done or state.steps >= target

        self.schedule.wait(far_enough, "the workload")
        if task.done:
            task.result()

    def _hop(self, machine: Machine, number: int, worker: Worker, contender: Contender | None) -> Machine:
        self.stages.begin("migrate", f"hop {number + 1} of {self.options.hops}, the guest works on")
        steps = worker.work.state.steps
        watch = HopWatch(machine, self.watcher)
        seams = self.seams(f"vm{number + 2}") if self.seams else None
        try:
            self._machine = machine = machine.migrate(progress=watch, seams=seams, parameters=self._live())
        except MigrationBlocked as error:
            error.hint = "use --migration internal (its state moves too) or external (the back-end is kept)"
            raise
        watch.ended()
        steps = worker.work.state.steps - steps
        moved = machine.facts()
        if contender is not None and not contender.got_it:
            self._wait_for_waiting(machine)
            moved["waiting"] = machine.facts()["waiting"]
        self.hops.append(watch.hop(machine, steps, moved))
        assert machine.migration_stats is not None
        self.downtimes.append(Standstill.of(machine.migration_stats))
        return machine

    def _live(self) -> MigrationParameters:
        limits = self.options.limits
        live = LIVE if self.options.machine.transport == "inproc" else LIVE_REMOTE
        changes: dict[str, Any] = {
            "over_limit": limits.over_limit, "max_rounds": limits.max_rounds,
            "cancel_after_ns": limits.cancel_after,
        }  # fmt: skip
        if limits.bandwidth is not None:
            changes |= {"bandwidth": limits.bandwidth, "memory_limit_ns": None}
        elif limits.downtime_limit is not None:
            changes["memory_limit_ns"] = limits.downtime_limit
        if limits.downtime_limit is not None:
            changes["downtime_limit_ns"] = limits.downtime_limit
        return dataclasses.replace(live, **changes)

    def _save(self, machine: Machine, work: Work, path: str) -> None:
        self.stages.begin("save", path)
        machine.programs[NOTE] = Note.of(work).encode()
        machine.kernel.flush_forgets()  # virtiofsd saves no inode without a name, not even to be forgotten
        machine.mount().statvfs("/")
        machine.save(path, keep_running=False)
        self._saved = path
