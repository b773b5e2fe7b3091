"""What a migration asks of the two machines and of their devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # who fills or uses these interfaces imports what it needs
    from vmsim.memory.guest import GuestMemory
    from vmsim.migration.downtime import Forecast
    from vmsim.migration.ram import DataFinder, PageWriter, Run
    from vmsim.migration.vmio import VmReader, VmWriter


class Section(Protocol):
    """Something whose state travels as one FULL section.

    It is saved as ``version_id`` and loaded up to ``max_version_id``.
    """

    idstr: str
    instance_id: int
    max_version_id: int

    @property
    def version_id(self) -> int:
        """The version to save."""
        ...

    def save(self, out: VmWriter) -> None:
        """Write the state; nothing may change by it. Any VmsimError or OSError fails the migration."""
        ...

    def load(self, src: VmReader, version_id: int) -> None:
        """Check and take over a state of at most ``max_version_id``; StreamError if it cannot be."""
        ...


class SourceMachine(Protocol):
    """A running machine that can be saved. The calls come in the order in which they stand here."""

    machine_type: str
    """The name in the stream's configuration section."""
    memory: GuestMemory

    def check_migratable(self) -> None:
        """MigrationBlocked if this machine cannot be migrated as it is configured."""
        ...

    def configuration(self) -> bytes:
        """Everything that the destination needs to build the same machine, as it chooses to write it."""
        ...

    def start_log(self) -> None:
        """Log writes to memory; devices begin to collect what they will need."""
        ...

    def data_of(self) -> DataFinder | None:
        """How to find the parts of memory that were ever written; None: all of it may have been."""
        ...

    def harvest(self) -> Sequence[Run]:
        """The pages written since the last harvest."""
        ...

    def early(self, least_inodes: int) -> Iterator[tuple[str, bytes]]:
        """Pieces of state for the destination to work on before the guest stops, with their section's name.

        Nothing if there are fewer than ``least_inodes``. An empty piece is no piece: others may run.
        """
        ...

    def forecast(self) -> Forecast:
        """What saving and loading the sections is going to take; asked now and then while the guest runs."""
        ...

    def pause(self) -> None:
        """Stop the guest."""
        ...

    def stop_rings(self) -> None:
        """Stop the devices' rings; nothing writes to memory afterwards."""
        ...

    def sections(self) -> Sequence[Section]:
        """The sections to save, in this order."""
        ...

    def finish(self) -> None:
        """The migration is committed: this machine never runs again. Must not fail."""
        ...

    def restart_rings(self) -> None:
        """Undo ``stop_rings``, also a failed one."""
        ...

    def resume(self) -> None:
        """Undo ``pause``, also a failed one."""
        ...

    def stop_log(self) -> None:
        """Undo ``start_log``, also a failed one."""
        ...


class DestinationMachine(Protocol):
    """A machine built from a stream, not yet running; its memory is all zeros at the beginning."""

    memory: GuestMemory

    def page_writer(self) -> PageWriter | None:
        """How to write many pages at once; None: they are stored one by one."""
        ...

    def early(self, target: str, piece: bytes) -> None:
        """State ahead of the section ``target``, to work on beforehand; StreamError if it is malformed."""
        ...

    def sections(self) -> Sequence[Section]:
        """The sections that must be in the stream, each once."""
        ...

    def prepare(self) -> None:
        """Everything is loaded: do all that can fail before running. The guest must not run yet."""
        ...

    def run(self) -> None:
        """The migration is committed: run. Must not fail."""
        ...

    def discard(self) -> None:
        """The migration failed: let go of everything. May be called after a failed ``prepare``."""
        ...
