"""A small process between a program and a command that it started: the command never outlives the program.

It is started by :mod:`vmsim.host.kept` as a script of its own, with nothing but the standard library:

    keeper.py OWNER FOLDER CWD FED WORD...

and descriptor 3, a socket on which it tells, one line a message, ``started PID`` or ``failed ERRNO``, then
``ended STATUS UNREAD`` (as ``Popen.returncode``; bytes of its input), and at last ``done``. A byte that comes
is the number of a signal for the command: an owner that has changed its ids may not send it itself. When that
socket is shut down, or the process OWNER has ended, however that happened, it kills what is left of the
command's process group and removes FOLDER ("" if there is none). The command runs in CWD ("": as it is
here), with fresh signals and in a session of its own. With FED "1" descriptor 0 is a socket, whose bytes
are passed on to the command by a pipe, to their end.

Why a process, and why this way: PR_SET_PDEATHSIG is tied to the *thread* that started the command, and
forgotten when the command changes its ids; a pipe that only its owner holds is held by each forked child of
the program too; a program that ignores SIGCHLD, or waits for any child, never learns how its own one ended. A
pidfd of the owner, and a parent of the command that is nothing else, know no such case.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import signal
import sys
import termios

CONTROL = 3
LOOK_MS = 50
"""Between two looks where the system has no pidfds (before Linux 5.3, or some sandboxes)."""
PIECE = 1 << 20


class Keeper:
    """What it watches, and what it knows."""

    def __init__(self, owner: int, folder: str) -> None:
        self.owner = owner
        self.folder = folder
        self.child = 0
        self.ended = False
        self.feed = (-1, -1)
        """A socket, and the pipe that its bytes go to."""
        self.rest = -1
        """That pipe's other end, once all bytes are in it: it tells how many were not read."""
        self.lost = 0
        """Bytes that did not get into the pipe, because nobody would read them."""
        self.poll = select.poll()
        self.poll.register(CONTROL, select.POLLIN)
        self.watch = self.pidfd(owner)

    def pidfd(self, pid: int) -> int:
        """A descriptor that is readable when the process has ended; -1 if there is none."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return -1
        self.poll.register(fd, select.POLLIN)
        return fd

    def owner_lives(self) -> bool:
        """Whether we still belong to it; it cannot end unseen and be taken for another with its id."""
        return os.getppid() == self.owner

    def start(self, words: list[str], fed: bool) -> None:
        """Start the command; OSError if that cannot be."""
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_CLOSE, CONTROL)]
        reader = -1
        if fed:
            reader, writer = os.pipe()
            self.feed = (os.dup(0), writer)
            for fd in self.feed:
                os.set_blocking(fd, False)
            os.dup2(reader, 0, inheritable=True)
            os.close(reader)
            self.poll.register(self.feed[0], select.POLLIN)
        self.child = os.posix_spawnp(
            words[0], words, environment(), file_actions=actions, setsid=True, setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )  # fmt: skip
        # The command's input and output are its alone: their other ends shall see when it closes them.
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(nothing, fd)
        os.close(nothing)
        self.child_watch = self.pidfd(self.child)

    def run(self) -> None:
        """Until the owner is gone or wants no more."""
        while self.owner_lives():
            sleeps = self.watch >= 0 and (self.child_watch >= 0 or self.ended)
            ready = dict(self.poll.poll(None if sleeps else LOOK_MS))
            self.look()
            if CONTROL in ready:
                asked = os.read(CONTROL, 1)
                if not asked:
                    return
                self.signal(asked[0])
            if any(fd in ready for fd in self.feed):
                self.pass_on()

    def signal(self, number: int) -> None:
        """Send the command a signal that the owner may not send any more."""
        if not self.ended:
            try:
                os.killpg(self.child, number)
            except (ProcessLookupError, PermissionError):
                pass

    def look(self) -> None:
        """Tell how the command ended. It is not reaped yet: so nobody else gets the id that we may kill."""
        if self.ended:
            return
        found = os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is not None:
            self.ended = True
            if self.child_watch >= 0:
                self.poll.unregister(self.child_watch)
            killed = found.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
            tell(f"ended {-found.si_status if killed else found.si_status} {self.unread()}")

    def unread(self) -> int:
        """How many bytes the command has not read, and nobody will; nobody is told that more were sent."""
        self.refuse()
        return self.lost + sum(waiting(fd) for fd in (*self.feed, self.rest) if fd >= 0)

    def refuse(self) -> None:
        """Whoever sends more fails to."""
        if self.feed[0] >= 0:
            _socket.socket(fileno=os.dup(self.feed[0])).shutdown(_socket.SHUT_RD)

    def pass_on(self) -> None:
        """Move bytes from the socket to the pipe, as many as there are and fit."""
        source, target = self.feed
        try:
            moved = os.splice(source, target, PIECE, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            # One of them waits for the other: whichever does now.
            if select.select([source], [], [], 0)[0]:
                self.turn(source, target, select.POLLOUT)
            else:
                self.turn(target, source, select.POLLIN)
            return
        except BrokenPipeError:
            self.refuse()
            self.lost = waiting(source) + waiting(target)
            moved = 0
        if not moved:
            self.rest = os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_NONBLOCK)
            for fd in self.feed:
                self.forget(fd)
                os.close(fd)
            self.feed = (-1, -1)

    def turn(self, away: int, to: int, events: int) -> None:
        """Wait for the one instead of the other."""
        self.forget(away)
        self.poll.register(to, events)

    def forget(self, fd: int) -> None:
        """Wait for it no longer, if we did."""
        try:
            self.poll.unregister(fd)
        except KeyError:
            pass

    def finish(self) -> None:
        """Leave nothing behind."""
        if self.child:
            try:
                os.killpg(self.child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            os.waitpid(self.child, 0)
        if self.folder:
            import shutil

            shutil.rmtree(self.folder, ignore_errors=True)
        tell("done")


def waiting(fd: int) -> int:
    """How many bytes are in it."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def tell(line: str) -> None:
    """Say something to the owner, who may be gone."""
    try:
        os.write(CONTROL, line.encode())
    except OSError:
        pass


def environment() -> dict[bytes, bytes]:
    """The program's own: Python may have added to ours, for the sake of a locale."""
    with open("/proc/self/environ", "rb") as file:
        entries = [entry.partition(b"=") for entry in file.read().split(b"\0") if b"=" in entry]
    return {name: value for name, _, value in entries}


def close_others() -> None:
    """Close what the program let its children inherit."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > CONTROL:
            try:
                os.close(int(name))
            except OSError:
                pass  # that of the list itself


def main() -> None:
    """Start the command and keep it."""
    owner, folder, cwd, fed, *words = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(0))
    close_others()
    os.set_inheritable(CONTROL, False)
    keeper = Keeper(int(owner), folder)
    try:
        if keeper.owner_lives():
            try:
                if cwd:
                    os.chdir(cwd)
                keeper.start(words, fed == "1")
            except OSError as error:
                tell(f"failed {error.errno}")
            else:
                tell(f"started {keeper.child}")
                keeper.run()
    finally:
        keeper.finish()


if __name__ == "__main__":
    main()
