"""The driver against the specification: initialisation, chains, full rings, resets, malformed answers."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import pytest

from vmsim.errors import PeerError, StateError, UsageError
from vmsim.fuse import opcodes as op
from vmsim.guest.calls.posix import mount
from vmsim.guest.config import DRIVER_FEATURES, GuestConfig
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.virtio.constants import (
    DEVICE_ID_FS,
    F_ACCESS_PLATFORM,
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_NOTIFICATION_DATA,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    RING_FEATURES,
    STATUS_DEVICE_NEEDS_RESET,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
)
from vmsim.virtio.mmio import REGISTERS

NAMES = {row.offset: row.name for row in REGISTERS}


class RecordingBus:
    """Notes the names of the registers that are written."""

    def __init__(self, registers):
        self.registers = registers
        self.log = []

    def read(self, offset, size):
        return self.registers.read(offset, size)

    def write(self, offset, size, value):
        self.log.append((NAMES[offset], value))
        self.registers.write(offset, size, value)


def test_initialisation_sequence(rig):
    made = rig(boot=False)
    bus = RecordingBus(made.device.registers)
    kernel = GuestKernel(made.memory, bus, made.schedule)
    made.device.virtio.on_interrupt = kernel.interrupt
    kernel.boot()
    statuses = [value for name, value in bus.log if name == "Status"]
    assert statuses == [0, 1, 3, 11, 15]
    order = [name for name, _ in bus.log]
    ready = [at for at, name in enumerate(order) if name == "QueueReady"]
    assert len(ready) == 2
    assert order.index("DriverFeatures") < order.index("QueueSel") < ready[0]
    assert ready[-1] < len(order) - 1 - order[::-1].index("Status")
    queue = order[order.index("QueueSize") : ready[0] + 1]
    assert queue == [
        "QueueSize", "QueueDescLow", "QueueDescHigh", "QueueDriverLow", "QueueDriverHigh", "QueueDeviceLow",
        "QueueDeviceHigh", "QueueReady",
    ]  # fmt: skip
    assert kernel.state.tag == b"vmsim"


@pytest.mark.parametrize(
    ("offered", "wanted", "accepted"),
    [
        (RING_FEATURES, None, DRIVER_FEATURES & ~F_IN_ORDER),
        (RING_FEATURES, DRIVER_FEATURES, DRIVER_FEATURES),
        (F_VERSION_1, DRIVER_FEATURES, F_VERSION_1),
        (RING_FEATURES | 1, DRIVER_FEATURES | 1, DRIVER_FEATURES),
        (F_VERSION_1 | F_EVENT_IDX, 0, F_VERSION_1),
    ],
)
def test_features(rig, offered, wanted, accepted):
    made = rig(features=offered, boot=False)
    if wanted is not None:
        made.kernel.config.features = wanted
    made.kernel.boot()
    assert made.device.virtio.features_accepted == accepted
    mount(made.kernel).mkdir("/works")


@pytest.mark.parametrize("register", ["MagicValue", "Version", "DeviceID"])
def test_other_devices_are_refused(rig, register):
    made = rig(boot=False)

    class Other(RecordingBus):
        def read(self, offset, size):
            return 1 if NAMES.get(offset) == register else super().read(offset, size)

    with pytest.raises(PeerError):
        GuestKernel(made.memory, Other(made.device.registers), made.schedule).boot()


def test_a_device_that_refuses_our_features_is_failed(rig):
    made = rig(boot=False, features=F_VERSION_1 | F_ACCESS_PLATFORM)
    with pytest.raises(PeerError, match="refuses"):
        made.kernel.boot()
    assert made.device.virtio.status & STATUS_FAILED
    assert made.device.virtio.device_id == DEVICE_ID_FS


@pytest.mark.parametrize("config", [b"\0" * 36, b"with\nnewline".ljust(36, b"\0")])
def test_bad_tags_are_refused(rig, config):
    made = rig(boot=False)
    made.device.virtio.config[:36] = config
    with pytest.raises(PeerError):
        made.kernel.boot()


def test_a_tag_of_36_bytes_has_no_terminator(rig):
    made = rig(boot=False)
    made.device.virtio.config[:36] = b"t" * 36
    made.kernel.boot()
    assert made.kernel.state.tag == b"t" * 36


# -- chains


def only(seen, opcode):
    return next(entry for entry in seen if entry[0] == opcode)


def test_chains_as_linux_lays_them_out(rig):
    made = rig(features=RING_FEATURES & ~F_INDIRECT_DESC, linux_chains=True)
    fd = made.fs.open("/f", os.O_CREAT | os.O_RDWR)
    made.device.seen.clear()
    made.fs.fstat(fd)
    made.fs.write(fd, b"x" * 10)
    made.fs.read(fd, 5)
    seen = made.device.seen
    assert only(seen, op.GETATTR)[2] == [40, 16, 16, 104]
    assert only(seen, op.WRITE)[2] == [40, 40, 10, 16, 8]
    assert only(seen, op.READ)[2] == [40, 40, 16, 5]


@pytest.mark.parametrize("features", [RING_FEATURES, RING_FEATURES & ~F_RING_PACKED])
def test_forget_goes_to_hiprio_without_room_for_a_reply(rig, features):
    made = rig(features=features, batch_forget=False, forget_batch=1000)
    made.fs.mkdir("/d")
    made.fs.mknod("/d/f")
    for _ in range(3):
        made.fs.stat("/d/f")
    made.device.seen.clear()
    made.kernel.flush_forgets()
    assert made.device.seen
    for opcode, queue, lengths, readable, writable in made.device.seen:
        assert (opcode, queue, sum(lengths), readable, writable) == (op.FORGET, 0, 48, 48, 0)
    assert len(list(made.server.inodes.items())) == 1
    assert not made.kernel.requests


def test_forgets_are_batched_lazily(rig):
    made = rig(forget_batch=10)
    for number in range(4):
        made.fs.mknod(f"/{number}")
    assert op.BATCH_FORGET not in made.device.opcodes()
    for number in range(8):
        made.fs.mknod(f"/x{number}")
    assert op.BATCH_FORGET in made.device.opcodes()
    made.kernel.flush_forgets()
    assert len(list(made.server.inodes.items())) == 1


def test_requests_are_spread_over_queues_by_process(rig):
    made = rig(request_queues=3)
    assert len(made.kernel.queues) == 4
    used = set()
    for pid in (1, 2, 3):
        made.device.seen.clear()
        mount(made.kernel, pid).stat("/")
        used |= {entry[1] for entry in made.device.seen}
    assert used == {1, 2, 3}


def test_a_bounded_number_of_queues_is_used(rig):
    made = rig(request_queues=3, boot=False)
    made.kernel.config.request_queues = 2
    made.kernel.boot()
    assert len(made.kernel.queues) == 3
    assert made.kernel.state.device_queues == 3


# -- several at a time, full rings


@pytest.mark.parametrize("features", [RING_FEATURES, RING_FEATURES & ~F_RING_PACKED])
@pytest.mark.parametrize("indirect", [True, False])
def test_out_of_order_completion_and_a_full_ring(rig, features, indirect):
    made = rig(features=features & ~F_IN_ORDER, queue_size=8, indirect=indirect, linux_chains=True)
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, bytes(range(200)))
    made.device.hold = True
    pending = [fs.submit_read(fd, 1, offset) for offset in range(50)]
    waiting = len(made.kernel.queues[1].state.backlog)
    assert waiting == (42 if indirect else 48)
    while made.device.held:
        made.device.serve(backwards=True)
        made.kernel.poll()
    assert [fs.result(request) for request in pending] == [bytes([offset]) for offset in range(50)]
    assert made.kernel.queues[1].ring.outstanding == 0


def test_big_transfers_are_cut_for_a_small_ring(rig):
    made = rig(features=RING_FEATURES & ~F_INDIRECT_DESC, queue_size=8, linux_chains=True)
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    pages = [(fs.alloc_guest(4096), 4096) for _ in range(9)]
    pages.sort()
    scattered = [pages[at] for at in (0, 2, 4, 6, 8, 1, 3, 5, 7)]
    for number, (gpa, size) in enumerate(scattered):
        made.memory.write(gpa, bytes([number]) * size)
    made.device.seen.clear()
    assert fs.pwrite_guest(fd, scattered, 0) == 9 * 4096
    assert made.device.opcodes().count(op.WRITE) >= 3
    assert fs.pread(fd, 9 * 4096, 0) == b"".join(bytes([number]) * 4096 for number in range(9))
    backwards = scattered[::-1]
    assert fs.pread_guest(fd, backwards, 0) == 9 * 4096
    assert made.memory.read(backwards[0][0], 4096) == bytes(4096)
    assert made.memory.read(backwards[8][0], 4096) == bytes([8]) * 4096


def test_long_indirect_tables_and_long_messages_use_spare_memory(rig):
    made = rig()
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    free = made.kernel.allocator.free_bytes
    pages = sorted((fs.alloc_guest(4096), 4096) for _ in range(100))
    scattered = pages[::2] + pages[1::2]
    assert fs.pwrite_guest(fd, scattered, 0) == 100 * 4096
    fs.symlink("t" * 4000, "/long")
    assert fs.readlink("/long") == "t" * 4000
    for gpa, size in pages:
        fs.free_guest(gpa, size)
    assert made.kernel.allocator.free_bytes == free


def test_memory_shortage_makes_transfers_smaller(rig):
    made = rig(memory_bytes=2 << 20)
    fs = made.fs
    kept = []
    while (gpa := made.kernel.allocator.allocate(4096)) is not None:
        kept.append(gpa)
    for gpa in kept[-3:]:
        made.kernel.allocator.free(gpa, 4096)
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    data = os.urandom(100_000)
    assert fs.write(fd, data) == len(data)
    assert fs.pread(fd, len(data), 0) == data


# -- things that go wrong


def test_needs_reset_fails_what_is_pending_and_recover_begins_anew(rig):
    made = rig(dentries=16, cache="writethrough")
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"abc")
    made.device.hold = True
    pending = fs.submit_read(fd, 3, 0)
    task = made.schedule.spawn("waiter", lambda: fs.fstat(fd) and fs.fsync(fd))
    made.schedule.settle()
    assert not fs.done(pending)
    made.device.virtio.needs_reset("the test says so")
    assert fs.done(pending)
    with pytest.raises(OSError, match="Input/output") as caught:
        fs.result(pending)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        made.schedule.join(task)
    with pytest.raises(OSError, match="Input/output"):
        fs.stat("/f")
    made.device.hold = False
    made.kernel.recover()
    assert made.device.virtio.status & (STATUS_DRIVER_OK | STATUS_DEVICE_NEEDS_RESET) == STATUS_DRIVER_OK
    assert fs.stat("/f").st_size == 3
    for use in (lambda: fs.fstat(fd), lambda: fs.read(fd, 1), lambda: fs.write(fd, b"x")):
        with pytest.raises(OSError, match="Stale"):
            use()
    fs.close(fd)
    again = fs.open("/f", os.O_RDONLY)
    assert again == fd
    assert fs.read(again, 10) == b"abc"
    assert fs.getcwd() == "/"


def test_what_a_waiting_program_held_is_not_taken_from_the_new_session(rig):
    made = rig(dentries=16)
    fs = made.fs
    fs.makedirs("/d/e")
    made.kernel.inodes.shrink_dentries()
    made.device.hold = True
    task = made.schedule.spawn("walker", lambda: fs.stat("/d/e"))
    made.schedule.settle()
    made.device.serve()
    made.schedule.settle()
    assert made.device.held
    made.device.virtio.needs_reset("the test says so")
    made.device.hold = False
    made.kernel.recover()
    fd = fs.open("/d", os.O_RDONLY)
    made.kernel.inodes.shrink_dentries()
    with pytest.raises(OSError, match="Input/output"):
        made.schedule.join(task)
    assert fs.stat("e", dir_fd=fd)
    assert fs.fstat(fd).st_nlink == 3


def test_a_used_ring_that_lies_breaks_the_device(rig):
    made = rig(features=RING_FEATURES & ~F_RING_PACKED)
    fd = made.fs.open("/f", os.O_CREAT | os.O_RDWR)
    made.device.hold = True
    pending = made.fs.submit_stat(fd)
    used_idx = made.kernel.queues[1].state.device + 2
    made.memory.store_u16(used_idx, made.memory.load_u16(used_idx) + 1000 & 0xFFFF)
    with pytest.raises(OSError, match="Input/output"):
        made.fs.result(pending)
    made.device.hold = False
    made.kernel.recover()
    made.fs.stat("/")


@pytest.mark.parametrize("index", [0, 1])
def test_queue_reset(rig, index):
    made = rig()
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    made.device.hold = True
    pending = fs.submit_read(fd, 1, 0)
    made.kernel.reset_queue(index)
    if index:
        with pytest.raises(OSError, match="Input/output"):
            fs.result(pending)
        made.device.held.clear()
    else:
        made.device.serve()
        assert fs.result(pending) == b""
    made.device.hold = False
    fs.write(fd, b"goes on")
    assert fs.pread(fd, 10, 0) == b"goes on"
    for number in range(40):
        fs.mknod(f"/{number}")
    made.kernel.flush_forgets()
    assert not made.kernel.requests


def test_queue_reset_needs_the_feature(rig):
    made = rig(features=RING_FEATURES & ~F_RING_RESET)
    with pytest.raises(StateError):
        made.kernel.reset_queue(1)


BAD_REPLIES = {
    "another unique": lambda unique: struct.pack("<IiQ", 120, 0, unique + 2) + bytes(104),
    "positive error": lambda unique: struct.pack("<IiQ", 16, 5, unique),
    "error out of range": lambda unique: struct.pack("<IiQ", 16, -5000, unique),
    "longer than written": lambda unique: struct.pack("<IiQ", 4000, 0, unique) + bytes(104),
    "shorter than its header": lambda unique: struct.pack("<IiQ", 8, 0, unique),
    "cut record": lambda unique: struct.pack("<IiQ", 50, 0, unique) + bytes(34),
    "nothing": lambda unique: b"",
    "another kind of file": lambda unique: struct.pack("<IiQ", 120, 0, unique) + bytes(104),
}


@pytest.mark.parametrize("reply", BAD_REPLIES.values(), ids=BAD_REPLIES)
def test_malformed_replies_are_eio(rig, reply):
    made = rig()
    fd = made.fs.open("/f", os.O_CREAT | os.O_RDWR)

    def answer(chain):
        unique = struct.unpack_from("<Q", b"".join(map(bytes, chain.readable)), 8)[0]
        data = reply(unique)
        rest = data
        for view in chain.writable:
            part, rest = rest[: len(view)], rest[len(view) :]
            view[: len(part)] = part
        return len(data)

    made.device.before = answer
    with pytest.raises(OSError, match="Input/output"):
        made.fs.fstat(fd)
    made.device.before = None
    made.fs.fstat(fd)


def test_interrupt_ends_a_lock_wait(rig):
    made = rig()
    fs = made.fs
    other = fs.fork()
    fd, fd2 = fs.open("/f", os.O_CREAT | os.O_RDWR), other.open("/f", os.O_CREAT | os.O_RDWR)
    fs.setlk(fd, fcntl.F_WRLCK, 0, 0)
    task = made.schedule.spawn("waiter", lambda: other.lockf(fd2, os.F_LOCK, 0))
    made.schedule.settle()
    assert not task.done
    made.device.seen.clear()
    assert fs.interrupt(other.pid) >= 1
    assert [entry[:2] for entry in made.device.seen] == [(op.INTERRUPT, 0)]
    with pytest.raises(InterruptedError):
        made.schedule.join(task)
    task = made.schedule.spawn("waiter", lambda: other.lockf(fd2, os.F_LOCK, 0))
    made.schedule.settle()
    fs.lockf(fd, os.F_ULOCK, 0)
    made.schedule.join(task)
    with pytest.raises(BlockingIOError):
        fs.setlk(fd, fcntl.F_RDLCK, 0, 1)


def test_interrupt_ends_a_local_wait(rig):
    made = rig(remote_locks=False)
    fs = made.fs
    other = fs.fork()
    fd, fd2 = fs.open("/f", os.O_CREAT | os.O_RDWR), other.open("/f", os.O_CREAT | os.O_RDWR)
    fs.setlk(fd, fcntl.F_WRLCK, 0, 0)
    task = made.schedule.spawn("waiter", lambda: other.lockf(fd2, os.F_LOCK, 0))
    made.schedule.settle()
    fs.interrupt(other.pid)
    with pytest.raises(InterruptedError):
        made.schedule.join(task)
    assert op.SETLK not in made.device.opcodes()


def test_a_paused_guest_does_nothing(rig):
    made = rig()
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    made.kernel.pause()
    task = made.schedule.spawn("program", lambda: fs.write(fd, b"later"))
    made.schedule.settle()
    assert (made.share / "f").read_bytes() == b""
    assert made.kernel.requests == {}
    made.kernel.resume()
    assert made.schedule.join(task) == 5
    assert (made.share / "f").read_bytes() == b"later"


def test_a_paused_guest_takes_no_replies(rig):
    made = rig()
    fd = made.fs.open("/f", os.O_CREAT | os.O_RDWR)
    made.device.hold = True
    pending = made.fs.submit_read(fd, 1, 0)
    made.kernel.arm_interrupts()
    made.kernel.pause()
    made.device.serve()
    assert made.kernel.queues[1].ring.outstanding == 1
    made.kernel.resume()
    assert made.kernel.queues[1].ring.outstanding == 0
    assert made.fs.result(pending) == b""


def test_notifications_are_suppressed_while_nobody_waits(rig):
    made = rig(features=RING_FEATURES & ~F_NOTIFICATION_DATA)
    calls = []
    interrupt = made.kernel.interrupt
    made.device.virtio.on_interrupt = lambda: (calls.append(1), interrupt())
    fd = made.fs.open("/f", os.O_CREAT | os.O_RDWR)
    for _ in range(100):
        made.fs.fstat(fd)
    assert not calls
    made.device.hold = True
    task = made.schedule.spawn("waiter", lambda: made.fs.fstat(fd))
    made.schedule.settle()
    made.device.serve()
    assert calls
    made.schedule.join(task)


def test_config_is_checked(rig):
    made = rig(boot=False)
    with pytest.raises(UsageError):
        GuestKernel(made.memory, made.device.registers, made.schedule, GuestConfig(cache="some"))
    with pytest.raises(UsageError):
        GuestKernel(made.memory, made.device.registers, made.schedule, GuestConfig(heap=[(1, 2)]))
    made.kernel.boot()
    with pytest.raises(StateError):
        made.kernel.boot()
