"""The machine that a user has: it boots, runs programs, saves and migrates."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from vmsim.errors import HostError, StateError
from vmsim.guest.calls.posix import GuestFs, mount
from vmsim.host.directory import fixed
from vmsim.host.files import FileReader, FileWriter
from vmsim.machine import channel_uri
from vmsim.machine.arrival import Arrival
from vmsim.machine.asked import Limits, parameters_of
from vmsim.machine.assembled import AssembledMachine
from vmsim.machine.guest_facts import guest_facts
from vmsim.machine.launch import ArrivalOptions, LaunchOptions, config_of, require_known
from vmsim.machine.moving import leave, move
from vmsim.machine.parts import Seams
from vmsim.machine.progress import MigrationTrace
from vmsim.machine.remote import seams_for
from vmsim.machine.states import IN_DOUBT, PAUSED, RUNNING, SETTLE, START
from vmsim.migration.channel import Channel
from vmsim.migration.report import MigrationParameters, MigrationStats, ProgressCallback
from vmsim.schedule import Task
from vmsim.schedule.clock import wall_clock_ns
from vmsim.schedule.immediate import ImmediateSchedule


class Machine(AssembledMachine):
    """One virtual machine with a virtio-fs device that shares the directory ``share``.

    ``launch`` is what the machine is, where that is not as usual: ``memory``, ``ring``, ``migration`` and the
    rest of ``LaunchOptions``. ``share`` is the directory that it is now, whatever its name, and the program's
    working directory, become. Raises UsageError for what cannot be, OSError if the share cannot be opened.

    A machine is a context manager; ``close`` gives everything back.
    """

    def __init__(self, share: str | os.PathLike[str], **launch: Unpack[LaunchOptions]) -> None:
        require_known(launch, LaunchOptions, "Machine")
        schedule = launch.get("schedule") or ImmediateSchedule()
        config = config_of(launch, schedule)
        seams = seams_for(launch.get("seams"), launch.get("transport"), launch.get("backend_command"))
        try:
            self._build(config, fixed(share), schedule, seams, launch.get("backend"))
            self.device.attach(self.backend.connect())
            self.kernel.boot()
            self.become(START)
        except BaseException as error:
            reason = self.device.virtio.reset_reason if hasattr(self, "device") else ""
            self._release()
            if reason and isinstance(error, OSError):  # all that the guest sees of it is EIO
                what = f"the guest cannot boot, its device does not work: {reason}"
                raise HostError(what, errno=error.errno or errno.EIO) from error
            raise

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
        cls, channel: Channel | str, share: str | os.PathLike[str], **said: Unpack[ArrivalOptions]
    ) -> Machine:
        """Take over the machine that ``send`` sends; it runs when this returns.

        ``channel`` may be a URI as for ``send``; with ``unix:`` and ``tcp:`` this end listens. ``said`` is
        about the machine here, see ``ArrivalOptions``. What programs were waiting for is given up: they stay
        where they are, only the guest that they ran on comes here.
        """
        require_known(said, ArrivalOptions, "receive")
        schedule = said.get("schedule") or ImmediateSchedule()
        seams = seams_for(said.get("seams"), said.get("transport"), said.get("backend_command"))
        arrival = Arrival(
            cls.built, fixed(share), schedule, seams, said.get("options"), said.get("migration"),
            said.get("backend"), said.get("migration_load"),
        )  # fmt: skip
        machine = arrival.receive(channel_uri.incoming(channel, schedule))
        assert isinstance(machine, Machine)
        realtime_ns = said.get("realtime_ns")
        machine.kernel.change_clock(
            wall_clock_ns() - schedule.now_ns() if realtime_ns is None else realtime_ns
        )
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
        **said: Unpack[ArrivalOptions],
    ) -> Machine:  # fmt: skip
        """The machine saved to ``path``, running, with ``share`` as its directory (see ``receive``)."""
        return cls.receive(FileReader(path), share, **said)

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
