"""LinuxFs passes the contract of seam S3, with openat2 and with its fallback."""

from __future__ import annotations

import errno
import os
import platform

import pytest

from tests.contract import hostfs
from tests.support.direct_fs import refused
from tests.support.leaks import Held
from vmsim.host.fs import LinuxFs, libc, reaching


@pytest.mark.parametrize("check", hostfs.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("variant", ["native", "without openat2", "any machine"])
def test_contract(check, variant, tmp_path):
    before = Held()
    host = LinuxFs()
    if variant == "without openat2":
        host._has_openat2 = False
    elif variant == "any machine":
        host.fstat = host._fstat_any
    check(host, tmp_path)
    assert before.more() == []


class ShortOfMemory:
    """The C library, whose open_by_handle_at fails with ENOMEM so many times."""

    def __init__(self, times):
        self.times = times

    def __getattr__(self, name):
        return getattr(libc.libc, name)

    def open_by_handle_at(self, *words):
        if self.times:
            self.times -= 1
            libc.ffi.errno = errno.ENOMEM
            return -1
        return libc.libc.open_by_handle_at(*words)


@pytest.mark.skipif(not LinuxFs().handles_allowed(), reason="needs CAP_DAC_READ_SEARCH")
@pytest.mark.parametrize(("times", "number"), [(3, errno.ESTALE), (1 << 30, errno.ENOMEM)])
def test_a_number_that_is_given_to_another_file_right_now_is_stale(tmp_path, monkeypatch, times, number):
    """Linux says ENOMEM while it makes an inode whose number the handle has (seen once in 200 on ext4)."""
    (tmp_path / "a").touch()
    root = os.open(tmp_path, os.O_RDONLY)
    host = LinuxFs()
    _, kind, raw = host.file_handle_at(root, b"a")
    monkeypatch.setattr(reaching, "libc", ShortOfMemory(times))
    (tmp_path / "a").unlink()
    with refused(number):
        host.open_handle(root, kind, raw, os.O_PATH)
    os.close(root)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="struct stat of another machine")
def test_both_ways_of_stat_agree(tmp_path):
    host = LinuxFs()
    for path in ("/dev/null", "/dev/tty", "/proc/self/status", tmp_path, "/"):
        fd = os.open(path, os.O_PATH)
        ours, any_machine = host._fstat_x86_64(fd), host._fstat_any(fd)
        os.close(fd)
        assert ours == any_machine, path


def test_device_numbers_are_packed_as_the_kernel_does(tmp_path):
    fd = os.open("/dev/null", os.O_PATH)
    rdev = LinuxFs().fstat(fd)[13]
    os.close(fd)
    assert rdev == 1 << 8 | 3


def test_mount_points_are_unescaped():
    points = LinuxFs().mount_points()
    assert b"/" in {path for _, path in points}
    assert all(b"\\040" not in path for _, path in points)
