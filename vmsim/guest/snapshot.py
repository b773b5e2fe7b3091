"""Saving a guest kernel and taking one over: msgpack of the state, checked field by field on arrival."""

from __future__ import annotations

import stat
from collections import Counter
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from vmsim.errors import MemoryAccessError, StreamError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.headers import FUSE_ROOT_ID
from vmsim.guest.acl import ACL_BYTES_MAX
from vmsim.guest.alloc import PageAllocator
from vmsim.guest.config import CACHES
from vmsim.guest.dentries import DentryCache
from vmsim.guest.driver import VirtioDriver
from vmsim.guest.pagecache import PageCache
from vmsim.guest.queue import OUT_BYTES, SLOT_BYTES, SLOT_OUT
from vmsim.guest.state import DONE, IN_FLIGHT, QUEUED, STATE_VERSION, KernelState, QueueState, Segments
from vmsim.limits import GUEST_STATE_MAX, QUEUE_SIZE_MAX, VIRTIO_QUEUE_MAX
from vmsim.memory import GuestMemory

if TYPE_CHECKING:
    from vmsim.guest.kernel import GuestKernel

U64_MAX: Final = (1 << 64) - 1


def save(kernel: GuestKernel) -> bytes:
    """The kernel's state with the rings' positions."""
    state = kernel.state
    state.missing = sorted(kernel.missing)
    for queue in kernel.queues:
        queue.state.ring = msgspec.msgpack.encode(queue.ring.save())
    return msgspec.msgpack.encode(state)


def load(saved: bytes, memory: GuestMemory) -> KernelState:
    """Decode and check; StreamError names the field that is wrong."""
    if len(saved) > GUEST_STATE_MAX:
        raise StreamError(f"guest state of {len(saved)} bytes", field="vmsim/guest")
    try:
        state = msgspec.msgpack.decode(saved, type=KernelState)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
        raise StreamError(f"guest state: {error}", field="vmsim/guest") from error
    if state.version != STATE_VERSION:
        raise StreamError(f"guest state version {state.version}, not {STATE_VERSION}", field="version")
    try:
        _Checker(state, memory).run()
    except MemoryAccessError as error:
        raise StreamError(f"guest state points outside guest memory: {error}", field="vmsim/guest") from error
    return state


def _refuse(field: str, why: str) -> NoReturn:
    raise StreamError(f"guest state: {why}", field=field)

ERRNO_END: Final = 4096
"""Error numbers are smaller (MAX_ERRNO of Linux)."""


class _Checker:
    """Every cross-reference and range of a decoded state, one method per part."""

    def __init__(self, state: KernelState, memory: GuestMemory) -> None:
        self.state = state
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
            _refuse("config", "impossible options")
        if (
            not 4096 <= config.max_transfer <= 1 << 30
            or config.forget_batch < 1
            or config.readahead_pages < 0
        ):
            _refuse("config", "impossible options")
        if not 0 <= config.realtime_ns <= U64_MAX or not 0 <= config.device_number < 1 << 32:
            _refuse("config", "impossible options")
        if not 0 <= state.features <= U64_MAX or not 0 <= session.flags <= U64_MAX:
            _refuse("features", "not a set of 64 bits")
        if (
            not 4096 <= session.max_write < 1 << 32
            or not 1 <= session.max_pages <= 256
            or session.time_gran < 1
        ):
            _refuse("session", "impossible limits")
        if state.next_unique < 2 or state.next_unique % 2 or state.next_unique > U64_MAX // 2:
            _refuse("next_unique", "not an even request number")
        if state.booted and len(state.queues) < 2:
            _refuse("queues", "a booted guest has a hiprio and a request queue")

    def heap(self) -> None:
        end = 0
        for gpa, size in self.state.allocator.ranges:
            if gpa < end or size <= 0:
                _refuse("allocator.ranges", "ranges overlap")
            self.memory.view(gpa, size)
            end = gpa + size
        self.free = self.allocator.check()

    def segments(self, segments: list[tuple[int, int]], field: str) -> None:
        for gpa, size in segments:
            if not 0 < size <= 1 << 32 or gpa < 0:
                _refuse(field, f"segment {gpa:#x}+{size:#x}")
            self.memory.views(gpa, size)

    def queues(self) -> None:
        state = self.state
        if len(state.queues) > VIRTIO_QUEUE_MAX:
            _refuse("queues", f"{len(state.queues)} queues")
        for at, queue in enumerate(state.queues):
            field = f"queues[{at}]"
            if (
                queue.index != at
                or not 1 <= queue.size <= QUEUE_SIZE_MAX
                or not 1 <= queue.slot_count <= queue.size
            ):
                _refuse(field, "impossible size")
            if queue.slots_gpa < 0 or not self.allocator.is_allocated(
                queue.slots_gpa, queue.slot_count * SLOT_BYTES, self.free
            ):
                _refuse(field, "slots outside the heap")
            slots = list(queue.free_slots)
            for unique in queue.in_flight.values():
                request = state.requests.get(unique)
                if request is None or request.status != IN_FLIGHT or request.queue != at:
                    _refuse(field, f"request {unique} is not in flight")
                slots.append(request.slot)
            if sorted(slots) != list(range(queue.slot_count)):
                _refuse(field, "slots are lost or used twice")
            for unique in queue.backlog:
                request = state.requests.get(unique)
                if request is None or request.status != QUEUED or request.queue != at:
                    _refuse(field, f"request {unique} does not wait")
            self.ring(queue, field)
            if len(set(queue.backlog)) != len(queue.backlog):
                _refuse(field, "a request waits twice")

    def ring(self, queue: QueueState, field: str) -> None:
        ring = VirtioDriver.make_ring(queue, self.state.features, self.memory)
        if self.state.booted and not queue.ring:
            _refuse(field, "no ring position")
        heads = sorted(item.id for item in ring.save().outstanding)
        if heads != sorted(queue.in_flight) and not self.state.broken:
            _refuse(field, "ring and requests disagree")

    def requests(self) -> None:
        known = {
            unique for queue in self.state.queues for unique in (*queue.in_flight.values(), *queue.backlog)
        }
        for unique, request in self.state.requests.items():
            field = f"requests[{unique}]"
            if unique != request.unique or not 0 < unique < self.state.next_unique:
                _refuse(field, "wrong number")
            if request.opcode not in op.BY_NUMBER or not 0 <= request.queue < len(self.state.queues):
                _refuse(field, "no such opcode or queue")
            if (request.status != DONE) != (unique in known) or request.status not in (
                QUEUED,
                IN_FLIGHT,
                DONE,
            ):
                _refuse(field, f"status {request.status}")
            if not -1 <= request.out_bytes <= SLOT_OUT - OUT_BYTES or not 0 <= request.error < ERRNO_END:
                _refuse(field, "impossible reply")
            for name, segments in (
                ("reads", request.reads), ("writes", request.writes), ("spill", request.spill),
                ("owned", request.owned),
            ):  # fmt: skip
                self.segments(segments, f"{field}.{name}")
            for gpa, size in (*request.spill, *request.owned):
                if not self.allocator.is_allocated(gpa, size, self.free):
                    _refuse(field, "a buffer that is free")

    def nodes(self) -> None:
        nodes = self.state.nodes
        if self.state.booted and not self.state.broken and FUSE_ROOT_ID not in nodes:
            _refuse("nodes", "no root")
        for nodeid, node in nodes.items():
            field = f"nodes[{nodeid}]"
            if nodeid != node.id or not 0 < nodeid <= U64_MAX or node.nlookup < 0 or node.refs < 1:
                _refuse(field, "impossible node")
            attr = node.attr
            words = (
                attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, attr.flags,
                attr.atimensec, attr.mtimensec, attr.ctimensec,
            )  # fmt: skip
            if any(not 0 <= value < 1 << 32 for value in words) or min(attr.ino, attr.size, attr.blocks) < 0:
                _refuse(field, "impossible attributes")
            if len(node.acl) > ACL_BYTES_MAX or node.acl_expiry_ns < 0:
                _refuse(field, "impossible ACL")
            if not 0 <= node.error < ERRNO_END:
                _refuse(field, "impossible error")
            if node.parent and (node.parent not in nodes or not stat.S_ISDIR(nodes[node.parent].attr.mode)):
                _refuse(field, f"parent {node.parent} is no known directory")
            if b"/" in node.name or b"\0" in node.name:
                _refuse(field, "impossible name")
        self._no_loops()
        for nodeid, nlookup in self.state.forgets:
            if not 0 < nodeid <= U64_MAX or not 0 < nlookup <= U64_MAX:
                _refuse("forgets", "impossible count")

    def _no_loops(self) -> None:
        nodes = self.state.nodes
        safe = {0, FUSE_ROOT_ID}
        for nodeid in nodes:
            trail: list[int] = []
            while nodeid not in safe:
                if len(trail) > len(nodes):
                    _refuse("nodes", "a directory is its own ancestor")
                trail.append(nodeid)
                nodeid = nodes[nodeid].parent
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
                _refuse(field, "impossible open file")
            if file.fh is not None and not 0 <= file.fh <= U64_MAX:
                _refuse(field, "impossible file handle")
            if file.fh is not None and file.nodeid not in state.nodes:
                _refuse(field, f"node {file.nodeid} is not known")
            if (
                not 0 <= file.offset < 1 << 64
                or not 0 <= file.flags < 1 << 32
                or not 0 <= file.open_flags < 1 << 32
                or not 0 <= file.error < ERRNO_END
            ):
                _refuse(field, "impossible offset, flags or error")
        for number in users:
            if number not in state.files:
                _refuse("processes", f"open file {number} is not known")

    def processes(self) -> None:
        state = self.state
        for pid, process in state.processes.items():
            field = f"processes[{pid}]"
            ids = (process.uid, process.gid, *process.groups, *(process.real or ()), *(process.saved or ()))
            if pid != process.pid or not 0 < pid < 1 << 31 or any(not 0 <= value < 1 << 32 for value in ids):
                _refuse(field, "impossible process")
            capabilities = (process.capabilities or 0, process.permitted or 0)
            if any(not 0 <= bits <= U64_MAX for bits in capabilities):
                _refuse(field, "impossible capabilities")
            if not 0 <= process.umask <= 0o777 or any(not 0 <= fd < 1 << 31 for fd in process.fds):
                _refuse(field, "impossible umask or descriptor")
            if not state.broken and process.cwd not in state.nodes:
                _refuse(field, "its working directory is not known")
        for lock in state.local_locks:
            if (
                lock.kind not in (0, 1)
                or not 0 <= lock.start <= lock.end < 1 << 63
                or lock.nodeid not in state.nodes
            ):
                _refuse("local_locks", "impossible lock")

    def caches(self) -> None:
        nodes = self.state.nodes
        if self.state.pages.entries:
            for nodeid in PageCache(self.memory, self.state.pages).cached_nodes():
                if nodeid not in nodes:
                    _refuse("pages", f"node {nodeid} is not known")
        if self.state.dentries.entries:
            for parent, nodeid in DentryCache(self.memory, self.state.dentries).references():
                if parent not in nodes or (nodeid and nodeid not in nodes):
                    _refuse("dentries", f"node {nodeid or parent} is not known")
