"""Non-blocking pipes and descriptors, as the device-state transfer uses them."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from vmsim.errors import HostError
from vmsim.host import quiet
from vmsim.host.apart import apart

PIPE_BYTES: Final = 1 << 20
"""How much a pipe should hold, if the system allows it."""


class Pipes:
    """Pipes and raw descriptors; every refusal of the system is a HostError, EINTR is retried by Python."""

    def pipe(self) -> tuple[int, int]:
        """A pipe's (read end, write end). Whoever uses an end adopts it: the peer's may have to block."""
        try:
            read_end, write_end = map(apart, os.pipe2(os.O_CLOEXEC))
        except OSError as error:
            raise _host_error("Failed to set up state transfer pipe", error) from error
        try:
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # the user's pipe quota is used up: the default size works as well
        return read_end, write_end

    def adopt(self, fd: int) -> None:
        """Make a descriptor non-blocking and close-on-exec: a peer's, or our end of a pipe."""
        try:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        except OSError as error:
            raise _host_error("peer's descriptor", error) from error

    def read(self, fd: int, size_bytes: int) -> bytes | None:
        """Up to ``size_bytes``; b"" at the end; None when there is nothing yet."""
        try:
            return os.read(fd, size_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _host_error("read", error) from error

    def write(self, fd: int, data: bytes | memoryview) -> int | None:
        """How many bytes went in; None when there is no room; HostError(EPIPE) when the reader is gone."""
        try:
            return quiet.write(fd, data)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _host_error("write", error) from error

    def dup(self, fd: int) -> int:
        """A second descriptor (close-on-exec) for the same open file."""
        try:
            return apart(os.dup(fd))
        except OSError as error:
            raise _host_error("dup", error) from error

    def close(self, fd: int) -> None:
        """Close ``fd``."""
        try:
            os.close(fd)
        except OSError as error:
            raise _host_error("close", error) from error


def _host_error(what: str, error: OSError) -> HostError:
    return HostError(what, errno=error.errno or errno.EIO)
