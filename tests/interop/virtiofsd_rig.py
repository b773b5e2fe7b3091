"""Real back-ends behind sockets: virtiofsd and ``vmsim serve`` as processes, and machines on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmsim.host.processes import SERVE, BackendProcess
from vmsim.machine import Machine, RemoteBackend
from vmsim.schedule.immediate import ImmediateSchedule

SANDBOX = ["--sandbox=none", "--seccomp=none"]
"""A container allows no namespaces. What the guest's facade asks for stays in the share."""
CHROOT = ["--sandbox=chroot", "--seccomp=none"]
"""For raw requests, with names that no kernel would send: nothing outside the share can be reached."""


def start_virtiofsd(peers: Any, share: Path, *arguments: str, confined: bool = False) -> BackendProcess:
    """The real virtiofsd on ``share``; ``confined`` keeps it in there whatever it is asked for."""
    sandbox = CHROOT if confined else SANDBOX
    command = [peers.virtiofsd, *sandbox, "--socket-path={socket}", "--shared-dir={dir}"]
    return BackendProcess(str(share), command, arguments)


def start_serve(share: Path, *arguments: str) -> BackendProcess:
    """``vmsim serve`` on ``share``."""
    return BackendProcess(str(share), SERVE, ("--xattr", *arguments))


class World:
    """One schedule for machines on back-ends behind sockets."""

    def __init__(self) -> None:
        self.schedule = ImmediateSchedule()

    def machine(self, process: BackendProcess, **changes: Any) -> Machine:
        """A machine on that back-end, with a split ring and 8 MiB unless told otherwise."""
        return Machine(
            process.share, schedule=self.schedule, **{"memory": "8M", **changes},
            backend=RemoteBackend(process, process.share, self.schedule),
        )  # fmt: skip
