"""The steady host: still a host by the contract of its seam, and the same every time."""

from __future__ import annotations

import os

import pytest

from tests.contract.hostfs import CHECKS, Opened
from vmsim.host.fs import LinuxFs
from vmsim.schedule.clock import VirtualClock
from vmsim.wrappers.deterministic_host import EPOCH_NS, NSEC, DeterministicHost

COMPARES_NUMBERS = {"check_attributes", "check_names"}
"""With those of the host, which are replaced here."""
ATIME, MTIME, CTIME = 0, 1, 2


REST = [check for check in CHECKS if check.__name__ not in COMPARES_NUMBERS]


@pytest.mark.parametrize("check", REST, ids=lambda check: check.__name__)
def test_contract(check, tmp_path):
    host = DeterministicHost(lambda: 0)
    check(host.wrap(LinuxFs()), tmp_path)
    assert host.fds == {}


def times(attr):
    return [(attr[3 + place] * NSEC + attr[6 + place] - EPOCH_NS) for place in range(3)]


def look(base):
    """Everything that a server can see of a small tree, and of what it does there."""
    clock = VirtualClock()
    shown = []
    host = DeterministicHost(clock.now_ns)
    fs = host.wrap(LinuxFs())
    with Opened(fs, fs.open_share(os.fsencode(base))) as root:
        for name in (b"one", b"two"):
            clock.advance_to(clock.now_ns() + 7)
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            with Opened(fs, fs.open_beneath(root, name, flags, 0o600)) as fd:
                fs.pwritev(fd, [memoryview(b"text")], 0)
                shown += [fd, fs.fstat(fd), fs.identify(fd), fs.birth(fd), fs.file_handle(fd)]
                shown += [fs.statx(fd, 0, 0xFFF), fs.path_of(fd), fs.fstatvfs(fd)]
                fs.unlink(root, name)
                shown.append(fs.path_of(fd))
        with Opened(fs, fs.open_beneath(root, b".", os.O_TMPFILE | os.O_RDWR, 0o600)) as fd:
            shown.append(fs.path_of(fd))
        fs.mkdir(root, b"d", 0o700, 0)
        shown += [fs.identify_name(root, b"d"), fs.identify_at(root, b"d"), fs.birth_at(root, b"d")]
        shown += [fs.getdents(root, 0), fs.fstat(root)]
        fs.rmdir(root, b"d")
    return shown


def test_the_same_every_time(tmp_path):
    tmp_path.joinpath("share").mkdir()
    seen = [look(tmp_path / "share") for _ in range(3)]
    assert seen[0] == seen[1] == seen[2]


def test_an_inode_number_that_is_used_again_is_another_file(tmp_path):
    host = DeterministicHost(lambda: 0)
    fs = host.wrap(LinuxFs())
    numbers = set()
    with Opened(fs, fs.open_share(os.fsencode(tmp_path))) as root:
        for _ in range(20):
            fs.mknod(root, b"f", 0o100600, 0, 0)
            with Opened(fs, fs.open_beneath(root, b"f", os.O_PATH)) as fd:
                numbers.add(fs.fstat(fd)[0])
            assert fs.identify_name(root, b"f")[0][0] == max(numbers)
            fs.unlink(root, b"f")
    assert len(numbers) == 20


def test_times_follow_what_is_done(tmp_path):
    (tmp_path / "f").write_bytes(b"12")
    clock = VirtualClock()
    fs = DeterministicHost(clock.now_ns).wrap(LinuxFs())
    with Opened(fs, fs.open_share(os.fsencode(tmp_path))) as root:
        with Opened(fs, fs.open_beneath(root, b"f", os.O_RDWR)) as fd:
            assert times(fs.fstat(fd)) == [0, 0, 0]
            clock.advance_to(10)
            assert times(fs.fstat(fd)) == [0, 0, 0]
            fs.chmod(fd, 0o600)
            assert times(fs.fstat(fd)) == [0, 0, 10]
            clock.advance_to(20)
            fs.pwritev(fd, [memoryview(b"x")], 0)
            assert times(fs.fstat(fd)) == [0, 20, 20]
            clock.advance_to(30)
            fs.utimens(fd, (EPOCH_NS // NSEC, 5), (0, (1 << 30) - 2))
            assert times(fs.fstat(fd)) == [5, 20, 30]
            fs.utimens(fd, (0, (1 << 30) - 2), (0, (1 << 30) - 1))
            assert times(fs.fstat(fd)) == [5, 30, 30]
        clock.advance_to(40)
        fs.close(fs.open_beneath(root, b"f", os.O_RDWR | os.O_TRUNC))
        assert times(fs.identify_name(root, b"f")[0])[MTIME] == 40
        clock.advance_to(50)
        fs.rename(root, b"f", root, b"g", 0)
        assert times(fs.fstat(root))[MTIME] == 50
        assert times(fs.identify_name(root, b"g")[0])[MTIME] == 40
