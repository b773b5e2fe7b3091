"""``<socket>.pid``: the file beside a back-end's socket that says who serves, as virtiofsd has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

from vmsim.errors import HostError, UsageError
from vmsim.host.directory import fixed

PATIENCE: Final = 100
"""Attempts, while others remove the file that we have just opened."""


class PidFile:
    """A locked file ``path`` with this process's id; UsageError if another process holds it.

    A file that a dead process left behind is taken over.
    """

    def __init__(self, path: str) -> None:
        self.path = fixed(path)
        self._owner = os.getpid()
        try:
            self._fd = _locked(path)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())
        except OSError as error:
            raise HostError(f"pid file {path}", errno=error.errno or errno.EIO) from error

    def disown(self) -> None:
        """For a child process: leave the file to its parent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Remove the file, unless it is another one by now; may be called twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                if self._owner == os.getpid() and os.path.samestat(os.lstat(self.path), os.fstat(self._fd)):
                    os.unlink(self.path)
            self.disown()


def _locked(path: str) -> int:
    for _ in range(PATIENCE):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 20).strip().decode("ascii", "replace")
            os.close(fd)
            hint = "choose another path for the socket, or end that process"
            raise UsageError(f"{path} is held by a running back-end (process {holder})", hint=hint) from None
        # Its last holder may have removed it since we opened it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        os.close(fd)
    raise OSError(errno.EBUSY, "others keep removing it")
