"""Event counters that another process can signal."""

from __future__ import annotations

import errno
import os

from vmsim.errors import HostError
from vmsim.host.apart import apart


class EventFd:
    """An eventfd (non-blocking, close-on-exec); ``fd`` may be polled or sent to a peer."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        try:
            self.fd = apart(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError as error:
            raise HostError("eventfd", errno=error.errno or errno.EIO) from error

    def signal(self) -> None:
        """Add one; a full counter is signalled already."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            pass

    def drain(self) -> int:
        """How often it was signalled since the last drain; 0 if it was not."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close the descriptor; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
