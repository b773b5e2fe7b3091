"""What file handles of a state lead to is in the share, or refused, however the share is mounted.

Every case runs in a process with mounts (and perhaps a root) of its own; see ``WORLD``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vmsim.host.fs import LinuxFs

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not LinuxFs().handles_allowed(), reason="needs root, with CAP_DAC_READ_SEARCH"
)

WORLD = r'''
import ctypes, errno, json, os, sys
from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.state import blob, records
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.records import FileHandle, HandleRecord, InodeRecord, StateBlob
from vmsim.errors import VmsimError
from vmsim.host.fs import LinuxFs

base, kind, clones, handles = os.fsencode(sys.argv[1]), sys.argv[2], sys.argv[3] == "yes", sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)

def mount(source, target, fstype, flags, data=None):
    if libc.mount(source, target, fstype, flags, data):
        raise OSError(ctypes.get_errno(), "mount")

class Host(LinuxFs):
    def clone_mount(self, fd):
        if not clones:
            raise OSError(errno.EPERM, "not permitted")
        return super().clone_mount(fd)

if libc.unshare(0x20000):
    print(json.dumps("skipped"))
    sys.exit()
mount(b"none", b"/", None, (1 << 14) | (1 << 18))
share, outside = base + b"/share", base + b"/share-not"
os.mkdir(share)
os.mkdir(outside)
os.mkdir(outside + b"/tree")
os.mkdir(share + b"/sub")
inside = {}
points = {"plain": b"", "submount": b"/sub", "bind": b"/sub", "share is a mount": b"", "chroot": b"",
          "root": b"", "renamed": b""}
if kind == "submount":
    mount(b"tmpfs", share + b"/sub", b"tmpfs", 0)
elif kind == "bind":  # a part of the outside; the rest of it stays outside
    mount(outside + b"/tree", share + b"/sub", None, 1 << 12)
elif kind == "share is a mount":
    mount(share, share, None, 1 << 12)
home = share + points[kind]

def fill(top):
    for name in (b"file", b"gone"):
        open(top + b"/" + name, "w").close()
    os.mkdir(top + b"/dir")
    os.mkdir(top + b"/gone-dir")
    open(top + b"/dir/below", "w").close()
    os.symlink(b"x", top + b"/link")
    if top != home:
        os.link(top + b"/file", top + b"/other-name")

NAMES = (b"file", b"gone", b"dir", b"gone-dir", b"dir/below", b"link")
fill(home)
fill(outside)
held = {(top, name): os.open(top + b"/" + name, os.O_PATH | os.O_NOFOLLOW)
        for top in (home, outside) for name in NAMES}
handle = {where: LinuxFs().file_handle(fd) for where, fd in held.items()}
for top in (home, outside):
    os.unlink(top + b"/gone")
    os.rmdir(top + b"/gone-dir")
host = Host()
served = share
if kind in ("chroot", "root"):
    os.mkdir(share + b"/proc")
    mount(b"/proc", share + b"/proc", None, (1 << 12) | (1 << 14))
    if kind == "root":  # the whole of a mount, as the sandbox makes it
        new = base + b"/new"
        os.mkdir(new)
        mount(share, new, None, (1 << 12) | (1 << 14))
        share = new
        handle = {w: (LinuxFs().file_handle(os.open(new, os.O_PATH))[0], *h[1:]) for w, h in handle.items()}
    os.chroot(share)
    os.chdir("/")
    served = b"/"
backend = lambda: VirtioFsBackend(host, served, FsOptions(inode_file_handles=handles),
                                  StateOptions(on_error="guest-error"))

def load(where, twice=False):
    mnt_id, sort, raw = handle[where]
    inodes = [InodeRecord(1, 9, records.ROOT)]
    for number in (2, 3) if twice else (2,):
        inodes.append(InodeRecord(number, 1, records.FILE_HANDLE, handle=FileHandle(mnt_id, sort, raw)))
    point = points[kind].lstrip(b"/") or b"."
    state = StateBlob(inodes, next_inode=50, next_handle=50, mount_paths={mnt_id: point})
    server = backend()
    before = len(os.listdir("/proc/self/fd"))
    try:
        if kind == "renamed":
            os.rename(share, base + b"/moved")
            os.rename(outside, share)
        server.load_state(bytes(blob.encode(state)))
        found = [server.fs.inodes.get(number).state for number in range(2, len(inodes) + 1)]
        if 0 in found:
            server.fs.path_fd(server.fs.inodes.get(2))
        return "in" if not any(found) else "out" if all(found) else "some"
    finally:
        if kind == "renamed":
            os.rename(share, outside)
            os.rename(base + b"/moved", share)
        server.close()

answer = {}
for (top, name), _ in held.items():
    side = "inside" if top == home else "outside"
    answer[f"{side} {os.fsdecode(name)}"] = load((top, name))
    answer[f"{side} {os.fsdecode(name)} twice"] = load((top, name), twice=True)
for fd in held.values():
    os.close(fd)
print(json.dumps(answer))
'''

KINDS = ["plain", "submount", "bind", "share is a mount", "chroot", "root", "renamed"]


@pytest.fixture
def world(tmp_path):
    def run(kind, clones, handles):
        ended = subprocess.run(
            [sys.executable, "-P", "-c", WORLD, str(tmp_path), kind, "yes" if clones else "no", handles],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        answer = json.loads(ended.stdout)
        if answer == "skipped":
            pytest.skip("no mount namespace is permitted here")
        return answer

    return run


CASES = [(kind, clones, "prefer") for kind in KINDS for clones in (True, False)]
CASES += [("plain", True, "never"), ("bind", True, "never")]


@pytest.mark.parametrize(("kind", "clones", "handles"), CASES)
def test_every_kind_of_file_on_either_side(world, kind, clones, handles):
    answer = world(kind, clones, handles)
    outside = {what: found for what, found in answer.items() if what.startswith("outside")}
    assert set(outside.values()) == {"out"}, outside
    # Without a mount whose root is in the share, nothing tells where an unlinked file was.
    told = clones or kind in ("submount", "bind", "share is a mount", "root")
    for what, found in answer.items():
        if what.startswith("inside"):
            assert found == ("in" if told or "gone" not in what or "dir" in what else "out"), what
