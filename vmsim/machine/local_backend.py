"""A back-end in this process."""

from __future__ import annotations

from collections.abc import Iterator

from vmsim.host.fs import LinuxFs
from vmsim.host.services import HostServices
from vmsim.machine.config import MachineConfig
from vmsim.machine.installed import find_device
from vmsim.machine.parts import Seams
from vmsim.schedule import Schedule
from vmsim.vhost.backend import BackendOptions, VhostBackend
from vmsim.vhost.device_type import Burden, PreflightFinding, ServingDevice
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.inproc import InProcessTransport
from vmsim.vhost.seams import Transport
from vmsim.virtio.ring_types import Fence, RingState


class Backend:
    """A back-end in this process: it serves ``share`` until ``close``, to one machine after the other."""

    fence: Fence | None = None
    in_process = True

    def __init__(self, config: MachineConfig, share: str, schedule: Schedule, seams: Seams) -> None:
        self.share = share
        self.type = find_device(config.device)
        self.host = HostServices()
        self._schedule = schedule
        self._seams = seams
        try:
            self.served = self._serving(config)
            self.vhost = VhostBackend(
                seams.backend(self.served), self.host, schedule, DIALECTS[config.dialect],
                BackendOptions(policy="lenient" if config.policy == "lenient" else "strict"),
            )
            schedule.watch(self.served.look)
        except BaseException:
            if hasattr(self, "served"):
                schedule.unwatch(self.served.look)
                self.served.close()
            raise

    def _serving(self, config: MachineConfig) -> ServingDevice:
        return self.type.backend(
            self._seams.host_fs(LinuxFs()), self.share, config.options,
            request_queues=config.queues, notification=config.notification,
        )  # fmt: skip

    @property
    def connected(self) -> bool:
        """Whether somebody is connected to it."""
        return self.vhost.link is not None

    def connect(self) -> Transport:
        """A new connection; the one before must be closed."""
        transport: InProcessTransport | None = None
        try:
            transport = InProcessTransport(self.vhost, self._schedule, self.host)
            return self._seams.transport(transport)
        except BaseException:  # an interrupt too: nobody else has it yet
            if transport is not None:
                transport.close()
            raise

    def burden(self) -> Burden:
        """What its state holds besides inodes."""
        return self.served.burden()

    def facts(self) -> dict[str, int]:
        """What the back-end holds, in numbers."""
        return self.served.facts()

    def describe(self) -> Iterator[str]:
        """What it holds, line by line."""
        return self.served.describe()

    def notes(self) -> list[str]:
        """What its load of a state found worth saying."""
        return self.served.notes()

    def preflight(self) -> list[PreflightFinding]:
        """What would not survive a migration, the worst first."""
        return self.served.preflight()

    def ring(self, index: int) -> RingState | None:
        """Where its side of a ring stands; None if the ring is not started."""
        ring = self.vhost.rings[index].ring
        return None if ring is None else ring.save()

    def early(self) -> Iterator[bytes]:
        """Its state ahead of the stop, if this kind of back-end has any."""
        return self.served.early_state()

    def take_early(self, piece: bytes) -> None:
        """Do beforehand what can be done."""
        self.served.take_early(piece)

    def close(self) -> None:
        """End serving; may be called twice."""
        self._schedule.unwatch(self.served.look)
        self.vhost.close()
        self.served.close()
