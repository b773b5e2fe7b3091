"""A machine in its two roles in a migration: what :mod:`vmsim.migration` asks of the source and the destination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vmsim.errors import MigrationBlocked, MigrationError
from vmsim.host.shm import data_ranges
from vmsim.memory import Region
from vmsim.migration.ram import DataFinder, Run
from vmsim.migration.seams import Section

if TYPE_CHECKING:
    from vmsim.machine.machine import Machine

MACHINE_TYPE: Final = "vmsim-1"
EXTERNAL: Final = "external"


class Source:
    """The running machine that is saved."""

    machine_type = MACHINE_TYPE

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memory = machine.memory

    def check_migratable(self) -> None:
        """MigrationBlocked, with the message of the original proposal, if the device says no."""
        blocker = self.machine.section.blocker()
        if blocker:
            raise MigrationBlocked(
                blocker, step="check", side="source",
                hint="set migration=internal (state in the stream) or external (the back-end is kept)",
            )  # fmt: skip

    def configuration(self) -> bytes:
        """The machine's configuration."""
        return self.machine.config.encode()

    def start_log(self) -> None:
        """Log the guest's and the back-end's writes."""
        self.machine.dirty.start()
        self.machine.device.start_log(self.machine.dirty)

    def data_of(self) -> DataFinder | None:
        """What was never touched is a hole of the memfd."""

        def find(region: Region) -> Sequence[tuple[int, int]]:
            return data_ranges(region.fd, region.fd_offset, region.size_bytes)

        return find

    def harvest(self) -> Sequence[Run]:
        """What was written since the last time."""
        return self.machine.dirty.harvest()

    def pause(self) -> None:
        """Stop the guest's programs."""
        self.machine.kernel.pause()

    def stop_rings(self) -> None:
        """Stop the rings; with external migration the back-end is let go, too."""
        machine = self.machine
        machine.device.pause()
        if machine.config.migration == EXTERNAL:
            machine.device.stop_log(machine.dirty)
            machine.device.detach()

    def sections(self) -> Sequence[Section]:
        """As the machine says."""
        return self.machine.sections()

    def finish(self) -> None:
        """Committed."""
        self.machine.finish()

    def restart_rings(self) -> None:
        """Go on as before, with the same back-end."""
        machine = self.machine
        if machine.device.frontend is None:
            machine.device.attach(machine.backend.connect(), reset=False)
        machine.device.resume()

    def resume(self) -> None:
        """Let the guest's programs go on."""
        self.machine.kernel.resume()

    def stop_log(self) -> None:
        """No more logging."""
        self.machine.device.stop_log(self.machine.dirty)
        self.machine.dirty.stop()


class Destination:
    """A machine that is being loaded."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memory = machine.memory

    def sections(self) -> Sequence[Section]:
        """As the machine says."""
        return self.machine.sections()

    def prepare(self) -> None:
        """Everything that may fail: attach a kept back-end, set up the rings; none is kicked yet."""
        machine = self.machine
        if machine.device.frontend is None:
            if machine.owns_backend:
                raise MigrationError("the machine has no back-end", step="preparing to run", side="destination")
            machine.device.attach(machine.backend.connect(), reset=False)
        machine.device.resume(kick=False)

    def run(self) -> None:
        """Committed; the guest goes on once its programs have moved over (``Machine.start_running``)."""

    def discard(self) -> None:
        """Let go of everything."""
        self.machine.close()
