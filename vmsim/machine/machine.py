"""The machine: memory, device, back-end and guest put together; it boots, runs, saves and migrates."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from vmsim.errors import StateError, UsageError, VmsimError
from vmsim.guest.config import GuestConfig
from vmsim.guest.kernel import GuestKernel
from vmsim.guest.posix import GuestFs
from vmsim.host.files import FileReader, FileWriter
from vmsim.host.shm import SharedMemory
from vmsim.machine.config import MachineConfig, memory_layout, parse_size
from vmsim.machine.parts import Backend, FrontDevice, Seams
from vmsim.machine.roles import Destination, Source
from vmsim.machine.told import MigrationTrace
from vmsim.machine.sections import GuestSection, ProgramsSection
from vmsim.memory import DirtyLog, GuestMemory, Region
from vmsim.migration.channel import Channel, MemoryChannel
from vmsim.migration.destination import IncomingMigration
from vmsim.migration.report import MigrationParameters, MigrationStats, ProgressCallback
from vmsim.migration.seams import Section
from vmsim.migration.source import OutgoingMigration
from vmsim.schedule import Schedule, Task
from vmsim.sim.immediate import ImmediateSchedule
from vmsim.vhost.dialects import DIALECTS
from vmsim.virtio.constants import F_RING_PACKED, RING_FEATURES

if TYPE_CHECKING:
    from vmsim.machine.parts import DeviceSection

RUNNING: Final = "running"
PAUSED: Final = "paused"
INCOMING: Final = "incoming"
FINISHED: Final = "finished"
CLOSED: Final = "closed"


class Machine:
    """One virtual machine with a virtio-fs device that shares the directory ``share``.

    ``memory`` is a size (``"64M"``, bytes) or a list of (guest-physical address, bytes) regions; ``ring`` is
    ``split`` or ``packed``; ``options`` are the back-end's (see ``FsOptions`` and ``StateOptions`` of the
    device), ``guest`` the guest's (``GuestConfig``). ``backend`` attaches a back-end that is there already
    instead of starting one. Raises UsageError for what cannot be, OSError if the share cannot be opened.

    A machine is a context manager; ``close`` gives everything back.
    """

    def __init__(
        self, share: str | os.PathLike[str], *, memory: int | str | list[tuple[int, int]] = "64M", ring: str = "split",
        queues: int = 1, queue_size: int = 128, tag: str = "vmsim", dialect: str = "upstream",
        migration: str = "internal", policy: str = "strict", options: Mapping[str, Any] | None = None,
        guest: GuestConfig | None = None, schedule: Schedule | None = None, seams: Seams | None = None,
        backend: Backend | None = None,
    ) -> None:  # fmt: skip
        regions = memory if isinstance(memory, list) else memory_layout(parse_size(memory))
        config = MachineConfig(
            memory=regions, ring=ring, queues=queues, queue_size=queue_size, tag=tag, dialect=dialect,
            migration=migration, policy=policy, options=dict(options or {}), guest=guest or GuestConfig(),
        )  # fmt: skip
        self._build(config, os.fspath(share), schedule or ImmediateSchedule(), seams or Seams(), backend)
        try:
            self.device.attach(self.backend.connect())
            self.kernel.boot()
        except BaseException:
            self.close()
            raise
        self.state = RUNNING

    def _build(
        self, config: MachineConfig, share: str, schedule: Schedule, seams: Seams, backend: Backend | None
    ) -> None:
        """Make all parts; nothing runs yet."""
        config.check()
        if not Path(share).is_dir():
            raise UsageError(f"{share} is not a directory", hint="give the directory to share with the guest")
        self.state = INCOMING
        self.config = config
        self.share = share
        self.schedule = schedule
        self.seams = seams
        self.programs: dict[str, bytes] = {}
        """Plain data of guest programs by name; it travels with the machine."""
        self.migration_stats: MigrationStats | None = None
        """Of the migration that brought this machine here."""
        self.arrived_requests = 0
        """Requests of the guest that were in flight when it arrived here."""
        self.outgoing: OutgoingMigration | None = None
        self._memfds: list[SharedMemory] = []
        self.owns_backend = backend is None
        self.backend = backend or Backend(config, share, schedule, seams)
        try:
            self.memory = self._make_memory()
            self.dirty = DirtyLog(self.memory)
            self.device = self._make_device()
            self.kernel = GuestKernel(self.memory, self.device.registers, schedule, config.guest)
            self.device.virtio.on_interrupt = self._interrupt
            self.section: DeviceSection = self.backend.type.section(self.device)
        except BaseException:
            self._release()
            raise

    def _make_memory(self) -> GuestMemory:
        regions = []
        for number, (gpa, size) in enumerate(self.config.memory):
            name = "mem" if number == 0 else f"mem{number}"
            memfd = SharedMemory(f"vmsim-{name}", size, sealed=True)
            self._memfds.append(memfd)
            regions.append(Region(name, gpa, size, memfd.view, memfd.fd))
        return GuestMemory(regions)

    def _make_device(self) -> FrontDevice:
        config = self.config
        features = RING_FEATURES if config.ring == "packed" else RING_FEATURES & ~F_RING_PACKED
        options = {
            "tag": config.tag, "num_request_queues": config.queues, "queue_size": config.queue_size,
            "features": features, "migration": config.migration,
        }  # fmt: skip
        return self.backend.type.device(options, self.memory, self.backend.host, DIALECTS[config.dialect])

    # Using it

    def mount(self, pid: int = 1) -> GuestFs:
        """The shared directory as process ``pid`` of the guest sees it, with functions named as in ``os``.

        The same process always: after a migration its descriptors are open as before.
        """
        self._require(RUNNING, PAUSED)
        return self.kernel.mount(pid)

    def spawn(self, name: str, program: Callable[[GuestFs], object], pid: int = 1) -> Task:
        """Run ``program(fs)`` as an activity of the schedule; it goes on after a migration."""
        fs = self.mount(pid)
        return self.schedule.spawn(name, lambda: program(fs))

    def pause(self) -> None:
        """Stop the guest and the rings; StateError unless it runs."""
        self._require(RUNNING)
        self.kernel.pause()
        try:
            self.device.pause()
        except BaseException:
            self.kernel.resume()
            raise
        self.state = PAUSED

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._require(PAUSED)
        self.device.resume()
        self.state = RUNNING
        self.kernel.resume()

    @property
    def migration(self) -> str:
        """Which kind of migration is allowed: none, external, internal. Settable while the machine runs."""
        return self.device.migration

    @migration.setter
    def migration(self, kind: str) -> None:
        self.device.migration = kind
        self.config.migration = kind

    # Migrating

    def migrate(
        self, *, share: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None,
        parameters: MigrationParameters | None = None, progress: ProgressCallback | None = None,
        seams: Seams | None = None, migration: str | None = None,
    ) -> Machine:  # fmt: skip
        """Migrate live into a new machine in this process; this one is finished, the new one runs.

        ``share``, ``options`` (those that differ) and ``migration`` are the destination's own (default: as here), ``seams`` its
        wrappers. MigrationError (or a subclass) names the step and the side; this machine then goes on as if
        nothing had happened.
        """
        self._require(RUNNING)
        there, here = MemoryChannel.pair(self.schedule)
        incoming_seams = seams or self.seams
        arrival = self.schedule.spawn(
            "incoming migration",
            lambda: _receive(
                incoming_seams.channel(here, "destination"),
                _Builder(
                    str(share or self.share), self.schedule, incoming_seams, options, migration,
                    self.backend if self.config.migration == "external" else None,
                ),
            ),
        )  # fmt: skip
        try:
            stats = self.send(there, parameters=parameters, progress=progress)
        finally:
            self.schedule.wait(lambda: arrival.done, "the end of the incoming migration")
        machine = arrival.result()
        assert isinstance(machine, Machine)
        machine.kernel.adopt(self.kernel)
        if machine.backend is self.backend:
            machine.owns_backend, self.owns_backend = self.owns_backend, False
        machine.migration_stats = stats
        machine.arrived_requests = len(machine.kernel.requests)
        self._forget_guest()
        machine.start_running()
        return machine

    def send(
        self, channel: Channel, *, parameters: MigrationParameters | None = None,
        progress: ProgressCallback | None = None,
    ) -> MigrationStats:  # fmt: skip
        """Migrate through ``channel`` to whoever reads it (see ``receive``); this machine is finished then."""
        self._require(RUNNING)
        channel = self.seams.channel(channel, "source")
        told = MigrationTrace(self.seams.trace, progress)
        self.outgoing = OutgoingMigration(Source(self), channel, self.schedule, parameters, told.progress)
        try:
            stats = self.outgoing.run()
        except VmsimError as error:
            told.failed(error)
            raise
        finally:
            self.outgoing = None
        told.committed(stats)
        return stats

    def cancel(self) -> None:
        """Give up the migration under way; StateError if there is none or it is too late."""
        if self.outgoing is None:
            raise StateError("no migration is under way")
        self.outgoing.cancel()

    @classmethod
    def receive(
        cls, channel: Channel, share: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None,
        schedule: Schedule | None = None, seams: Seams | None = None, backend: Backend | None = None,
        migration: str | None = None,
    ) -> Machine:  # fmt: skip
        """Take over the machine that ``send`` sends; it runs when this returns."""
        seams = seams or Seams()
        builder = _Builder(os.fspath(share), schedule or ImmediateSchedule(), seams, options, migration, backend)
        machine = _receive(seams.channel(channel, "destination"), builder)
        machine.start_running()
        return machine

    def save(
        self, path: str | os.PathLike[str], *, keep_running: bool = True, progress: ProgressCallback | None = None
    ) -> MigrationStats:
        """Save the machine to a file (complete or not there at all); it goes on unless told otherwise."""
        parameters = MigrationParameters(keep_running=keep_running)
        return self.send(FileWriter(path), parameters=parameters, progress=progress)

    @classmethod
    def restore(
        cls, path: str | os.PathLike[str], *, share: str | os.PathLike[str], options: Mapping[str, Any] | None = None,
        schedule: Schedule | None = None, seams: Seams | None = None, backend: Backend | None = None,
        migration: str | None = None,
    ) -> Machine:  # fmt: skip
        """The machine that was saved to ``path``, running, with ``share`` as its directory.

        What a program was waiting for when the machine was saved is given up: programs are not in the file,
        only the guest they ran on.
        """
        machine = cls.receive(
            FileReader(path), share, options=options, schedule=schedule, seams=seams, backend=backend,
            migration=migration,
        )  # fmt: skip
        machine.kernel.abandon_all()
        return machine

    @classmethod
    def built(
        cls, config: MachineConfig, share: str, schedule: Schedule, seams: Seams, backend: Backend | None
    ) -> Machine:
        """A machine for a stream to be loaded into: nothing has booted."""
        machine = cls.__new__(cls)
        machine._build(config, share, schedule, seams, backend)
        if backend is None:
            try:
                machine.device.attach(machine.backend.connect())
            except BaseException:
                machine._release()
                raise
        machine.kernel.pause()
        return machine

    def sections(self) -> list[Section]:
        """All sections of a stream besides configuration and memory, in their order."""
        return [GuestSection(self.kernel), ProgramsSection(self.programs), self.section]

    def start_running(self) -> None:
        """The last step of an incoming migration: the guest goes on."""
        self.state = RUNNING
        self.device.kick()
        self.kernel.resume()

    def facts(self) -> dict[str, int]:
        """What the machine holds, in numbers: rings, requests in flight, and what its back-end says."""
        rings = sum(queue.ready for queue in self.device.virtio.queues)
        return {"rings": rings, "requests": len(self.kernel.requests), **self.backend.facts()}

    def notes(self) -> list[str]:
        """What the load of the back-end's state found worth saying."""
        return self.backend.type.notes(self.backend.served)

    # Ending

    def finish(self) -> None:
        """The machine is elsewhere now: it never runs again."""
        self.state = FINISHED
        self.kernel.pause()
        self.device.detach()
        if self.owns_backend and self.config.migration != "external":
            self.backend.close()

    def _forget_guest(self) -> None:
        """After a migration in this process: memory goes, programs have gone on elsewhere."""
        self._release_memory()

    def close(self) -> None:
        """Give everything back; may be called twice."""
        if self.state == CLOSED:
            return
        finished = self.state == FINISHED
        self.state = CLOSED
        self._release(backend=not finished)

    def _release(self, *, backend: bool = True) -> None:
        if hasattr(self, "device"):
            self.device.detach()
        if backend and self.owns_backend:
            self.backend.close()
        self._release_memory()

    def _release_memory(self) -> None:
        for memfd in self._memfds:
            memfd.close()
        self._memfds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def _interrupt(self) -> None:
        self.kernel.interrupt()

    def _require(self, *states: str) -> None:
        if self.state not in states:
            raise StateError(
                f"the machine is {self.state}, not {' or '.join(states)}",
                hint="a finished machine lives on as the one that migrate() returned",
            )


class _Builder:
    """Makes the destination from the configuration in a stream, and what the destination's user says."""

    def __init__(
        self, share: str, schedule: Schedule, seams: Seams, options: Mapping[str, Any] | None,
        migration: str | None, backend: Backend | None,
    ) -> None:  # fmt: skip
        self.share = share
        self.schedule = schedule
        self.seams = seams
        self.options = options
        self.migration = migration
        self.backend = backend

    def __call__(self, configuration: bytes) -> Destination:
        config = MachineConfig.decode(configuration)
        if self.options is not None:
            config.options = {**config.options, **self.options}
        if self.migration is not None:
            config.migration = self.migration
        try:
            config.check()
        except UsageError as error:
            raise MachineConfig.refusal(error) from error
        return Destination(Machine.built(config, self.share, self.schedule, self.seams, self.backend))


def _receive(channel: Channel, builder: _Builder) -> Machine:
    try:
        return IncomingMigration(channel, builder).run().machine
    except VmsimError:
        channel.close()
        raise
