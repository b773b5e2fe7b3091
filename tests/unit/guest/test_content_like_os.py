"""What is in files: the guest's calls against the same calls on the host, through every cache."""

from __future__ import annotations

import errno
import itertools
import os

import pytest

from tests.support.mounts import tmpfs
from tests.support.posix_both import outcome
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine, Seams
from vmsim.memory import PAGE_SIZE

CACHES = {
    "none": {}, "writethrough": {"cache": "writethrough", "dentries": 64},
    "writeback": {"cache": "writeback", "dentries": 64},
    "few pages": {"cache": "writethrough", "cache_pages": 4},
}  # fmt: skip
LAST = (1 << 63) - 1


def machine(share, cache, policy="auto", **options):
    options |= {"writeback": cache == "writeback", "cache": policy}
    return Machine(share, guest=GuestConfig(**CACHES[cache]), options=options)


# -- copy_file_range

OPENED = {
    "a r": ("a", os.O_RDONLY), "a w": ("a", os.O_WRONLY), "a rw": ("a", os.O_RDWR), "b r": ("b", os.O_RDONLY),
    "b rw": ("b", os.O_RDWR), "b append": ("b", os.O_WRONLY | os.O_APPEND), "path": ("a", os.O_PATH),
    "b rw append": ("b", os.O_RDWR | os.O_APPEND), "dir": ("d", os.O_RDONLY | os.O_DIRECTORY),
}  # fmt: skip
FULLY_TRIED = {"a r", "a rw", "b rw", "b append"}
"""The kinds that are copied between in all ranges; the others in the first two."""
RANGES = [
    (5, 0, 0), (0, 0, 0), (100, 3, 5), (5, 20, 0), (3, 0, 5), (20, 0, 5), (5, None, None), (1 << 62, 0, 0),
    (1 << 62, 1 << 62, 0), (5, 0, LAST - 3), (5, 0, LAST), (5, -1, 0), (5, 0, -1), (0, -1, 0), (-1, 0, 0),
]  # fmt: skip


def content(fs, path):
    fd = fs.open(path, os.O_RDONLY)
    data = fs.read(fd, 100)
    fs.close(fd)
    return data


def copies(fs, root):
    found = {}
    fs.mkdir(f"{root}/d")
    for source, target, wanted in itertools.product(OPENED, OPENED, RANGES):
        if wanted not in RANGES[:2] and not {source, target} <= FULLY_TRIED:
            continue
        for name, data in (("a", b"0123456789"), ("b", b"abc")):
            fd = fs.open(f"{root}/{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            fs.write(fd, data)
            fs.close(fd)
        fds = [fs.open(f"{root}/{name}", flags) for name, flags in (OPENED[source], OPENED[target])]
        result = outcome(fs.copy_file_range, (*fds, *wanted), {})
        offsets = [outcome(fs.lseek, (fd, 0, os.SEEK_CUR), {}) for fd in fds]
        found[source, target, wanted] = result, content(fs, f"{root}/a"), content(fs, f"{root}/b"), offsets
        for fd in fds:
            fs.close(fd)
    return found


@pytest.mark.parametrize("cache", ["none", "writethrough", "writeback"])
def test_copies_between_all_kinds_of_descriptors(tmp_path, cache):
    for name in ("host", "share"):
        (tmp_path / name).mkdir()
    host = copies(os, str(tmp_path / "host"))
    with machine(tmp_path / "share", cache) as vm:
        guest = copies(vm.mount(), "")
    assert {key: (guest[key], host[key]) for key in host if guest[key] != host[key]} == {}
    refused = host["a r", "b append", (5, 0, 0)]
    assert refused[0] == ("raises", errno.EBADF)
    assert refused[2] == b"abc"


@pytest.mark.parametrize("cache", CACHES)
def test_guest_pages_are_appended_as_well(tmp_path, cache):
    (tmp_path / "log").write_bytes(b"0123")
    with machine(tmp_path, cache) as vm:
        fs = vm.mount()
        fd = fs.open("/log", os.O_RDWR | os.O_APPEND)
        gpa = fs.alloc_guest(PAGE_SIZE)
        vm.kernel.memory.write(gpa, b"xyz")
        assert fs.pwrite_guest(fd, [(gpa, 3)], 0) == 3
        assert fs.fstat(fd).st_size == 7
        assert fs.pread(fd, 10, 0) == b"0123xyz"
        fs.close(fd)
    assert (tmp_path / "log").read_bytes() == b"0123xyz"


# -- the end of a file


def by_read(fs, fd, size):
    return fs.read(fd, size)


def by_pread(fs, fd, size):
    return fs.pread(fd, size, 0)


def by_readv(fs, fd, size):
    buffers = [bytearray(1000), bytearray(size)]
    got = fs.readv(fd, buffers)
    return b"".join(bytes(buffer) for buffer in buffers)[:got]


def by_preadv(fs, fd, size):
    buffers = [bytearray(99), bytearray(5000), bytearray(size)]
    got = fs.preadv(fd, buffers, 0)
    return b"".join(bytes(buffer) for buffer in buffers)[:got]


def by_file_object(fs, fd, size):
    with fs.open_file(fd, "rb", closefd=False) as file:
        return file.read(size)


READS = [by_read, by_pread, by_readv, by_preadv, by_file_object]
SIZES = [(10_000, 100), (10_000, 0), (10_000, 4096), (10_000, 8192), (5, 3), (200_000, 4097), (100, 300_000)]


@pytest.mark.parametrize("policy", ["auto", "always", "never"])
@pytest.mark.parametrize("cache", CACHES)
def test_no_read_returns_bytes_that_no_file_has(tmp_path, cache, policy):
    """Somebody else changed the file since the guest asked for its size: what is read was in the file."""
    with machine(tmp_path, cache, policy) as vm:
        fs = vm.mount()
        for read, (was, now) in itertools.product(READS, SIZES):
            name = f"{read.__name__}-{was}-{now}"
            (tmp_path / name).write_bytes(b"x" * was)
            fs.stat(f"/{name}")
            os.truncate(tmp_path / name, 0)
            (tmp_path / name).write_bytes(b"y" * now)
            fd = fs.open(f"/{name}", os.O_RDONLY)
            data = read(fs, fd, 250_000)
            assert len(data) <= now, name
            assert data == b"y" * len(data), name
            assert len(data) >= min(now, was, 250_000), name
            if cache == "none" or policy == "never":
                assert len(data) >= min(now, 250_000), name
            fs.close(fd)


@pytest.mark.parametrize("cache", ["writethrough", "few pages"])
def test_pages_that_were_cached_end_with_the_file(tmp_path, cache):
    (tmp_path / "f").write_bytes(b"x" * 30_000)
    with machine(tmp_path, cache, "always") as vm:
        fs = vm.mount()
        fd = fs.open("/f", os.O_RDONLY)
        assert fs.pread(fd, 100, 20_000) == b"x" * 100
        os.truncate(tmp_path / "f", 4100)
        assert fs.pread(fd, 9000, 0) == b"x" * 4100
        assert fs.pread(fd, 9000, 20_000) == b""
        assert fs.fstat(fd).st_size == 4100


def test_files_that_are_shorter_than_they_say(tmp_path):
    """sysfs: every file is of one page, and what is in it is not."""
    directory, name = "/sys/devices/system/cpu", "online"
    if not os.path.exists(f"{directory}/{name}"):
        pytest.skip("no sysfs here")
    with open(f"{directory}/{name}", "rb") as file:
        expected = file.read()
    for cache in CACHES:
        with machine(directory, cache, readonly=True) as vm:
            fs = vm.mount()
            fd = fs.open(f"/{name}", os.O_RDONLY)
            for read in READS[1:4:2]:
                assert read(fs, fd, 10_000) == expected
            assert fs.read(fd, 2) + fs.read(fd, 10_000) == expected
            assert fs.read(fd, 10_000) == b""


def test_the_guest_that_owns_the_size_reads_its_holes(tmp_path):
    with machine(tmp_path, "writeback") as vm:
        fs = vm.mount()
        fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
        fs.pwrite(fd, b"near", 0)
        fs.fsync(fd)
        fs.pwrite(fd, b"far", 50_000)  # a page that the server does not have, and 11 that nobody has
        assert fs.pread(fd, 100_000, 0) == b"near" + bytes(49_996) + b"far"
        os.truncate(tmp_path / "f", 2)  # the guest's own size wins, as long as it owns it
        assert len(fs.pread(fd, 100_000, 0)) == 50_003


# -- errors of the write-out


class Refusing:
    """A host that takes ``room`` bytes of content, and then refuses with an errno."""

    def __init__(self, inner):
        self._inner = inner
        self.room = 1 << 40
        self.errno = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def pwritev(self, fd, views, offset):
        if not self.room:
            raise OSError(self.errno, os.strerror(self.errno))
        taken = []
        for view in views:
            taken.append(view[: self.room])
            self.room -= len(taken[-1])
        return self._inner.pwritev(fd, taken, offset)


ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO]


class Disk:
    """Makes the same ``Refusing`` host for every machine."""

    def __init__(self):
        self.hosts = []

    def seams(self):
        def wrap(inner):
            self.hosts.append(Refusing(inner))
            return self.hosts[-1]

        return Seams(host_fs=wrap)

    def fail(self, number, room=0):
        for host in self.hosts:
            host.room, host.errno = room, number


def told(call, *args):
    kind, value = outcome(call, args, {})
    return value if kind == "raises" else 0


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def back(tmp_path, disk):
    guest = GuestConfig(**CACHES["writeback"])
    with Machine(tmp_path, guest=guest, options={"writeback": True}, seams=disk.seams()) as vm:
        yield vm


@pytest.mark.parametrize("room", [0, 100, 4096, 200_000])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("hops", [0, 1, 2])
def test_an_error_of_the_write_out_is_told_by_its_name(back, disk, hops, error, room):
    """Also if the server takes a part first, as a disk does that is getting full."""
    vm, later = back, []
    fs = vm.mount()
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"x" * 300_000)
    for _ in range(hops):
        vm = vm.migrate(seams=disk.seams())
        later.append(vm)
    disk.fail(error, room)
    fs = vm.mount()
    assert told(fs.fsync, fd) == error
    assert told(fs.fsync, fd) == 0
    assert told(fs.close, fd) == 0
    for each in reversed(later):
        each.close()


@pytest.mark.parametrize("hops", [0, 1])
def test_each_open_file_is_told_once(back, disk, hops):
    """By fsync: those that were open, whoever asks first; and who opens later, if nobody has been told."""
    fs = back.mount()
    fds = [fs.open("/f", os.O_CREAT | os.O_RDWR) for _ in range(3)]
    fds.append(fs.dup(fds[0]))
    fs.write(fds[0], b"x" * 9000)
    disk.fail(errno.ENOSPC)
    fs.sync()  # the write-out, which nobody is told about
    fds.append(fs.open("/f", os.O_RDONLY))
    vm = back.migrate(seams=disk.seams()) if hops else back
    fs = vm.mount()
    assert [told(fs.fsync, fd) for fd in fds] == [errno.ENOSPC] * 3 + [0, errno.ENOSPC]
    late = fs.open("/f", os.O_RDONLY)
    assert [told(fs.close, fd) for fd in (*fds, late)] == [0] * 6
    if hops:
        vm.close()


def test_close_tells_as_well_and_a_second_error_is_told_anew(back, disk):
    fs = back.mount()
    first, second = (fs.open("/f", os.O_CREAT | os.O_RDWR) for _ in range(2))
    fs.write(first, b"x" * 9000)
    disk.fail(errno.EDQUOT)
    assert told(fs.close, first) == errno.EDQUOT
    assert told(fs.close, fs.dup(second)) == 0  # a close tells once for the whole file
    assert told(fs.fsync, second) == errno.EDQUOT
    disk.fail(0, 1 << 40)
    fs.write(second, b"y" * 9000)
    disk.fail(errno.ENOSPC)
    assert told(fs.fdatasync, second) == errno.ENOSPC
    assert told(fs.fsync, second) == 0


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("cache", ["none", "writethrough"])
def test_a_write_past_the_cache_says_how_far_it_came(tmp_path, disk, cache, error):
    with Machine(tmp_path, guest=GuestConfig(**CACHES[cache]), seams=disk.seams()) as vm:
        fs = vm.mount()
        fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
        disk.fail(error, 5000)
        assert fs.write(fd, b"x" * 9000) == 5000
        assert told(fs.write, fd, b"x") == error
        disk.fail(error, 3000)
        gpa = fs.alloc_guest(3 * PAGE_SIZE)
        assert fs.pwrite_guest(fd, [(gpa, 3 * PAGE_SIZE)], 5000) == 3000
        assert told(fs.pwrite_guest, fd, [(gpa, PAGE_SIZE)], 8000) == error
        assert fs.fstat(fd).st_size == 8000


def fill(fs, root):
    """What a program sees of a file system of 1 MiB that is filled up."""
    fd = fs.open(f"{root}/big", os.O_CREAT | os.O_RDWR)
    steps = [
        (fs.write, b"x" * 900_000), (fs.write, b"y" * 900_000), (fs.write, b"z" * 10),
        (fs.posix_fallocate, 0, 1 << 22), (fs.ftruncate, 100), (fs.pwrite, b"ok", 98),
    ]  # fmt: skip
    return [outcome(call, (fd, *args), {}) for call, *args in steps] + [fs.fstat(fd).st_size]


@pytest.mark.parametrize("cache", ["none", "writethrough", "few pages"])
def test_a_full_disk_is_one_in_the_guest(tmp_path, cache):
    with tmpfs(tmp_path / "host") as host:
        expected = fill(os, str(host))
    with tmpfs(tmp_path / "share") as share, machine(share, cache) as vm:
        assert fill(vm.mount(), "") == expected
