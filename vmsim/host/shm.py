"""Memory that several processes can map: memfds and shared mappings."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final

from vmsim.errors import HostError
from vmsim.host.apart import apart
from vmsim.host.quiet import without_signal

SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
IOV_MAX: Final = 1024
MAP_NORESERVE: Final = 0x4000  # Linux; the mmap module may lack it
MAP_FLAGS: Final = mmap.MAP_SHARED | MAP_NORESERVE


class SharedMemory:
    """A zeroed memfd of ``size_bytes``, mapped once: ``fd``, and ``view`` over all of it (writable bytes).

    Raises HostError if the system has no memory or descriptors left. ``close`` may be called while other
    views of the mapping live; the mapping then goes with the last of them.
    """

    __slots__ = ("_map", "fd", "name", "size_bytes", "view")

    def __init__(self, name: str, size_bytes: int, *, sealed: bool = False) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.fd = -1
        try:
            self.fd = apart(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            without_signal(os.ftruncate, self.fd, size_bytes)
            if sealed:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            self._map: mmap.mmap | None = mmap.mmap(self.fd, size_bytes, flags=MAP_FLAGS)
        except (OSError, ValueError, OverflowError) as error:
            if self.fd >= 0:
                os.close(self.fd)
            code = getattr(error, "errno", None) or errno.EINVAL
            raise HostError(f"shared memory {name!r} of {size_bytes} bytes", errno=code) from error
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Unmap it and close the fd; may be called twice."""
        if self._map is None:
            return
        mapping, self._map = self._map, None
        self.view.release()
        release(mapping)
        os.close(self.fd)
        self.fd = -1


def map_shared(fd: int, size_bytes: int, offset: int) -> memoryview:
    """Map a part of the file ``fd`` shared and writable; undo with ``unmap_shared``.

    HostError(EINVAL) if the file does not reach that far: touching what lies beyond would kill the process.
    ``offset`` (bytes) need not be a multiple of the page size.
    """
    try:
        end = os.fstat(fd).st_size
        if size_bytes <= 0 or offset < 0 or offset + size_bytes > end:
            what = f"mapping of {size_bytes} bytes at {offset:#x} of a file of {end}"
            raise HostError(what, errno=errno.EINVAL)
        skip = offset % mmap.ALLOCATIONGRANULARITY
        mapping = mmap.mmap(fd, size_bytes + skip, flags=MAP_FLAGS, offset=offset - skip)
    except OSError as error:
        raise HostError(f"mapping of {size_bytes} bytes", errno=error.errno or errno.EINVAL) from error
    except (ValueError, OverflowError) as error:
        raise HostError(f"mapping of {size_bytes} bytes: {error}", errno=errno.EINVAL) from error
    return memoryview(mapping)[skip:]


def unmap_shared(view: memoryview) -> None:
    """Undo ``map_shared``; the mapping goes with the last view of it."""
    mapping = view.obj
    view.release()
    if isinstance(mapping, mmap.mmap):
        release(mapping)


def release(mapping: mmap.mmap) -> None:
    """Unmap now, or when the last view of the mapping goes away."""
    try:
        mapping.close()
    except BufferError:
        pass


def write_pages(fd: int, offset: int, pages: Sequence[memoryview]) -> None:
    """Write ``pages`` one behind the other into a shared file that is mapped elsewhere."""
    while pages:
        part = pages[:IOV_MAX]
        try:
            done = os.pwritev(fd, part, offset)
        except OSError as error:
            raise HostError("writing shared memory", errno=error.errno or errno.EINVAL) from error
        if done != sum(map(len, part)):
            raise HostError(f"{done} bytes of shared memory were written", errno=errno.ENOMEM)
        offset += done
        pages = pages[IOV_MAX:]


def data_ranges(fd: int, offset: int, size_bytes: int) -> list[tuple[int, int]]:
    """The parts of a file that may hold anything but zeros, as (offset, bytes) relative to ``offset``."""
    ranges = []
    at, end = offset, offset + size_bytes
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise HostError("looking for data", errno=error.errno or errno.EINVAL) from error
        hole = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        if at >= end:
            break
        ranges.append((at - offset, hole - at))
        at = hole
    return ranges
