"""The machine that a user has: it boots, runs programs, saves and migrates."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import msgspec

from vmsim.errors import HostError, StateError
from vmsim.guest.calls.posix import GuestFs, mount
from vmsim.guest.config import GuestConfig
from vmsim.host.directory import fixed
from vmsim.host.files import FileReader, FileWriter
from vmsim.host.processes import Command
from vmsim.machine import channel_uri
from vmsim.machine.arrival import Arrival
from vmsim.machine.asked import Limits, parameters_of
from vmsim.machine.assembled import AssembledMachine
from vmsim.machine.config import MachineConfig, memory_layout, parse_size
from vmsim.machine.guest_facts import guest_facts
from vmsim.machine.moving import leave, move
from vmsim.machine.parts import MachineBackend, Seams
from vmsim.machine.progress import MigrationTrace
from vmsim.machine.remote import seams_for
from vmsim.machine.states import IN_DOUBT, PAUSED, RUNNING, SETTLE, START
from vmsim.migration.channel import Channel
from vmsim.migration.report import MigrationParameters, MigrationStats, ProgressCallback
from vmsim.schedule import Schedule, Task
from vmsim.schedule.clock import wall_clock_ns
from vmsim.schedule.immediate import ImmediateSchedule


class Machine(AssembledMachine):
    """One virtual machine with a virtio-fs device that shares the directory ``share``.

    ``memory`` is a size (``"64M"``, bytes) or a list of (guest-physical address, bytes) regions; ``ring`` is
    ``split`` or ``packed``; ``migration`` is which kind is allowed, ``migration_save`` and ``migration_load``
    if that differs for saving and loading; ``notification`` offers the driver a notification queue;
    ``options`` are the back-end's (``FsOptions`` and ``StateOptions`` of the device), ``guest`` the guest's
    (``GuestConfig``).
    ``backend`` attaches a back-end that is there already instead of starting one; ``transport`` "vhost-user"
    starts it as a process of its own, by ``backend_command`` with ``{socket}`` and ``{dir}`` in it (default:
    ``vmsim serve``), in the working directory of now. ``share`` is the directory that it is now, whatever its
    name, and the program's working directory, become. Raises UsageError for what cannot be, OSError if the
    share cannot be opened.

    A machine is a context manager; ``close`` gives everything back.
    """

    def __init__(
        self, share: str | os.PathLike[str], *, memory: int | str | list[tuple[int, int]] = "64M",
        ring: str = "split", queues: int = 1, queue_size: int = 128, notification: bool = False,
        tag: str = "vmsim",
        dialect: str = "upstream", migration: str = "internal", migration_save: str = "",
        migration_load: str = "", policy: str = "strict",
        options: Mapping[str, Any] | None = None, guest: GuestConfig | None = None,
        schedule: Schedule | None = None, seams: Seams | None = None, backend: MachineBackend | None = None,
        transport: str | None = None, backend_command: Command | None = None,
    ) -> None:  # fmt: skip
        regions = memory if isinstance(memory, list) else memory_layout(parse_size(memory))
        schedule = schedule or ImmediateSchedule()
        guest = guest or GuestConfig()
        if not guest.realtime_ns:
            guest = msgspec.structs.replace(guest, realtime_ns=wall_clock_ns() - schedule.now_ns())
        config = MachineConfig(
            memory=regions, ring=ring, queues=queues, queue_size=queue_size, notification=notification,
            tag=tag, dialect=dialect, migration=migration, migration_save=migration_save,
            migration_load=migration_load, policy=policy,
            options=dict(options or {}), guest=guest,
        )  # fmt: skip
        seams = seams_for(seams, transport, backend_command)
        self._build(config, fixed(share), schedule, seams, backend)
        try:
            self.device.attach(self.backend.connect())
            self.kernel.boot()
        except BaseException as error:
            reason = self.device.virtio.reset_reason
            self.close()
            if reason and isinstance(error, OSError):  # all that the guest sees of it is EIO
                what = f"the guest cannot boot, its device does not work: {reason}"
                raise HostError(what, errno=error.errno or errno.EIO) from error
            raise
        self.become(START)

    # Using it

    def mount(self, pid: int = 1) -> GuestFs:
        """The shared directory as process ``pid`` of the guest sees it, with functions named as in ``os``.

        The same process always: after a migration its descriptors are open as before.
        """
        self._require(RUNNING, PAUSED)
        return mount(self.kernel, pid)

    def spawn(self, name: str, program: Callable[[GuestFs], object], pid: int = 1) -> Task:
        """Run ``program(fs)`` as an activity of the schedule; it goes on after a migration."""
        fs = self.mount(pid)
        return self.schedule.spawn(name, lambda: program(fs))

    # Migrating

    def migrate(
        self, *, share: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None,
        parameters: MigrationParameters | None = None, progress: ProgressCallback | None = None,
        seams: Seams | None = None, migration: str | None = None, migration_load: str | None = None,
        **limits: Unpack[Limits],
    ) -> Machine:  # fmt: skip
        """Migrate live into a new machine in this process; this one is finished, the new one runs.

        ``share``, ``options`` (those that differ) and ``migration`` are the destination's own (default: as
        here), ``seams`` its wrappers. ``parameters`` say when to stop and when to give up, ``limits`` the
        same in the words of ``vmsim migrate``: ``downtime_limit="300ms"``, see ``Limits``. MigrationError (or
        a subclass) names the step and the side; this machine then goes on as if nothing had happened.
        """
        self._require_idle()
        arrival = Arrival(
            type(self).built, fixed(share) if share else self._directory.now(), self.schedule,
            seams_for(seams, None, source=self.seams), options, migration,
            self.backend if self.keeps_backend else None, migration_load,
        )  # fmt: skip
        other = move(self, arrival, parameters_of(parameters, limits), progress)
        assert isinstance(other, Machine)
        return other

    def send(
        self, channel: Channel | str, *, parameters: MigrationParameters | None = None,
        progress: ProgressCallback | None = None, **limits: Unpack[Limits],
    ) -> MigrationStats:  # fmt: skip
        """Migrate through ``channel`` to whoever reads it (see ``receive``); this machine is finished then.

        ``channel`` may be a URI: ``unix:PATH``, ``tcp:HOST:PORT``, ``exec:COMMAND`` or ``file:PATH``. Errors
        are those of ``migrate``, and MigrationInDoubt if the destination, told to go, has not said whether it
        runs: see ``settle``.
        """
        self._require_idle()
        told = MigrationTrace(self.seams.trace, progress)
        wanted = parameters_of(parameters, limits)
        stats = leave(self, channel_uri.outgoing(channel, self.schedule), told, wanted).stats
        stats.judge()
        self._release_if_finished()
        told.committed(stats)
        return stats

    def cancel(self) -> None:
        """Give up the migration under way; StateError if there is none or it is too late."""
        if self.outgoing is None:
            raise StateError("no migration is under way")
        self.outgoing.cancel()

    def settle(self, *, destination_runs: bool) -> None:
        """After MigrationInDoubt: say whether the destination runs. If not, this machine goes on."""
        self._require(IN_DOUBT)
        assert self.outgoing is not None
        if not self.outgoing.settled:  # an interrupt may have come in each line of this
            self.outgoing.settle(destination_runs=destination_runs)
        if not destination_runs:
            self.become(SETTLE)
        self.outgoing = None
        self._release_if_finished()

    @classmethod
    def receive(
        cls, channel: Channel | str, share: str | os.PathLike[str], *,
        options: Mapping[str, Any] | None = None, schedule: Schedule | None = None,
        seams: Seams | None = None, backend: MachineBackend | None = None, migration: str | None = None,
        migration_load: str | None = None, realtime_ns: int | None = None, transport: str | None = None,
        backend_command: Command | None = None,
    ) -> Machine:  # fmt: skip
        """Take over the machine that ``send`` sends; it runs when this returns.

        ``channel`` may be a URI as for ``send``; with ``unix:`` and ``tcp:`` this end listens. ``backend`` is
        one that was kept (migration ``external``); ``migration`` and ``migration_load`` overrule what the
        stream says; ``transport`` and ``backend_command`` as for a new machine. What programs were waiting
        for is given up: they stay where they are, only the guest that they ran on comes here.
        ``realtime_ns`` is the guest's wall clock time when the schedule's clock read zero (default: the
        host's).
        """
        schedule = schedule or ImmediateSchedule()
        arrival = Arrival(
            cls.built, fixed(share), schedule, seams_for(seams, transport, backend_command), options,
            migration, backend, migration_load,
        )  # fmt: skip
        machine = arrival.receive(channel_uri.incoming(channel, schedule))
        assert isinstance(machine, Machine)
        if realtime_ns is None:
            realtime_ns = wall_clock_ns() - schedule.now_ns()
        machine.kernel.change_clock(realtime_ns)
        machine.start_running()
        kernel = machine.kernel
        for pid in {request.pid for request in kernel.requests.values()}:
            kernel.send_interrupt(pid)  # or nobody would hold the lock that one of them waits for
        kernel.abandon_all()
        return machine

    def save(
        self, path: str | os.PathLike[str], *, keep_running: bool = True,
        progress: ProgressCallback | None = None, **limits: Unpack[Limits],
    ) -> MigrationStats:  # fmt: skip
        """Save the machine to a file (complete or not there at all); it goes on unless told otherwise.

        A back-end that is kept (migration ``external``) is not in the file: hand it to ``restore``.
        """
        self._require_idle()
        parameters = MigrationParameters(keep_running=keep_running)
        return self.send(FileWriter(path), parameters=parameters, progress=progress, **limits)

    @classmethod
    def restore(
        cls, path: str | os.PathLike[str], *, share: str | os.PathLike[str],
        options: Mapping[str, Any] | None = None, schedule: Schedule | None = None,
        seams: Seams | None = None, backend: MachineBackend | None = None, migration: str | None = None,
        migration_load: str | None = None, realtime_ns: int | None = None, transport: str | None = None,
        backend_command: Command | None = None,
    ) -> Machine:  # fmt: skip
        """The machine saved to ``path``, running, with ``share`` as its directory (see ``receive``)."""
        return cls.receive(
            FileReader(path), share, options=options, schedule=schedule, seams=seams, backend=backend,
            migration=migration, migration_load=migration_load, realtime_ns=realtime_ns, transport=transport,
            backend_command=backend_command,
        )  # fmt: skip

    def preflight(self) -> list[Any]:
        """Would it survive a migration? The findings of the device, the worst first; the guest works on."""
        self._require(RUNNING, PAUSED)
        return self.backend.preflight()

    def facts(self) -> dict[str, int]:
        """What the machine holds, in numbers: rings, requests in flight, and what its back-end says.

        What a back-end in another process does not say is what the guest knows of it.
        """
        rings = sum(queue.ready for queue in self.device.virtio.queues)
        own = {"rings": rings, "requests": len(self.kernel.requests)}
        return own | guest_facts(self.kernel) | self.backend.facts()

    def notes(self) -> list[str]:
        """What was worth saying when it arrived: its source was not told, or what its back-end found."""
        return self.arrival_notes + self.backend.notes()
