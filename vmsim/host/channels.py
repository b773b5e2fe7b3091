"""Migration channels (seam S2) over descriptors: sockets, pipes to and from commands. Files: ``files.py``.

Everything waits through the schedule, if there is one, so that both ends may live in this process. For an
other end outside, give the schedule :meth:`FdWaits.idle` of the same :class:`FdWaits` as its ``idle``.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
from collections.abc import Callable
from typing import Final

from vmsim.errors import HostError, StateError
from vmsim.host import quiet
from vmsim.host.socket_file import SocketFile, reachable, who_has
from vmsim.host.waits import PATIENCE_NS, FdWaits
from vmsim.migration.channel import ChannelBase
from vmsim.migration.errors import ChannelError
from vmsim.schedule import Schedule

READ_BYTES: Final = 1 << 20


class FdChannel(ChannelBase):
    """What channels over a non-blocking descriptor have in common."""

    def __init__(self, what: str, schedule: Schedule | None, waits: FdWaits | None) -> None:
        self.what = what
        self._schedule = schedule
        self._waits = waits
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise StateError(f"the channel to {self.what} is closed")

    def _wait(self, fd: int, events: int, what: str) -> None:
        """Return when ``fd`` is ready, or this channel closed meanwhile; ChannelError after long silence."""
        poll = select.poll()
        poll.register(fd, events)
        if self._schedule is None:
            if not poll.poll(PATIENCE_NS / 1e6):
                raise ChannelError(f"no {what} {self.what} for a long time", errno=errno.ETIMEDOUT)
            return
        if self._waits is not None:
            self._waits.add(fd, events)
        try:
            self._schedule.wait(lambda: self._closed or bool(poll.poll(0)), f"{what} {self.what}")
        finally:
            if self._waits is not None:
                self._waits.remove(fd)

    def _send_all(
        self, fd: int, data: bytes | bytearray | memoryview,
        write: Callable[[int, memoryview], int] = quiet.write,
    ) -> None:  # fmt: skip
        """Write everything to ``fd``; a reader that is gone is a ChannelError, and no SIGPIPE."""
        view = memoryview(data)
        while len(view):
            self._check_open()
            try:
                view = view[write(fd, view) :]
            except BlockingIOError:
                self._wait(fd, select.POLLOUT, "room for")
            except OSError as error:
                raise self._broken("write to", error) from error

    def _receive(self, fd: int, limit: int) -> memoryview:
        """Up to ``limit`` bytes of ``fd``; nothing at its end."""
        while True:
            self._check_open()
            try:
                view = self._buffer[:limit]
                return view[: os.readv(fd, [view])]
            except BlockingIOError:
                self._wait(fd, select.POLLIN, "bytes from")
            except OSError as error:
                raise self._broken("read from", error) from error

    def _broken(self, verb: str, error: OSError) -> ChannelError:
        return ChannelError(f"cannot {verb} {self.what}: {error.strerror}", errno=error.errno or errno.EIO)


class SocketChannel(FdChannel):
    """A connected stream socket (pair, Unix, TCP), which this channel then owns."""

    def __init__(
        self, connection: socket.socket, schedule: Schedule | None = None, waits: FdWaits | None = None,
        what: str = "the other end",
    ) -> None:
        super().__init__(what, schedule, waits)
        connection.setblocking(False)
        self._socket = connection
        self._writable = True

    @classmethod
    def pair(cls, schedule: Schedule, waits: FdWaits | None = None) -> tuple[SocketChannel, SocketChannel]:
        """Two connected ends."""
        one, other = socket.socketpair()
        return cls(one, schedule, waits), cls(other, schedule, waits)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``."""
        self._check_open()
        if not self._writable:
            raise StateError(f"the channel to {self.what} is closed for writing")
        self._send_all(self._socket.fileno(), data, self._send)

    def _send(self, fd: int, view: memoryview) -> int:
        return self._socket.send(view, socket.MSG_NOSIGNAL)

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes; b"" at the end."""
        self._check_open()
        return self._receive(self._socket.fileno(), limit)

    def close_write(self) -> None:
        """Shut down the sending direction."""
        if self._writable and not self._closed:
            self._writable = False
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the other end is gone already, and knows

    def close(self) -> None:
        """Close the socket."""
        self._closed = True
        self._socket.close()


class CommandWriter(FdChannel):
    """A pipe to the standard input of a shell command, which must succeed for the stream to count."""

    duplex = False

    def __init__(self, command: str, schedule: Schedule | None = None, waits: FdWaits | None = None) -> None:
        super().__init__(f"command {command!r}", schedule, waits)
        self._process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        os.set_blocking(self._pipe.fileno(), False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand ``data`` to the command."""
        self._check_open()
        self._send_all(self._pipe.fileno(), data)

    def read_some(self, limit: int) -> bytes | memoryview:
        """StateError: a command that is written to gives nothing back."""
        raise StateError(f"{self.what} is only written to")

    def close_write(self) -> None:
        """End the command's input."""
        if not self._pipe.closed:
            self._pipe.close()

    def finish(self) -> None:
        """End the command's input and wait for it; ChannelError unless it succeeds."""
        self._check_open()
        self.close_write()
        _reap(self._process, self.what)
        self._closed = True

    def close(self) -> None:
        """End the command, if it has not finished."""
        self._closed = True
        self.close_write()
        _end(self._process)


class CommandReader(FdChannel):
    """The standard output of a shell command; its failure is an error at the end of the stream."""

    duplex = False

    def __init__(self, command: str, schedule: Schedule | None = None, waits: FdWaits | None = None) -> None:
        super().__init__(f"command {command!r}", schedule, waits)
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """StateError: a command that is read from takes nothing."""
        raise StateError(f"{self.what} is only read from")

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes; b"" at the end of a command that succeeded."""
        self._check_open()
        piece = self._receive(self._pipe.fileno(), limit)
        if not len(piece):
            _reap(self._process, self.what)
        return piece

    def close_write(self) -> None:
        """Nothing to do: this end never writes."""

    def close(self) -> None:
        """End the command, if it has not ended."""
        self._closed = True
        self._pipe.close()
        _end(self._process)


def _reap(process: subprocess.Popen[bytes], what: str) -> None:
    try:
        status = process.wait(PATIENCE_NS / 1e9)
    except subprocess.TimeoutExpired:
        raise ChannelError(f"{what} does not end", errno=errno.ETIMEDOUT) from None
    if status:
        raise ChannelError(f"{what} failed with status {status}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def connect(address: str | tuple[str, int]) -> socket.socket:
    """A connection to a Unix socket's path or to (host, port); HostError if it is refused."""
    try:
        if isinstance(address, tuple):
            return socket.create_connection(address)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with reachable(address) as name:
                connection.connect(name)
        except OSError:
            connection.close()
            raise
    except OSError as error:
        raise HostError(f"cannot connect to {address}", errno=error.errno or errno.EIO) from error
    return connection


def accept(address: str | tuple[str, int]) -> socket.socket:
    """Listen on a Unix socket's path or on (host, port) for one connection; HostError if that fails.

    The path must be free, and is so again afterwards: what somebody else has there stays as it is.
    """
    try:
        if isinstance(address, tuple):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                return _accepted(listener)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            file = SocketFile(listener, address)
            try:
                return _accepted(listener)
            finally:
                file.remove()
    except OSError as error:
        what, hint = f"no connection on {address}", ""
        if error.errno == errno.EADDRINUSE and isinstance(address, str):
            what = f"cannot listen on {address}: it is {who_has(address)}"
            hint = "choose another path, or remove it"
        raise HostError(what, errno=error.errno or errno.ETIMEDOUT, hint=hint) from error


def _accepted(listener: socket.socket) -> socket.socket:
    listener.listen(1)
    listener.settimeout(PATIENCE_NS / 1e9)
    return listener.accept()[0]
