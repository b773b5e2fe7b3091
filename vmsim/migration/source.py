"""The outgoing side of a migration: rounds while the guest works, switch-over, commit or rollback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from vmsim.errors import (
    HostError,
    MigrationCancelled,
    MigrationError,
    StateError,
    StreamTruncated,
    VmsimError,
)
from vmsim.migration import phases
from vmsim.migration.alarm import LOOK_NS, Alarm
from vmsim.migration.budget import Budget
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.channel import Channel
from vmsim.migration.downtime import Stopwatch, WaitingSink
from vmsim.migration.early import EarlyWriter
from vmsim.migration.errors import ChannelError, DeliveryInDoubt, UnexpectedRecord
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
from vmsim.migration.returnpath import (
    FAILED,
    GO,
    PONG,
    READY,
    RESUME_ACK,
    SETTLE,
    SHUT,
    ReturnMessage,
    doubt,
    left_by_peer,
    receive,
    refusal,
)
from vmsim.migration.seams import Section, SourceMachine
from vmsim.migration.stream import (
    SECTION_END,
    SECTION_PART,
    SECTION_START,
    SWITCHOVER_START,
    SectionHead,
    StreamWriter,
)
from vmsim.migration.undo import Undo
from vmsim.schedule import Schedule

MACHINE_IDSTR: Final = "vmsim/machine"
MACHINE_VERSION: Final = 1
SIDE: Final = "source"
OURS: Final = "vmsim/"
"""How the sections are named that are no device's."""


class OutgoingMigration:
    """Saves ``machine`` through ``channel``; :meth:`run` once.

    Until the go every failure, and :meth:`cancel`, leaves the machine running as if nothing had happened.
    After it only a statement of the destination counts: it runs (then the machine is finished) or it has
    given up (then the machine goes on). Whatever else happens is a doubt: ``verdict`` is asked whether the
    destination runs; if that knows no better (None), :meth:`run` raises MigrationInDoubt and leaves the
    machine stopped, with everything that it holds, until :meth:`settle` is told. Saved to a file with
    ``keep_running`` it goes on.

    What ``progress`` raises fails the migration, except in the phase ``done``, when it is too late. An
    interrupt after the go leaves the machine in doubt as well, unless ``both_here``: the destination is in
    this program, and ``machine.restart_rings`` makes an end of it.
    """

    def __init__(
        self, machine: SourceMachine, channel: Channel, schedule: Schedule,
        parameters: MigrationParameters | None = None, progress: ProgressCallback | None = None,
        verdict: Callable[[], bool | None] = lambda: None, *, both_here: bool = False,
    ) -> None:
        self.stats = MigrationStats()
        self.phase = phases.SETUP
        """The present phase, see :mod:`vmsim.migration.phases`."""
        self._machine = machine
        self._channel = channel
        self._schedule = schedule
        self._parameters = parameters or MigrationParameters()
        self._parameters.check()
        self._budget = Budget(machine, self._parameters, self.stats)
        self._clock = self._parameters.clock or schedule.now_ns
        self._progress = progress
        self._verdict = verdict
        self._both_here = both_here
        self._let_go = False
        """Whether the destination may run: from just before the go until it says that it does not."""
        self._undo = Undo()
        self._settling = self.settled = False
        """Of a doubt: it has begun, and an interrupt may have come; it is done."""
        self._step = "setup"
        self._cancelled = False
        self._alarm = Alarm(self._parameters, self._clock)
        sink = WaitingSink(channel, self._clock)
        self._watch = Stopwatch(self._clock, sink)
        self._output = StreamOutput(sink)
        self._stream = StreamWriter(self._output)
        self._answers = StreamInput(channel)
        self._ram: RamSaver = RamSaver(machine.memory, self._output)
        self._ram_head = SectionHead(SECTION_START, 0, RAM_IDSTR, 0, RAM_VERSION)

    def cancel(self) -> None:
        """Give up as soon as possible; StateError once it is too late."""
        if self.phase in phases.TOO_LATE:
            raise StateError(f"the migration cannot be cancelled: it is in phase {self.phase}")
        self._cancelled = True
        self._channel.close()  # whoever waits for the other end wakes up

    def run(self) -> MigrationStats:
        """Carry it out. MigrationError (or a subclass) naming step and side if it failed."""
        if self._step != "setup" or self.phase != phases.SETUP:
            raise StateError("a migration runs only once")
        began = self._clock()
        self._alarm.start(self._schedule, lambda: self.phase in phases.TOO_LATE, self.cancel)
        try:
            self._attempt()
            self.stats.downtime = self._watch.parts
            self._watch.end()
            self.stats.total_ns = self._clock() - began
            self._conclude()
        except BaseException as error:
            self._interrupted(error)
            raise
        return self.stats

    def _doubtful(self) -> None:
        self._come_to(phases.DOUBT)
        self._channel.close()

    def _interrupted(self, error: BaseException) -> None:
        """Wherever it came: after the go the machine is finished, or stopped; it does not go on by itself."""
        if not self._let_go or self.phase in (phases.FAILED, phases.DOUBT):
            return
        if self.phase == phases.DONE:
            self._leave()
        elif self._both_here and not isinstance(error, MigrationInDoubt):
            self._go_on()  # the destination, in this program, has not been started, and is not going to be
        else:
            self._doubtful()

    def started(self, load_ns: int) -> None:
        """The guest runs at the destination, which worked for ``load_ns`` of the downtime."""
        self._watch.started(load_ns)
        self.stats.judge()

    def settle(self, *, destination_runs: bool) -> None:
        """End a doubt: the machine is finished, or goes on as after any other failure."""
        end = phases.DONE if destination_runs else phases.FAILED
        begun = self._settling and self.phase == end
        if self.phase != phases.DOUBT and not begun:
            raise StateError(f"nothing is in doubt: the migration is in phase {self.phase}")
        self._settling = True
        if not destination_runs:
            self._go_on()
        else:
            if not begun:
                self._come_to(end)
            self._machine.finish()
        self._settling, self.settled = False, True

    def _attempt(self) -> None:
        """Return if the destination runs; raise if this machine goes on, or if nobody knows."""
        try:
            self._carry_out(self._undo)
        except MigrationInDoubt as doubt:
            self._channel.close()
            if not self._known_to_run(doubt):
                failed = MigrationError(doubt.message, step=doubt.step, side=doubt.side)
                self._go_on()
                raise failed from doubt
        except BaseException as error:
            if self._let_go and not self._both_here:
                raise
            explained = self._explained(error)
            self._go_on()
            if explained is error:
                raise
            raise explained from error

    def _known_to_run(self, doubt: MigrationInDoubt) -> bool:
        """What somebody who knows says; raises ``doubt`` if nobody does."""
        try:
            runs = self._verdict()
        except Exception as error:
            raise doubt from error
        if runs is None:
            raise doubt
        return runs

    def _go_on(self) -> None:
        """As if nothing had happened. What an interrupt left undone is done by the next call."""
        if self.phase != phases.FAILED:
            self._come_to(phases.FAILED)
        self._channel.close()  # the other side lets go of what we are going to take back
        self._undo.close()

    def _carry_out(self, undo: Undo) -> None:
        machine = self._machine
        undo.callback(self._channel.close)
        machine.check_migratable()
        self._send_configuration()
        self._begin(undo, "log start", machine.start_log, machine.stop_log)
        left = self._precopy()
        self._enter(phases.STOP)
        watch = self._watch
        watch.begin()
        watch.do("rings_ns", lambda: self._stop(undo))
        watch.do("memory_ns", lambda: self._send_rest(left))
        self._enter(phases.DEVICE)
        for section in machine.sections():
            part = "guest_ns" if section.idstr.startswith(OURS) else "device_ns"
            watch.do(part, partial(self._save, section))
        self._at("end of stream")
        if self._channel.duplex:
            self._stream.end()
            self._agree()
        else:
            self._enter(phases.COMMIT)
            self._stream.end()  # not before: whoever reads a whole stream from a command may run
            self._finish()

    def _stop(self, undo: Undo) -> None:
        self._begin(undo, "guest stop", self._machine.pause, self._machine.resume)
        self._begin(undo, "ring stop", self._machine.stop_rings, self._machine.restart_rings)

    def _save(self, section: Section) -> None:
        self._at(f"saving {section.idstr}")
        with self._stream.full(section.idstr, section.instance_id, section.version_id) as out:
            section.save(out)
        self._output.flush()

    def _conclude(self) -> None:
        """After commit: nothing here may raise before the machine is finished."""
        self._come_to(phases.DONE)
        goes_on = self._parameters.keep_running and not self._channel.duplex
        if not goes_on:
            self._leave()
        self._channel.close()
        if goes_on:
            self._machine.restart_rings()
            self._machine.resume()
            self._machine.stop_log()
        try:
            self._tell(0)
        except Exception:
            pass  # it is committed, whatever the listener thinks of it

    def _leave(self) -> None:
        try:
            self._machine.finish()
        except (VmsimError, OSError):
            pass  # a connection or back-end that is gone: nothing here is of use any more

    # Steps

    def _cancellation(self) -> MigrationCancelled:
        message = f"the migration was cancelled{self._alarm.why()}"
        return MigrationCancelled(message, step=self._step, side=SIDE)

    def _come_to(self, phase: str) -> None:
        self.phase = phases.follow(self.phase, phase)

    def _enter(self, phase: str) -> None:
        self._come_to(phase)
        self._at(phase)
        self._tell(0)

    def _at(self, step: str) -> None:
        if self._cancelled or self._alarm.rings:
            self._cancelled = True
            raise self._cancellation()
        self._step = step

    def _tell(self, remaining_bytes: int) -> None:
        self.stats.stream_bytes = self._output.offset
        self.stats.pages, self.stats.zero_pages = self._ram.pages, self._ram.zero_pages
        self.stats.section_bytes = self._stream.sizes
        if self._progress is not None:
            budget, rounds = self._budget, len(self.stats.rounds)
            report = (self.phase, rounds, self._output.offset, remaining_bytes)
            self._progress(Progress(*report, budget.expected, budget.warning))

    def _begin(self, undo: Undo, step: str, do: Callable[[], None], undo_it: Callable[[], None]) -> None:
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
        self._enter(phases.PRECOPY)
        self._ram_head = self._stream.new_section(RAM_IDSTR, 0, RAM_VERSION)
        with self._stream.part(SECTION_START, self._ram_head):
            self._ram.start()
        self._output.flush()
        runs: Iterable[Run] = all_runs(self._machine.memory, self._machine.data_of())
        ahead = not self._channel.duplex  # nobody works on it before it is whole
        while True:
            began, sent = self._schedule.now_ns(), self._output.offset
            copied = self._send_round(list(runs))
            runs, dirty = self._harvested()
            took = self._schedule.now_ns() - began
            self.stats.rounds.append(Round(copied, took, dirty))
            self._budget.measure(self._output.offset - sent, took)
            last = len(self.stats.rounds) >= self._parameters.max_rounds
            if not ahead and (last or self._budget.fits(dirty)):
                ahead = True
                if self._send_ahead():
                    runs, dirty = self._harvested(runs)
            if self._budget.fits(dirty):
                break
            if last:
                self._budget.give_up(dirty)
                break
        self._budget.promise(dirty)
        self._tell(dirty)
        self._budget.refuse()
        return runs

    def _harvested(self, left: Sequence[Run] = ()) -> tuple[Sequence[Run], int]:
        """The memory that has to be sent again, and its bytes."""
        self._at("harvest")
        runs = self._machine.harvest()
        if left:
            runs = merged(left, runs)
        return runs, sum(size for _, size in runs)

    def _send_ahead(self) -> bool:
        """State for the destination to work on while the guest still runs; whether there is any."""
        self._at("early state")
        writer = EarlyWriter(self._stream)
        asked = False
        for target, piece in self._machine.early(self._parameters.early_inodes):
            self._at(f"early state of {target}" if piece else "collecting state")
            if piece:
                began, sent = self._schedule.now_ns(), self._output.offset
                writer.write(target, piece)
                self._throttle(began, self._output.offset - sent)
                asked = True
            self._tell(0)
            self._schedule.checkpoint("migration")
        if asked and not writer.ask(lambda: self._answer(PONG).value):
            raise MigrationError("the destination answered another PING", step=self._step, side=SIDE)
        return asked

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
            while (early := due - self._schedule.now_ns()) > 0:
                self._schedule.sleep_ns(min(early, LOOK_NS))
                self._at(self._step)

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
        self._enter(phases.READY)
        answer = self._watch.do("load_ns", lambda: self._answer(SHUT))
        if answer.value != READY:
            raise refusal(answer)
        self._at("go")
        self._come_to(phases.COMMIT)
        self._let_go = True
        try:
            answer = self._acknowledgement()
        except Exception as error:
            raise doubt(error, self._answers) from error
        if answer.kind == SHUT:
            self._let_go = False
            raise refusal(answer)

    def _acknowledgement(self) -> ReturnMessage:
        """Give the go; the destination's statement that it runs or that it does not, or an error."""
        lost: VmsimError | None = None
        try:
            self._channel.write(GO)
        except (ChannelError, HostError) as error:
            # It may have arrived all the same. If not, the destination now sees the end and gives up.
            lost = error
            self._channel.close_write()
        try:
            answer = receive(self._answers)
        except StreamTruncated as error:
            raise lost or error from None
        if (answer.kind, answer.value) not in ((RESUME_ACK, 1), (SHUT, FAILED)):
            raise UnexpectedRecord(
                f"return path message {answer.kind} with value {answer.value}", field="return path"
            )
        return answer

    def _finish(self) -> None:
        """Make what was written count: the only commit of a channel without answers."""
        self._let_go = not self._parameters.keep_running
        try:
            self._channel.finish()
        except DeliveryInDoubt as error:
            if not self._let_go:
                raise
            raise MigrationInDoubt(
                f"nobody here knows whether a machine was made of the stream: {error}", step="commit",
                side=SIDE, hint=SETTLE.format("a machine runs there"),
            ) from error
        except Exception:
            self._let_go = False  # a channel that knows: nothing counts
            raise

    def _answer(self, kind: int) -> ReturnMessage:
        answer = receive(self._answers)
        if (answer.kind, answer.value) == (SHUT, FAILED):
            raise refusal(answer)
        if answer.kind != kind:
            message = f"the destination answered {answer.kind}, not {kind}"
            raise MigrationError(message, step=self._step, side=SIDE)
        return answer

    def _explained(self, error: BaseException) -> BaseException:
        """The error to raise for what went wrong before commit."""
        if self._cancelled and not isinstance(error, MigrationCancelled):
            return self._cancellation()
        if self._channel.duplex and left_by_peer(error):
            last_words = self._last_words()
            if last_words is not None:
                return last_words
        return as_migration_error(error, self._step, SIDE)

    def _last_words(self) -> MigrationError | None:
        """Why the destination gave up, if it said so."""
        try:
            self._channel.close_write()
            answer = receive(self._answers)
        except (VmsimError, OSError):
            return None
        return refusal(answer) if answer.kind == SHUT and answer.value != READY else None
