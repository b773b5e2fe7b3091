"""Migration channels (seam S2) over descriptors: sockets, pipes to and from commands. Files: ``files.py``.

Everything waits through the schedule, if there is one, so that both ends may live in this process. For an
other end outside, give the schedule the same :class:`FdWaits` as its ``descriptors``.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from typing import Final

from vmsim.errors import HostError, StateError
from vmsim.host.apart import apart, socket_apart
from vmsim.host.forks import check_owner
from vmsim.host.kept import NOTHING, OWN, KeptProcess
from vmsim.host.socket_file import SocketFile, connected, who_has
from vmsim.host.waits import PATIENCE_NS, FdWaits, wait_in_slices
from vmsim.migration.channel import ChannelBase
from vmsim.migration.errors import ChannelError, DeliveryInDoubt
from vmsim.schedule import Schedule

READ_BYTES: Final = 1 << 20
END_S: Final = 5.0
"""How long a command may take to end when it is asked to."""


class FdChannel(ChannelBase):
    """What channels over a non-blocking descriptor have in common; ``patience_ns`` bounds each wait.

    A forked child can only close its copy: what it read, its parent would miss.
    """

    patience_ns = PATIENCE_NS

    def __init__(self, what: str, schedule: Schedule | None, waits: FdWaits | None) -> None:
        self.what = what
        self._owner = os.getpid()
        self._schedule = schedule
        self._waits = waits
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise StateError(f"the channel to {self.what} is closed")
        check_owner(self._owner, f"the channel to {self.what}", "open another one here")

    def _wait(self, fd: int, events: int, what: str) -> None:
        """Return when ``fd`` is ready, or this channel closed meanwhile; ChannelError after long silence."""
        poll = select.poll()
        poll.register(fd, events)
        until_ns = time.monotonic_ns() + self.patience_ns
        if self._schedule is None:
            ready = bool(wait_in_slices(poll, self.patience_ns / 1e6))
        else:
            ready = self._wait_in_turn(fd, events, poll, until_ns, what)
        if not ready:
            raise ChannelError(f"no {what} {self.what} for a long time", errno=errno.ETIMEDOUT)

    def _wait_in_turn(self, fd: int, events: int, poll: select.poll, until_ns: int, what: str) -> bool:
        """Let the schedule run others meanwhile; whether something came before ``until_ns``."""
        assert self._schedule is not None
        ready = False

        def over() -> bool:
            nonlocal ready
            ready = self._closed or bool(poll.poll(0))
            return ready or time.monotonic_ns() >= until_ns  # others may keep the schedule busy for ever

        if self._waits is not None:
            self._waits.add(fd, events)
        try:
            self._schedule.wait(over, f"{what} {self.what}")
        finally:
            if self._waits is not None:
                self._waits.remove(fd)
        return ready

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
        self._socket = connection = socket_apart(connection)
        connection.setblocking(False)
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
        view = memoryview(data)
        while len(view):
            self._check_open()
            try:
                view = view[self._socket.send(view, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait(self._socket.fileno(), select.POLLOUT, "room for")
            except OSError as error:
                raise self._broken("write to", error) from error

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes; b"" at the end."""
        self._check_open()
        return self._receive(self._socket.fileno(), limit)

    def close_write(self) -> None:
        """Shut down the sending direction."""
        if self._writable and not self._closed and os.getpid() == self._owner:
            self._writable = False
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the other end is gone already, and knows

    def close(self) -> None:
        """Close the socket."""
        self._closed = True
        self._socket.close()


class CommandWriter(SocketChannel):
    """The standard input of a shell command, which must read it all and succeed for the stream to count.

    The command ends with this process, however that ends: it is never left with half a stream.
    """

    duplex = False

    def __init__(self, command: str, schedule: Schedule | None = None, waits: FdWaits | None = None) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = _shell(command, stdin=theirs.fileno(), stdout=OWN, fed=True)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        super().__init__(ours, schedule, waits, f"command {command!r}")

    def read_some(self, limit: int) -> bytes | memoryview:
        """StateError: a command that is written to gives nothing back."""
        raise StateError(f"{self.what} is only written to")

    def finish(self) -> None:
        """End the command's input and wait for it.

        ChannelError if it did not read everything, DeliveryInDoubt if it did, and failed all the same.
        """
        self._check_open()
        self.close_write()
        try:
            _succeeded(self._process, self.what, self.patience_ns)
        except ChannelError as error:
            if self._process.unread_bytes:
                raise  # nothing runs from a stream without its end
            # It had everything: a machine may run from it, and what failed be a tunnel, or what came after.
            raise DeliveryInDoubt(
                f"{error.message}, after it had been given the whole stream", errno=error.errno
            ) from error
        self.close()

    def close(self) -> None:
        """End the command, if it has not finished."""
        super().close()
        _end(self._process)


class CommandReader(FdChannel):
    """The standard output of a shell command; its failure is an error at the end of the stream."""

    duplex = False

    def __init__(self, command: str, schedule: Schedule | None = None, waits: FdWaits | None = None) -> None:
        super().__init__(f"command {command!r}", schedule, waits)
        self._pipe, theirs = map(apart, os.pipe())
        try:
            self._process = _shell(command, stdout=theirs)
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(self._pipe, False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """StateError: a command that is read from takes nothing."""
        raise StateError(f"{self.what} is only read from")

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes; b"" at the end of a command that succeeded."""
        self._check_open()
        piece = self._receive(self._pipe, limit)
        if not len(piece):
            _succeeded(self._process, self.what, self.patience_ns)
        return piece

    def close_write(self) -> None:
        """Nothing to do: this end never writes."""

    def close(self) -> None:
        """End the command, if it has not ended; may be called twice."""
        if not self._closed:
            self._closed = True
            os.close(self._pipe)
            _end(self._process)


def _shell(command: str, *, stdin: int = NOTHING, stdout: int, fed: bool = False) -> KeptProcess:
    return KeptProcess(("/bin/sh", "-c", command), stdin=stdin, stdout=stdout, stderr=OWN, fed=fed)


def _succeeded(process: KeptProcess, what: str, patience_ns: int) -> None:
    """Wait for the end; ChannelError unless the command has succeeded, and read all that it was given."""
    if not process.wait(patience_ns / 1e9):
        raise ChannelError(f"{what} does not end", errno=errno.ETIMEDOUT)
    if process.status:
        raise ChannelError(f"{what} failed with status {process.status}")
    if process.unread_bytes:
        raise ChannelError(f"{what} ended without reading the last {process.unread_bytes} bytes")


def _end(process: KeptProcess) -> None:
    """End it, unless this is a forked child of the process that started it."""
    if process.owned and process.held:
        process.send_signal(signal.SIGTERM)
        process.wait(END_S)
        process.let_go()


def connect(address: str | tuple[str, int]) -> socket.socket:
    """A connection to a Unix socket's path or to (host, port); HostError if it is refused."""
    try:
        return socket.create_connection(address) if isinstance(address, tuple) else connected(address)
    except OSError as error:
        raise HostError(f"cannot connect to {address}", errno=error.errno or errno.EIO) from error


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
