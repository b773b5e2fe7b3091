"""Commands that end with this program, however it ends: each has a keeper of its own (``keeper.py``).

This holds for the process, not for the thread that started the command, and for this process, not for its
forked children: in those everything here is left alone. How a command ended is what its keeper says, so that
neither an ignored SIGCHLD nor somebody who waits for any child hides it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Final

from vmsim.errors import HostError
from vmsim.host import keeper
from vmsim.host.apart import socket_apart
from vmsim.host.forks import check_owner
from vmsim.host.waits import wait_ready

NOTHING: Final = -1
OWN: Final = -2
FIRST_FREE: Final = 4
"""Descriptors for the keeper are moved here, out of the way of those that it finds them as."""
MESSAGE_BYTES: Final = 64
LEAVE_S: Final = 10.0
"""How long the keeper may take to kill and to tidy up; longer only if a process cannot be killed."""
SLICE_S: Final = 0.05
"""Between two looks whether another thread has heard what we wait for."""


class KeptProcess:
    """``words`` as a process of its own, in ``cwd`` ("": where this program is now).

    ``stdin``, ``stdout`` and ``stderr`` are descriptors that it gets (NOTHING: /dev/null; OWN: the program's,
    if it has that open); a ``fed`` one reads from a pipe what is sent to the socket ``stdin``. ``folder``
    is removed when it is let go. HostError if it cannot be started.
    """

    def __init__(
        self, words: Sequence[str], *, stdin: int = NOTHING, stdout: int = NOTHING, stderr: int = NOTHING,
        folder: str = "", cwd: str = "", fed: bool = False,
    ) -> None:  # fmt: skip
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._status: int | None = None
        self.unread_bytes = 0
        """Of what was sent to a ``fed`` one, when it had ended."""
        ours, theirs = map(socket_apart, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self._control = ours
        try:
            arguments = [str(self.owner), folder, cwd, "1" if fed else "0", *words]
            self._keeper = _spawn(arguments, (stdin, stdout, stderr, theirs.fileno()))
        except OSError as error:
            ours.close()
            # fcntl says EINVAL where not even the lowest descriptor that may be used is allowed.
            number = errno.EMFILE if error.errno == errno.EINVAL else error.errno or errno.EAGAIN
            raise HostError(f"starting {words[0]}", errno=number) from error
        finally:
            theirs.close()
        self._let_go = weakref.finalize(self, _let_go, self.owner, ours, self._keeper)
        said, _, value = self._hear(None).partition(" ")
        if said != "started":
            self._let_go()
            raise HostError(f"starting {words[0]}", errno=int(value or errno.ECHILD))
        self.pid = int(value)

    @property
    def owned(self) -> bool:
        """Whether this is the process that started it, and not a forked child of that."""
        return os.getpid() == self.owner

    @property
    def held(self) -> bool:
        """Whether it has not been let go."""
        return self._let_go.alive

    @property
    def status(self) -> int | None:
        """Its exit status, minus the signal's number if one ended it; None while it runs."""
        if self._status is None and self.held:
            self._listen(0)
        return self._status

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; whether it has."""
        deadline_s = time.monotonic() + timeout_s
        while self.status is None and self.held:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._listen(min(left_s, SLICE_S))
        return True

    def send_signal(self, number: int) -> None:
        """Send it, and all that it started, a signal, if it runs.

        Its id is its own until it is let go: its keeper does not reap it before. A program that has changed
        its ids may not send it: then the keeper does, which has those that the command was started with.
        """
        self.check_owner()
        if self.status is None and self.held:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass
            except PermissionError:
                with contextlib.suppress(OSError):
                    self._control.send(bytes((number,)))

    def let_go(self) -> None:
        """Kill what is left of it, and remove its folder; may be called twice."""
        self.check_owner()
        if self.status is None and self.held:
            self.send_signal(signal.SIGKILL)
            self.wait(LEAVE_S)
        self._let_go()

    def check_owner(self) -> None:
        """StateError in a forked child of the program that started it."""
        check_owner(self.owner, f"process {self.pid}", "start another one here")

    def _listen(self, timeout_s: float) -> None:
        """Take in what the keeper says, for so long."""
        with self._lock:
            said = self._hear(timeout_s) if self._status is None and self.owned else ""
            if said.startswith("ended "):
                self._status, self.unread_bytes = map(int, said[6:].split())

    def _hear(self, timeout_s: float | None) -> str:
        """The next message; empty if there is none in time. A keeper that is gone has ended its command."""
        if not wait_ready(self._control.fileno(), timeout_s):
            return ""
        said = self._control.recv(MESSAGE_BYTES).decode()
        if not said:
            if hasattr(self, "pid"):
                with contextlib.suppress(OSError):
                    os.killpg(self.pid, signal.SIGKILL)
            return f"ended {-signal.SIGKILL} 0"
        return said


def _spawn(arguments: list[str], descriptors: tuple[int, ...]) -> int:
    """Start a keeper with these descriptors as 0, 1, ...; its process id."""
    if not sys.executable:
        raise OSError(errno.ENOENT, "sys.executable does not say which Python to start a keeper with")
    held: list[int] = []
    try:
        actions: list[tuple[int, ...]] = []
        for number, fd in enumerate(descriptors):
            fd = number if fd == OWN and _is_standard(number) else fd
            nothing = fd < 0
            source = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if nothing else fd
            try:
                held.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE))
            finally:
                if nothing:
                    os.close(source)
            actions.append((os.POSIX_SPAWN_DUP2, held[-1], number))
        # -S and -I: nothing of the program's environment runs in it, and it starts in a third of the time.
        words = [sys.executable, "-I", "-S", keeper.__file__, *arguments]
        return os.posix_spawn(
            words[0], words, os.environ, file_actions=actions, setsid=True, setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )  # fmt: skip
    finally:
        for fd in held:
            os.close(fd)


def _is_standard(fd: int) -> bool:
    """Whether a descriptor below 3 is a standard stream: where those are closed, it may be one of ours."""
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


def _let_go(owner: int, control: socket.socket, keeper_id: int) -> None:
    """Have the keeper end, and wait for it; in a forked child only forget it."""
    if os.getpid() == owner:
        # A forked child may hold the socket as well: closing it would tell nobody anything.
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_WR)
        control.settimeout(LEAVE_S)
        with contextlib.suppress(OSError):
            while control.recv(MESSAGE_BYTES) not in (b"done", b""):
                pass
            # ChildProcessError if SIGCHLD is ignored, or somebody waits for any child.
            os.waitpid(keeper_id, 0)
    control.close()
