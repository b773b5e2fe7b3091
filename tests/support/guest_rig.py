"""A guest with a device of a few lines behind it: rings and a FUSE session, no vhost, no machine."""

from __future__ import annotations

import os
import struct

from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.fs import PassthroughFs
from vmsim.fuse.session import Session
from vmsim.guest.calls.posix import mount
from vmsim.guest.config import GuestConfig
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.host.fs.linux import LinuxFs
from vmsim.memory import DirtyLog, GuestMemory, Region
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.virtio.constants import DEVICE_ID_FS, RING_FEATURES
from vmsim.virtio.device import VirtioDevice
from vmsim.virtio.mmio import MmioRegisters
from vmsim.virtio.rings import RingConfig, make_device_ring
from vmsim.virtio.violations import RingViolation

MIB = 1 << 20


class FsDevice:
    """The device side of virtio-fs: serves at once, or (``hold``) collects chains until ``serve`` is called.

    ``seen`` lists the opcodes of all requests with their queue and the lengths of their descriptors.
    ``before`` is called with each chain; what it returns, unless None, answers in the session's place.
    """

    def __init__(self, memory, session, features, request_queues=1, queue_size=128, tag=b"vmsim"):
        config = tag.ljust(36, b"\0") + struct.pack("<II", request_queues, 0)
        self.virtio = VirtioDevice(DEVICE_ID_FS, features, config, [queue_size] * (1 + request_queues))
        self.virtio.on_activate = self.activate
        self.virtio.on_notify = self.notify
        self.virtio.on_reset = self.rings_gone
        self.virtio.on_queue_reset = lambda queue: self.rings.pop(queue, None)
        self.virtio.on_queue_ready = self.start
        self.registers = MmioRegisters(self.virtio)
        self.memory = memory
        self.session = session
        self.rings = {}
        self.hold = False
        self.held = []
        self.seen = []
        self.kicks = 0
        self.before = None
        self.out_of_order = False

    def rings_gone(self):
        self.rings.clear()
        self.held.clear()

    def activate(self):
        for index in range(len(self.virtio.queues)):
            self.start(index)

    def start(self, index):
        queue = self.virtio.queues[index]
        if queue.ready:
            features = self.virtio.features_accepted
            config = RingConfig(queue.size, queue.desc, queue.driver, queue.device, features, index=index)
            self.rings[index] = make_device_ring(config, self.memory, log=None, log_used=False)

    def notify(self, index):
        self.kicks += 1
        ring = self.rings[index]
        try:
            while (chain := ring.pop() or (ring.arm_kicks() and ring.pop())):
                first = bytes(chain.readable[0])
                opcode = struct.unpack_from("<I", first, 4)[0]
                lengths = [length for _, length, _ in chain.descriptors]
                self.seen.append((opcode, index, lengths, chain.readable_bytes, chain.writable_bytes))
                if self.hold and index:
                    self.held.append((index, chain))
                else:
                    self.answer(index, chain)
        except RingViolation as violation:
            self.virtio.needs_reset(str(violation))

    def answer(self, index, chain):
        written = None if self.before is None else self.before(chain)
        if written is None:
            written = self.session.handle(
                chain.readable, chain.writable, lambda size: self.push(index, chain, size)
            )
        if written is not None:
            self.push(index, chain, written)

    def push(self, index, chain, written):
        if self.memory.dirty is not None:
            for gpa, size in chain.write_ranges:
                self.memory.dirty.mark(gpa, size)
        ring = self.rings[index]
        ring.push(chain, written)
        if ring.needs_call():
            self.virtio.used_buffers()

    def serve(self, backwards=False):
        """Answer everything that is held."""
        held, self.held = self.held, []
        for index, chain in reversed(held) if backwards else held:
            self.answer(index, chain)

    def opcodes(self):
        """The opcodes since the last call."""
        seen, self.seen = self.seen, []
        return [entry[0] for entry in seen]


class GuestRig:
    """A guest on a directory. ``clone`` moves it to fresh memory by what it saves, as a migration does."""

    def __init__(
        self, share, *, features=RING_FEATURES, memory_bytes=32 * MIB, queue_size=128, request_queues=1,
        schedule=None, server=None, boot=True, options=None, **config,
    ):
        self.schedule = schedule or ImmediateSchedule()
        self.regions = [(0, memory_bytes // 2), (1 << 32, memory_bytes // 2)]
        self.memory = make_memory(self.regions)
        self.server = server
        self.session = Session(server) if server is not None else None
        if server is None:
            fs_options = FsOptions(**(options or {}))
            self.server = PassthroughFs(LinuxFs(), os.fsencode(share), fs_options)
            self.session = Session(self.server, fs_options.init_options())
        self.device = FsDevice(self.memory, self.session, features, request_queues, queue_size)
        self.kernel = GuestKernel(self.memory, self.device.registers, self.schedule, GuestConfig(**config))
        self.device.virtio.on_interrupt = self.kernel.interrupt
        if boot:
            self.kernel.boot()
            self.fs = mount(self.kernel)

    def clone(self, meanwhile=lambda: None):
        """The kernel on a copy of its memory, behind the same device; programs are moved over.

        ``meanwhile`` is called between the save and the restore.
        """
        old = self.kernel
        old.pause()
        saved = old.save()
        meanwhile()
        memory = make_memory(self.regions)
        for region in self.memory.regions:
            memory.write(region.gpa, bytes(region.view))
        kernel = GuestKernel(memory, self.device.registers, self.schedule)
        kernel.restore(saved)
        self.memory = memory
        self.device.memory = memory
        states = {index: ring.save() for index, ring in self.device.rings.items()}
        for index, state in states.items():
            self.device.start(index)
            chains = self.device.rings[index].restore(state)
            kept = [at for at, (queue, _) in enumerate(self.device.held) if queue == index]
            for at, chain in zip(kept, chains, strict=True):
                self.device.held[at] = (index, chain)
        self.device.virtio.on_interrupt = kernel.interrupt
        kernel.adopt(old)
        self.kernel = kernel
        kernel.resume()
        return kernel

    def close(self):
        if hasattr(self.server, "close"):
            self.server.close()


def make_memory(regions):
    """Guest memory of plain bytes."""
    buffers = [(gpa, size, memoryview(bytearray(size))) for gpa, size in regions]
    return GuestMemory([Region(f"mem{gpa:x}", gpa, size, view) for gpa, size, view in buffers])


def dirty_log(rig):
    """A running dirty log of a rig's memory."""
    log = DirtyLog(rig.memory)
    log.start()
    return log
