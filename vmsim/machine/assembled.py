"""A machine put together: memory, device, back-end and guest, and their life from parts to nothing.

It knows neither how it boots nor where it goes: :mod:`vmsim.machine.roles` moves it, and what a user calls is
:class:`vmsim.machine.machine.Machine`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vmsim.errors import StateError, UsageError
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.host.directory import HeldDirectory
from vmsim.host.shm import SharedMemory
from vmsim.machine.config import MachineConfig
from vmsim.machine.local_backend import Backend
from vmsim.machine.parts import MachineBackend, Seams
from vmsim.machine.sections import GuestSection, ProgramsSection
from vmsim.machine.states import (
    CLOSE,
    CLOSED,
    FINISHED,
    INCOMING,
    LEAVE,
    PAUSE,
    PAUSED,
    RESUME,
    RUNNING,
    START,
    MachineEvent,
    after,
)
from vmsim.memory import DirtyLog, GuestMemory, Region
from vmsim.migration.report import MigrationStats
from vmsim.migration.seams import Section
from vmsim.migration.source import OutgoingMigration
from vmsim.schedule import Schedule
from vmsim.vhost.device_type import DeviceSection, FrontDevice
from vmsim.vhost.dialects import DIALECTS
from vmsim.virtio.constants import F_RING_PACKED, RING_FEATURES

EXTERNAL: Final = "external"


class AssembledMachine:
    """The parts of one machine, and what a migration asks of them.

    A machine is a context manager; ``close`` gives everything back.
    """

    state: str
    backend: MachineBackend
    memory: GuestMemory
    dirty: DirtyLog
    device: FrontDevice
    kernel: GuestKernel
    section: DeviceSection

    @classmethod
    def built(
        cls, config: MachineConfig, share: str, schedule: Schedule, seams: Seams,
        backend: MachineBackend | None,
    ) -> Self:  # fmt: skip
        """A machine for a stream to be loaded into: nothing has booted. A given ``backend`` comes later."""
        machine = cls.__new__(cls)
        try:
            machine._build(config, share, schedule, seams, backend)
            if backend is None:
                machine.device.attach(machine.backend.connect())
            machine.kernel.pause()
            return machine
        except BaseException:
            machine._release()
            raise

    def _build(
        self, config: MachineConfig, share: str, schedule: Schedule, seams: Seams,
        backend: MachineBackend | None,
    ) -> None:  # fmt: skip
        """Make all parts; nothing runs yet. Whatever it raises, ``_release`` gives back what there is."""
        self._memfds: list[SharedMemory] = []
        self.owns_backend = backend is None
        config.check()
        if not Path(share).is_dir():
            raise UsageError(f"{share} is not a directory", hint="give the directory to share with the guest")
        self.state = INCOMING
        self.config = config
        self._directory = HeldDirectory(share)
        self.share = share
        """Absolute: what the program's working directory is later does not matter."""
        self.schedule = schedule
        self.seams = seams
        self.programs: dict[str, bytes] = {}
        """Plain data of guest programs by name; it travels with the machine."""
        self.migration_stats: MigrationStats | None = None
        """Of the migration that brought this machine here."""
        self.arrival_notes: list[str] = []
        self.arrived_requests = 0
        """Requests of the guest that were in flight when it arrived here."""
        self.outgoing: OutgoingMigration | None = None
        self.moved_to: AssembledMachine | None = None
        """Where the guest goes on, in this program; also if an interrupt came as it was handed over."""
        start = seams.start or Backend
        self.backend = backend or start(config, share, schedule, seams)
        self.memory = self._make_memory()
        self.dirty = DirtyLog(self.memory)
        self.device = self._make_device()
        fence = self.backend.fence
        self.kernel = GuestKernel(self.memory, self.device.registers, schedule, config.guest, fence)
        self.device.virtio.on_interrupt = self._interrupt
        self.section = self.backend.type.section(self.device)

    def _make_memory(self) -> GuestMemory:
        regions = []
        for number, (gpa, size) in enumerate(self.config.memory):
            name = "mem" if number == 0 else f"mem{number}"
            self._memfds.append(SharedMemory(f"vmsim-{name}", size, sealed=True))
            memfd = self._memfds[-1]
            regions.append(Region(name, gpa, size, memfd.view, memfd.fd))
        return GuestMemory(regions)

    def _make_device(self) -> FrontDevice:
        config = self.config
        features = RING_FEATURES if config.ring == "packed" else RING_FEATURES & ~F_RING_PACKED
        options = {
            "tag": config.tag, "num_request_queues": config.queues, "queue_size": config.queue_size,
            "notification": config.notification, "features": features, "migration": config.migration,
            "migration_save": config.migration_save or None, "migration_load": config.migration_load or None,
        }  # fmt: skip
        return self.backend.type.device(options, self.memory, self.backend.host, DIALECTS[config.dialect])

    # Life

    def pause(self) -> None:
        """Stop the guest and the rings; StateError unless it runs."""
        self._require_idle()
        self.kernel.pause()
        try:
            self.device.pause()
        except BaseException:
            self.kernel.resume()
            raise
        self.become(PAUSE)

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._require(PAUSED)
        self.device.resume()
        self.become(RESUME)
        self.kernel.resume()

    @property
    def migration(self) -> str:
        """Which kind of migration is allowed: none, external, internal. Settable while the machine runs.

        ``save/load`` where these differ; setting it sets both.
        """
        return self.device.migration

    @migration.setter
    def migration(self, kind: str) -> None:
        self.device.migration = kind
        self.config.migration = kind
        self.config.migration_save = self.config.migration_load = ""

    @property
    def migration_save(self) -> str:
        """The kind that is checked when the machine is saved. Settable while it runs."""
        return self.device.migration_save

    @migration_save.setter
    def migration_save(self, kind: str) -> None:
        self.device.migration_save = self.config.migration_save = kind

    @property
    def migration_load(self) -> str:
        """The kind that is checked when the machine is loaded: here it says so for its next destination."""
        return self.device.migration_load

    @migration_load.setter
    def migration_load(self, kind: str) -> None:
        self.device.migration_load = self.config.migration_load = kind

    # Migrating

    @property
    def keeps_backend(self) -> bool:
        """Whether the guest's session stays in its back-end when the machine moves, instead of moving too."""
        kind = self.migration_load if self.state == INCOMING else self.migration_save
        return kind == EXTERNAL or not self.backend.type.has_state(self.config.options)

    def sections(self) -> list[Section]:
        """All sections of a stream besides configuration and memory, in their order."""
        return [GuestSection(self.kernel), ProgramsSection(self.programs), self.section]

    def start_running(self) -> None:
        """The last step of an incoming migration: the guest goes on."""
        self.device.kick()
        self.kernel.resume()
        self.become(START)  # at last: what an interrupt left undone is done again

    # Ending

    def finish(self, *, let_go: bool = True) -> None:
        """The machine is elsewhere now: it never runs again. ``let_go`` of what it held, now or later."""
        self.become(LEAVE)
        self.kernel.pause()
        if let_go:
            self.let_go()

    def let_go(self) -> None:
        """Of device and back-end, of a machine that is finished. May be called twice."""
        if not self.kernel.birthplace.ours:
            return  # as in ``close``
        self._detach()
        if self.owns_backend and not self.keeps_backend:
            self.backend.close()

    def close(self) -> None:
        """Give everything back; may be called twice. In a forked child it does nothing."""
        if self.state == CLOSED or not self.kernel.birthplace.ours:
            return  # a forked child's copy: what it holds is the parent's
        finished = self.state == FINISHED
        self.become(CLOSE)
        self._release(backend=not finished or not self.keeps_backend)

    def _release(self, *, backend: bool = True) -> None:
        if hasattr(self, "device"):
            self._detach()
        if backend and hasattr(self, "backend") and self.owns_backend:
            self.backend.close()
        self.release_memory()

    def _detach(self) -> None:
        self.device.close()
        self.device.stop_log(self.dirty)
        self.dirty.stop()

    def _release_if_finished(self) -> None:
        """What runs elsewhere needs no memory here, and its guest's functions say that they have moved."""
        if self.state == FINISHED:
            self.release_memory()

    def release_memory(self) -> None:
        """Unmap guest memory, even if somebody keeps this object."""
        if hasattr(self, "kernel"):
            self.kernel.close()
        if hasattr(self, "memory"):
            self.memory.close()
        if hasattr(self, "_directory"):
            self._directory.close()
        for memfd in getattr(self, "_memfds", ()):
            memfd.close()
        self._memfds = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def become(self, event: MachineEvent) -> None:
        """Go on to the state that ``event`` leads to; StateError if it cannot happen in this one."""
        self.state = after(self.state, event)

    def _interrupt(self) -> None:
        self.kernel.interrupt()

    def _require_idle(self) -> None:
        self._require(RUNNING)
        if self.outgoing is not None:
            raise StateError("a migration is under way", hint="wait for its end, or cancel() it")

    def _require(self, *states: str) -> None:
        self.kernel.birthplace.check()
        if self.state not in states:
            raise StateError(
                f"the machine is {self.state}, not {' or '.join(states)}",
                hint="a finished machine lives on as the one that migrate() returned",
            )
