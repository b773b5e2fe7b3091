"""The guest kernel: one object per virtual machine that owns all state a real guest keeps in its RAM.

Nothing in here waits: what a process calls (:mod:`vmsim.guest.calls`) does, and looks the kernel up anew
afterwards, so that a program which waits while its machine migrates goes on with the destination's kernel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from vmsim.errors import StateError, UsageError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.headers import FUSE_ROOT_ID
from vmsim.fuse.abi.replies import ATTR_OUT, INIT_OUT
from vmsim.guest.config import CACHE_NONE, CACHES, GuestConfig
from vmsim.guest.driver.alloc import PageAllocator
from vmsim.guest.driver.virtio import MmioBus, VirtioDriver
from vmsim.guest.kernel import init, node_groups, snapshot
from vmsim.guest.kernel.dentries import DentryCache
from vmsim.guest.kernel.page_cache import PageCache
from vmsim.guest.kernel.requests import FuseRequests
from vmsim.guest.state import STATE_VERSION, Attr, KernelState, LocalLock, Process, Segments
from vmsim.memory import PAGE_SIZE, GuestMemory
from vmsim.schedule import Schedule
from vmsim.virtio.ring_types import Fence


class KernelCell:
    """Where programs look their kernel up; the machine re-points it when a migration commits.

    ``waiting`` counts the programs that wait in a call, ``lock_waits`` are the guest-local locks that some of
    them wait for.
    """

    __slots__ = ("kernel", "lock_waits", "waiting")

    def __init__(self, kernel: GuestKernel) -> None:
        self.kernel = kernel
        self.waiting = 0
        self.lock_waits: list[LocalLock] = []


class GuestKernel(FuseRequests):
    """Driver, FUSE client state and processes of one guest.

    ``boot()`` brings the device up and mounts the file system; or ``restore()`` takes over from a saved guest
    whose memory is already in place. ``paused`` stops programs at their next request or wake-up. ``fence`` is
    for rings whose other end is not in this thread.
    """

    def __init__(
        self, memory: GuestMemory, bus: MmioBus, schedule: Schedule, config: GuestConfig | None = None,
        fence: Fence | None = None,
    ) -> None:  # fmt: skip
        config = config if config is not None else GuestConfig()
        if config.cache not in CACHES:
            raise UsageError(f"{config.cache!r} is not a page cache mode", hint=f"one of {', '.join(CACHES)}")
        heap = config.heap or default_heap(memory)
        state = KernelState(STATE_VERSION, config, PageAllocator.over(heap).state)
        super().__init__(memory, VirtioDriver(bus, fence), schedule, state)
        self.cell = KernelCell(self)
        self.known = node_groups.Known()
        """Nodes of a state that is still to come."""

    # Bringing the device up

    def boot(self) -> None:
        """Initialise the device (virtio 1.3 section 3.1.1) and its queues, and mount: FUSE_INIT, the root."""
        state = self.state
        if state.booted:
            raise StateError(
                "the guest has booted already", hint="recover() initialises a failed device again"
            )
        self._bring_up()
        if self.config.cache != CACHE_NONE and not state.pages.entries:
            state.pages = PageCache.create(self.memory, self.allocator, self.config.cache_pages)
        if self.config.dentries and not state.dentries.entries:
            state.dentries = DentryCache.create(self.memory, self.allocator, self.config.dentries)
        self._attach(state)
        self._mount()
        if not state.processes:
            state.processes[1] = Process(1, FUSE_ROOT_ID)
            self.nodes.hold(FUSE_ROOT_ID)
        state.booted = True

    def _bring_up(self) -> None:
        state, config, driver = self.state, self.config, self.driver
        state.features = driver.negotiate(config.features)
        state.tag, state.device_queues = driver.read_config()
        wanted = (
            state.device_queues
            if not config.request_queues
            else min(config.request_queues, state.device_queues)
        )
        if not state.queues:
            state.queues = [
                driver.allocate_queue(index, config, state.features, self.memory, self.allocator)
                for index in range(1 + wanted)
            ]
        for queue in state.queues:
            driver.enable_queue(queue)
        driver.driver_ok()

    def _mount(self) -> None:
        state = self.state
        args, compat = init.init_arguments(self.config)
        reply = self._boot_call(op.INIT, 0, args, compat, INIT_OUT.size)
        state.session = init.decode_init(self.config, reply)
        self._bound()
        self.writeback = bool(self.pages and state.session.flags & init_flags.WRITEBACK_CACHE)
        attr = self._boot_call(op.GETATTR, FUSE_ROOT_ID, (0, 0, 0), room=ATTR_OUT.size)
        if len(attr) < ATTR_OUT.size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        raw = ATTR_OUT.unpack_from(attr)
        root = self.nodes.add_root(Attr(*raw[3:]))
        root.attr_expiry_ns = self.inodes.expiry(raw[0], raw[1]) if self.dentries is not None else 0

    def _boot_call(
        self, opcode: int, nodeid: int, args: Sequence[Any], compat: bool = False, room: int = 0
    ) -> bytes:
        request = self.submit(opcode, nodeid, args, compat=compat, room=room)
        self.arm_interrupts()
        self.schedule.wait(lambda: self.ended(request.unique), f"the reply to FUSE opcode {opcode}")
        self.requests.pop(request.unique, None)
        if request.error:
            raise OSError(request.error, os.strerror(request.error))
        return request.reply

    def recover(self) -> None:
        """Initialise a device again that needed a reset; the old session's nodes and open files are gone.

        Descriptors stay in their tables, but every use of one fails with ESTALE. Programs that wait in a call
        leave it first, with EIO (or EINTR from a lock): what they still refer to must not be mistaken for
        nodes of the new session.
        """
        state = self.state
        self._device_failed()
        for pid in state.processes:
            self.interrupt_local(pid)
        self.schedule.wait(lambda: not self.cell.waiting, "programs to leave their calls")
        state.broken = False
        for file in state.files.values():
            file.fh, file.nodeid, file.flags = None, 0, file.flags & ~os.O_PATH
        state.nodes.clear()
        state.forgets.clear()
        state.local_locks.clear()
        if self.pages is not None:
            self.pages.clear()
        if self.dentries is not None:
            self.dentries.clear()
        for process in state.processes.values():
            process.cwd = FUSE_ROOT_ID
        for queue in state.queues:
            self.driver.free_queue(queue, state.features, self.allocator)
        state.queues = []
        self._bring_up()
        self._attach(state)
        self._mount()
        self.nodes.get(FUSE_ROOT_ID).refs += len(state.processes)

    # Saving

    def save(self) -> bytes:
        """All state that is not in guest memory, as bytes; leaves the kernel able to go on."""
        return snapshot.save(self._caught_up())

    def save_to_travel(self) -> bytes:
        """The same, in groups of nodes that a destination may know already (``early_groups``)."""
        return snapshot.save_to_travel(self._caught_up())

    def _caught_up(self) -> KernelState:
        """The state, with what is kept elsewhere meanwhile: rings' positions, opcodes not served."""
        state = self.state
        state.missing = sorted(self.missing)
        for queue in self.queues:
            queue.state.ring = msgspec.msgpack.encode(queue.ring.save())
        return state

    def early_groups(self) -> Iterator[bytes]:
        """The nodes as they are now, for a destination's ``known`` while this guest runs on."""
        return node_groups.encoded(self.state.nodes)

    def restore(self, saved: bytes) -> None:
        """Take over the saved state; guest memory must be in place. StreamError for anything malformed."""
        known, self.known = self.known, node_groups.Known()
        self._attach(*snapshot.take_over(saved, self.memory, known))

    def change_clock(self, realtime_ns: int) -> None:
        """The schedule's clock is another one than before: what was to expire by the old one expires now.

        ``realtime_ns`` is the wall clock time when the new clock read zero.
        """
        self.config.realtime_ns = realtime_ns
        for node in self.state.nodes.values():
            node.attr_expiry_ns = node.acl_expiry_ns = 0
        if self.dentries is not None:
            self.dentries.expire_all()

    def adopt(self, source: GuestKernel) -> None:
        """Commit of a migration: the programs of ``source`` go on here."""
        self.cell = source.cell
        self.cell.kernel = self


def default_heap(memory: GuestMemory) -> Segments:
    """All of guest memory except page 0."""
    heap = []
    for region in memory.regions:
        skip = PAGE_SIZE if region.gpa == 0 else 0
        size = (region.size_bytes - skip) // PAGE_SIZE * PAGE_SIZE
        if size:
            heap.append((region.gpa + skip, size))
    return heap
