"""Real back-ends behind sockets: virtiofsd and ``vmsim serve`` as processes, and machines on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vmsim.errors import HostError
from vmsim.host.services import HostServices
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.transport import VhostUserTransport
from vmsim.host.waits import FdWaits
from vmsim.machine import Machine, parts
from vmsim.sim.immediate import ImmediateSchedule
from vmsim.vhost.dialects import DIALECTS

START_S = 20
END_S = 10
SANDBOX = ["--sandbox=none", "--seccomp=none"]
"""A container allows no namespaces. What the guest's facade asks for stays in the share."""
CHROOT = ["--sandbox=chroot", "--seccomp=none"]
"""For raw requests, with names that no kernel would send: nothing outside the share can be reached."""


class Daemon:
    """A back-end process that listens on ``path`` and serves ``share``; ``close`` ends it.

    Its socket has a folder of its own: paths of sockets are short.
    """

    def __init__(self, command: list[str], share: Path, arguments: tuple[str, ...] = ()) -> None:
        self.share = share
        self.folder = Path(tempfile.mkdtemp(prefix="vmsim-"))
        self.path = self.folder / "socket"
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--socket-path={self.path}", f"--shared-dir={share}", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def connect(self) -> UnixSocket:
        """A connection, as soon as it listens; AssertionError with its log if it has ended."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return UnixSocket.connect(str(self.path))
            except HostError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.005)

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> int:
        """End it; its exit code. May be called twice."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(END_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        return code


def start_virtiofsd(peers: Any, share: Path, *arguments: str, confined: bool = False) -> Daemon:
    """The real virtiofsd on ``share``; ``confined`` keeps it in there whatever it is asked for."""
    return Daemon([peers.virtiofsd, *(CHROOT if confined else SANDBOX)], share, arguments)


def start_serve(share: Path, *arguments: str) -> Daemon:
    """``vmsim serve`` on ``share``."""
    return Daemon([sys.executable, "-m", "vmsim.cli", "serve"], share, arguments)


class RemoteBackend(parts.Backend):
    """A machine's back-end in the process of a ``Daemon``."""

    def __init__(self, daemon: Daemon, waits: FdWaits) -> None:
        self.daemon = daemon
        self.waits = waits
        self.share = os.fspath(daemon.share)
        self.type = parts.find_device("virtio-fs")
        self.host = HostServices()
        self.link: VhostUserTransport | None = None

    @property
    def connected(self) -> bool:
        """Whether somebody is connected to it."""
        return self.link is not None and not self.link.lost

    def connect(self) -> VhostUserTransport:
        """A new connection."""
        self.link = VhostUserTransport(self.daemon.connect(), DIALECTS["upstream"].messages, self.waits)
        return self.link

    def facts(self) -> dict[str, int]:
        """Nobody but itself knows."""
        return {}

    def close(self) -> None:
        """End the process."""
        self.daemon.close()


class World:
    """One schedule for machines on back-ends behind sockets."""

    def __init__(self) -> None:
        self.waits = FdWaits()
        self.schedule = ImmediateSchedule(idle=self.waits.idle)

    def machine(self, daemon: Daemon, **changes: Any) -> Machine:
        """A machine on that back-end, with a split ring and 8 MiB unless told otherwise."""
        return Machine(
            daemon.share, schedule=self.schedule, backend=RemoteBackend(daemon, self.waits),
            **{"memory": "8M", **changes},
        )  # fmt: skip
