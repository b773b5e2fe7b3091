"""What the vhost halves need from outside: a transport (seam S1), host services, and the device behind them.

``Transport`` and ``FrontendHost`` are what the front-end uses; ``BackendIo`` and ``BackendDevice`` what the
back-end uses. The host services are implemented in :mod:`vmsim.host`, the device in ``devices``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vmsim.vhost.messages import Reply, Request
    from vmsim.virtio.chain import Chain
    from vmsim.virtio.ring_types import RingState


class SharedBuffer(Protocol):
    """Memory that another process can map: ``fd`` is a memfd, ``view`` its mapping (writable bytes)."""

    fd: int
    size_bytes: int
    view: memoryview

    def close(self) -> None:
        """Unmap it and close the fd; may be called twice."""
        ...


class Fds(Protocol):
    """Duplicating and closing file descriptors; HostError when the system refuses."""

    def dup(self, fd: int) -> int:
        """A second descriptor (close-on-exec) for the same open file."""
        ...

    def close(self, fd: int) -> None:
        """Close ``fd``."""
        ...


class ByteChannel(Fds, Protocol):
    """Pipes; HostError when the system refuses."""

    def pipe(self) -> tuple[int, int]:
        """A pipe's (read end, write end). Whoever uses an end adopts it: the peer's may have to block."""
        ...

    def adopt(self, fd: int) -> None:
        """Make a descriptor non-blocking and close-on-exec: a peer's, or our end of a pipe."""
        ...

    def read(self, fd: int, size_bytes: int) -> bytes | None:
        """Up to ``size_bytes``; b"" at the end; None when there is nothing yet."""
        ...

    def write(self, fd: int, data: bytes | memoryview) -> int | None:
        """How many bytes went in; None when there is no room; HostError(EPIPE) when the reader is gone."""
        ...


class FrontendHost(ByteChannel, Protocol):
    """The host services of a front-end."""

    def shared_memory(self, name: str, size_bytes: int, *, sealed: bool = False) -> SharedBuffer:
        """A zeroed memfd of that name; ``sealed``: F_SEAL_GROW, F_SEAL_SHRINK and F_SEAL_SEAL."""
        ...


class BackendIo(ByteChannel, Protocol):
    """The host services of a back-end."""

    def shared_memory(self, name: str, size_bytes: int, *, sealed: bool = False) -> SharedBuffer:
        """As of ``FrontendHost``."""
        ...

    def map(self, fd: int, size_bytes: int, offset: int) -> memoryview:
        """Map part of a file, shared and writable; HostError(EINVAL) if the file is shorter than that."""
        ...

    def unmap(self, view: memoryview) -> None:
        """Undo ``map``."""
        ...


class BackendLink(Protocol):
    """The back-end's side of a transport: how it reaches the front-end."""

    def call(self, ring: int) -> None:
        """The ring has used buffers for the driver."""
        ...

    def ring_error(self, ring: int, why: str) -> None:
        """The back-end gave up on a ring."""
        ...

    def turn(self) -> Callable[[], bool] | None:
        """A turn of a ring begins: who says when it is over. None: nobody waits meanwhile."""
        ...

    def reschedule(self, ring: int) -> None:
        """The turn is over: kick the ring once everything else has had its own."""
        ...

    def set_notifier(self, message: str, ring: int, fd: int) -> None:
        """SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR brought ``fd`` (now the link's); -1: none."""
        ...

    def set_channel(self, fd: int) -> None:
        """SET_BACKEND_REQ_FD brought ``fd`` (now the link's)."""
        ...


class Transport(Protocol):
    """Seam S1: typed messages with their descriptors, kicks and calls between the two halves.

    ``request`` lends the descriptors of its message to the peer, who gets duplicates: the sender closes its
    own. The receiver of a reply owns the descriptors in it.
    """

    shares_process: bool
    """Whether the back-end is in this process, so that nothing happens in it while we look."""
    on_call: Callable[[int], None]
    """Set by the front-end: a ring has used buffers for the driver."""
    on_ring_error: Callable[[int, str], None]
    """Set by the front-end: the back-end gave up on a ring; the second argument says why."""

    def request(self, request: Request) -> Reply | None:
        """Send a message; its reply if it has one. PeerError if it is refused or the peer is gone."""
        ...

    def kick(self, ring: int) -> None:
        """Tell the back-end that a ring has available buffers."""
        ...

    def notifier(self, message: str, ring: int) -> int:
        """The descriptor to send with SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR; -1: none is needed."""
        ...

    def backend_channel(self) -> int:
        """The descriptor to send with SET_BACKEND_REQ_FD; -1: this transport has no such channel."""
        ...

    def progress(self, fd: int, *, writing: bool) -> None:
        """Let the peer work while we wait to read from or write to the transfer channel ``fd``.

        PeerError if it cannot get any further.
        """
        ...

    def reason(self) -> tuple[str, str]:
        """Why the back-end last refused something, and what to do; empty if this transport cannot tell.

        Messages carry only a number.
        """
        ...

    def close(self) -> None:
        """Give up the connection; may be called twice."""
        ...


class DeviceState(Protocol):
    """What a transfer of state needs of the device."""

    def save_state(self) -> Iterator[bytes]:
        """The device's state in pieces of any size; VmsimError or OSError if it cannot be saved."""
        ...

    def load_state(self, blob: bytes) -> None:
        """Check and apply a state; VmsimError or OSError if it cannot be, and then nothing is applied.

        StateError: the device has a session, which would have to be reset first.
        """
        ...


class BackendDevice(DeviceState, Protocol):
    """The device behind a vhost back-end.

    ``virtio_features`` are the virtio feature bits that it offers (without the transport's bits 26 and 30),
    ``queue_count`` all its rings, of which the first ``hiprio_count`` are looked at between any two requests
    of the others. ``config_space``: its configuration space, if it serves that itself (else empty).
    """

    virtio_features: int
    config_space: bytes
    queue_count: int
    hiprio_count: int

    def set_features(self, features: int) -> None:
        """What the driver accepted (virtio bits); comes before the first chain."""
        ...

    def handle(self, ring: int, chain: Chain, complete: Callable[[Chain, int], None]) -> int | None:
        """Carry out one chain; the bytes written, or None: ``complete(chain, written)`` follows later.

        ``complete`` must not be called before ``handle`` has returned.
        """
        ...

    def parked(self, ring: int) -> list[Chain]:
        """Give up the chains of a ring that wait and cannot be drained; they are never completed."""
        ...

    def keep_parked(self, ring: int, state: RingState | None) -> None:
        """Keep a stopped ring's chains in flight, as plain data, until it starts again; None: there are none.

        They belong to the saved state: without them the requests of those chains would be lost.
        """
        ...

    def resume_parked(self, ring: int) -> RingState | None:
        """Hand back, once, what ``keep_parked`` or a loaded state left; ``handle`` gets each chain again."""
        ...

    def log_started(self) -> None:
        """Dirty logging is on: a migration has begun, collect what it will need."""
        ...

    def log_stopped(self) -> None:
        """Dirty logging is off: the migration is over or cancelled."""
        ...

    def reset(self) -> None:
        """The driver reset the device: forget the session."""
        ...
