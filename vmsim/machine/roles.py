"""A machine in its two roles in a migration: what :mod:`vmsim.migration` asks of source and destination.

A back-end can be *kept*: it goes on with its session behind the destination, in the same process. Then the
source lets go of it once everything is saved, and the destination takes it before it loads the device.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from vmsim.errors import HostError, MigrationError, VmsimError
from vmsim.host.shm import data_ranges, write_pages
from vmsim.machine.assembled import AssembledMachine
from vmsim.machine.forecast import forecast
from vmsim.machine.sections import GuestSection, early_guest, take_early_guest
from vmsim.memory import Region
from vmsim.migration.downtime import Clock, Forecast
from vmsim.migration.ram import DataFinder, PageWriter, Run
from vmsim.migration.seams import Section
from vmsim.migration.vmio import VmReader, VmWriter

MACHINE_TYPE: Final = "vmsim-1"
NO_BACKEND: Final = "the guest goes on with a back-end that keeps its session, and there is none"


class Source:
    """The running machine that is saved."""

    machine_type = MACHINE_TYPE

    def __init__(
        self, machine: AssembledMachine, clock: Clock,
        destination_released: Callable[[], object] = lambda: None, *, beside: bool = False,
    ) -> None:  # fmt: skip
        """``destination_released`` returns once a failed migration's destination has let go of everything.

        ``clock`` is that of forecasts. ``beside``: whoever migrates calls ``machine.let_go`` when the
        destination, in this process, runs.
        """
        self._beside = beside
        self._ahead = False
        """Whether state has gone ahead."""
        self._clock = clock
        self.machine = machine
        self.memory = machine.memory
        self._destination_released = destination_released
        self._keeps = machine.keeps_backend

    def check_migratable(self) -> None:
        """MigrationBlocked, with the message of the original proposal, if the device says no."""
        self.machine.section.check_savable()

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

    def early(self, least_inodes: int) -> Iterator[tuple[str, bytes]]:
        """The back-end's records, once it has collected them, then the guest's nodes."""
        machine = self.machine
        if len(machine.kernel.state.nodes) < least_inodes:
            return
        if not self._keeps:
            for piece in machine.backend.early():
                yield machine.section.idstr, piece
        for piece in early_guest(machine.kernel):
            yield GuestSection.idstr, piece
        self._ahead = True

    def forecast(self) -> Forecast:
        """What its state is going to take."""
        return forecast(self.machine, self._clock, ahead=self._ahead)

    def pause(self) -> None:
        """Stop the guest's programs."""
        self.machine.kernel.pause()

    def stop_rings(self) -> None:
        """Stop the rings."""
        self.machine.device.pause()

    def sections(self) -> Sequence[Section]:
        """As the machine says; with the device's the back-end is let go if it is kept."""
        *others, device = self.machine.sections()
        return [*others, _DetachAfterSave(self.machine, device) if self._keeps else device]

    def finish(self) -> None:
        """Committed. In the same process the destination's guest need not wait until all is given back."""
        self.machine.finish(let_go=not self._beside)

    def restart_rings(self) -> None:
        """Go on as before, with the same back-end; connect to it again if the connection is gone."""
        machine = self.machine
        if not machine.kernel.birthplace.ours:
            return  # a forked child that unwinds: the parent goes on with its migration
        try:
            self._destination_released()
            if not machine.device.attached:
                _take_backend(machine)
            machine.device.resume()
        except VmsimError:
            self._reconnect()

    def resume(self) -> None:
        """Let the guest's programs go on."""
        self.machine.kernel.resume()

    def stop_log(self) -> None:
        """No more logging."""
        machine = self.machine
        if not machine.kernel.birthplace.ours:
            return
        try:
            machine.device.stop_log(machine.dirty)
        except VmsimError:
            self._reconnect()
        machine.dirty.stop()

    def _reconnect(self) -> None:
        """The connection failed while we went back to normal: the back-end has kept its session."""
        device = self.machine.device
        try:
            device.detach()
            device.reattach(self.machine.backend.connect())
        except VmsimError as error:
            device.virtio.needs_reset(f"the back-end cannot be reached any more: {error}")


class Destination:
    """A machine that is being loaded."""

    def __init__(self, machine: AssembledMachine) -> None:
        self.machine = machine
        self.memory = machine.memory

    def page_writer(self) -> PageWriter | None:
        """Through the memfd: pages that nobody has touched are neither zeroed nor faulted in one by one."""

        def write(region: Region, offset: int, pages: Sequence[memoryview]) -> None:
            write_pages(region.fd, region.fd_offset + offset, pages)

        return write

    def early(self, target: str, piece: bytes) -> None:
        """What the guest and the back-end can make use of; a back-end that was kept has it all."""
        machine = self.machine
        if target == GuestSection.idstr:
            take_early_guest(machine.kernel, piece)
        elif target == machine.section.idstr and machine.owns_backend:
            machine.backend.take_early(piece)

    def sections(self) -> Sequence[Section]:
        """As the machine says; a kept back-end is taken for the device's."""
        *others, device = self.machine.sections()
        return [*others, device if self.machine.device.attached else _Taking(self.machine, device)]

    def prepare(self) -> None:
        """Everything that may fail: set up the rings; none is kicked yet."""
        machine = self.machine
        if machine.keeps_backend and machine.owns_backend and machine.device.virtio.live:
            raise MigrationError(
                NO_BACKEND, step="preparing to run", side="destination",
                hint="pass backend=, or save with migration=internal and a back-end that migrates its state",
            )  # fmt: skip
        machine.device.resume(kick=False)

    def run(self) -> None:
        """Committed; the guest goes on once its programs have moved over (``start_running``)."""

    def discard(self) -> None:
        """Let go of everything."""
        self.machine.close()


class _Wrapped:
    """A section with something that happens before or after."""

    def __init__(self, machine: AssembledMachine, section: Section) -> None:
        self._machine = machine
        self._section = section
        self.idstr = section.idstr
        self.instance_id = section.instance_id
        self.max_version_id = section.max_version_id

    @property
    def version_id(self) -> int:
        """As the section's."""
        return self._section.version_id

    def save(self, out: VmWriter) -> None:
        """As the section's."""
        self._section.save(out)

    def load(self, src: VmReader, version_id: int) -> None:
        """As the section's."""
        self._section.load(src, version_id)


class _DetachAfterSave(_Wrapped):
    def save(self, out: VmWriter) -> None:
        """Save, then disconnect: the destination connects before it loads."""
        super().save(out)
        machine = self._machine
        machine.device.stop_log(machine.dirty)
        machine.device.detach()


class _Taking(_Wrapped):
    def load(self, src: VmReader, version_id: int) -> None:
        """Connect, then load."""
        _take_backend(self._machine)
        super().load(src, version_id)


def _take_backend(machine: AssembledMachine) -> None:
    """Connect to a back-end that keeps its session, once nobody else is connected to it.

    HostError if it does not take another connection: many back-ends end with their first one.
    """
    backend = machine.backend
    machine.schedule.wait(lambda: not backend.connected, "the other machine to let go of the back-end")
    try:
        machine.device.attach(backend.connect(), reset=False)
    except VmsimError as error:
        if backend.connected:
            raise  # it stayed, but something else is wrong
        raise HostError(
            f"the back-end did not stay for another connection: {error.message}",
            errno=getattr(error, "errno", errno.ECONNRESET),
            hint="an external migration needs a back-end that keeps its session while its front-ends change, "
            "such as `vmsim serve --reconnect`; one that does not, such as virtiofsd, migrates its state: "
            "migration internal",
        ) from error
