"""What a machine is put together from: the device found by name, its back-end, and wrappers at the seams."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from vmsim.errors import UsageError
from vmsim.host.fs import LinuxFs
from vmsim.host.services import HostServices
from vmsim.machine.config import MachineConfig
from vmsim.memory import DirtyLog, GuestMemory
from vmsim.migration.channel import Channel
from vmsim.migration.seams import Section
from vmsim.schedule import Schedule
from vmsim.trace import NOWHERE, Source
from vmsim.vhost.backend import BackendOptions, VhostBackend
from vmsim.vhost.dialects import DIALECTS, Dialect
from vmsim.vhost.inproc import InProcessTransport
from vmsim.vhost.seams import BackendDevice, FrontendHost, Transport
from vmsim.virtio.device import VirtioDevice
from vmsim.virtio.mmio import MmioRegisters
from vmsim.virtio.ring_types import Fence, RingState
from vmsim.wire.tree import Finding, Node

ENTRY_POINTS = "vmsim.devices"


class FrontDevice(Protocol):
    """The half of a device that the guest sees, as a machine uses it."""

    virtio: VirtioDevice
    registers: MmioRegisters
    migration: str
    migration_save: str
    migration_load: str

    @property
    def attached(self) -> bool:
        """Whether it is connected to a back-end."""
        ...

    def attach(self, transport: Transport, *, reset: bool = True) -> None:
        """Connect to a back-end."""
        ...

    def reattach(self, transport: Transport) -> None:
        """Connect again after a connection broke; the rings go on where the back-end stopped them."""
        ...

    def detach(self) -> None:
        """Let go of it."""
        ...

    def close(self) -> None:
        """Let go of it for good."""
        ...

    def pause(self) -> None:
        """Stop the rings."""
        ...

    def resume(self, *, kick: bool = True) -> None:
        """Start the rings; without ``kick`` nothing is processed yet."""
        ...

    def kick(self) -> None:
        """Kick all started rings."""
        ...

    def start_log(self, dirty: DirtyLog) -> None:
        """Have the back-end log its writes."""
        ...

    def stop_log(self, dirty: DirtyLog) -> None:
        """End that."""
        ...


class ServingDevice(BackendDevice, Protocol):
    """The device behind a back-end, as a machine uses it."""

    @property
    def busy(self) -> bool:
        """Whether ``idle`` has work: something goes on beside the serving of requests."""
        ...

    def idle(self) -> bool:
        """A little of that; whether there is more to be done at once."""
        ...

    def join_aside(self) -> None:
        """Go on with requests whose calls on other threads have ended."""
        ...

    def mounts_changed(self) -> None:
        """Something was mounted or unmounted on this host."""
        ...

    def look(self) -> bool:
        """Whether a request waits for somebody outside this process; it is tried again first."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class DeviceSection(Section, Protocol):
    """A device's section, which knows beforehand whether it can be saved."""

    def check_savable(self) -> None:
        """MigrationBlocked, with what to do about it, if the device cannot be saved as configured."""
        ...


class DeviceInspection(Protocol):
    """What ``vmsim inspect`` has to know of a kind of device: its section, numbers, its back-end's state."""

    vmsd_name: str
    """How its sections are named behind the bus."""
    state_subsection: str
    """The subsection that carries the back-end's state."""
    device_features: int
    """All feature bits that such a device can have."""
    feature_names: Mapping[int, str]
    """Names of the device's own feature bits, by bit."""
    queue_size_max: int
    """Entries of its largest queue."""

    def queue_name(self, index: int, features: int) -> str:
        """What a queue is for."""
        ...

    def config(self, data: bytes) -> list[Node]:
        """The fields of the configuration space; offsets are not known."""
        ...

    def queues(self, config: bytes, features: int) -> int:
        """How many queues the configuration space asks for; 0 if it does not say."""
        ...

    def looks_like_state(self, data: bytes) -> bool:
        """Whether these first bytes of a file may be the beginning of a back-end's state."""
        ...

    def state(self, data: bytes) -> tuple[Node, list[Finding]]:
        """A back-end's state and what is wrong with it, with offsets in ``data``; its bytes never raise."""
        ...


class DeviceType(Protocol):
    """A kind of device: what the entry point names."""

    name: str
    inspection: DeviceInspection

    def check_options(self, options: Mapping[str, Any]) -> object:
        """UsageError for options that do not exist."""
        ...

    def has_state(self, options: Mapping[str, Any]) -> bool:
        """Whether a back-end with these options migrates its state, instead of keeping it to itself."""
        ...

    def backend(
        self, host: Any, share: str, options: Mapping[str, Any], *,
        request_queues: int = 1, notification: bool = False, tag: str = "", pool: Any = None,
    ) -> ServingDevice:  # fmt: skip
        """The half that does the work; with ``pool`` (Workers of :mod:`vmsim.host.workers`) calls that may
        sleep for long are made there, and ``join_aside`` goes on with what has ended.
        """
        ...

    def checker(
        self, options: Mapping[str, Any], *, request_queues: int = 1, notification: bool = False
    ) -> ServingDevice:
        """What takes a back-end's state and says whether it is sound, without share and host."""
        ...

    def device(
        self, options: Mapping[str, Any], memory: GuestMemory, host: FrontendHost, dialect: Dialect
    ) -> FrontDevice:
        """The half that the guest sees."""
        ...

    def section(self, device: Any) -> DeviceSection:
        """Its section of a migration stream."""
        ...

    def facts(self, backend: Any) -> dict[str, int]:
        """Numbers for reports."""
        ...

    def describe(self, backend: Any) -> Iterator[str]:
        """What a back-end holds, line by line."""
        ...

    def notes(self, backend: Any) -> list[str]:
        """What the load of a state found worth saying."""
        ...

    def preflight(self, backend: Any) -> list[Any]:
        """What would be lost in a migration, or needs attention, most severe first."""
        ...


def device_types() -> list[DeviceType]:
    """All kinds of devices that are installed."""
    return [find_device(name) for name in _installed()]


@functools.cache
def _installed() -> tuple[str, ...]:
    """Their names; looking them up reads the metadata of every installed package."""
    return tuple(entry.name for entry in entry_points(group=ENTRY_POINTS))


@functools.cache
def find_device(name: str) -> DeviceType:
    """The device of that name; UsageError lists those that are installed."""
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise UsageError(f"no device {name!r}", hint=f"installed: {', '.join(sorted(found)) or 'none'}")
    device: DeviceType = found[name].load()
    return device


def _unchanged(inner: Any, *_: Any) -> Any:
    return inner


def _nothing() -> Iterator[bytes]:
    return iter(())


def _ignored(piece: bytes) -> None:
    pass


class MachineBackend(Protocol):
    """What a machine asks of its back-end, wherever that runs; one machine after the other may use it."""

    share: str
    in_process: bool
    """Whether it runs in this process."""
    fence: Fence | None
    """For the guest's rings: what it writes must be seen before it looks what the back-end wrote."""

    @property
    def type(self) -> DeviceType:
        """The kind of device."""
        ...

    @property
    def host(self) -> FrontendHost:
        """The host services for the half that the guest sees."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a machine is connected to it."""
        ...

    def connect(self) -> Transport:
        """A new connection, the one before must be closed; PeerError or HostError if there is none."""
        ...

    def facts(self) -> dict[str, int]:
        """What it holds, in numbers; only those that it tells."""
        ...

    def describe(self) -> Iterator[str]:
        """What it holds, line by line."""
        ...

    def notes(self) -> list[str]:
        """What its load of a state found worth saying."""
        ...

    def preflight(self) -> list[Any]:
        """What would be lost in a migration, or needs attention, most severe first."""
        ...

    def ring(self, index: int) -> RingState | None:
        """Where its side of a ring stands; None if the ring is not started, or nobody can tell."""
        ...

    def early(self) -> Iterator[bytes]:
        """Its state ahead of the stop, in pieces for ``take_early``; empty ones while it is collected."""
        ...

    def take_early(self, piece: bytes) -> None:
        """Do beforehand what can be done; StreamError for a malformed piece."""
        ...

    def close(self) -> None:
        """End serving; may be called twice."""
        ...


Start = Callable[[MachineConfig, str, Schedule, "Seams"], MachineBackend]
"""How a machine starts its back-end."""


@dataclass(slots=True)
class Seams:
    """Wrappers around a machine's seams, for tracing and faults; each gets the thing and returns what to use.

    ``transport`` S1, ``channel`` S2 (with the side, ``source`` or ``destination``), ``host_fs`` S3,
    ``backend`` the requests of a back-end's rings; the latter two only reach a back-end in this process.
    ``trace`` is told what the machine itself goes through. ``start`` starts the back-end: by default one in
    this process, or for the destination of a migration one as its source has.
    """

    transport: Callable[[Transport], Transport] = _unchanged
    channel: Callable[[Channel, str], Channel] = _unchanged
    host_fs: Callable[[Any], Any] = _unchanged
    backend: Callable[[BackendDevice], BackendDevice] = _unchanged
    trace: Source = NOWHERE
    start: Start | None = None


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
        self.served = self._serving(config)
        try:
            self.vhost = VhostBackend(
                seams.backend(self.served), self.host, schedule, DIALECTS[config.dialect],
                BackendOptions(policy="lenient" if config.policy == "lenient" else "strict"),
            )
        except BaseException:
            self.served.close()
            raise
        schedule.watch(self.served.look)

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
        return self._seams.transport(InProcessTransport(self.vhost, self._schedule, self.host))

    def facts(self) -> dict[str, int]:
        """What the back-end holds, in numbers."""
        return self.type.facts(self.served)

    def describe(self) -> Iterator[str]:
        """What it holds, line by line."""
        return self.type.describe(self.served)

    def notes(self) -> list[str]:
        """What its load of a state found worth saying."""
        return self.type.notes(self.served)

    def preflight(self) -> list[Any]:
        """What would not survive a migration, the worst first."""
        return self.type.preflight(self.served)

    def ring(self, index: int) -> RingState | None:
        """Where its side of a ring stands; None if the ring is not started."""
        ring = self.vhost.rings[index].ring
        return None if ring is None else ring.save()

    def early(self) -> Iterator[bytes]:
        """Its state ahead of the stop, if this kind of back-end has any."""
        early: Callable[[], Iterator[bytes]] = getattr(self.served, "early_state", _nothing)
        return early()

    def take_early(self, piece: bytes) -> None:
        """Do beforehand what can be done."""
        take: Callable[[bytes], None] = getattr(self.served, "take_early", _ignored)
        take(piece)

    def close(self) -> None:
        """End serving; may be called twice."""
        self._schedule.unwatch(self.served.look)
        self.vhost.close()
        self.served.close()
