"""A machine's back-end in another process: any vhost-user-fs back-end behind a Unix socket.

Such a back-end tells nothing but its answers. What it holds is what the guest knows; why it refused
something, or ended, is what its process says, if it was started here.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from vmsim.errors import UsageError
from vmsim.host.directory import fixed
from vmsim.host.fence import full_fence
from vmsim.host.processes import BackendProcess, Command
from vmsim.host.services import HostServices
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.transport import VhostUserTransport
from vmsim.machine.channel_uri import wire
from vmsim.machine.config import MachineConfig
from vmsim.machine.installed import DEVICE, find_device
from vmsim.machine.parts import Seams, Start
from vmsim.schedule import Schedule
from vmsim.vhost.device_options import option_words
from vmsim.vhost.device_type import Burden
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.seams import Transport
from vmsim.virtio.ring_types import Fence, RingState

TRANSPORTS: Final = ("inproc", "vhost-user")
ENDING_S: Final = 1.0
"""A process whose connection has ended is given this long to end as well, so that we can say how."""


class Finding(msgspec.Struct, frozen=True):
    """What a pre-flight check says of a back-end that it cannot look into; shaped as the device's own."""

    why: str
    what: str
    severity: str = "info"
    inode: int = 0
    fh: int | None = None
    name: str = ""


class RemoteBackend:
    """A back-end of ``share`` behind ``where``, a socket's path or a process; the latter ends with ``close``.

    ``schedule`` is that of the machines that use it: their guests wait through its descriptors.
    ``seams`` may wrap the transport. UsageError if the schedule cannot wait for the outside.
    """

    in_process = False

    def __init__(
        self, where: str | BackendProcess, share: str, schedule: Schedule, *, dialect: str = "upstream",
        device: str = DEVICE, seams: Seams | None = None,
    ) -> None:  # fmt: skip
        self.share = share
        self.fence: Fence | None = full_fence
        self.type = find_device(device)
        self.host = HostServices()
        self.process = where if isinstance(where, BackendProcess) else None
        self._where = where if isinstance(where, BackendProcess) else fixed(where)
        self._messages = DIALECTS[dialect].messages
        self._seams = seams or Seams()
        self._transport: VhostUserTransport | None = None
        _, waits = wire(schedule)
        if waits is None:
            raise UsageError(
                "this schedule cannot wait for a back-end in another process",
                hint="use one of vmsim's schedules, with its descriptors unset or an FdWaits",
            )
        self._waits = waits

    @classmethod
    def start(
        cls, config: MachineConfig, share: str, schedule: Schedule, seams: Seams,
        command: Command | None = None, cwd: str = "",
    ) -> RemoteBackend:  # fmt: skip
        """Start one for a machine: by ``command`` (see ``words_of``) in ``cwd``, or ``vmsim serve``.

        To somebody else's command nothing is added: options of the back-end stand where it says
        ``{options}``. UsageError if there are some and it does not say where.
        """
        device = find_device(config.device)
        device.check_options(config.options)
        words = command_options(config) if command is None else option_words(device.options, config.options)
        if command is not None:
            require_place(command, words)
        process = BackendProcess(share, command, words, cwd)
        try:
            return cls(
                process, share, schedule, dialect=config.dialect, device=config.device, seams=seams
            )
        except BaseException:
            process.stop()
            raise

    @property
    def connected(self) -> bool:
        """Whether a machine of this process is connected to it."""
        return self._transport is not None and not self._transport.lost

    def connect(self) -> Transport:
        """A new connection; HostError, with what the process said, if there is nobody to connect to."""
        connection: UnixSocket | None = None
        transport: VhostUserTransport | None = None
        try:
            connection = self._reach()
            transport = self._talk_over(connection)
            wrapped = self._seams.transport(transport)
            self._transport = transport
            return wrapped
        except BaseException:  # an interrupt too: nobody else has it yet
            if transport is not None:
                transport.close()
            elif connection is not None:
                self._waits.remove(connection.fd)
                connection.close()
            raise

    def _reach(self) -> UnixSocket:
        where = self._where
        return UnixSocket.connect(where) if isinstance(where, str) else where.connect()

    def _talk_over(self, connection: UnixSocket) -> VhostUserTransport:
        return VhostUserTransport(
            connection, self._messages, self._waits, explain=self._ending, told=self._last_words
        )

    def _ending(self) -> str:
        """How the process behind a connection that broke has ended; empty if it goes on, or nobody knows."""
        if self.process is None:
            return ""
        self.process.wait(ENDING_S)
        ending, said = self.process.ending(), self._last_words()
        return f"{ending}; {said}" if ending and said else ending

    def _last_words(self) -> str:
        """The last line that the process wrote, if it was started here and wrote any."""
        said = "" if self.process is None else self.process.said()
        return f"it said last: {said.splitlines()[-1]}" if said else ""

    def burden(self) -> Burden:
        """It does not tell."""
        return Burden()

    def facts(self) -> dict[str, int]:
        """Nothing: it does not tell."""
        return {}

    def describe(self) -> Iterator[str]:
        """How to reach it, which is all that there is to say."""
        if self.process is None:
            yield f"a back-end in another process, behind {self._where}: its state is not available"
        else:
            yield f"a back-end in process {self.process.pid}: its state is not available"

    def notes(self) -> list[str]:
        """Nothing: it does not tell."""
        return []

    def preflight(self) -> list[Any]:
        """That nobody can know."""
        return [
            Finding(
                "the back-end runs in another process and cannot be asked",
                "try it: a migration that fails leaves the machine as it is",
            )
        ]

    def ring(self, index: int) -> RingState | None:
        """None: it only tells when it stops a ring."""
        return None

    def early(self) -> Iterator[bytes]:
        """Nothing: vhost-user has no message for it (device state moves when the rings stand still)."""
        return iter(())

    def take_early(self, piece: bytes) -> None:
        """Nothing comes of it, for the same reason."""

    def close(self) -> None:
        """End the process, if it was started here; may be called twice."""
        if self._transport is not None:
            self._transport.close()
        if self.process is not None:
            self.process.stop()


def command_options(config: MachineConfig) -> list[str]:
    """What ``vmsim serve`` must be told to be the back-end of a machine: all that is not its default."""
    if config.device != DEVICE:
        raise UsageError(
            f"vmsim serve has no device {config.device!r}",
            hint="say by which command its back-end is started, or run it in this process",
        )
    rows = find_device(config.device).options
    words = option_words(rows, {row.name: row.default for row in rows} | config.options)
    words += ["--sandbox=none", f"--ring-policy={config.policy}", "--reconnect"]
    words += ["--ring-reset"]  # as in this process: machines move between both
    if config.dialect != "upstream":
        words.append(f"--dialect={config.dialect}")
    if config.queues > 1:
        words.append(f"--request-queues={config.queues}")
    return words


def require_place(command: Command, words: Sequence[str]) -> None:
    """UsageError if there are ``words`` for a command that does not say where they belong."""
    text = command if isinstance(command, str) else shlex.join(command)
    if words and "{options}" not in (text.split() if isinstance(command, str) else command):
        raise UsageError(
            f"the command {text!r} has no place for {' '.join(words)}",
            hint="write {options} where they belong, or say them in the command itself and not here",
        )


def seams_for(
    seams: Seams | None, transport: str | None, command: Command | None = None, source: Seams | None = None
) -> Seams:
    """``seams`` (those of ``source`` if there are none) with the way to start a back-end.

    ``transport`` None: as the seams say, or else as the source did. UsageError for what does not fit.
    """
    seams = seams or source or Seams()
    if command is not None and transport != "vhost-user":
        raise UsageError("backend_command is for back-ends in other processes", hint="transport='vhost-user'")
    if transport is None:
        if seams.start is None and source is not None:
            return dataclasses.replace(seams, start=source.start)
        return seams
    if transport not in TRANSPORTS:
        raise UsageError(f"transport={transport!r} is not known", hint=f"one of {', '.join(TRANSPORTS)}")
    return dataclasses.replace(seams, start=started(command) if transport == "vhost-user" else None)


def started(command: Command | None = None) -> Start:
    """For ``Seams.start``: back-ends in processes of their own, started by ``command``.

    Each is started in the working directory of now, which the command's words may be relative to.
    """
    cwd = fixed(".") if command is not None else ""

    def start(config: MachineConfig, share: str, schedule: Schedule, seams: Seams) -> RemoteBackend:
        return RemoteBackend.start(config, share, schedule, seams, command, cwd)

    return start
