"""Saving a guest kernel and taking one over: msgpack of the state, checked field by field on arrival."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

import msgspec

from vmsim.errors import MemoryAccessError, StreamError
from vmsim.fuse.abi.headers import FUSE_ROOT_ID
from vmsim.guest.config import CACHES
from vmsim.guest.driver.alloc import PageAllocator
from vmsim.guest.driver.queue import OUT_BYTES, SLOT_BYTES, SLOT_OUT
from vmsim.guest.driver.virtio import VirtioDriver
from vmsim.guest.kernel.dentries import DentryCache
from vmsim.guest.kernel.node_groups import (
    ERRNO_END,
    U64_MAX,
    Group,
    Known,
    checked,
    decoded,
    encoded,
    merged,
    refuse,
)
from vmsim.guest.kernel.page_cache import PageCache
from vmsim.guest.state import DONE, IN_FLIGHT, QUEUED, STATE_VERSION, KernelState, QueueState, Segments
from vmsim.limits import GUEST_STATE_MAX, QUEUE_SIZE_MAX, SUBMOUNTS_MAX, VIRTIO_QUEUE_MAX
from vmsim.memory import GuestMemory

_DECODER: Final = msgspec.msgpack.Decoder(KernelState)
"""Made here: to learn what a state is made of takes milliseconds, and nobody runs while one is loaded."""


class Loaded(NamedTuple):
    """A checked state, and its caches in guest memory as they were indexed for that."""

    state: KernelState
    pages: PageCache | None
    dentries: DentryCache | None


def save(state: KernelState) -> bytes:
    """A state that has the rings' positions."""
    return msgspec.msgpack.encode(state)


def save_to_travel(state: KernelState) -> bytes:
    """The same with the nodes in groups."""
    groups = list(encoded(state.nodes))
    return msgspec.msgpack.encode(msgspec.structs.replace(state, nodes={}, groups=groups))


def load(saved: bytes, memory: GuestMemory) -> KernelState:
    """The state; errors are those of ``take_over``."""
    return take_over(saved, memory).state


def take_over(saved: bytes, memory: GuestMemory, known: Known | None = None) -> Loaded:
    """Decode and check; StreamError names the field that is wrong. ``known`` are nodes that came before."""
    if len(saved) > GUEST_STATE_MAX:
        raise StreamError(f"guest state of {len(saved)} bytes", field="vmsim/guest")
    try:
        state = _DECODER.decode(saved)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        raise StreamError(f"guest state: {error}", field="vmsim/guest") from error
    if state.version != STATE_VERSION:
        raise StreamError(f"guest state version {state.version}, not {STATE_VERSION}", field="version")
    take = decoded if known is None else known.take
    checker = _Checker(state, memory, [checked(state.nodes), *map(take, state.groups)])
    try:
        checker.run()
    except MemoryAccessError as error:
        raise StreamError(f"guest state points outside guest memory: {error}", field="vmsim/guest") from error
    return Loaded(state, checker.pages, checker.dentries)


class _Checker:
    """Every cross-reference and range of a decoded state, one method per part."""

    def __init__(self, state: KernelState, memory: GuestMemory, groups: list[Group]) -> None:
        self.state = state
        self.all = merged(groups)
        state.nodes, state.groups = self.all.nodes, []
        self.pages: PageCache | None = None
        self.dentries: DentryCache | None = None
        self.memory = memory
        self.allocator = PageAllocator(state.allocator)
        self.free: Segments = []

    def run(self) -> None:
        self.config()
        self.heap()
        self.queues()
        self.requests()
        self.nodes()
        self.files()
        self.processes()
        self.caches()

    def config(self) -> None:
        state, config, session = self.state, self.state.config, self.state.session
        if config.cache not in CACHES or not 1 <= config.queue_size <= QUEUE_SIZE_MAX or config.slots < 1:
            refuse("config", "impossible options")
        if (
            not 4096 <= config.max_transfer <= 1 << 30
            or config.forget_batch < 1
            or config.readahead_pages < 0
        ):
            refuse("config", "impossible options")
        if not 0 <= config.realtime_ns <= U64_MAX or not 0 <= config.device_number < 1 << 32:
            refuse("config", "impossible options")
        if not 0 <= state.features <= U64_MAX or not 0 <= session.flags <= U64_MAX:
            refuse("features", "not a set of 64 bits")
        if (
            not 4096 <= session.max_write < 1 << 32
            or not 1 <= session.max_pages <= 256
            or session.time_gran < 1
        ):
            refuse("session", "impossible limits")
        if state.next_unique < 2 or state.next_unique % 2 or state.next_unique > U64_MAX // 2:
            refuse("next_unique", "not an even request number")
        if state.booted and len(state.queues) < 2:
            refuse("queues", "a booted guest has a hiprio and a request queue")

    def heap(self) -> None:
        end = 0
        for gpa, size in self.state.allocator.ranges:
            if gpa < end or size <= 0:
                refuse("allocator.ranges", "ranges overlap")
            self.memory.view(gpa, size)
            end = gpa + size
        self.free = self.allocator.check()

    def segments(self, segments: list[tuple[int, int]], field: str) -> None:
        for gpa, size in segments:
            if not 0 < size <= 1 << 32 or gpa < 0:
                refuse(field, f"segment {gpa:#x}+{size:#x}")
            self.memory.views(gpa, size)

    def queues(self) -> None:
        state = self.state
        if len(state.queues) > VIRTIO_QUEUE_MAX:
            refuse("queues", f"{len(state.queues)} queues")
        for at, queue in enumerate(state.queues):
            field = f"queues[{at}]"
            if (
                queue.index != at
                or not 1 <= queue.size <= QUEUE_SIZE_MAX
                or not 1 <= queue.slot_count <= queue.size
            ):
                refuse(field, "impossible size")
            if queue.slots_gpa < 0 or not self.allocator.is_allocated(
                queue.slots_gpa, queue.slot_count * SLOT_BYTES, self.free
            ):
                refuse(field, "slots outside the heap")
            slots = list(queue.free_slots)
            for unique in queue.in_flight.values():
                request = state.requests.get(unique)
                if request is None or request.status != IN_FLIGHT or request.queue != at:
                    refuse(field, f"request {unique} is not in flight")
                slots.append(request.slot)
            if sorted(slots) != list(range(queue.slot_count)):
                refuse(field, "slots are lost or used twice")
            for unique in queue.backlog:
                request = state.requests.get(unique)
                if request is None or request.status != QUEUED or request.queue != at:
                    refuse(field, f"request {unique} does not wait")
            self.ring(queue, field)
            if len(set(queue.backlog)) != len(queue.backlog):
                refuse(field, "a request waits twice")

    def ring(self, queue: QueueState, field: str) -> None:
        ring = VirtioDriver.make_ring(queue, self.state.features, self.memory)
        if self.state.booted and not queue.ring:
            refuse(field, "no ring position")
        heads = sorted(item.id for item in ring.save().outstanding)
        if heads != sorted(queue.in_flight) and not self.state.broken:
            refuse(field, "ring and requests disagree")

    def requests(self) -> None:
        known = {
            unique for queue in self.state.queues for unique in (*queue.in_flight.values(), *queue.backlog)
        }
        for unique, request in self.state.requests.items():
            field = f"requests[{unique}]"
            if unique != request.unique or not 0 < unique < self.state.next_unique:
                refuse(field, "wrong number")
            # Any opcode: a guest may send those of a newer kernel than we know.
            if not 0 < request.opcode < 1 << 32 or not 0 <= request.queue < len(self.state.queues):
                refuse(field, "no such opcode or queue")
            if (request.status != DONE) != (unique in known) or request.status not in (
                QUEUED,
                IN_FLIGHT,
                DONE,
            ):
                refuse(field, f"status {request.status}")
            if not -1 <= request.out_bytes <= SLOT_OUT - OUT_BYTES or not 0 <= request.error < ERRNO_END:
                refuse(field, "impossible reply")
            for name, segments in (
                ("reads", request.reads), ("writes", request.writes), ("spill", request.spill),
                ("owned", request.owned),
            ):  # fmt: skip
                self.segments(segments, f"{field}.{name}")
            for gpa, size in (*request.spill, *request.owned):
                if not self.allocator.is_allocated(gpa, size, self.free):
                    refuse(field, "a buffer that is free")

    def nodes(self) -> None:
        nodes = self.state.nodes
        if self.state.booted and not self.state.broken and FUSE_ROOT_ID not in nodes:
            refuse("nodes", "no root")
        self._no_loops()
        self._submounts()
        for nodeid, nlookup in self.state.forgets:
            if not 0 < nodeid <= U64_MAX or not 0 < nlookup <= U64_MAX:
                refuse("forgets", "impossible count")

    def _submounts(self) -> None:
        submounts = self.state.submounts
        numbers = {known.device_number for known in submounts.values()}
        if len(submounts) > SUBMOUNTS_MAX or len(numbers) < len(submounts):
            refuse("submounts", "too many, or two with one device number")
        if any(not 0 < number <= self.state.last_device < 1 << 63 for number in numbers):
            refuse("submounts", "a device number that was never given out")
        if any(not 0 <= node.device_number < 1 << 63 for node in self.state.nodes.values()):
            refuse("nodes", "impossible device number")

    def _no_loops(self) -> None:
        parents = self.all.parents
        safe = {0, FUSE_ROOT_ID}
        for start in parents:
            nodeid = start
            trail: list[int] = []
            while nodeid not in safe:
                if len(trail) > len(parents):
                    refuse("nodes", "a directory is its own ancestor")
                trail.append(nodeid)
                nodeid = parents.get(nodeid, 0)
            safe.update(trail)

    def files(self) -> None:
        state = self.state
        users = Counter(file for process in state.processes.values() for file in process.fds.values())
        for number, file in state.files.items():
            field = f"files[{number}]"
            if (
                number != file.id
                or not 0 < number < state.next_file
                or file.refs < users[number]
                or file.refs < 1
            ):
                refuse(field, "impossible open file")
            if file.fh is not None and not 0 <= file.fh <= U64_MAX:
                refuse(field, "impossible file handle")
            if file.fh is not None and file.nodeid not in state.nodes:
                refuse(field, f"node {file.nodeid} is not known")
            if (
                not 0 <= file.offset < 1 << 64
                or not 0 <= file.flags < 1 << 32
                or not 0 <= file.open_flags < 1 << 32
                or not 0 <= file.error < ERRNO_END
            ):
                refuse(field, "impossible offset, flags or error")
        for number in users:
            if number not in state.files:
                refuse("processes", f"open file {number} is not known")

    def processes(self) -> None:
        state = self.state
        for pid, process in state.processes.items():
            field = f"processes[{pid}]"
            ids = (process.uid, process.gid, *process.groups, *(process.real or ()), *(process.saved or ()))
            if pid != process.pid or not 0 < pid < 1 << 31 or any(not 0 <= value < 1 << 32 for value in ids):
                refuse(field, "impossible process")
            capabilities = (process.capabilities or 0, process.permitted or 0)
            if any(not 0 <= bits <= U64_MAX for bits in capabilities):
                refuse(field, "impossible capabilities")
            if not 0 <= process.umask <= 0o777 or any(not 0 <= fd < 1 << 31 for fd in process.fds):
                refuse(field, "impossible umask or descriptor")
            if not state.broken and process.cwd not in state.nodes:
                refuse(field, "its working directory is not known")
        for lock in state.local_locks:
            if (
                lock.kind not in (0, 1)
                or not 0 <= lock.start <= lock.end < 1 << 63
                or lock.nodeid not in state.nodes
            ):
                refuse("local_locks", "impossible lock")

    def caches(self) -> None:
        nodes = self.state.nodes
        if self.state.pages.entries:
            self.pages = PageCache(self.memory, self.state.pages)
            for nodeid in self.pages.cached_nodes():
                if nodeid not in nodes:
                    refuse("pages", f"node {nodeid} is not known")
        if self.state.dentries.entries:
            self.dentries = DentryCache(self.memory, self.state.dentries)
            unknown = self.dentries.references() - nodes.keys()
            if unknown:
                refuse("dentries", f"node {min(unknown)} is not known")
