"""The host services that the two vhost halves ask for, in one object."""

from __future__ import annotations

from vmsim.host.pipes import Pipes
from vmsim.host.shm import SharedMemory, map_shared, unmap_shared


class HostServices(Pipes):
    """Implements ``FrontendHost`` and ``BackendIo`` of :mod:`vmsim.vhost.seams` by system calls."""

    def shared_memory(self, name: str, size_bytes: int, *, sealed: bool = False) -> SharedMemory:
        """A zeroed memfd of that name; ``sealed``: F_SEAL_GROW, F_SEAL_SHRINK and F_SEAL_SEAL."""
        return SharedMemory(name, size_bytes, sealed=sealed)

    def map(self, fd: int, size_bytes: int, offset: int) -> memoryview:
        """Map part of a file, shared and writable; HostError(EINVAL) if the file is shorter than that."""
        return map_shared(fd, size_bytes, offset)

    def unmap(self, view: memoryview) -> None:
        """Undo ``map``."""
        unmap_shared(view)
