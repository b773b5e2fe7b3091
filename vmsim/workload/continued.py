"""A saved machine goes on: what its file says about the workload in it, and the job that continues it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from typing import Any, Final

import msgspec

from vmsim.errors import StreamError, UsageError
from vmsim.machine import Machine, Seams
from vmsim.schedule import Schedule
from vmsim.workload.programs import Work, Worker, check
from vmsim.workload.reader import Reader, decode_reader
from vmsim.workload.share import FOLDER, existing, remove_tree
from vmsim.workload.stages import Stage, Stages, Undisturbed, Watcher, clearing_up
from vmsim.workload.writer import Workload, decode_state

NOTE: Final = "workload"
STEPS: Final = 40


class Note(msgspec.Struct):
    """The workload of a saved machine; ``scratch`` is its folder in the share, empty if it only reads."""

    kind: str
    state: bytes
    scratch: str = ""

    @classmethod
    def of(cls, work: Work) -> Note:
        """What to write down about ``work``."""
        if isinstance(work, Reader):
            return cls("reader", work.encode())
        return cls("workload", work.encode(), work.state.folder)

    def encode(self) -> bytes:
        """As bytes for a stream."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Note:
        """From a stream; StreamError if it is none."""
        try:
            note = msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise StreamError(f"a note about the workload: {error}", field="programs") from error
        if note.scratch and not FOLDER.fullmatch(note.scratch):
            raise StreamError(f"{note.scratch!r} is no scratch folder", field="programs")
        return note

    def work(self) -> Work:
        """The workload, to be continued."""
        if self.kind == "reader":
            return Reader(decode_reader(self.state))
        return Workload(decode_state(self.state))


class ContinuedReport(msgspec.Struct):
    """The facts, as printed and as JSON."""

    ok: bool
    share: str
    stages: list[Stage]
    moved: dict[str, int]
    notes: list[str]
    workload: dict[str, int]
    discrepancies: list[str]


class ContinuedJob:
    """Continues the machine in ``file`` once: verifies its workload, lets it work on, verifies again.

    The scratch folder is removed once the guest has worked on (the file is of no use then), unless ``keep``;
    it stays as it is if the verification finds something. ``transport`` and ``backend`` (a command) say where
    the back-end runs.
    """

    def __init__(
        self, file: str, share: str, watcher: Watcher, options: Mapping[str, Any] | None = None, *,
        keep: bool = False, transport: str = "inproc", backend: str | None = None,
        migration_load: str | None = None,
    ) -> None:  # fmt: skip
        self.share = existing(share)
        self.stages = Stages(watcher)
        self.schedule: Schedule | None = None
        self.seams: Seams | None = None
        self._file = file
        self._watcher = watcher
        self._options = options
        self._keep = keep
        self._transport = transport
        self._backend = backend
        self._migration_load = migration_load
        self._stack = ExitStack()

    def run(self, undisturbed: Undisturbed = nullcontext) -> ContinuedReport:
        """Do it; UsageError if the machine was not saved by this command line."""
        with clearing_up(self._stack, self.stages.end, undisturbed):
            return self._run()

    def so_far(self) -> dict[str, Any]:
        """The facts up to now, for a job that did not get to its report."""
        return {"share": self.share, "stages": msgspec.to_builtins(self.stages.done)}

    def _run(self) -> ContinuedReport:
        self.stages.begin("restore", self._file)
        machine = self._stack.enter_context(
            Machine.restore(
                self._file, share=self.share, options=self._options, schedule=self.schedule,
                seams=self.seams, transport=self._transport, backend_command=self._backend,
                migration_load=self._migration_load,
            )
        )
        told = machine.programs.get(NOTE)
        if told is None:
            raise UsageError(
                f"the machine in {self._file} has no workload to verify",
                hint="save one with: vmsim migrate --save FILE DIR",
            )
        note = Note.decode(told)
        worker = Worker(note.work())
        moved = machine.facts()
        self.stages.begin("verify", "every handle, offset, lock and byte against the record in the file")
        found = check(worker.work, machine)
        if not found:
            if note.scratch and not self._keep:
                self._stack.callback(remove_tree, self.share + note.scratch)
            self._work_on(machine, worker)
            self.stages.begin("verify", "once more")
            found = worker.found + check(worker.work, machine)
        self.stages.end()
        return ContinuedReport(
            not found, self.share, self.stages.done, moved, machine.notes(), worker.work.counts(),
            [str(each) for each in found],
        )  # fmt: skip

    def _work_on(self, machine: Machine, worker: Worker) -> None:
        self.stages.begin("work", "the guest goes on")
        fs = machine.mount()
        for number in range(STEPS):
            if not worker.found:
                worker.step(fs)
            self._watcher.progress((number + 1) / STEPS, f"{worker.work.state.steps} operations")
