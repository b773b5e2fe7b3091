"""File systems mounted beneath the share."""

from __future__ import annotations

import os
import subprocess

import pytest

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import ATTR_SUBMOUNT


@pytest.fixture
def mounted(share):
    """A tmpfs at ``mnt`` and the share's own ``d`` bound to ``bound``."""
    for name in ("mnt", "d", "bound"):
        (share / name).mkdir()
    (share / "d" / "f").write_bytes(b"data")
    done = []
    try:
        for args in (["-t", "tmpfs", "none", share / "mnt"], ["--bind", share / "d", share / "bound"]):
            if subprocess.run(["mount", *args], capture_output=True, check=False).returncode:
                pytest.skip("this process may not mount")
            done.append(args[-1])
        (share / "mnt" / "f").write_bytes(b"other")
        yield
    except FileNotFoundError:
        pytest.skip("no mount command")
    finally:
        for target in (share / "bound", share / "mnt"):
            subprocess.run(["umount", "-l", target], capture_output=True, check=False)


def lookup(fs, name, parent=1):
    return fs.ask(op.LOOKUP, parent, (), (name,))


@pytest.mark.usefixtures("mounted")
def test_announced(serve, share):
    fs = serve()
    tmpfs, plain, bound = (lookup(fs, name) for name in (b"mnt", b"d", b"bound"))
    assert [bool(entry.flags & ATTR_SUBMOUNT) for entry in (tmpfs, plain, bound)] == [True, False, True]
    inside = lookup(fs, b"f", tmpfs.nodeid)
    assert inside.flags == 0
    assert inside.size == 5
    assert lookup(fs, b"f", bound.nodeid).nodeid != lookup(fs, b"f", plain.nodeid).nodeid
    assert lookup(serve(announce_submounts=False), b"mnt").flags == 0


@pytest.mark.usefixtures("mounted")
@pytest.mark.parametrize("mode", ["never", "prefer"])
def test_found_again_in_a_submount(serve, share, mode):
    fs = serve(inode_fds=16, inode_file_handles=mode)
    bound = lookup(fs, b"bound").nodeid
    nodes = [lookup(fs, b"f", lookup(fs, b"mnt").nodeid).nodeid, lookup(fs, b"f", bound).nodeid]
    for n in range(40):
        (share / f"crowd{n}").touch()
        lookup(fs, b"crowd%d" % n)
    assert [fs.ask(op.GETATTR, node, (0, 0, 0)).size for node in nodes] == [5, 4]
    os.rename(share / "mnt" / "f", share / "mnt" / "g")
    for n in range(40):
        lookup(fs, b"crowd%d" % n)
    assert fs.ask(op.GETATTR, nodes[0], (0, 0, 0)).size == 5
