"""The beginning of a machine at its destination: built from a stream, and from what its user says there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vmsim.errors import UsageError
from vmsim.machine.assembled import AssembledMachine
from vmsim.machine.config import MachineConfig
from vmsim.machine.parts import MachineBackend, Seams
from vmsim.machine.roles import Destination
from vmsim.migration.channel import Channel
from vmsim.migration.destination import IncomingMigration
from vmsim.migration.downtime import Clock
from vmsim.schedule import Schedule

UNTOLD: Final = (
    "the source could not be told that this machine runs: it stands still, in doubt; tell it there: "
    "settle(destination_runs=True)"
)
Build = Callable[[MachineConfig, str, Schedule, Seams, MachineBackend | None], AssembledMachine]


@dataclass(slots=True)
class Arrival:
    """What the destination's user says: the share; options and kind of migration, where they differ from the
    source's; a back-end that was kept."""

    build: Build
    share: str
    schedule: Schedule
    seams: Seams
    options: Mapping[str, Any] | None = None
    migration: str | None = None
    backend: MachineBackend | None = None
    migration_load: str | None = None
    clock: Clock | None = None
    """That by which the downtime is measured; None: the schedule's."""
    load_ns: int = 0
    """How long the machine took to load while nobody ran."""
    machine: AssembledMachine | None = None
    """What is being filled, once there is something; closed again if nothing comes of it."""

    def receive(self, channel: Channel) -> AssembledMachine:
        """The machine that comes through ``channel``, ready to run; MigrationError if none does."""
        channel = self.seams.channel(channel, "destination")
        try:
            clock = self.clock or self.schedule.now_ns
            migration = IncomingMigration(channel, self._destination, clock)
            machine = migration.run().machine
            self.load_ns = migration.load_ns
            if not migration.acknowledged:
                machine.arrival_notes.append(UNTOLD)
            return machine
        except BaseException:  # an interrupt too, which comes anywhere
            channel.close()
            if self.machine is not None:
                self.machine.close()
            raise

    def _destination(self, configuration: bytes) -> Destination:
        config = MachineConfig.decode(configuration)
        if self.options is not None:
            config.options = {**config.options, **self.options}
        if self.migration is not None:
            config.migration = self.migration
            config.migration_save = config.migration_load = ""
        if self.migration_load is not None:
            config.migration_load = self.migration_load
        try:
            config.check()
        except UsageError as error:
            raise MachineConfig.refusal(error) from error
        self.machine = self.build(config, self.share, self.schedule, self.seams, self.backend)
        return Destination(self.machine)
