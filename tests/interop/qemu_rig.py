"""A real QEMU: its process, its monitor (QMP), and migrations between two of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.support.waiting import until
from vmsim.host.processes import SERVE, BackendProcess

START_S = 20
ANSWER_S = 60
END_S = 10
LOOK_S = 0.005
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
VIRTIOFSD, VMSIM = "virtiofsd", "vmsim"
ACCEPTS_CONNECTIONS = 0x10000
"""The flag of a listening socket in /proc/net/unix."""


class QmpError(Exception):
    """QEMU refused a command; the message is QEMU's."""


def _connected(path: Path) -> socket.socket | None:
    """A connection, if somebody listens."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.fspath(path))
    except OSError:
        connection.close()
        return None
    return connection


class Lines:
    """A connection to a Unix socket of QEMU on which lines go to and fro."""

    def __init__(self, path: Path, alive: Callable[[], bool], said: Callable[[], str]) -> None:
        self._said = said
        self._socket = until(lambda: _connected(path), f"{path.name} to listen", saw=said, alive=alive)
        self._socket.settimeout(ANSWER_S)
        self._file = self._socket.makefile("rb")

    def send(self, line: str) -> None:
        """Send a line."""
        self._socket.sendall(line.encode() + b"\n")

    def receive(self) -> str:
        """The next line; ConnectionError, with what QEMU said, if there is none."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            line = b""
        if not line.endswith(b"\n"):
            raise ConnectionError(f"QEMU is gone: {self._said()}")
        return line.decode().rstrip("\n")

    def close(self) -> None:
        """Close it; may be called twice."""
        self._file.close()
        self._socket.close()


class Qemu:
    """One QEMU process with ``arguments``; ``folder`` (its own) holds its sockets and its log.

    ``close`` ends it and removes the folder; may be called twice. It is also a context manager.
    """

    def __init__(self, peers: Any, *arguments: str, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="vmsim-qemu-"))
        self._qmp: Lines | None = None
        self.events: list[dict[str, Any]] = []
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*DIES_WITH_US, peers.qemu, "-nodefaults", "-no-user-config", "-display", "none",
                 "-no-reboot", "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """What it wrote to its standard output and error."""
        return (self.folder / "log").read_text(errors="replace")

    def connect(self, name: str) -> Lines:
        """A connection to its socket of that name."""
        return Lines(self.folder / name, lambda: self.alive, lambda: self.log)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What ``command`` returns; QmpError if QEMU refuses it. Underscores stand for hyphens in names."""
        if self._qmp is None:
            self._qmp = self.connect("qmp")
            self._qmp.receive()
            self.qmp("qmp_capabilities")
        names = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._qmp.send(json.dumps({"execute": command, "arguments": names}))
        while True:
            answer = json.loads(self._qmp.receive())
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(answer["error"]["desc"])
            else:
                return answer["return"]

    # Migration

    @property
    def status(self) -> str:
        """Of the virtual machine: running, paused, postmigrate, inmigrate, ..."""
        return str(self.qmp("query-status")["status"])

    def start_migration(self, uri: str) -> None:
        """Begin to migrate to ``uri``; QmpError if it is blocked."""
        self.qmp("migrate", uri=uri)

    def migration_ended(self) -> dict[str, Any]:
        """How the migration ended, as query-migrate says: status completed or failed (with error-desc)."""

        def ended() -> Any:
            found = self.qmp("query-migrate")
            return found if found.get("status") in ("completed", "failed", "cancelled") else None

        found: dict[str, Any] = until(ended, "the end of the migration", saw=lambda: self.log)
        return found

    def migrate(self, uri: str) -> dict[str, Any]:
        """Migrate to ``uri``, and how that ended."""
        self.start_migration(uri)
        return self.migration_ended()

    def incoming(self, uri: str) -> None:
        """Have a QEMU that was started with ``-incoming defer`` listen on, or read, ``uri``."""
        self.qmp("migrate-incoming", uri=uri)

    def arrived(self) -> str:
        """Wait for the end of an incoming migration; what the machine then is, or "gone" if QEMU gave up."""

        def look() -> str:
            try:
                status = self.status
            except ConnectionError:
                return "gone"
            return "" if status == "inmigrate" else status

        return str(until(look, "the incoming migration", saw=lambda: self.log))

    # Ending

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(END_S)

    def close(self) -> None:
        """End it, and remove what it left."""
        if self._qmp is not None:
            self._qmp.close()
        if self.alive:
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def start_backend(peers: Any, kind: str, share: Path, *options: str) -> BackendProcess:
    """A back-end that listens: ``virtiofsd`` or ``vmsim``. Nobody has connected yet: it may take only one."""
    command = SERVE
    if kind == VIRTIOFSD:
        place = ("--socket-path={socket}", "--shared-dir={dir}")
        command = (peers.virtiofsd, "--sandbox=none", "--seccomp=none", *place)
    process = BackendProcess(os.fspath(share), command, options)
    try:
        until(lambda: listens(process.socket) or not process.alive, f"{kind} to listen")
        assert process.alive, process.said()
    except BaseException:
        process.stop()
        raise
    return process


def listens(path: str) -> bool:
    """Whether somebody listens on the Unix socket ``path``."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if fields[-1] == path and int(fields[3], 16) & ACCEPTS_CONNECTIONS:
            return True
    return False
