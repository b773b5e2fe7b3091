"""The incoming side of a migration: build, load, get ready, run when told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from vmsim.errors import VmsimError
from vmsim.migration.byteio import StreamInput
from vmsim.migration.channel import Channel
from vmsim.migration.downtime import WaitingSource
from vmsim.migration.early import EARLY_IDSTR, EARLY_VERSION, read_piece
from vmsim.migration.errors import (
    BadField,
    UnexpectedRecord,
    UnknownSection,
    VersionTooNew,
)
from vmsim.migration.ram import RAM_IDSTR, RAM_VERSION, RamLoader
from vmsim.migration.report import as_migration_error
from vmsim.migration.returnpath import (
    FAILED,
    GO,
    PONG,
    READY,
    RESUME_ACK,
    SHUT,
    ReturnMessage,
    encode,
    peek_surely,
)
from vmsim.migration.seams import DestinationMachine, Section
from vmsim.migration.source import MACHINE_IDSTR, MACHINE_VERSION
from vmsim.migration.stream import (
    PING,
    SECTION_FULL,
    SECTION_START,
    SWITCHOVER_START,
    Command,
    SectionHead,
    StreamReader,
)
from vmsim.migration.vmio import VmReader

CONFIGURATION_MAX: Final = 1 << 20
SIDE: Final = "destination"

M = TypeVar("M", bound=DestinationMachine)


class IncomingMigration(Generic[M]):
    """Loads a machine from ``channel``; ``build`` makes it from the configuration in the stream.

    :meth:`run` returns the running machine, or raises MigrationError naming the step, its cause the
    StreamError (or other error) behind it; then nothing of the machine is left. ``clock`` measures how long
    it takes.
    """

    def __init__(
        self, channel: Channel, build: Callable[[bytes], M], clock: Callable[[], int] = lambda: 0
    ) -> None:
        self._channel = channel
        self._build = build
        self._clock = clock
        self._source = WaitingSource(channel, clock)
        self._switched_ns: int | None = None
        self._waited_ns = 0
        self.load_ns = 0
        """How long the machine was loaded while nobody ran: since the source stopped its own."""
        self._input = StreamInput(self._source)
        self._reader = StreamReader(self._input)
        self._machine: M | None = None
        self._step = "header"
        self._waiting: dict[tuple[str, int], Section] = {}
        self._ram: RamLoader | None = None
        self.acknowledged = True
        """Whether the source could be told that this machine runs; if not, the source is in doubt."""

    def run(self) -> M:
        """Load, prepare, agree with the source, run."""
        try:
            machine = self._load()
            if self._channel.duplex:
                self._await_go()
                self._acknowledge()
        except BaseException as error:
            explained = self._failed(error)
            if explained is error:
                raise
            raise explained from error
        try:
            self._channel.close()
        except (VmsimError, OSError):
            pass  # nothing that happens to the channel counts any more
        machine.run()
        return machine

    def _load(self) -> M:
        self._reader.header()
        while (record := self._reader.next()) is not None:
            if isinstance(record, Command):
                self._obey(record)
                continue
            self._step = f"loading {record.idstr}"
            self._load_section(record)
            self._reader.footer(record)
        self._step = "end of stream"
        machine = self._complete()
        self._reader.description()
        if not self._channel.duplex and not self._input.at_end():
            raise UnexpectedRecord("bytes after the description", offset=self._input.offset)
        self._step = "preparing to run"
        machine.prepare()
        if self._switched_ns is not None:
            waited_ns = self._source.waited_ns - self._waited_ns
            self.load_ns = self._clock() - self._switched_ns - waited_ns
        return machine

    def _obey(self, command: Command) -> None:
        if command.number == SWITCHOVER_START:
            self._switched_ns, self._waited_ns = self._clock(), self._source.waited_ns
        elif command.number == PING:
            if self._channel.duplex:
                self._channel.write(encode(ReturnMessage(PONG, int.from_bytes(command.data, "big"))))
        else:
            message = f"command {command.name} is of no use here"
            raise UnexpectedRecord(message, offset=self._input.offset, field="command")

    def _load_section(self, head: SectionHead) -> None:
        if self._machine is None:
            self._load_configuration(head)
        elif head.idstr == RAM_IDSTR and head.instance_id == 0:
            self._load_memory(head, self._machine)
        elif head.idstr == EARLY_IDSTR and head.kind == SECTION_FULL:
            self._check_version(head, EARLY_VERSION)
            self._machine.early(*read_piece(VmReader(self._input, head.idstr)))
        else:
            self._load_device(head)

    def _load_configuration(self, head: SectionHead) -> None:
        if (head.kind, head.idstr) != (SECTION_FULL, MACHINE_IDSTR):
            raise UnknownSection(
                f"section {head.idstr!r} comes before {MACHINE_IDSTR!r}", offset=self._input.offset,
                hint="this is not a stream of a vmsim machine",
            )
        self._check_version(head, MACHINE_VERSION)
        src = VmReader(self._input, head.idstr)
        configuration = src.buffer("configuration", src.length("be32", "len", CONFIGURATION_MAX))
        self._step = "building the machine"
        machine = self._machine = self._build(configuration)
        self._waiting = {(section.idstr, section.instance_id): section for section in machine.sections()}

    def _load_memory(self, head: SectionHead, machine: DestinationMachine) -> None:
        self._check_version(head, RAM_VERSION)
        if head.version_id != RAM_VERSION or head.kind == SECTION_FULL:
            message = "the memory section is version 4 and comes in parts"
            raise BadField(message, offset=self._input.offset, field="ram")
        if head.kind == SECTION_START:
            self._ram = RamLoader(machine.memory, self._input, machine.page_writer())
            self._ram.load_start()
        elif self._ram is not None:
            self._ram.load_part()

    def _load_device(self, head: SectionHead) -> None:
        section = self._waiting.pop((head.idstr, head.instance_id), None)
        if section is None or head.kind != SECTION_FULL:
            raise UnknownSection(
                f"this machine has no section {head.idstr!r} instance {head.instance_id}",
                offset=self._input.offset, field=head.idstr,
            )
        if self._ram is None or self._reader.open_sections():
            raise UnexpectedRecord("a device comes before the end of memory", offset=self._input.offset)
        self._check_version(head, section.max_version_id)
        section.load(VmReader(self._input, head.idstr), head.version_id)

    def _check_version(self, head: SectionHead, local: int) -> None:
        if head.version_id > local:
            raise VersionTooNew(
                f"incoming version_id {head.version_id} is too new for local version_id {local}",
                offset=self._input.offset, field=head.idstr,
            )

    def _complete(self) -> M:
        """The machine, once the stream had everything; UnknownSection naming what it lacks."""
        missing = [f"{idstr!r}" for idstr, _ in self._waiting]
        if self._ram is None or self._reader.open_sections():
            missing.insert(0, f"the end of {RAM_IDSTR!r}")
        if self._machine is None:
            missing = [repr(MACHINE_IDSTR)]
        if missing or self._machine is None:
            message = f"the stream lacks {', '.join(missing)}"
            raise UnknownSection(message, offset=self._input.offset, field="end of stream")
        return self._machine

    # Agreement (see returnpath)

    def _await_go(self) -> None:
        self._step = "ready"
        self._channel.write(encode(ReturnMessage(SHUT, READY)))
        self._step = "go"
        word = peek_surely(self._input, 1)
        if word != GO:
            raise UnexpectedRecord(f"{word!r} instead of the go", offset=self._input.offset, field="go")
        self._input.skip(1)

    def _acknowledge(self) -> None:
        """Say that this machine runs. It does in any case: the source does not run after the go."""
        self._step = "acknowledgement"
        try:
            self._channel.write(encode(ReturnMessage(RESUME_ACK, 1)))
        except Exception:
            self.acknowledged = False

    def _failed(self, error: BaseException) -> BaseException:
        """Let go of everything, tell the source, and the error to raise."""
        try:
            if self._machine is not None:
                self._machine.discard()
        finally:
            explained = as_migration_error(error, self._step, SIDE)
            self._tell_source(error, explained)
        return explained

    def _tell_source(self, error: BaseException, explained: BaseException) -> None:
        try:
            if self._channel.duplex:
                reason = str(error) or repr(error)
                errno, hint = getattr(explained, "errno", 0) or 0, getattr(explained, "hint", "")
                self._channel.write(encode(ReturnMessage(SHUT, FAILED, self._step, reason, errno, hint)))
        except (VmsimError, OSError):
            pass  # the source learns it from the closed channel
        finally:
            self._channel.close()
