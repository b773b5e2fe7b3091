"""Files that may only be appended to (chattr +a): the same calls on the host and in the guest."""

from __future__ import annotations

import os

import pytest

from tests.support.inode_flags import APPEND, flagged
from tests.support.machine_rig import MODES
from tests.support.posix_both import outcome
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine

CACHES = {
    "none": {}, "writethrough": {"cache": "writethrough", "dentries": 64},
    "writeback": {"cache": "writeback", "dentries": 64},
}  # fmt: skip
FLAGS = {
    "read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "append": os.O_WRONLY | os.O_APPEND,
    "read and append": os.O_RDWR | os.O_APPEND, "truncate": os.O_RDWR | os.O_APPEND | os.O_TRUNC,
}  # fmt: skip


def machine(share, cache, **options):
    options |= {"writeback": cache == "writeback"}
    return Machine(share, guest=GuestConfig(**CACHES[cache]), options=options)


def use(fs, root, flags):
    """Everything that a program may want of the log."""
    path = f"{root}/log"
    kind, fd = outcome(fs.open, (path, flags), {})
    if kind == "raises":
        return fd
    steps = [
        (fs.write, fd, b"x" * 5000), (fs.pwrite, fd, b"y" * 10, 0), (fs.ftruncate, fd, 3), (fs.fsync, fd),
        (fs.pread, fd, 20_000, 0), (fs.unlink, path), (fs.rename, path, f"{root}/moved"),
        (fs.truncate, path, 0), (fs.link, path, f"{root}/second"), (fs.close, fd),
    ]  # fmt: skip
    return [outcome(call, args, {}) for call, *args in steps] + [fs.stat(path).st_size]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("how", FLAGS)
def test_it_is_used_as_on_the_host(tmp_path, cache, how):
    for name in ("host", "share"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log").write_bytes(b"begin " * 1000)
    with flagged(tmp_path / "host" / "log", APPEND), flagged(tmp_path / "share" / "log", APPEND):
        host = use(os, str(tmp_path / "host"), FLAGS[how])
        with machine(tmp_path / "share", cache) as vm:
            assert use(vm.mount(), "", FLAGS[how]) == host
    assert (tmp_path / "share" / "log").read_bytes() == (tmp_path / "host" / "log").read_bytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache", CACHES)
def test_appending_goes_on_after_a_migration(tmp_path, cache, mode):
    (tmp_path / "log").write_bytes(b"0123")
    with flagged(tmp_path / "log", APPEND), machine(tmp_path, cache, migration_mode=mode) as vm:
        fs = vm.mount()
        fds = [fs.open("/log", flags) for flags in (FLAGS["append"], FLAGS["read and append"])]
        for text in (b"a", b"b"):
            assert [fs.write(fd, text) for fd in fds] == [1, 1]
        assert vm.preflight() == []
        later = vm.migrate()
        fs = later.mount()
        assert [fs.write(fd, b"c") for fd in fds] == [1, 1]
        assert fs.pread(fds[1], 100, 0) == b"0123aabbcc"
        later.close()
    assert (tmp_path / "log").read_bytes() == b"0123aabbcc"


def test_pages_that_were_dirty_before_go_through_the_handle_that_may_write_them(tmp_path):
    """Made append-only while a writer has dirty pages: they do not end up behind the file."""
    (tmp_path / "log").write_bytes(b"0" * 5000)
    with machine(tmp_path, "writeback") as vm:
        fs = vm.mount()
        before = fs.open("/log", os.O_RDWR)
        with flagged(tmp_path / "log", APPEND):
            late = fs.open("/log", os.O_WRONLY | os.O_APPEND)
            fs.pwrite(before, b"1" * 100, 0)
            assert fs.write(late, b"end") == 3
            fs.sync()  # fsync would tell that the times of such a file cannot be set
        outcome(fs.close, (late,), {})
    assert (tmp_path / "log").read_bytes() == b"1" * 100 + b"0" * 4900 + b"end"
