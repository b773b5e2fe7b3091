"""What a guest saves, and what it refuses to take over."""

from __future__ import annotations

import errno
import fcntl
import os

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.guest_rig import GuestRig, make_memory
from vmsim.errors import StallError, StreamError
from vmsim.guest.calls.posix import mount
from vmsim.guest.kernel.kernel import GuestKernel
from vmsim.guest.state import KernelState

CACHED = {"cache": "writeback", "cache_pages": 32, "dentries": 64, "options": {"writeback": True}}


def test_everything_survives(rig):
    made = rig(**CACHED)
    fs = made.fs
    fs.makedirs("/d/e")
    fs.chdir("/d")
    fs.umask(0o027)
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"dirty and nowhere else")
    second = fs.dup(fd)
    child = fs.fork()
    os_file = made.share / "f"
    assert os_file.read_bytes() == b""
    old = made.kernel
    kernel = made.clone()
    assert fs.kernel is kernel is not old
    assert os_file.read_bytes() == b""
    assert fs.pread(fd, 100, 0) == b"dirty and nowhere else"
    assert fs.lseek(second, 0, os.SEEK_CUR) == 22
    assert fs.getcwd() == "/d"
    assert fs.umask(0) == 0o027
    assert child.read(fd, 1) == b""
    fs.fsync(fd)
    assert os_file.read_bytes() == b"dirty and nowhere else"
    fs.close(second)
    child.exit()
    fs.close(fd)


def test_saving_changes_nothing(rig):
    made = rig(**CACHED)
    fd = made.fs.open("/f", os.O_CREAT | os.O_RDWR)
    made.fs.write(fd, b"x")
    first = made.kernel.save()
    assert made.kernel.save() == first
    assert made.fs.read(fd, 1) == b""


def test_requests_in_flight_complete_after_the_move(rig):
    made = rig()
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"0123456789")
    made.device.hold = True
    pending = [fs.submit_read(fd, 4, offset) for offset in (0, 3, 6)]
    pending.append(fs.submit_write(fd, b"AB", 2))
    assert not any(fs.done(request) for request in pending)
    made.clone()
    made.device.serve()
    assert [fs.result(request) for request in pending] == [b"0123", b"3456", b"6789", 2]
    made.device.hold = False
    assert fs.pread(fd, 10, 0) == b"01AB456789"
    assert not made.kernel.requests


def test_a_program_parked_in_a_call_goes_on(rig):
    made = rig(**CACHED)
    fs = made.fs
    with fs.open_file("/f", "wb") as file:
        file.write(b"payload" * 5000)
    fs.drop_caches()
    made.device.hold = True

    def program():
        with fs.open_file("/f", "rb") as reader:
            return reader.read()

    task = made.schedule.spawn("reader", program)
    for _ in range(30):
        made.schedule.settle()
        made.clone()
        made.device.serve()
    assert made.schedule.join(task) == b"payload" * 5000
    assert not made.kernel.requests


def test_a_full_ring_moves_with_its_backlog(rig):
    made = rig(queue_size=8, slots=4)
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, bytes(range(100)))
    made.device.hold = True
    pending = [fs.submit_read(fd, 1, offset) for offset in range(20)]
    assert made.kernel.queues[1].state.backlog
    made.clone()
    while made.device.held:
        made.device.serve(backwards=True)
        made.kernel.poll()
    assert [fs.result(request) for request in pending] == [bytes([offset]) for offset in range(20)]


def test_orphans_give_everything_back(rig):
    made = rig(queue_size=8, slots=2)
    fs = made.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    free = made.kernel.allocator.free_bytes
    made.device.hold = True
    for offset in range(6):
        fs.submit_read(fd, 4096, offset)
    task = made.schedule.spawn("opener", lambda: fs.open("/f", os.O_RDONLY))
    made.schedule.settle()
    saved = made.kernel.save()
    handles = len(list(made.server.handles))
    kernel = GuestKernel(made.memory, made.device.registers, made.schedule)
    kernel.restore(saved)
    kernel.adopt(made.kernel)
    made.device.virtio.on_interrupt = kernel.interrupt
    kernel.abandon_all()
    made.device.hold = False
    made.device.serve()
    kernel.poll()
    kernel.poll()
    assert not kernel.requests
    assert kernel.allocator.free_bytes == free
    assert len(list(made.server.handles)) == handles
    made.schedule.kill(task)
    made.schedule.close()
    assert mount(kernel).pread(fd, 1, 0) == b""


def test_a_program_killed_on_a_paused_machine_ends(rig):
    made = rig()
    fs = made.fs
    fs.makedirs("/d/e")
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    made.device.hold = True
    tasks = [
        made.schedule.spawn("reader", lambda: fs.read(fd, 1)),
        made.schedule.spawn("walker", lambda: fs.stat("/d/e")),
    ]
    made.schedule.settle()
    made.kernel.pause()
    for task in tasks:
        made.schedule.kill(task)
    made.schedule.close()
    made.kernel.resume()
    made.device.hold = False
    made.device.serve()
    made.kernel.poll()
    assert not made.kernel.requests
    assert made.kernel.state.files[1].refs == 1
    fs.close(fd)
    assert list(made.kernel.nodes.nodes) == [1]


def test_local_locks_and_waiters_survive(rig):
    made = rig(remote_locks=False)
    fs = made.fs
    other = fs.fork()
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fd2 = other.open("/f", os.O_RDWR)
    fs.setlk(fd, fcntl.F_WRLCK, 0, 10)
    task = made.schedule.spawn("waiter", lambda: other.setlk(fd2, fcntl.F_WRLCK, 5, 1, wait=True))
    made.schedule.settle()
    made.clone()
    made.schedule.settle()
    assert not task.done
    fs.setlk(fd, fcntl.F_UNLCK, 0, 10)
    made.schedule.join(task)
    with pytest.raises(BlockingIOError):
        fs.setlk(fd, fcntl.F_RDLCK, 0, 0)


def test_a_local_deadlock_is_told(rig):
    made = rig(remote_locks=False)
    fs, other, third = made.fs, made.fs.fork(), made.fs.fork()
    fds = [side.open("/f", os.O_CREAT | os.O_RDWR) for side in (fs, other, third)]
    for at, side in enumerate((fs, other, third)):
        side.setlk(fds[at], fcntl.F_WRLCK, at, 1)
    first = made.schedule.spawn("first", lambda: fs.setlk(fds[0], fcntl.F_WRLCK, 1, 1, wait=True))
    second = made.schedule.spawn("second", lambda: other.setlk(fds[1], fcntl.F_RDLCK, 2, 1, wait=True))
    made.schedule.settle()
    with pytest.raises(OSError) as caught:
        third.setlk(fds[2], fcntl.F_RDLCK, 0, 1, wait=True)
    assert caught.value.errno == errno.EDEADLK
    third.setlk(fds[2], fcntl.F_UNLCK, 0, 0)
    made.schedule.join(second)
    other.setlk(fds[1], fcntl.F_UNLCK, 0, 0)
    made.schedule.join(first)
    assert made.kernel.cell.lock_waits == []
    one, two = (fs.open("/g", os.O_CREAT | os.O_RDWR) for _ in range(2))
    fs.flock(one, fcntl.LOCK_EX)
    with pytest.raises(StallError):
        fs.flock(two, fcntl.LOCK_EX)


# -- hostile states


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved state with something in every table, and its memory."""
    share = tmp_path_factory.mktemp("share")
    made = GuestRig(share, memory_bytes=4 << 20, slots=4, queue_size=16, **CACHED)
    fs = made.fs
    fs.makedirs("/d/e")
    fs.chdir("/d/e")
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"z" * 5000)
    made.device.hold = True
    for offset in range(6):
        fs.submit_read(fd, 100, offset)
    made.kernel.state.forgets.append((77, 1))
    made.kernel.state.processes[1].fds[9] = 1
    made.kernel.state.files[1].refs += 1
    state = made.kernel.save()
    yield state, made
    made.close()


def load(saved_bytes, made):
    kernel = GuestKernel(made.memory, made.device.registers, made.schedule)
    kernel.restore(saved_bytes)
    return kernel


def test_the_untouched_state_loads(saved):
    state, made = saved
    assert load(state, made).save() == state


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: setattr(s, "version", 2),
        lambda s: setattr(s, "next_unique", 3),
        lambda s: setattr(s, "next_unique", 2),
        lambda s: setattr(s.config, "cache", "magic"),
        lambda s: setattr(s.config, "queue_size", 0),
        lambda s: setattr(s.session, "max_pages", 0),
        lambda s: setattr(s, "features", -1),
        lambda s: s.queues.pop(),
        lambda s: s.queues.clear(),
        lambda s: setattr(s.queues[1], "size", 1 << 20),
        lambda s: setattr(s.queues[1], "desc", 1 << 60),
        lambda s: setattr(s.queues[1], "desc", 3),
        lambda s: setattr(s.queues[1], "slots_gpa", 1 << 60),
        lambda s: setattr(s.queues[1], "slots_gpa", -4096),
        lambda s: setattr(s.queues[1], "ring", b"junk"),
        lambda s: setattr(s.queues[1], "ring", b""),
        lambda s: s.queues[1].free_slots.append(0),
        lambda s: s.queues[1].in_flight.update({99: 1}),
        lambda s: s.queues[1].in_flight.clear(),
        lambda s: s.queues[1].backlog.append(s.queues[1].backlog[0]),
        lambda s: s.queues[1].backlog.append(424242),
        lambda s: s.requests.clear(),
        lambda s: setattr(next(iter(s.requests.values())), "opcode", 0),
        lambda s: setattr(next(iter(s.requests.values())), "opcode", 1 << 32),
        lambda s: setattr(next(iter(s.requests.values())), "unique", 4444),
        lambda s: setattr(next(iter(s.requests.values())), "queue", 50),
        lambda s: setattr(next(iter(s.requests.values())), "out_bytes", 1 << 20),
        lambda s: setattr(next(iter(s.requests.values())), "status", 2),
        lambda s: setattr(next(iter(s.requests.values())), "writes", [(1 << 60, 4096)]),
        lambda s: setattr(next(iter(s.requests.values())), "owned", [s.allocator.free[-1]]),
        lambda s: s.nodes.pop(1),
        lambda s: setattr(s.nodes[1], "refs", 0),
        lambda s: setattr(s.nodes[1], "id", 5),
        lambda s: setattr(s.nodes[2], "parent", 3),
        lambda s: setattr(s.nodes[3], "parent", 77),
        lambda s: setattr(s.nodes[2], "name", b"a/b"),
        lambda s: setattr(s.nodes[2].attr, "mode", 1 << 40),
        lambda s: setattr(s.nodes[2].attr, "size", -1),
        lambda s: s.forgets.append((0, 1)),
        lambda s: setattr(s.files[1], "refs", 0),
        lambda s: setattr(s.files[1], "nodeid", 555),
        lambda s: setattr(s.files[1], "fh", -1),
        lambda s: setattr(s.files[1], "offset", -1),
        lambda s: setattr(s.files[1], "flags", 1 << 40),
        lambda s: s.processes[1].fds.update({4: 99}),
        lambda s: s.processes[1].fds.update({-4: 1}),
        lambda s: setattr(s.processes[1], "cwd", 99),
        lambda s: setattr(s.processes[1], "uid", -5),
        lambda s: setattr(s.processes[1], "umask", 0o10000),
        lambda s: setattr(s.allocator, "free", [(5, 4096)]),
        lambda s: s.allocator.free.append((0, 1 << 40)),
        lambda s: s.allocator.ranges.append((1 << 50, 4096)),
        lambda s: s.allocator.quick.update({100: [4096]}),
        lambda s: setattr(s.pages, "entries", 1 << 40),
        lambda s: setattr(s.pages, "table_gpa", 1 << 50),
        lambda s: setattr(s.pages, "data_gpa", 12345),
        lambda s: setattr(s.dentries, "entries", -1),
        lambda s: setattr(s.dentries, "table_gpa", s.pages.data_gpa),
    ],
)
def test_impossible_states_are_refused(saved, spoil):
    state, made = saved
    decoded = msgspec.msgpack.decode(state, type=KernelState)
    spoil(decoded)
    spoiled = msgspec.msgpack.encode(decoded)
    with pytest.raises(StreamError):
        load(spoiled, made)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_stream_errors_or_load(saved, data):
    state, made = saved
    damaged = bytearray(state)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 20))
    try:
        load(bytes(damaged[: len(damaged) - cut]), made)
    except StreamError:
        pass


def test_tables_in_guest_memory_are_checked(saved):
    state, made = saved
    decoded = msgspec.msgpack.decode(state, type=KernelState)
    memory = make_memory(made.regions)
    for region in made.memory.regions:
        memory.write(region.gpa, bytes(region.view))
    for gpa, junk in ((decoded.pages.table_gpa, b"\xff" * 24), (decoded.dentries.table_gpa, b"\x07" * 288)):
        keep = memory.read(gpa, len(junk))
        memory.write(gpa, junk)
        with pytest.raises(StreamError):
            GuestKernel(memory, made.device.registers, made.schedule).restore(state)
        memory.write(gpa, keep)
    GuestKernel(memory, made.device.registers, made.schedule).restore(state)
