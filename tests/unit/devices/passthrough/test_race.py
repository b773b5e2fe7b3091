"""A third party swaps a directory of the share for a symlink while requests run: nothing leaves the share."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest

from tests.unit.devices.passthrough.helpers import HANDLES
from vmsim.fuse import opcodes as op

SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
print("ready", flush=True)
while True:
    libc.renameat2(-100, b"dir", -100, b"link", 2)
"""


@pytest.fixture
def swapping(share):
    """``dir`` (a directory) and ``link`` (a symlink to a directory outside) change places all the time."""
    outside = share.parent / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    (share / "dir").mkdir()
    (share / "dir" / "f").write_bytes(b"public")
    (share / "link").symlink_to(outside)
    child = subprocess.Popen(["/proc/self/exe", "-c", SWAPPER, str(share)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    yield outside
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize("mode", ["never", *(["mandatory"] if HANDLES else [])])
def test_nothing_leaves_the_share(serve, share, swapping, mode):
    fs = serve(inode_fds=16, inode_file_handles=mode)
    inside = {share.stat().st_ino}
    while len(inside) < 3:  # while they change places, both names may be seen on one inode
        inside |= {(share / name).lstat().st_ino for name in ("dir", "link")}
    secret = (swapping / "f").stat().st_ino
    seen = reads = 0
    for turn in range(600):
        name = f"/dir/t{turn}"
        for act in (
            lambda name=name: fs.mkdir(name),
            lambda name=name: fs.rmdir(name),
            lambda: fs.lstat("/dir/f"),
            lambda: fs.chmod("/dir/f", 0o600),
            lambda: fs.symlink("x", "/dir/s"),
            lambda: fs.unlink("/dir/s"),
        ):
            with contextlib.suppress(OSError):
                result = act()
                if result is not None:
                    assert result.st_ino != secret
        with contextlib.suppress(OSError):
            fd = fs.open("/dir/f", os.O_RDWR)
            data = fs.pread(fd, 16, 0)
            fs.close(fd)
            assert data == b"public"
            reads += 1
        with contextlib.suppress(OSError):
            entry = fs.ask(op.LOOKUP, 1, (), (b"dir",))
            fs.forget([entry.nodeid])
            assert entry.ino in inside
            seen |= 1 if entry.mode & 0o40000 else 2
    assert os.listdir(swapping) == ["f"]
    assert (swapping / "f").read_bytes() == b"secret"
    assert (swapping / "f").stat().st_mode & 0o777 == 0o644
    assert reads > 0
    assert seen == 3, "the race never showed both faces"
