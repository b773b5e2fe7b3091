"""The file of a listening Unix socket: made by us, known again, removed by us and nobody else's."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import Final

ADDRESS_MAX: Final = 107
"""Bytes of a path in a socket address (unix(7))."""
ACCEPTS: Final = 0x10000
"""__SO_ACCEPTCON among the flags of /proc/net/unix."""
KINDS: Final = {
    stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a named pipe",
}  # fmt: skip


def connected(path: str) -> socket.socket:
    """A stream socket that is connected to the socket file ``path``; OSError if that is refused."""
    connection: socket.socket | None = None
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with reachable(path) as name:
            connection.connect(name)
        return connection
    except BaseException:  # an interrupt too: nobody else has it yet
        if connection is not None:
            connection.close()
        raise


class SocketFile:
    """Binds ``listening`` to ``path``, with exactly ``mode`` (None: as the umask has it) and ``group``.

    OSError if that cannot be; then there is no file, or the one that was there. The umask is not touched:
    the kernel takes the mode of the socket's own inode, less the umask, so that the file is never wider than
    ``mode``, not for a moment.
    """

    def __init__(self, listening: socket.socket, path: str, mode: int | None = None, group: int = -1) -> None:
        folder, self._name = os.path.split(path)
        if not self._name:
            raise OSError(errno.EISDIR, "no name of a file")  # the system would choose one for ""
        self._identity: tuple[int, int] | None = None
        self._owner = os.getpid()
        # What ``path`` is relative to may be another folder when the file is removed.
        self._folder = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if mode is not None:
                os.fchmod(listening.fileno(), mode)
            with reachable(path) as name:
                listening.bind(name)
            self._identity = self._found()
            if group >= 0:  # whoever may write to the folder may have put a link there
                os.chown(self._name, -1, group, dir_fd=self._folder, follow_symlinks=False)
            if mode is not None:
                self._widen(mode)
        except BaseException:
            self.remove()
            raise

    def _widen(self, mode: int) -> None:
        """Give the file what the umask has taken, if it is still the one that was made."""
        fd = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == self._identity and stat.S_IMODE(found.st_mode) != mode:
                os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self._name, dir_fd=self._folder)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def disown(self) -> None:
        """For a child process: leave the file, and every way to its folder, to the parent."""
        self._identity = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def remove(self) -> None:
        """Remove the file, unless it is another one by now or a forked child says so; may be called twice."""
        if self._owner == os.getpid() and self._identity is not None and self._found() == self._identity:
            with contextlib.suppress(OSError):  # the folder is read-only by now, or somebody was faster
                os.unlink(self._name, dir_fd=self._folder)
        self.disown()


@contextlib.contextmanager
def reachable(path: str) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address, however long the path is."""
    if len(os.fsencode(path)) <= ADDRESS_MAX:
        yield path
        return
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{fd}/{name}"
        if len(os.fsencode(short)) > ADDRESS_MAX:
            raise OSError(errno.ENAMETOOLONG, "the name alone does not fit")
        yield short
    finally:
        os.close(fd)


def who_has(path: str) -> str:
    """What is at ``path``, in words: its kind and, for a socket, who listens there. Nobody is disturbed."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "something"
    kind = KINDS.get(stat.S_IFMT(mode), "a device")
    if not stat.S_ISSOCK(mode):
        return kind
    inode = _listening(path)
    return f"{kind} {_holder(inode)}" if inode else f"{kind} that nobody seems to listen on"


def listened_on(path: str) -> bool:
    """Whether a socket of this network namespace listens on ``path``, as far as the name tells."""
    return bool(_listening(path))


def _listening(path: str) -> str:
    """The inode of the socket that listens on ``path``, of /proc/net/unix; empty if there is none."""
    try:
        with open("/proc/net/unix", "rb") as lines:
            rows = [line.split(None, 7) for line in lines]
    except OSError:
        return ""
    for row in rows[1:]:
        if len(row) == 8 and int(row[3], 16) & ACCEPTS:
            bound = os.fsdecode(row[7].rstrip(b"\n"))
            with contextlib.suppress(OSError):
                if os.path.basename(bound) == os.path.basename(path) and os.path.samefile(bound, path):
                    return row[6].decode()
    return ""


def _holder(inode: str) -> str:
    """Which process has the socket, as far as we may see."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = f"/proc/{pid}/fd"
            for fd in os.listdir(folder):
                if os.readlink(f"{folder}/{fd}") == f"socket:[{inode}]":
                    with open(f"/proc/{pid}/comm") as name:
                        return f"that process {pid} ({name.read().strip()}) listens on"
    return "that somebody listens on"
