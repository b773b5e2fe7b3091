"""Unix stream sockets that carry file descriptors beside their bytes (SCM_RIGHTS)."""

from __future__ import annotations

import array
import contextlib
import errno
import grp
import os
import socket
import stat
from typing import Final, Self

from vmsim.errors import HostError, UsageError
from vmsim.host.apart import socket_apart
from vmsim.host.socket_file import SocketFile, connected, listened_on, who_has
from vmsim.vhost.constants import MESSAGE_FDS_MAX

FD_BYTES: Final = array.array("i").itemsize
ROOM_FOR_FDS: Final = socket.CMSG_SPACE((MESSAGE_FDS_MAX + 1) * FD_BYTES)
BACKLOG: Final = 4
ELSEWHERE: Final = "choose another path for the socket"


class UnixSocket:
    """A connected, non-blocking stream socket; ``fd`` may be polled. HostError when the system refuses."""

    __slots__ = ("_socket", "fd")

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection = socket_apart(connection)
        connection.setblocking(False)
        self.fd = connection.fileno()

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Two connected ends."""
        ends: tuple[socket.socket, ...] = ()
        try:
            one, other = ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            return cls(one), cls(other)
        except BaseException:
            for end in ends:
                end.close()
            raise

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """A connected socket that was inherited or sent by a peer; the descriptor is ours from now on.

        HostError if it is none; it is closed then.
        """
        return cls(_as_socket(fd))

    @classmethod
    def connect(cls, path: str) -> Self:
        """Connect to the socket file ``path``."""
        connection: socket.socket | None = None
        try:
            connection = connected(path)
            return cls(connection)
        except BaseException as error:  # an interrupt too: nobody else has it yet
            if connection is not None:
                connection.close()
            if isinstance(error, OSError):
                raise HostError(f"connecting to {path}", errno=error.errno or errno.EIO) from error
            raise

    def send(self, data: bytes | memoryview, fds: tuple[int, ...] = ()) -> int | None:
        """Send what the socket takes, the descriptors with the first byte; how much, None when it is full."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return None
        except OSError as error:
            raise HostError("sending", errno=error.errno or errno.EIO) from error

    def receive(self, size_bytes: int) -> tuple[bytes, list[int]] | None:
        """Up to ``size_bytes`` and the descriptors that came with them; b"" at the end; None: nothing yet.

        HostError(EMSGSIZE) if there were more descriptors than fit; those that came are closed.
        """
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                size_bytes, ROOM_FOR_FDS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b"", []
        except OSError as error:
            raise HostError("receiving", errno=error.errno or errno.EIO) from error
        fds: list[int] = []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) // FD_BYTES * FD_BYTES])
                fds.extend(numbers)
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise HostError("descriptors were lost: too many came, or none is left", errno=errno.EMSGSIZE)
        return data, fds

    def close(self) -> None:
        """Close it; may be called twice."""
        self._socket.close()


class Listener:
    """A listening socket file; ``fd`` is readable when somebody connects."""

    def __init__(self, path: str, *, group: str = "", mode: int | None = None) -> None:
        """Listen on ``path``; a stale socket file is replaced, one that somebody listens on is not.

        ``group`` owns the file then (mode 0660 as with virtiofsd). HostError or UsageError if it cannot be.
        """
        self.path = path
        owner = _group_id(group) if group else -1
        _remove_stale(path)
        self._file: SocketFile | None = None
        self._socket = listening = socket_apart(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            self._file = SocketFile(listening, path, 0o660 if group and mode is None else mode, owner)
            listening.listen(BACKLOG)
            listening.setblocking(False)
        except OSError as error:
            self.close()
            raise HostError(f"listening on {path}", errno=error.errno or errno.EIO) from error
        self.fd = listening.fileno()

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """A listening socket that was inherited."""
        listener = cls.__new__(cls)
        listener.path = ""
        listener._file = None
        listener._socket = _as_socket(fd)
        listener._socket.setblocking(False)
        listener.fd = fd
        return listener

    @property
    def listens(self) -> bool:
        """Whether it is a listening socket (an inherited one may be connected already)."""
        return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def accept(self) -> UnixSocket | None:
        """The next connection; None if there is none (any more)."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            raise HostError(f"accepting on {self.path}", errno=error.errno or errno.EIO) from error
        return UnixSocket(connection)

    def disown(self) -> None:
        """For a child process: leave the socket file, and every way to its folder, to the parent."""
        if self._file is not None:
            self._file.disown()

    def close(self) -> None:
        """Stop listening and remove our socket file; may be called twice."""
        self._socket.close()
        if self._file is not None:
            self._file.remove()


def _as_socket(fd: int) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            raise HostError(f"descriptor {fd} is no socket", errno=errno.ENOTSOCK)
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.close(fd)  # a socket of a kind that has no address
        raise HostError(f"descriptor {fd}", errno=error.errno or errno.EBADF) from error


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UsageError(f"{path} exists and is no socket but {who_has(path)}", hint=ELSEWHERE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"socket {path}", errno=error.errno or errno.EIO) from error
    if listened_on(path):  # a back-end that serves one connection would take ours for it
        raise UsageError(f"{path} is {who_has(path)}", hint=ELSEWHERE)
    try:
        UnixSocket.connect(path).close()
    except HostError as error:
        if error.errno != errno.ECONNREFUSED:
            raise
        os.unlink(path)
        return
    raise UsageError(f"{path} is {who_has(path)}", hint=ELSEWHERE)


def _group_id(group: str) -> int:
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"no group {group!r}", hint="see: getent group") from None
