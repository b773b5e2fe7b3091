"""What a machine is put together from: its back-end, wherever that runs, and wrappers at the seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vmsim.trace import NOWHERE, Source

if TYPE_CHECKING:
    from vmsim.machine.config import MachineConfig
    from vmsim.migration.channel import Channel
    from vmsim.schedule import Schedule
    from vmsim.vhost.device_type import Burden, DeviceType, PreflightFinding
    from vmsim.vhost.seams import BackendDevice, FrontendHost, Transport
    from vmsim.virtio.ring_types import Fence, RingState


def _unchanged(inner: Any, *_: Any) -> Any:
    return inner


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

    def burden(self) -> Burden:
        """What its state holds besides inodes, as far as it tells."""
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

    def preflight(self) -> list[PreflightFinding]:
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


Start = Callable[["MachineConfig", str, "Schedule", "Seams"], MachineBackend]
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
