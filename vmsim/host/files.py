"""Migration channels (seam S2) to and from files, and every kind of channel by its URI, as in QEMU."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import Final

from vmsim.errors import HostError, StateError, UsageError
from vmsim.host import quiet
from vmsim.host.apart import apart
from vmsim.host.channels import CommandReader, CommandWriter, SocketChannel, accept, connect
from vmsim.host.forks import check_owner
from vmsim.host.waits import FdWaits
from vmsim.migration.channel import Channel, ChannelBase
from vmsim.schedule import Schedule

READ_BYTES: Final = 1 << 20


class FileWriter(ChannelBase):
    """Saves a stream: it appears under its name only when it is complete and on the disk.

    HostError when the system refuses, UsageError for a name that something else than a file has (it would be
    replaced). Only the owner may read the file: it holds a guest's memory.
    """

    duplex = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(os.fspath(path))
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise UsageError(f"{self.path} is there and no file", hint="exec:cat > NAME writes into a device")
        self._owner = os.getpid()
        folder, name = os.path.split(self.path)
        try:
            fd, self._temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            self._fd = apart(fd)
        except OSError as error:
            raise _refused(f"cannot write to {folder}", error) from error

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``."""
        self._check_open()
        view = memoryview(data)
        try:
            while len(view):
                view = view[quiet.write(self._fd, view) :]
        except OSError as error:
            raise _refused(f"cannot write {self.path}", error) from error

    def read_some(self, limit: int) -> bytes | memoryview:
        """StateError: a file that is saved to gives nothing back."""
        raise StateError(f"{self.path} is only written to")

    def close_write(self) -> None:
        """Nothing to do: only :meth:`finish` completes a file."""

    def finish(self) -> None:
        """Put everything on the disk, then give the file its name."""
        self._check_open()
        try:
            os.fsync(self._fd)
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise _refused(f"cannot finish {self.path}", error) from error
        self._temporary = ""
        try:
            self.close()
        except OSError:
            pass  # it is on the disk under its name, and counts
        self._sync_folder()

    def close(self) -> None:
        """Close; a file that was not finished disappears, unless this is a forked child of who began it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._temporary and os.getpid() == self._owner:
            os.unlink(self._temporary)
            self._temporary = ""

    def _check_open(self) -> None:
        if self._fd < 0:
            raise StateError(f"{self.path} is closed")
        check_owner(self._owner, f"what is to be {self.path}", "save to another file here")

    def _sync_folder(self) -> None:
        """Make the name durable where the file system can; the file is complete in any case."""
        try:
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # a folder that may be written but not read
        try:
            os.fsync(folder)
        except OSError:
            pass  # some file systems refuse to sync a folder
        finally:
            os.close(folder)


class FileReader(ChannelBase):
    """Reads a saved stream."""

    duplex = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._owner = os.getpid()
        self._buffer = memoryview(bytearray(READ_BYTES))
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(f"cannot open {self.path}", error) from error

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """StateError: a file that is restored takes nothing."""
        raise StateError(f"{self.path} is only read from")

    def read_some(self, limit: int) -> bytes | memoryview:
        """Between 1 and ``limit`` bytes; b"" at the end."""
        if self._fd < 0:
            raise StateError(f"{self.path} is closed")
        check_owner(self._owner, f"this reader of {self.path}", "open the file again here")
        view = self._buffer[:limit]
        try:
            return view[: os.readv(self._fd, [view])]
        except OSError as error:
            raise _refused(f"cannot read {self.path}", error) from error

    def close_write(self) -> None:
        """Nothing to do: this end never writes."""

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _refused(what: str, error: OSError) -> HostError:
    return HostError(what, errno=error.errno or errno.EIO)


def _address(rest: str, uri: str) -> tuple[str, int]:
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdecimal():
        raise UsageError(f"{uri!r} is not tcp:HOST:PORT")
    return host, int(port)


def outgoing_channel(uri: str, schedule: Schedule | None = None, waits: FdWaits | None = None) -> Channel:
    """The source's channel for ``file:PATH``, ``unix:PATH``, ``tcp:HOST:PORT`` or ``exec:COMMAND``."""
    scheme, _, rest = uri.partition(":")
    if scheme == "file":
        return FileWriter(rest)
    if scheme == "exec":
        return CommandWriter(rest, schedule, waits)
    if scheme in ("unix", "tcp"):
        connection = connect(rest if scheme == "unix" else _address(rest, uri))
        return SocketChannel(connection, schedule, waits, uri)
    raise UsageError(f"unknown kind of channel {uri!r}", hint="file:, unix:, tcp: or exec:")


def incoming_channel(uri: str, schedule: Schedule | None = None, waits: FdWaits | None = None) -> Channel:
    """The destination's channel for the same URIs; unix and tcp wait for one connection."""
    scheme, _, rest = uri.partition(":")
    if scheme == "file":
        return FileReader(rest)
    if scheme == "exec":
        return CommandReader(rest, schedule, waits)
    if scheme in ("unix", "tcp"):
        connection = accept(rest if scheme == "unix" else _address(rest, uri))
        return SocketChannel(connection, schedule, waits, uri)
    raise UsageError(f"unknown kind of channel {uri!r}", hint="file:, unix:, tcp: or exec:")
