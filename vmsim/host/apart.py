"""Descriptors that are none of the standard streams.

In a program that has closed its standard streams the next descriptor that anybody opens is one of them: what
is printed then goes into a guest's memory, a file of the guest, or a connection.
"""

from __future__ import annotations

import fcntl
import os
import socket
from typing import Final

FIRST: Final = 3


def apart(fd: int) -> int:
    """``fd``, or where it has been moved to, if it was a standard stream; OSError if there is no room."""
    if fd >= FIRST or fd < 0:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST)
    finally:
        os.close(fd)


def socket_apart(made: socket.socket) -> socket.socket:
    """The same for a socket: ``made``, or the one that replaces it."""
    if made.fileno() >= FIRST:
        return made
    return socket.socket(fileno=apart(made.detach()))
