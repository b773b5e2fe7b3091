"""What the forecast counts besides inodes: it is refused for before the guest stops, and said in words."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from vmsim.errors import MigrationError
from vmsim.machine import Machine


def unlinked(fs):
    fd = fs.open("/gone", os.O_RDWR | os.O_CREAT)
    for _ in range(8):
        fs.write(fd, os.urandom(1 << 20))
    fs.unlink("/gone")


def locks(fs):
    fd = fs.open("/locked", os.O_RDWR | os.O_CREAT)
    for number in range(1000):
        fs.setlk(fd, fcntl.F_WRLCK, number * 3, 1)


def handles(fs):
    fs.close(fs.open("/f", os.O_RDWR | os.O_CREAT))
    for _ in range(2000):
        fs.open("/f", os.O_RDONLY)


KINDS = {"8 MiB of unlinked files": unlinked, "1000 locks": locks, "2000 open files": handles}


@pytest.mark.parametrize("words", KINDS)
def test_what_takes_long_besides_inodes_is_refused_beforehand(tmp_path, words):
    with Machine(str(tmp_path), memory="32M") as vm:
        fs = vm.mount()
        KINDS[words](fs)
        with pytest.raises(MigrationError, match=words):
            vm.migrate(downtime_limit="1ms", over_limit="refuse")
        assert vm.state == "running"
        fs.statvfs("/")
        with vm.migrate() as other:
            stats = other.migration_stats
            assert stats.expected.load_ns > 0


def test_a_file_that_cannot_be_looked_at_is_not_counted(tmp_path, monkeypatch):
    with Machine(str(tmp_path), memory="32M") as vm:
        fs = vm.mount()
        unlinked(fs)
        assert vm.backend.burden().content_bytes == 8 << 20

        def refused(fd):
            raise OSError(errno.ESTALE, "gone")

        with monkeypatch.context() as patch:
            patch.setattr(vm.backend.served.fs.host, "fstat", refused)
            assert vm.backend.burden() == (1, 0, 0, 0)
        vm.migrate().close()


def test_locks_that_are_taken_one_by_one_count_with_their_square(tmp_path):
    """The host looks at all of a file for each; neighbours of one kind are taken together."""
    with Machine(str(tmp_path), memory="32M") as vm:
        fs = vm.mount()

        def looks(name, kinds, count):
            fd = fs.open(name, os.O_RDWR | os.O_CREAT)
            for number in range(count):
                fs.setlk(fd, kinds[number % len(kinds)], number * 3, 1)
            counted = vm.backend.burden().lock_looks
            fs.close(fd)
            return counted

        alike, both = [fcntl.F_WRLCK], [fcntl.F_RDLCK, fcntl.F_WRLCK]
        assert looks("/a", alike, 400) < 1000
        assert 3.9 < looks("/b", both, 400) / looks("/c", both, 200) < 4.1


def test_something_is_expected_of_a_machine_that_holds_nothing(tmp_path):
    with Machine(str(tmp_path), memory="8M") as vm, vm.migrate() as other:
        assert other.migration_stats.expected.load_ns > 0


def test_a_machine_that_holds_nothing_is_not_refused(tmp_path):
    with Machine(str(tmp_path), memory="8M") as vm:
        vm.mount().listdir("/")
        vm.migrate(downtime_limit="10s", over_limit="refuse").close()
