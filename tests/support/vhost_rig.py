"""A front-end, a back-end and an echoing device behind it, in one process, with everything recorded."""

from __future__ import annotations

from typing import Self

from devices.virtio_fs.config import FsDeviceOptions
from devices.virtio_fs.device import VirtioFsDevice
from vmsim.errors import PeerError, StateError
from vmsim.host.services import HostServices
from vmsim.host.shm import SharedMemory
from vmsim.memory import GuestMemory, Region
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost.backend import BackendOptions, VhostBackend
from vmsim.vhost.dialects import dialect_by_name
from vmsim.vhost.frontend import FrontendOptions
from vmsim.vhost.inproc import InProcessTransport
from vmsim.vhost.messages import encode_reply, encode_request
from vmsim.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1
from vmsim.virtio.rings import RingConfig, make_driver_ring

BASIC = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC


class EchoDevice:
    """Writes what it reads back, reversed. ``defer``: rings whose requests wait for ``finish``."""

    def __init__(self, features: int = BASIC, queue_count: int = 2) -> None:
        self.virtio_features = features
        self.queue_count = queue_count
        self.config_space = b""
        self.hiprio_count = 1
        self.state = b"state of the echo device"
        self.loaded: list[bytes] = []
        self.defer: set[int] = set()
        self.undrainable: set[int] = set()
        self.waiting: list = []
        self.kept: dict = {}
        self.served: list[tuple[int, bytes]] = []
        self.events: list[str] = []
        self.during = None
        self.refuse_save = self.refuse_load = False

    def set_features(self, features):
        self.features = features

    def handle(self, ring, chain, complete):
        if self.during is not None:
            self.during(ring)
        if ring in self.defer:
            self.waiting.append((ring, chain, complete))
            return None
        return self.echo(ring, chain)

    def echo(self, ring, chain):
        data = b"".join(chain.readable)
        self.served.append((ring, data))
        left = answer = data[::-1][: chain.writable_bytes]
        for view in chain.writable:
            part = left[: len(view)]
            view[: len(part)] = part
            left = left[len(part) :]
        return len(answer)

    def finish(self):
        waiting, self.waiting = self.waiting, []
        for ring, chain, complete in waiting:
            complete(chain, self.echo(ring, chain))

    def parked(self, ring):
        if ring in self.undrainable:
            return []
        mine = [entry for entry in self.waiting if entry[0] == ring]
        self.waiting = [entry for entry in self.waiting if entry[0] != ring]
        return [chain for _, chain, _ in mine]

    def keep_parked(self, ring, state):
        self.kept[ring] = state

    def resume_parked(self, ring):
        return self.kept.pop(ring, None)

    def log_started(self):
        self.events.append("log started")

    def log_stopped(self):
        self.events.append("log stopped")

    def save_state(self):
        if self.refuse_save:
            raise StateError("the echo device does not save")
        for start in range(0, len(self.state), 100_000):
            yield self.state[start : start + 100_000]

    def load_state(self, blob):
        if self.refuse_load:
            raise StateError("the echo device does not load")
        self.loaded.append(blob)
        self.state = blob

    def reset(self):
        self.events.append("reset")


class Recorder:
    """A transport that records every message as bytes and can refuse the Nth."""

    def __init__(self, inner) -> None:
        self.inner = inner
        self.log: list[tuple[str, str, int, int, int, str]] = []
        self.count = 0
        self.fail_at = -1
        self.kick = inner.kick
        self.notifier = inner.notifier
        self.backend_channel = inner.backend_channel
        self.reason = inner.reason
        self.shares_process = inner.shares_process
        self.progress = inner.progress
        self.close = inner.close

    on_call = property(lambda self: self.inner.on_call, lambda self, f: setattr(self.inner, "on_call", f))
    on_ring_error = property(
        lambda self: self.inner.on_ring_error, lambda self, f: setattr(self.inner, "on_ring_error", f)
    )

    def request(self, request):
        self._record("FE>BE", request.row.name, encode_request(request), request.fds)
        self.count += 1
        if self.count - 1 == self.fail_at:
            raise PeerError("the message was lost on purpose")
        reply = self.inner.request(request)
        if reply is not None:
            self._record("BE>FE", request.row.name, encode_reply(request.row, reply), reply.fds)
        return reply

    def _record(self, direction, name, data, fds):
        flags = int.from_bytes(data[4:8], "little")
        self.log.append((direction, name, flags, len(data) - 12, len(fds), data[12:].hex()))

    @property
    def names(self):
        return [name for direction, name, *_ in self.log if direction == "FE>BE"]


class Driver:
    """The driver's side of the device's rings: sends bytes, gets bytes."""

    def __init__(self, rig, size: int = 128, queues=(0, 1)) -> None:
        self.rig = rig
        self.size = size
        self.queues = queues
        self.rings: dict = {}

    def boot(self, features: int) -> None:
        """The initialisation of section 3.1.1, through the registers."""
        write = self.rig.device.registers.write
        write(0x70, 4, 0)
        write(0x70, 4, 1)
        write(0x70, 4, 3)
        for word in (0, 1):
            write(0x24, 4, word)
            write(0x20, 4, features >> 32 * word & 0xFFFFFFFF)
        write(0x70, 4, 11)
        for queue in self.queues:
            self.ready(queue)
        for queue in self.queues:
            self.rings[queue] = self.make(queue, features)
        write(0x70, 4, 15)

    def ready(self, queue: int) -> None:
        """Describe a queue to the device."""
        write = self.rig.device.registers.write
        base = self.base(queue)
        write(0x30, 4, queue)
        write(0x38, 4, self.size)
        for register, gpa in ((0x80, base), (0x90, base + 0x1000), (0xA0, base + 0x2000)):
            write(register, 4, gpa & 0xFFFFFFFF)
            write(register + 4, 4, gpa >> 32)
        write(0x44, 4, 1)

    def make(self, queue: int, features: int, state=None):
        base = self.base(queue)
        if state is None:
            self.rig.memory.write(base, bytes(0x3000))
        config = RingConfig(self.size, base, base + 0x1000, base + 0x2000, features)
        return make_driver_ring(config, self.rig.memory, state=state)

    @staticmethod
    def base(queue: int) -> int:
        return 0x1000000 + 0x100000 * queue

    def send(self, data: bytes, queue: int = 1, slot: int = 0) -> None:
        """Offer one request: the data, then as much room for the answer; kick."""
        self.add(data, queue, slot)
        self.rings[queue].publish()
        self.kick(queue)

    def add(self, data: bytes, queue: int = 1, slot: int = 0) -> int:
        gpa = 0x2000000 + queue * 0x100000 + slot * 0x1000
        self.rig.memory.write(gpa, data)
        return self.rings[queue].add([(gpa, len(data))], [(gpa + 0x800, len(data))])

    def kick(self, queue: int = 1) -> None:
        self.rig.device.registers.write(0x50, 4, queue)

    def reap(self, queue: int = 1) -> tuple[int, int] | None:
        return self.rings[queue].reap()

    def answer(self, size: int, queue: int = 1, slot: int = 0) -> bytes:
        gpa = 0x2000000 + queue * 0x100000 + slot * 0x1000
        return self.rig.memory.read(gpa + 0x800, size)

    def call(self, data: bytes, queue: int = 1) -> bytes:
        """One request and its answer."""
        self.rings[queue].arm_interrupts()
        self.send(data, queue)
        used = self.reap(queue)
        assert used is not None, "no answer"
        return self.answer(used[1], queue)


class Rig:
    """One machine's worth of device: memory as in the golden logs, an echo device, a recording transport."""

    USER = (0x7FBF8FFFF000, 0x7FBF900FF000)
    tells_reasons = True
    """Whether the front-end learns why the back-end refused something, beyond a number."""

    def __init__(
        self, dialect: str = "upstream", *, echo: EchoDevice | None = None,
        options: FsDeviceOptions | None = None, backend: BackendOptions | None = None, schedule=None,
        user=USER, attach: bool = True, reset: bool = True, backend_schedule=None,
        frontend: FrontendOptions | None = None,
    ) -> None:
        self.schedule = schedule or ImmediateSchedule()
        self.host = HostServices()
        self.dialect = dialect_by_name(dialect)
        self.ram = SharedMemory("ram", 64 << 20)
        low, high = 0xF0000, (64 << 20) - 0x100000
        self.memory = GuestMemory([
            Region("low", 0, low, self.ram.view[:low], self.ram.fd, 0, user[0]),
            Region("high", 0x100000, high, self.ram.view[0x100000:], self.ram.fd, 0x100000, user[1]),
        ])
        self.echo = echo or EchoDevice()
        self.backend_schedule = backend_schedule or self.schedule
        self.backend = VhostBackend(self.echo, self.host, self.backend_schedule, self.dialect, backend)
        self.options = options or FsDeviceOptions(tag="myfs")
        self.device = VirtioFsDevice(self.options, self.memory, self.host, self.dialect, frontend)
        self.interrupts = 0
        self.device.virtio.on_interrupt = self._interrupt
        self.driver = Driver(self, queues=range(self.options.queue_count))
        if attach:
            self.attach(reset=reset)

    def connect(self) -> None:
        """A new transport to the back-end."""
        self.transport = Recorder(InProcessTransport(self.backend, self.schedule, self.host))

    def cut(self) -> None:
        """The back-end's process is gone, without a word: so is its end of the connection."""
        self.transport.inner.backend = None

    def attach(self, *, reset: bool = True) -> None:
        self.connect()
        self.device.attach(self.transport, reset=reset)

    def attach_again(self) -> None:
        """Connect to a back-end that took the place of one that died."""
        self.connect()
        self.device.reattach(self.transport, died=True)

    def attach_to_the_same(self) -> None:
        """Connect again to a back-end that has stopped its rings when the connection broke."""
        self.connect()
        self.device.reattach(self.transport)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def boot(self, features: int = F_VERSION_1) -> Rig:
        self.driver.boot(features)
        return self

    def close(self) -> None:
        self.device.close()
        self.driver.rings.clear()
        self.echo.waiting.clear()
        self.memory.close()
        self.ram.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


PACKED = F_VERSION_1 | F_RING_PACKED
