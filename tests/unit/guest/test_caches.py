"""The caches in guest memory: what is asked, what is not, and what exists nowhere else."""

from __future__ import annotations

import os

import pytest

from tests.support.guest_rig import dirty_log
from vmsim.errors import UsageError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FOPEN_DIRECT_IO
from vmsim.memory import PAGE_SIZE
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule

SECOND = 1_000_000_000
WRITEBACK = {"cache": "writeback", "cache_pages": 16, "dentries": 64}


@pytest.fixture
def clock():
    return VirtualClock(5)


@pytest.fixture
def back(rig, clock):
    """A guest with a writeback cache of 16 pages, and virtual time."""
    return rig(schedule=ImmediateSchedule(clock), options={"writeback": True}, **WRITEBACK)


@pytest.fixture
def through(rig, clock):
    """A guest with a write-through cache of 16 pages, and virtual time."""
    return rig(schedule=ImmediateSchedule(clock), cache="writethrough", cache_pages=16, dentries=64)


def put(made, name, data):
    (made.share / name).write_bytes(data)


# -- names and attributes


def test_names_and_attributes_are_asked_for_when_their_time_is_over(through, clock):
    fs, device = through.fs, through.device
    put(through, "f", b"abc")
    device.opcodes()
    assert fs.stat("/f").st_size == 3
    assert device.opcodes() == [op.LOOKUP]
    assert fs.stat("/f").st_size == 3
    assert device.opcodes() == []
    put(through, "f", b"abcdef")
    assert fs.stat("/f").st_size == 3
    clock.advance_to(clock.now_ns() + SECOND + 1)
    assert fs.stat("/f").st_size == 6
    assert device.opcodes() == [op.LOOKUP]


def test_without_caches_everything_is_asked_for(rig):
    made = rig()
    put(made, "f", b"abc")
    for size in (3, 4, 5):
        put(made, "f", b"x" * size)
        made.device.opcodes()
        assert made.fs.stat("/f").st_size == size
        assert made.device.opcodes() == [op.LOOKUP]


def test_our_own_changes_show_at_once(through):
    fs = through.fs
    fs.mknod("/a")
    fs.stat("/a")
    fs.rename("/a", "/b")
    with pytest.raises(FileNotFoundError):
        fs.stat("/a")
    fs.link("/b", "/c")
    assert fs.stat("/b").st_nlink == 2
    fs.unlink("/c")
    assert fs.stat("/b").st_nlink == 1
    fs.chmod("/b", 0o600)
    assert fs.stat("/b").st_mode & 0o777 == 0o600


def test_dentries_are_bounded_and_forgotten(rig):
    made = rig(dentries=8, forget_batch=1)
    for number in range(50):
        made.fs.mknod(f"/{number}")
    assert len(made.kernel.dentries) == 8
    assert len(made.kernel.nodes.nodes) <= 9
    made.kernel.flush_forgets()
    assert len(list(made.server.inodes.items())) <= 9
    made.kernel.inodes.shrink_dentries()
    made.kernel.flush_forgets()
    assert len(list(made.server.inodes.items())) == 1


def test_readdirplus_fills_the_dentry_cache(through):
    for number in range(10):
        put(through, str(number), b"x" * number)
    with through.fs.scandir("/") as entries:
        names = [entry.name for entry in entries]
    through.device.opcodes()
    for name in names:
        assert through.fs.stat(f"/{name}").st_size == int(name)
    assert through.device.opcodes() == []


# -- pages


def test_reads_come_from_the_cache_with_readahead(through):
    fs, device = through.fs, through.device
    data = os.urandom(12 * PAGE_SIZE + 5)
    put(through, "f", data)
    fd = fs.open("/f", os.O_RDONLY)
    device.opcodes()
    assert fs.pread(fd, 10, 0) == data[:10]
    assert device.opcodes() == [op.READ]
    assert fs.pread(fd, 4096, 0) == data[:4096]
    assert device.opcodes() == []
    assert fs.pread(fd, 1 << 20, 0) == data
    assert device.opcodes().count(op.READ) <= 4


def test_open_drops_pages_and_a_changed_file_is_read_again(through, clock):
    fs, device = through.fs, through.device
    put(through, "f", b"old")
    fd = fs.open("/f", os.O_RDONLY)
    assert fs.pread(fd, 10, 0) == b"old"
    put(through, "f", b"new")
    os.utime(through.share / "f", ns=(1, 1))
    assert fs.pread(fd, 10, 0) == b"old"
    clock.advance_to(clock.now_ns() + SECOND + 1)
    assert fs.pread(fd, 10, 0) == b"new"
    put(through, "f", b"NEW")
    again = fs.open("/f", os.O_RDONLY)
    assert fs.pread(again, 10, 0) == b"NEW"
    assert device.opcodes().count(op.READ) == 3


def test_keep_cache_and_direct_io_are_honoured(rig):
    kept = rig(cache="writethrough", cache_pages=16, dentries=16, options={"cache": "always"})
    put(kept, "f", b"old")
    fd = kept.fs.open("/f", os.O_RDONLY)
    assert kept.fs.pread(fd, 10, 0) == b"old"
    put(kept, "f", b"new")
    again = kept.fs.open("/f", os.O_RDONLY)
    assert kept.fs.pread(again, 10, 0) == b"old"

    direct = rig(cache="writethrough", cache_pages=16, dentries=16, options={"cache": "never"})
    fd = direct.fs.open("/f", os.O_RDWR)
    assert direct.kernel.state.files[1].open_flags & FOPEN_DIRECT_IO
    for data in (b"one", b"two"):
        put(direct, "f", data)
        assert direct.fs.pread(fd, 10, 0) == data
    assert not direct.kernel.pages.cached_nodes()


def test_write_through_is_on_the_host_at_once(through):
    fs = through.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"x" * 5000)
    assert (through.share / "f").read_bytes() == b"x" * 5000
    through.device.opcodes()
    assert fs.pread(fd, 4096, 0) == b"x" * 4096
    fs.pwrite(fd, b"yy", 10)
    assert fs.pread(fd, 20, 0) == b"x" * 10 + b"yy" + b"x" * 8


def test_dirty_pages_exist_nowhere_else(back):
    fs, host = back.fs, back.share / "f"
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    back.device.opcodes()
    fs.write(fd, b"only in guest memory")
    assert back.device.opcodes() == []
    assert host.read_bytes() == b""
    assert fs.stat("/f").st_size == fs.fstat(fd).st_size == 20
    fs.fsync(fd)
    assert host.read_bytes() == b"only in guest memory"
    fs.pwrite(fd, b"X", 0)
    assert host.read_bytes()[:1] == b"o"
    fs.close(fd)
    assert host.read_bytes()[:1] == b"X"


def test_sync_and_eviction_write_out(back):
    fs = back.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    data = os.urandom(40 * PAGE_SIZE)
    fs.write(fd, data)
    written = (back.share / "f").stat().st_size
    assert 0 < written < len(data)
    assert fs.pread(fd, len(data), 0) == data
    fs.sync()
    assert (back.share / "f").read_bytes() == data
    assert back.device.opcodes()[-1] == op.SYNCFS


def test_partial_writes_fill_from_the_server(back):
    fs = back.fs
    put(back, "f", b"0123456789" * 1000)
    fd = fs.open("/f", os.O_WRONLY)
    fs.pwrite(fd, b"##", 5000)
    back.device.opcodes()
    fs.close(fd)
    assert op.WRITE in back.device.opcodes()
    expected = bytearray(b"0123456789" * 1000)
    expected[5000:5002] = b"##"
    assert (back.share / "f").read_bytes() == expected


def test_the_guest_decides_where_appended_pages_go(back):
    """The server is told of O_APPEND when the file is opened, as by Linux, and by no WRITE."""
    fs = back.fs
    put(back, "log", b"one ")
    sent = []
    back.device.before = lambda chain: sent.append(bytes(chain.readable[0])) and None
    fd = fs.open("/log", os.O_WRONLY | os.O_APPEND)
    fs.write(fd, b"two ")
    fs.write(fd, b"three")
    fs.close(fd)
    assert (back.share / "log").read_bytes() == b"one two three"
    opens, writes = (
        [message for message in sent if int.from_bytes(message[4:8], "little") == opcode]
        for opcode in (op.OPEN, op.WRITE)
    )
    assert all(int.from_bytes(message[40:44], "little") & os.O_APPEND for message in opens)
    assert writes
    assert not any(int.from_bytes(message[72:76], "little") & os.O_APPEND for message in writes)


def test_the_guest_owns_size_and_time_of_dirty_files(back, clock):
    fs = back.fs
    back.kernel.config.realtime_ns = 1_700_000_000 * SECOND
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"x" * 100)
    clock.advance_to(clock.now_ns() + 5 * SECOND)
    found = fs.fstat(fd)
    assert found.st_size == 100
    assert 1_700_000_000 <= found.st_mtime < 1_700_000_010
    fs.close(fd)
    assert int((back.share / "f").stat().st_mtime) == int(found.st_mtime)
    put(back, "f", b"y" * 200)
    clock.advance_to(clock.now_ns() + 5 * SECOND)
    assert fs.stat("/f").st_size == 200


def test_truncation_and_holes_in_dirty_files(back):
    fs = back.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"a" * 6000)
    fs.ftruncate(fd, 100)
    fs.ftruncate(fd, 9000)
    fs.pwrite(fd, b"end", 20000)
    expected = b"a" * 100 + bytes(19900) + b"end"
    assert fs.pread(fd, 30000, 0) == expected
    fs.close(fd)
    assert (back.share / "f").read_bytes() == expected


def test_unlinked_dirty_files(back):
    fs = back.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"dirty")
    fs.unlink("/f")
    assert fs.pread(fd, 10, 0) == b"dirty"
    assert fs.fstat(fd).st_nlink == 0
    fs.fsync(fd)
    fs.close(fd)
    assert not back.kernel.pages.cached_nodes()


def test_a_failed_write_out_is_reported_once(back):
    fs = back.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"lost")

    def refuse(chain):
        message = bytes(chain.readable[0])
        if int.from_bytes(message[4:8], "little") != op.WRITE:
            return None
        reply = (16).to_bytes(4, "little") + (-28).to_bytes(4, "little", signed=True) + message[8:16]
        chain.writable[0][:16] = reply
        return 16

    back.device.before = refuse
    with pytest.raises(OSError, match="No space"):
        fs.fsync(fd)
    fs.fsync(fd)
    back.device.before = None
    fs.close(fd)


def test_page_writes_reach_the_dirty_log(back):
    fs = back.fs
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    log = dirty_log(back)
    log.harvest()
    fs.write(fd, b"x" * PAGE_SIZE)
    runs = log.harvest()
    frame = back.kernel.pages.find(back.kernel.state.files[1].nodeid, 0)
    gpa = back.kernel.pages.gpa(frame)
    assert any(start <= gpa < start + size for start, size in runs)
    table = back.kernel.state.pages.table_gpa
    assert any(start <= table < start + size for start, size in runs)
    log.stop()


def test_two_programs_fill_the_same_page(back):
    fs, schedule = back.fs, back.schedule
    put(back, "f", b"0123456789" * 100)
    fd = fs.open("/f", os.O_RDWR)
    back.device.hold = True
    tasks = [schedule.spawn(f"reader {at}", lambda at=at: fs.pread(fd, 10, at * 10)) for at in range(3)]
    writer = schedule.spawn("writer", lambda: fs.pwrite(fd, b"ABC", 11))
    for _ in range(8):
        schedule.settle()
        back.device.serve()
    assert schedule.join(writer) == 3
    results = [schedule.join(task) for task in tasks]
    assert results[0] == results[2] == b"0123456789"
    back.device.hold = False
    assert fs.pread(fd, 20, 10) == b"0ABC4567890123456789"
    fs.close(fd)
    assert (back.share / "f").read_bytes()[10:20] == b"0ABC456789"


def test_a_page_that_was_read_before_a_write_is_not_entered_after_it(through):
    fs, schedule, device = through.fs, through.schedule, through.device
    put(through, "f", b"old" * 100)
    fd = fs.open("/f", os.O_RDWR)
    fs.fstat(fd)
    device.hold = True
    writer = schedule.spawn("writer", lambda: fs.pwrite(fd, b"NEW", 0))
    reader = schedule.spawn("reader", lambda: fs.pread(fd, 3, 0))
    schedule.settle()
    assert len(device.held) == 2
    device.serve(backwards=True)
    device.hold = False
    schedule.join(writer)
    assert schedule.join(reader) == b"NEW"
    assert fs.pread(fd, 3, 0) == b"NEW"


def test_caches_must_fit_into_memory(rig):
    made = rig(boot=False, cache="writeback", cache_pages=1 << 20)
    with pytest.raises(UsageError, match="too small"):
        made.kernel.boot()
