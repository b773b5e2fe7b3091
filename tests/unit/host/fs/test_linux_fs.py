"""LinuxFs passes the contract of seam S3, with openat2 and with its fallback."""

from __future__ import annotations

import os
import platform

import pytest

from tests.contract import hostfs
from tests.support.leaks import Held
from vmsim.host.fs import LinuxFs


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
