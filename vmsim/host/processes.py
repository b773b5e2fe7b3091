"""Back-ends in processes of their own: started from a command, reached by a socket, never left behind."""

from __future__ import annotations

import errno
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Final, Self

from vmsim.errors import HostError, UsageError
from vmsim.host.kept import KeptProcess
from vmsim.host.sockets import UnixSocket

Command = str | Sequence[str]
"""A command line, or its words, with ``{socket}`` and ``{dir}`` in it, and perhaps ``{options}``."""

SERVE: Final = (
    sys.executable, "-P", "-m", "vmsim.cli", "serve", "--socket-path", "{socket}", "--shared-dir", "{dir}",
)  # fmt: skip
"""The back-end that is started unless another one is asked for."""

START_S: Final = 30.0
"""How long a back-end may take until somebody can connect to it."""
STOP_S: Final = 5.0
"""How long it may take to end when it is asked to."""
LOOK_S: Final = 0.002
"""Between two attempts to connect."""
TAIL_BYTES: Final = 2000
"""Of what it said last, for messages."""
NOT_YET: Final = (errno.ENOENT, errno.ECONNREFUSED)

def words_of(command: Command, socket: str, share: str, options: Sequence[str] = ()) -> list[str]:
    """The words of ``command``, placeholders filled in; ``options`` come last if it has no place for them.

    UsageError if it is no command line, or has no ``{socket}``.
    """
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise UsageError(f"command {command!r}: {error}", hint="quote it as for a shell") from error
    if not any("{socket}" in word for word in words):
        raise UsageError(
            f"the command {shlex.join(words)!r} does not say where the back-end listens",
            hint="write {socket} where the socket's path belongs, and {dir} for the shared directory",
        )
    if "{options}" not in words:
        words.append("{options}")
    found: list[str] = []
    for word in words:
        if word == "{options}":
            found.extend(options)
        else:
            found.append(word.replace("{socket}", socket).replace("{dir}", share))
    return found

FOLDER_MAX: Final = 70
"""Bytes of a temporary folder's path in which a socket's path still fits into an address."""


class BackendProcess:
    """A back-end of ``share`` that listens on ``socket``, in a temporary folder that nobody else can enter.

    ``command`` is that of ``words_of``, by default ``vmsim serve``; ``options`` are added to it, and it
    runs in ``cwd`` ("": where the program is now). It has been started when this returns; ``connect`` waits
    for it. It ends with ``stop`` or ``kill``, with this object, and with this process (whatever becomes of
    the thread that made it), however that ends; and so does the folder. UsageError or HostError if it
    cannot be started.
    """

    def __init__(
        self, share: str, command: Command | None = None, options: Sequence[str] = (), cwd: str = ""
    ) -> None:
        self.share = share
        self._pending: UnixSocket | None = None
        # Others' back-ends take no longer path for their socket than an address holds.
        short = len(tempfile.gettempdir()) <= FOLDER_MAX
        folder = tempfile.mkdtemp(prefix="vmsim-backend-", dir=None if short else "/tmp")
        try:
            self.socket = os.path.join(folder, "socket")
            self.command = words_of(command or SERVE, self.socket, share, options)
            self._said: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            said = self._said.fileno()
            self._process = KeptProcess(self.command, stdout=said, stderr=said, folder=folder, cwd=cwd)
        except BaseException:
            if hasattr(self, "_said"):
                self._said.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(self, self._said.close)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.status is None

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal's number if one ended it; None while it runs."""
        return self._process.status

    def ending(self) -> str:
        """How it ended, in words; empty while it runs."""
        status = self.status
        if status is None:
            return ""
        if status >= 0:
            return f"the back-end ended with exit status {status}"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"the back-end was killed by {name}"

    def said(self, limit: int = TAIL_BYTES) -> str:
        """The last ``limit`` bytes of what it wrote to its standard output and error."""
        if self._said.closed:
            return ""
        fd = self._said.fileno()
        end = os.fstat(fd).st_size
        start = max(0, end - limit)
        return os.pread(fd, end - start, start).decode("utf-8", "replace").strip()

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Return once somebody could connect; HostError, with what it said, if it ends before or is deaf.

        The connection is kept for the next ``connect``: many back-ends take only one.
        """
        if self._pending is None:
            self._pending = self._connected(timeout_s)

    def connect(self, timeout_s: float = START_S) -> UnixSocket:
        """A connection to it, once it listens; errors are those of ``wait_ready``."""
        connection, self._pending = self._pending, None
        return connection or self._connected(timeout_s)

    def _connected(self, timeout_s: float) -> UnixSocket:
        deadline_s = time.monotonic() + timeout_s
        while True:
            alive = self.alive
            try:
                return UnixSocket.connect(self.socket)
            except HostError as error:
                if error.errno not in NOT_YET:
                    raise
            if not alive:
                raise self._unreachable(self.ending(), errno.ECONNREFUSED)
            if time.monotonic() >= deadline_s:
                why = f"nobody listens on {self.socket} after {timeout_s:g} s"
                raise self._unreachable(why, errno.ETIMEDOUT)
            time.sleep(LOOK_S)

    def _unreachable(self, why: str, number: int) -> HostError:
        said = self.said()
        return HostError(
            f"{shlex.join(self.command)}: {why}",
            errno=number,
            hint=f"it said: {said}" if said else "it said nothing; try the command by hand",
        )

    def send_signal(self, number: int) -> None:
        """Send it a signal (SIGSTOP, SIGCONT, ...), if it runs."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_S) -> bool:
        """Wait until it has ended; whether it has."""
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """End it without warning, as a crash would; what it said stays readable until ``stop``."""
        self.send_signal(signal.SIGKILL)
        self.wait(math.inf)

    def stop(self) -> None:
        """Ask it to end, insist after STOP_S, and remove its folder; may be called twice.

        In a forked child of the program that started it nothing is done to it.
        """
        if self._pending is not None:
            self._pending.close()
            self._pending = None
        if self._process.held and self._process.owned:
            self.send_signal(signal.SIGTERM)
            self.wait(STOP_S)
            self._process.let_go()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

