"""A guest whose machine is closed: every function of its facade ends in a typed error."""

from __future__ import annotations

import os

import pytest

from tests.support.leaks import no_leaks
from vmsim.errors import StateError, UsageError, VmsimError
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine

WRITEBACK = GuestConfig(cache="writeback", cache_pages=16, dentries=16)
CACHED = {"guest": WRITEBACK, "options": {"writeback": True}}
CALLS = (
    ("listdir", "/"), ("stat", "/f"), ("open", "/f", os.O_RDWR), ("mkdir", "/d"), ("unlink", "/f"),
    ("rename", "/f", "/g"), ("pread", 0, 3, 0), ("close", 0), ("sync",), ("drop_caches",),
    ("statvfs", "/"), ("readlink", "/l"), ("getxattr", "/f", "user.a"), ("chdir", "/d"),
)  # fmt: skip


@pytest.mark.parametrize("options", [{}, CACHED], ids=["plain", "cached"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_a_closed_machine(tmp_path, options, call):
    vm = Machine(tmp_path, memory="8M", **options)
    fs = vm.mount()
    fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"text")
    vm.close()
    name, *args = call
    with pytest.raises((VmsimError, OSError)) as caught:
        getattr(fs, name)(*args)
    if not isinstance(caught.value, OSError):
        assert isinstance(caught.value, StateError)


def test_a_machine_that_cannot_be_built_keeps_nothing(tmp_path):
    with no_leaks(), pytest.raises(UsageError):
        Machine(tmp_path, memory="8M", guest=GuestConfig(heap=[(0, -4096)]))


def test_a_machine_that_was_saved_for_good(tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    with no_leaks(), Machine(share, memory="8M") as vm:
        fs = vm.mount()
        fd = fs.open("/f", os.O_CREAT | os.O_RDWR)
        vm.save(tmp_path / "saved", keep_running=False)
        with pytest.raises(StateError):
            fs.pread(fd, 1, 0)
        with pytest.raises(StateError):
            vm.mount()
