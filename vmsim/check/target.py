"""The back-end under test: a running one behind a socket, or as many fresh ones as are needed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmsim.check.outcome import NotOffered
from vmsim.errors import HostError, UsageError
from vmsim.host.directory import fixed
from vmsim.host.processes import BackendProcess
from vmsim.host.sockets import UnixSocket

FOLDER: Final = "vmsim-check-"
SPARES: Final = 2
"""Instances that are started before they are needed: a back-end may take its time."""
GRACE_S: Final = 0.3
"""Between the end of a connection and that of the process behind it."""
OPTIONS: Final = "{options}"
PANICS: Final = ("panicked at", "Traceback (most recent call last)", "AddressSanitizer", "runtime error:")
"""What processes say when they end by a mistake of their own."""


@dataclass(frozen=True)
class Aim:
    """How the back-end is reached, as the user said: ``start`` a command, or else ``socket`` a path.

    ``shared_dir`` is what a running back-end shares; with ``start`` fresh directories are made in it.
    """

    start: str = ""
    socket: str = ""
    shared_dir: str = ""
    timeout_s: float = 5.0
    seed: int = 0
    cwd: str = ""
    """What all paths are relative to, and where the command runs; "": where we are when a Target is made."""

    def check(self) -> None:
        """UsageError unless it can be aimed at."""
        if bool(self.start) == bool(self.socket):
            raise UsageError(
                "which back-end?", hint="give --start 'COMMAND with {socket} and {dir}', or --socket-path"
            )
        if self.shared_dir and not os.path.isdir(self.shared_dir):
            raise UsageError(f"{self.shared_dir} is not a directory", hint="see --shared-dir")


class Instance:
    """One back-end process, or one connection to somebody else's.

    ``folder`` is the directory on this host in which a case may do what it likes ("" if nobody knows it),
    ``home`` the same directory as the guest sees it.
    """

    def __init__(self, target: Target, process: BackendProcess | None, folder: str, home: str = "/") -> None:
        self.target = target
        self.process = process
        self.folder = folder
        self.home = home
        self.ended_by = 0
        """The signal by which we ended it."""
        self.partner: Instance | None = None
        """A second process on the same directory, which was started early."""
        self.may_end = False
        """Its end, if not by a signal or a panic, is no crash: we let it go, or broke the protocol."""

    @property
    def begun(self) -> BackendProcess:
        """Its process, which we started."""
        assert self.process is not None
        return self.process

    def connect(self) -> UnixSocket:
        """A connection to it; NotOffered if it took one before and takes no other."""
        if self.process is not None:
            return self.process.connect()
        socket = self.target.aim.socket
        try:
            connection = UnixSocket.connect(socket)
        except HostError as error:
            why = os.strerror(error.errno)
            if self.target.reached:
                raise NotOffered(f"the back-end takes no further connection ({why}): use --start") from error
            raise UsageError(f"nobody listens on {socket}: {why}", hint="start the back-end first") from error
        self.target.reached = True
        return connection

    def panic(self) -> str:
        """The line in which it said that a thread of it ended by a mistake; empty if none."""
        said = self.process.said(4000) if self.process is not None else ""
        return next((line for line in said.splitlines() if any(word in line for word in PANICS)), "")

    def death(self, *, lost: bool = False) -> str:
        """How it ended, if it did and should not have; empty otherwise. ``lost``: it is about to end."""
        if self.process is None or (not (lost and self.process.wait(GRACE_S)) and self.process.alive):
            return ""
        status = self.process.status or 0
        ours = self.ended_by and status in (-self.ended_by, 128 + self.ended_by)
        if self.may_end and (0 <= status < 128 or ours):
            return ""
        return self.process.ending()

    def said(self) -> str:
        """The last of what it printed."""
        return self.process.said(1200) if self.process is not None else ""

    def close(self) -> None:
        """End it, if it is ours; at once, for the next case waits."""
        if self.partner is not None:
            self.partner.close()
        if self.process is not None:
            self.process.kill()
            self.process.stop()


class Target:
    """Makes instances as ``aim`` says. ``close`` ends all of them and removes their directories."""

    def __init__(self, aim: Aim) -> None:
        aim.check()
        cwd = fixed(aim.cwd or ".")
        socket, shared_dir = (path and os.path.join(cwd, path) for path in (aim.socket, aim.shared_dir))
        self.aim = dataclasses.replace(aim, cwd=cwd, socket=socket, shared_dir=shared_dir)
        self.reached = False
        """Somebody has taken a connection."""
        self._spares: list[Instance] = []
        self._folders: list[str] = []
        self.unknown: set[tuple[str, ...]] = set()
        """Options with which it does not start."""

    def known(self, options: tuple[str, ...]) -> tuple[str, ...]:
        """``options`` if the command has a place for them, and has not ended because of them; else none."""
        return options if OPTIONS in self.aim.start and options not in self.unknown else ()

    def try_start(self) -> None:
        """UsageError, with what it said, if the command starts no back-end."""
        if self.aim.start:
            spare = self._begin(self._make_folder(), ())
            self._spares.append(spare)
            assert spare.process is not None
            try:
                spare.process.wait_ready()
            except HostError as error:
                raise UsageError(error.message, hint=error.hint) from error

    def take(self, options: tuple[str, ...] = ()) -> Instance:
        """A fresh instance on a directory of its own (or the next connection to the only one)."""
        if not self.aim.start:
            return self._running()
        if options:
            return self._begin(self._make_folder(), options)
        self.prepare(pair=False)
        return self._spares.pop(0)

    def prepare(self, *, pair: bool) -> None:
        """Start the next instance, or two on one directory, while the present case runs."""
        if not self.aim.start:
            return
        while len(self._spares) < SPARES:
            self._spares.append(self._begin(self._make_folder(), ()))
        spare = self._spares[0]
        if pair and spare.partner is None:
            spare.partner = self._begin(spare.folder, ())

    def another(
        self, instance: Instance, options: tuple[str, ...] = (), *, elsewhere: bool = False
    ) -> Instance:
        """One more process on the directory of ``instance``, or with ``elsewhere`` on an empty one."""
        if not self.aim.start:
            raise NotOffered("needs two instances: use --start")
        if elsewhere:
            return self._begin(self._make_folder(), options)
        partner, instance.partner = instance.partner, None
        return partner or self._begin(instance.folder, options)

    def _begin(self, folder: str, options: tuple[str, ...]) -> Instance:
        command = self.aim.start.replace(OPTIONS, " ".join(options))
        try:
            return Instance(self, BackendProcess(folder, command, cwd=self.aim.cwd), folder)
        except HostError as error:
            raise UsageError(f"{error.message}: {os.strerror(error.errno)}", hint="see --start") from error

    def _running(self) -> Instance:
        shared = self.aim.shared_dir
        if not shared:
            return Instance(self, None, "")
        folder = self._make_folder(shared)
        return Instance(self, None, folder, "/" + os.path.basename(folder))

    def _make_folder(self, parent: str | None = None) -> str:
        folder = tempfile.mkdtemp(prefix=FOLDER, dir=parent or self.aim.shared_dir or None)
        os.chmod(folder, 0o755)
        self._folders.append(folder)
        return folder

    def drop(self, folder: str) -> None:
        """Remove a directory that ``take`` made."""
        if folder in self._folders:
            self._folders.remove(folder)
            shutil.rmtree(Path(folder), ignore_errors=True)

    def close(self) -> None:
        """End every spare and remove every directory."""
        for spare in self._spares:
            spare.close()
        self._spares.clear()
        for folder in list(self._folders):
            self.drop(folder)
