"""A file that nobody else can open for writing for the moment: whoever tries waits (fcntl(2), leases)."""

from __future__ import annotations

import errno
import fcntl
import os
from types import TracebackType
from typing import Self

from vmsim.errors import HostError


class Lease:
    """A read lease on a file of ours: an open of it for writing waits until the lease is given back.

    The kernel takes it away after /proc/sys/fs/lease-break-time, usually 45 seconds. HostError where there
    are none (FUSE, 9p), where the file is not ours, or somebody has it open for writing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            # The kernel tells the owner by SIGIO, which ends a program that does not expect it: no owner.
            fcntl.fcntl(self._fd, fcntl.F_SETOWN, 0)
        except OSError as error:
            os.close(self._fd)
            raise HostError(f"a lease on {os.fspath(path)}", errno=error.errno or errno.EINVAL) from error

    @property
    def wanted(self) -> bool:
        """Whether somebody has tried to open the file (or the lease is gone already)."""
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def give_back(self) -> None:
        """Who waits goes on; without effect a second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()
