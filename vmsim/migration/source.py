"""The outgoing side of a migration: rounds while the guest works, switch-over, commit or rollback."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Final, NoReturn

from vmsim.errors import (
    HostError,
    MigrationCancelled,
    MigrationError,
    StateError,
    StreamTruncated,
    VmsimError,
)
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.channel import Channel
from vmsim.migration.errors import ChannelError, DeliveryInDoubt
from vmsim.migration.ram import RAM_IDSTR, RAM_VERSION, RamSaver, Run, all_runs, merged, sliced
from vmsim.migration.report import (
    MigrationInDoubt,
    MigrationParameters,
    MigrationStats,
    Progress,
    ProgressCallback,
    Round,
    as_migration_error,
)
from vmsim.migration.returnpath import FAILED, GO, READY, RESUME_ACK, SHUT, ReturnMessage, receive
from vmsim.migration.seams import SourceMachine
from vmsim.migration.stream import (
    SECTION_END,
    SECTION_PART,
    SECTION_START,
    SWITCHOVER_START,
    SectionHead,
    StreamWriter,
)
from vmsim.schedule import Schedule

MACHINE_IDSTR: Final = "vmsim/machine"
MACHINE_VERSION: Final = 1
SIDE: Final = "source"
PEER_GONE: Final = frozenset({0, errno.EPIPE, errno.ECONNRESET})
"""How a channel says that the other side closed it; 0 is a channel in memory."""


class OutgoingMigration:
    """Saves ``machine`` through ``channel``; :meth:`run` once.

    Until commit every failure, and :meth:`cancel`, leaves the machine running as if nothing had happened. At
    commit the machine is finished (or, saved to a file with ``keep_running``, goes on). What ``progress``
    raises fails the migration, except in the phase ``done``, when it is too late.

    ``verdict`` is asked when the channel broke between the go and its acknowledgement: does the destination
    run? Nobody may know (None): then :meth:`run` raises MigrationInDoubt and leaves the machine stopped,
    with everything that it holds, until :meth:`settle` is told.
    """

    def __init__(
        self, machine: SourceMachine, channel: Channel, schedule: Schedule,
        parameters: MigrationParameters | None = None, progress: ProgressCallback | None = None,
        verdict: Callable[[], bool | None] = lambda: None,
    ) -> None:
        self.stats = MigrationStats()
        self.phase = "setup"
        """The present phase: setup, precopy, stop, device, ready, commit, done, failed or doubt."""
        self._machine = machine
        self._channel = channel
        self._schedule = schedule
        self._parameters = parameters or MigrationParameters()
        self._progress = progress
        self._verdict = verdict
        self._undo = ExitStack()
        self._step = "setup"
        self._cancelled = False
        self._went = False
        """The destination may have been told to run."""
        self._refused = False
        """It has said that it does not."""
        self._output = StreamOutput(channel)
        self._stream = StreamWriter(self._output)
        self._answers = StreamInput(channel)
        self._ram: RamSaver = RamSaver(machine.memory, self._output)
        self._ram_head = SectionHead(SECTION_START, 0, RAM_IDSTR, 0, RAM_VERSION)
        self._stopped_ns = 0

    def cancel(self) -> None:
        """Give up as soon as possible; StateError once it is too late."""
        if self.phase in ("commit", "done", "failed", "doubt"):
            raise StateError(f"the migration cannot be cancelled: it is in phase {self.phase}")
        self._cancelled = True
        self._channel.close()  # whoever waits for the other end wakes up

    def run(self) -> MigrationStats:
        """Carry it out. MigrationError (or a subclass) naming step and side if it failed."""
        if self._step != "setup" or self.phase != "setup":
            raise StateError("a migration runs only once")
        began = self._schedule.now_ns()
        with ExitStack() as undo:
            late: BaseException | None = None
            try:
                self._carry_out(undo)
            except BaseException as error:
                if self._went and not self._refused:
                    self._decide(error, undo)
                    late = None if isinstance(error, MigrationInDoubt) else error
                else:
                    self._fail(error)
            undo.pop_all()
        now = self._schedule.now_ns()
        self.stats.total_ns = now - began
        self.stats.downtime_ns = now - self._stopped_ns
        self._conclude()
        if late is not None:
            raise late  # an interrupt, say, that came when it was too late
        return self.stats

    def _fail(self, error: BaseException) -> NoReturn:
        explained = self._explained(error)
        self.phase = "failed"
        self._channel.close()  # the other side lets go of what we are going to take back
        if explained is error:
            raise error
        raise explained from error

    def settle(self, *, destination_runs: bool) -> None:
        """End a doubt: the machine is finished, or goes on as after any other failure."""
        if self.phase != "doubt":
            raise StateError(f"nothing is in doubt: the migration is in phase {self.phase}")
        undo = self._undo.pop_all()
        if destination_runs:
            self.phase = "done"
            self._machine.finish()
        else:
            self.phase = "failed"
            undo.close()

    def _decide(self, doubt: BaseException, undo: ExitStack) -> None:
        """Return if the destination runs; raise if it does not, or if nobody knows."""
        self._channel.close()
        runs = self._verdict()
        if runs is None:
            self.phase = "doubt"
            self._undo = undo.pop_all()
            raise doubt
        if not runs:
            self.phase = "failed"
            if isinstance(doubt, MigrationInDoubt):
                raise MigrationError(doubt.message, step=doubt.step, side=doubt.side) from doubt
            raise doubt

    def _carry_out(self, undo: ExitStack) -> None:
        machine = self._machine
        undo.callback(self._channel.close)
        machine.check_migratable()
        self._send_configuration()
        self._begin(undo, "log start", machine.start_log, machine.stop_log)
        left = self._precopy()
        self._enter("stop")
        self._stopped_ns = self._schedule.now_ns()
        self._begin(undo, "guest stop", machine.pause, machine.resume)
        self._begin(undo, "ring stop", machine.stop_rings, machine.restart_rings)
        self._send_rest(left)
        self._enter("device")
        for section in machine.sections():
            self._at(f"saving {section.idstr}")
            with self._stream.full(section.idstr, section.instance_id, section.version_id) as out:
                section.save(out)
            self._output.flush()
        self._at("end of stream")
        self._stream.end()
        if self._channel.duplex:
            self._agree()
        else:
            self._enter("commit")
            self._hand_over()

    def _conclude(self) -> None:
        """After commit: nothing here may raise before the machine is finished."""
        self.phase = "done"
        goes_on = self._parameters.keep_running and not self._channel.duplex
        if not goes_on:
            self._machine.finish()
        self._channel.close()
        if goes_on:
            self._machine.restart_rings()
            self._machine.resume()
            self._machine.stop_log()
        try:
            self._tell(0)
        except Exception:
            pass  # it is committed, whatever the listener thinks of it

    # Steps

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self._at(phase)
        self._tell(0)

    def _at(self, step: str) -> None:
        if self._cancelled:
            raise MigrationCancelled("the migration was cancelled", step=self._step, side=SIDE)
        self._step = step

    def _tell(self, remaining_bytes: int) -> None:
        self.stats.stream_bytes = self._output.offset
        self.stats.pages, self.stats.zero_pages = self._ram.pages, self._ram.zero_pages
        self.stats.section_bytes = self._stream.sizes
        if self._progress is not None:
            self._progress(Progress(self.phase, len(self.stats.rounds), self._output.offset, remaining_bytes))

    def _begin(self, undo: ExitStack, step: str, do: Callable[[], None], undo_it: Callable[[], None]) -> None:
        """Do something that has to be undone also if it fails half-way."""
        self._at(step)
        undo.callback(undo_it)
        do()

    def _send_configuration(self) -> None:
        self._at("configuration")
        self._stream.header(self._machine.machine_type)
        configuration = self._machine.configuration()
        with self._stream.full(MACHINE_IDSTR, 0, MACHINE_VERSION) as out:
            out.be32("len", len(configuration))
            out.buffer("configuration", configuration)

    # Memory

    def _precopy(self) -> Sequence[Run]:
        """Rounds while the guest works; the pages that are left for the time when it does not."""
        self._enter("precopy")
        self._ram_head = self._stream.new_section(RAM_IDSTR, 0, RAM_VERSION)
        with self._stream.part(SECTION_START, self._ram_head):
            self._ram.start()
        self._output.flush()
        runs: Iterable[Run] = all_runs(self._machine.memory, self._machine.data_of())
        while True:
            began, sent = self._schedule.now_ns(), self._output.offset
            copied = self._send_round(list(runs))
            self._at("harvest")
            runs = self._machine.harvest()
            dirty = sum(size for _, size in runs)
            took = self._schedule.now_ns() - began
            self.stats.rounds.append(Round(copied, took, dirty))
            if dirty <= self._budget(self._output.offset - sent, took):
                return runs
            if len(self.stats.rounds) >= self._parameters.max_rounds:
                return self._diverging(runs, dirty)

    def _diverging(self, runs: Sequence[Run], dirty: int) -> Sequence[Run]:
        self.stats.converged = False
        if self._parameters.stop_when_diverging:
            return runs
        rounds = len(self.stats.rounds)
        raise MigrationError(
            f"memory changes faster than it is sent: {dirty} bytes are left after {rounds} rounds",
            step="precopy", side=SIDE, hint="allow a longer downtime or more rounds, or a quieter guest",
        )

    def _budget(self, sent_bytes: int, took_ns: int) -> float:
        """How many bytes fit into the downtime."""
        if self._parameters.bandwidth is not None:
            bandwidth = self._parameters.bandwidth / 1e9
        elif took_ns > 0:
            bandwidth = sent_bytes / took_ns
        else:
            return float("inf")  # no time passed: a virtual clock, and sending costs nothing
        return bandwidth * self._parameters.downtime_limit_ns

    def _send_round(self, runs: list[Run]) -> int:
        total = left = sum(size for _, size in runs)
        for group in sliced(runs, self._parameters.part_bytes):
            self._at(f"memory round {len(self.stats.rounds) + 1}")
            began, sent = self._schedule.now_ns(), self._output.offset
            with self._stream.part(SECTION_PART, self._ram_head):
                self._send_pages(group)
            self._output.flush()
            left -= sum(size for _, size in group)
            self._throttle(began, self._output.offset - sent)
            self._tell(left)
            self._schedule.checkpoint("migration")
        return total

    def _send_pages(self, runs: Iterable[Run]) -> None:
        for gpa, size in runs:
            self._ram.send(gpa, size)
        self._ram.end_of_part()

    def _throttle(self, began_ns: int, sent_bytes: int) -> None:
        if self._parameters.bandwidth is not None:
            due = began_ns + sent_bytes * 1_000_000_000 // self._parameters.bandwidth
            if (early := due - self._schedule.now_ns()) > 0:
                self._schedule.sleep_ns(early)

    def _send_rest(self, left: Sequence[Run]) -> None:
        """What was left, and what the last moments added; nothing writes any more."""
        self._at("last memory")
        runs = merged(left, self._machine.harvest())
        self._stream.command(SWITCHOVER_START)
        with self._stream.part(SECTION_END, self._ram_head):
            self._send_pages(runs)
        self._tell(0)

    # Agreement

    def _agree(self) -> None:
        """Wait until the destination is ready, let it go, and learn that it went (see returnpath)."""
        self._enter("ready")
        answer = self._answer(SHUT)
        if answer.value != READY:
            raise _refusal(answer)
        self._at("go")
        self.phase = "commit"
        self._went = True
        try:
            self._channel.write(GO)
        except (ChannelError, HostError):
            # It may have arrived all the same. If not, the destination now sees the end, and says so.
            self._channel.close_write()
        self._confirm()

    def _confirm(self) -> None:
        """Return if the destination says that it runs; MigrationInDoubt unless it says that it gave up."""
        try:
            answer = receive(self._answers)
        except (VmsimError, OSError) as error:
            raise _doubt(f"the channel broke while the destination was starting: {error}") from error
        if answer.kind == SHUT and answer.value == FAILED:
            self._refused = True
            raise _refusal(answer)
        if (answer.kind, answer.value) != (RESUME_ACK, 1):
            raise _doubt(f"the destination answered the go with message {answer.kind}, {answer.value}")

    def _hand_over(self) -> None:
        """The end of a channel without answers: a file that is there, a command that succeeds."""
        try:
            self._channel.finish()
        except DeliveryInDoubt as error:
            if not self._parameters.keep_running:
                self._went = True
                raise _doubt(str(error)) from error
            raise

    def _answer(self, kind: int) -> ReturnMessage:
        answer = receive(self._answers)
        if answer.kind != kind:
            message = f"the destination answered {answer.kind}, not {kind}"
            raise MigrationError(message, step=self._step, side=SIDE)
        return answer

    def _explained(self, error: BaseException) -> BaseException:
        """The error to raise for what went wrong before commit."""
        if self._cancelled and not isinstance(error, MigrationCancelled):
            return MigrationCancelled("the migration was cancelled", step=self._step, side=SIDE)
        if self._channel.duplex and _left_by_peer(error):
            refusal = self._last_words()
            if refusal is not None:
                return refusal
        return as_migration_error(error, self._step, SIDE)

    def _last_words(self) -> MigrationError | None:
        """Why the destination gave up, if it said so."""
        try:
            self._channel.close_write()
            answer = receive(self._answers)
        except (VmsimError, OSError):
            return None
        return _refusal(answer) if answer.kind == SHUT and answer.value != READY else None


def _doubt(why: str) -> MigrationInDoubt:
    return MigrationInDoubt(
        why, step="go", side=SIDE,
        hint="look whether the destination runs, then tell this machine: settle(destination_runs=...); "
        "until then it stays stopped",
    )  # fmt: skip


def _left_by_peer(error: BaseException) -> bool:
    """Whether the other side closed the channel: then it may have said why."""
    if isinstance(error, ChannelError):
        return error.errno in PEER_GONE
    return isinstance(error, StreamTruncated)


def _refusal(answer: ReturnMessage) -> MigrationError:
    why = f"{answer.step or 'unknown step'}: {answer.reason or 'no reason given'}"
    return MigrationError(
        f"the destination gave up, {why}", step=answer.step, side="destination", errno=answer.errno,
        hint=answer.hint,
    )
