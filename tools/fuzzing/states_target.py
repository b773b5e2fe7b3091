"""What a migration brings: back-end states, and whole streams."""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile
import zlib
from pathlib import Path

from engine import Finding
from reading import SPECIAL
from shares import Share

from devices.virtio_fs import parked
from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.inspection import FsInspection
from devices.virtio_fs.state import extension
from devices.virtio_fs.state.options import StateOptions
from vmsim import Machine
from vmsim.errors import InternalFault, VmsimError
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.init_flags import LINUX_6_12_OFFER
from vmsim.host.fs import LinuxFs
from vmsim.inspect.opening import read_capture
from vmsim.inspect.source import MemoryBytes
from vmsim.migration.channel import MemoryChannel
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.virtio.chain import ParkedChain
from vmsim.virtio.rings import RingState

OPTIONS = (StateOptions(), StateOptions(mode="file-handles"), StateOptions(on_error="guest-error"))


class _Chain:
    def __init__(self, data: bytes, room: int) -> None:
        self.readable = [memoryview(data)]
        self.reply = bytearray(room)
        self.writable = [memoryview(self.reply)] if room else []


class _Client:
    """Asks a back-end, so that its state holds something."""

    def __init__(self, backend: VirtioFsBackend) -> None:
        self._backend = backend
        self._unique = 0

    def ask(self, opcode: int, node: int, args: tuple = (), names: tuple = (), data: bytes = b"") -> object:  # type: ignore[type-arg]
        self._unique += 2
        request = client.encode(opcode, self._unique, node, 0, 0, 1, args, names, data)
        chain = _Chain(request, client.reply_room(opcode, 4096))
        written = self._backend.handle(1, chain, lambda *_: None)  # type: ignore[arg-type]
        return None if not written else client.decode(opcode, bytes(chain.reply[:written]), self._unique).body


def _state(share: Path, options: StateOptions) -> bytes:
    """A state with a bit of everything: open files, locks and waiting ones, directories, unlinked files."""
    backend = VirtioFsBackend(LinuxFs(), str(share), None, options)
    try:
        guest = _Client(backend)
        offer = LINUX_6_12_OFFER
        guest.ask(op.INIT, 0, (7, 41, 1 << 17, offer & 0xFFFFFFFF, offer >> 32, b""))
        nodes = {name: guest.ask(op.LOOKUP, 1, (), (name,)).nodeid for name in (b"a", b"d", b"l", b"p")}  # type: ignore[attr-defined]
        handle = guest.ask(op.OPEN, nodes[b"a"], (os.O_RDWR, 0)).fh  # type: ignore[attr-defined]
        guest.ask(op.OPENDIR, nodes[b"d"], (0, 0))
        guest.ask(op.LOOKUP, nodes[b"d"], (), (b"f",))
        for owner in (1, 2):
            guest.ask(op.SETLKW, nodes[b"a"], (handle, owner, 0, 9, fcntl.F_WRLCK, 7, 0, 0))
        made = guest.ask(op.CREATE, 1, (os.O_RDWR, 0o644, 0, 0), (b"gone",))
        guest.ask(op.WRITE, made.nodeid, (made.fh, 0, 5, 0, 0, 0, 0), (), b"bytes")  # type: ignore[attr-defined]
        guest.ask(op.UNLINK, 1, (), (b"gone",))
        chain = ParkedChain(3, 2, [(0x1000, 80, False), (0x2000, 16, True)])
        backend.keep_parked(1, RingState(next_avail=5, next_used=4, in_flight=[chain]))
        return b"".join(backend.save_state())
    finally:
        backend.close()


def repaired(data: bytes) -> bytes:
    """With checksums and lengths that are right, so that what they cover is looked at."""
    state = data
    tail = b""
    size = parked.FOOTER.size
    if state.endswith(parked.MAGIC) and len(state) > size:
        end = len(state) - size
        footer = parked.FOOTER.unpack(state, end)
        begin = end - footer.length if footer.length <= end else end
        payload = state[begin:end]
        tail = payload + parked.FOOTER.pack(len(payload), zlib.crc32(payload), parked.MAGIC)
        state = state[:begin]
    at = state.rfind(extension.MAGIC)
    if at >= 0 and len(state) >= at + extension.HEADER.size:
        payload = state[at + extension.HEADER.size :]
        version = extension.HEADER.unpack(state, at).version
        state = (
            state[:at]
            + extension.HEADER.pack(extension.MAGIC, version, zlib.crc32(payload), len(payload))
            + payload
        )
    return state + tail


class Blobs:
    """Target ``blob``: the state of a back-end, loaded and taken apart."""

    name = "blob"
    watched = ("devices.virtio_fs", "vmsim.fuse")

    def __init__(self) -> None:
        self._share = Share()
        self._share.renew()

    def close(self) -> None:
        """Remove the share."""
        self._share.close()

    def seeds(self) -> list[bytes]:
        """States of each mode, whole and cut."""
        whole = [_state(Path(self._share.path), options) for options in OPTIONS]
        return [
            bytes([number]) + state[:cut]
            for number, state in enumerate(whole)
            for cut in (None, 40, 200, 400)
        ]

    def run(self, data: bytes) -> int:
        """Load it; what loads is served from, saved and loaded again."""
        choice, blob = data[:1] or b"\0", data[1:]
        if not choice[0] & 128:
            blob = repaired(blob)
        options = OPTIONS[(choice[0] & 15) % len(OPTIONS)]
        FsInspection().state(blob)  # "its bytes never raise"
        backend = VirtioFsBackend(LinuxFs(), self._share.path, None, options)
        try:
            backend.load_state(blob)
            guest = _Client(backend)
            for node in (1, 2, 3, SPECIAL[-1]):
                guest.ask(op.GETATTR, node, (0, 0, 0))
                guest.ask(op.READ, node, (0, 0, 8, 0, 0, 0, 0))
            backend.idle()
            again = b"".join(backend.save_state())
            backend.reset()
            backend.load_state(again)
        except InternalFault:
            raise
        except (VmsimError, OSError):
            pass
        finally:
            backend.close()
        return 1


class Streams:
    """Target ``stream``: a whole machine's stream, taken apart and received."""

    name = "stream"
    watched = ("vmsim.migration", "vmsim.virtio", "vmsim.inspect", "vmsim.guest", "vmsim.machine")

    def __init__(self) -> None:
        self._share = Share()
        self._share.renew()

    def close(self) -> None:
        """Remove the share."""
        self._share.close()

    def seeds(self) -> list[bytes]:
        """Of both kinds of rings and both dialects."""
        return [
            self._saved(ring, dialect) for ring in ("split", "packed") for dialect in ("upstream", "rfc2023")
        ]

    def _saved(self, ring: str, dialect: str) -> bytes:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(self._share.path)) as folder:
            path = Path(folder, "machine")
            with Machine(self._share.path, ring=ring, dialect=dialect, memory=[(0, 4 << 20)]) as machine:
                fs = machine.mount()
                fs.open("/a", os.O_RDWR)
                machine.save(path)
            return path.read_bytes()

    def run(self, data: bytes) -> int:
        """Take it apart, then receive it."""
        capture = None
        try:
            capture = read_capture(MemoryBytes(data), "fuzz", "stream")
        finally:
            del capture
        schedule = ImmediateSchedule()
        source, destination = MemoryChannel.pair(schedule, 8 << 20)
        source.write(data)
        source.close_write()
        try:
            with Machine.receive(destination, self._share.path, schedule=schedule) as machine:
                machine.mount().stat("/a")
        except InternalFault as error:
            raise Finding(error.report) from error
        except (VmsimError, OSError):
            pass
        gc.collect(0)
        return 1
