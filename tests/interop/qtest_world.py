"""Back-ends, somebody in the middle, QEMUs with our guest: what the tests of errors are made of."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.interop.qemu_rig import start_backend
from tests.interop.qtest_rig import QtestVm
from tests.interop.vhost_mitm import TO_FRONTEND, Message, Mitm, Rule
from vmsim.guest.calls.posix import GuestFs
from vmsim.host.processes import BackendProcess

TEXT: Final = b"hello, world"
FILE: Final = "hello.txt"
THEIR_FEATURES: Final = {"GET_FEATURES": 0x1_7400_0000, "GET_PROTOCOL_FEATURES": 0x8A42B}
"""What virtiofsd 1.13.2 offers."""


class Side:
    """One end: a back-end, somebody in the middle of its connection, and a QEMU."""

    def __init__(self, backend: BackendProcess, mitm: Mitm, vm: QtestVm) -> None:
        self.backend = backend
        self.mitm = mitm
        self.vm = vm
        self.qemu = vm.qemu

    def close(self) -> None:
        """End it; raises what went wrong in the middle."""
        self.vm.close()
        try:
            self.mitm.close()
        finally:
            self.backend.stop()


class World:
    """A share with one file, and sides on it; ``close`` ends all of them."""

    def __init__(self, peers: Any, folder: Path) -> None:
        self.peers = peers
        self.share = folder / "share"
        self.share.mkdir()
        (self.share / FILE).write_bytes(TEXT)
        self.stream = folder / "stream"
        self._sides: list[Side] = []

    def side(self, kind: str, rule: Rule = lambda message: message, **changes: Any) -> Side:
        """A new one; ``changes`` are those of QtestVm."""
        backend = start_backend(self.peers, kind, self.share)
        try:
            mitm = Mitm(backend.socket, rule)
            try:
                vm = QtestVm(self.peers, mitm.socket, **changes)
            except BaseException:
                mitm.close()
                raise
        except BaseException:
            backend.stop()
            raise
        self._sides.append(Side(backend, mitm, vm))
        return self._sides[-1]

    def booted(self, kind: str, rule: Rule = lambda message: message, **changes: Any) -> Client:
        """A side whose guest has the file open and has read five bytes of it."""
        return Client(self.side(kind, rule, **changes))

    def save(self, side: Side) -> bytes:
        """Migrate to a file; its bytes. The side's machine has stopped then."""
        found = side.qemu.migrate(f"file:{self.stream}")
        assert found["status"] == "completed", (found, side.qemu.log, side.backend.said())
        return self.stream.read_bytes()

    def load(self, side: Side, stream: bytes | None = None) -> str:
        """Load the stream, perhaps another one than was saved: what the machine then is, or "gone"."""
        if stream is not None:
            self.stream.write_bytes(stream)
        side.qemu.incoming(f"file:{self.stream}")
        return side.qemu.arrived()

    def end(self, side: Side) -> None:
        """One side is not needed any more."""
        self._sides.remove(side)
        side.close()

    def close(self) -> None:
        """End everything."""
        errors = []
        for side in self._sides:
            try:
                side.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


class Client:
    """The guest's program: it has the file open, and what it reads goes on where it was."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.fs: GuestFs = side.vm.boot()
        self.fd = self.fs.open(f"/{FILE}", os.O_RDONLY)
        assert self.fs.read(self.fd, 5) == TEXT[:5]

    def check(self) -> None:
        """The old descriptor is open, at its old position, and new files can be made."""
        assert self.fs.read(self.fd, 100) == TEXT[5:]
        self.fs.lseek(self.fd, 5, os.SEEK_SET)
        self.fs.close(self.fs.open("/new", os.O_CREAT | os.O_WRONLY, 0o644))

    def goes_on(self) -> None:
        """The machine runs on here after a migration that failed, or was not wanted after all."""
        if self.side.qemu.status != "running":
            self.side.qemu.qmp("cont")
        assert self.side.qemu.status == "running"
        self.check()

    def moved(self, to: Side) -> None:
        """Its machine has arrived there."""
        self.fs = to.vm.take_over(self.side.vm)
        self.side = to
        self.check()


# Rules


def reply(name: str, change: Callable[[Message], Message]) -> Rule:
    """``change`` the replies to the message of that name."""

    def rule(message: Message) -> Message:
        if message.towards == TO_FRONTEND and message.name == name:
            return change(message)
        return message

    return rule


def number(value: int) -> Callable[[Message], Message]:
    """The reply is this u64, without descriptors."""
    return lambda message: message._replace(body=value.to_bytes(8, "little"))


def without(bit: int) -> Callable[[Message], Message]:
    """The features in the reply lack this bit."""

    def change(message: Message) -> Message:
        value = int.from_bytes(message.body, "little") & ~(1 << bit)
        return message._replace(body=value.to_bytes(8, "little"))

    return change


def like_virtiofsd(message: Message) -> Message:
    """QEMU sees only what virtiofsd offers as well."""
    mask = THEIR_FEATURES.get(message.name)
    if mask is None or message.towards != TO_FRONTEND:
        return message
    value = int.from_bytes(message.body, "little") & mask
    return message._replace(body=value.to_bytes(8, "little"))


# Streams


SUBSECTION: Final = b"\x05\x15vhost-user-fs-backend"


class StateInStream:
    """The back-end's state inside a stream of QEMU: ``before``, version, ``chunks`` and what comes ``after``.

    ``bytes(x)`` puts it together again.
    """

    def __init__(self, stream: bytes) -> None:
        at = [found.start() for found in re.finditer(re.escape(SUBSECTION), stream)]
        assert len(at) == 1, f"{len(at)} subsections"
        self.before = stream[: at[0]]
        self.name = SUBSECTION
        position = at[0] + len(SUBSECTION)
        self.version = int.from_bytes(stream[position : position + 4])
        position += 4
        self.chunks: list[bytes] = []
        while size := int.from_bytes(stream[position : position + 4]):
            self.chunks.append(stream[position + 4 : position + 4 + size])
            position += 4 + size
        self.after = stream[position + 4 :]

    @property
    def blob(self) -> bytes:
        """The state itself."""
        return b"".join(self.chunks)

    @property
    def start(self) -> int:
        """Where the first chunk's length is in the stream."""
        return len(self.before) + len(self.name) + 4

    def __bytes__(self) -> bytes:
        body = b"".join(len(chunk).to_bytes(4) + chunk for chunk in self.chunks)
        return self.before + self.name + self.version.to_bytes(4) + body + bytes(4) + self.after
