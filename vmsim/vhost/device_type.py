"""What a device package gives: one object that makes its halves, its section, and what looks at all of them.

    DEVICE: Final[DeviceType] = VirtioFs()         # what the entry point ``vmsim.devices`` names

A device has two halves that only talk vhost to each other: the one that the guest sees (registers,
configuration, migration; :class:`FrontDevice`) and the one that does the work (:class:`ServingDevice`, behind
a vhost back-end in whatever process). A machine knows them by these interfaces alone. They are declared this
far down so that a device package, which may import nothing higher, can say that it fills them: the type
checker compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vmsim.migration.seams import Section
from vmsim.vhost.seams import BackendDevice

if TYPE_CHECKING:
    from vmsim.memory import DirtyLog, GuestMemory
    from vmsim.vhost.device_options import DeviceOption
    from vmsim.vhost.dialects import Dialect
    from vmsim.vhost.seams import FrontendHost, Transport
    from vmsim.virtio.device import VirtioDevice
    from vmsim.virtio.mmio import MmioRegisters
    from vmsim.wire.tree import Finding, Node


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


class PreflightFinding(Protocol):
    """One thing to know before a migration."""

    @property
    def severity(self) -> str:
        """``error``: the migration would fail, or lose it. ``warning``: it may. ``info``: it survives."""
        ...

    @property
    def inode(self) -> int:
        """Whom it concerns; 0: everybody."""
        ...

    @property
    def why(self) -> str:
        """What is the matter."""
        ...


class Burden(NamedTuple):
    """What a back-end's state holds besides inodes: open files, ranges of locks, bytes of unlinked files.

    ``lock_looks``: how many locks the host looks at while all are taken again, which may be their square.
    """

    handles: int = 0
    locks: int = 0
    content_bytes: int = 0
    lock_looks: int = 0


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

    def early_state(self) -> Iterator[bytes]:
        """Its state ahead of the stop, in pieces for ``take_early``; empty ones while it is collected."""
        ...

    def take_early(self, piece: bytes) -> None:
        """Do beforehand what a state that is still to come allows; StreamError for a malformed piece."""
        ...

    def burden(self) -> Burden:
        """What makes its state long to save and to load, for a forecast."""
        ...

    def facts(self) -> dict[str, int]:
        """What it holds, in numbers for reports."""
        ...

    def describe(self) -> Iterator[str]:
        """What it holds, line by line."""
        ...

    def notes(self) -> list[str]:
        """What the load of a state found worth saying."""
        ...

    def preflight(self) -> list[PreflightFinding]:
        """What would be lost in a migration, or needs attention, most severe first."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class DeviceSection(Section, Protocol):
    """A device's section of a migration stream, which knows beforehand whether it can be saved."""

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

    @property
    def inspection(self) -> DeviceInspection:
        """What looks at its sections and states."""
        ...

    @property
    def options(self) -> tuple[DeviceOption, ...]:
        """What a command line may say of a back-end."""
        ...

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

    def section(self, device: FrontDevice) -> DeviceSection:
        """Its section of a migration stream."""
        ...
