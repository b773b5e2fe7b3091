"""What is mounted below the share can be unmounted again when the guest has forgotten it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")

WORLD = r'''
import ctypes, os, sys
from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.options import FsOptions
from tests.support.backend_rig import Driver
from vmsim.fuse import opcodes as op
from vmsim.host.fs import LinuxFs

share, wish = os.fsencode(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20000):
    print("skipped")
    sys.exit()
assert libc.mount(b"none", b"/", None, (1 << 14) | (1 << 18), None) == 0
driver = Driver(VirtioFsBackend(LinuxFs(), share, FsOptions(inode_file_handles=wish, inode_fds=16)))
driver.init()
for turn in range(2):  # a second mount at the same place is another one
    os.makedirs(share + b"/m", exist_ok=True)
    assert libc.mount(b"tmpfs", share + b"/m", b"tmpfs", 0, b"size=1m") == 0
    os.makedirs(share + b"/m/d/below")
    for number in range(40):
        open(share + b"/m/d/%d" % number, "w").close()
    os.symlink(b"x", share + b"/m/link")
    known = [driver.send(op.LOOKUP, 1, (), (b"m",)).nodeid]
    known.append(driver.send(op.LOOKUP, known[0], (), (b"link",)).nodeid)
    known.append(driver.send(op.LOOKUP, known[0], (), (b"d",)).nodeid)
    for number in range(40):
        known.append(driver.send(op.LOOKUP, known[2], (), (b"%d" % number,)).nodeid)
    fh = driver.send(op.OPEN, known[5], (os.O_RDWR, 0)).fh
    dh = driver.send(op.OPENDIR, known[2], (os.O_DIRECTORY, 0)).fh
    driver.send(op.READDIR, known[2], (dh, 0, 200, 0, 0, 0, 0), size=200)
    driver.send(op.SETLK, known[5], (fh, 1, 0, 9, 1, 1, 0, 0))
    driver.send(op.UNLINK, known[2], (), (b"2",))
    assert libc.umount2(share + b"/m", 0) == -1, "it is in use"
    driver.send(op.RELEASE, known[5], (fh, 0, 0, 1))
    driver.send(op.RELEASEDIR, known[2], (dh, 0, 0, 0))
    for node in reversed(known) if turn else known:
        driver.backend.handle(0, driver.chain(op.FORGET, node, (1,)), None)
    assert libc.umount2(share + b"/m", 0) == 0, os.strerror(ctypes.get_errno())
    assert len(driver.backend.fs.inodes.mounts) == 1
driver.backend.close()
print("unmounted")
'''


@pytest.mark.parametrize("wish", ["never", "prefer"])
def test_with_the_last_inode_the_mount_is_let_go(tmp_path, wish):
    ended = subprocess.run(
        [sys.executable, "-c", WORLD, str(tmp_path), wish], capture_output=True, text=True, timeout=120
    )
    if ended.stdout.strip() == "skipped":
        pytest.skip("no mount namespace is permitted here")
    assert ended.stdout.strip() == "unmounted", ended.stderr
