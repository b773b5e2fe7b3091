"""What a guest says of set-id bits when it changes an owner, as fuse_do_setattr does; any server may need it.

Ours does not: the host's own chown takes them away, so no effect in a share tells whether it was said.
"""

from __future__ import annotations

import os

import pytest

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_KILL_SUIDGID


def told(made, call):
    """Whether the SETATTRs of a call say FATTR_KILL_SUIDGID."""
    sent = []
    made.device.before = lambda chain: sent.append(bytes(chain.readable[0])) and None
    call()
    made.device.before = None
    valid = [
        int.from_bytes(message[40:44], "little")
        for message in sent if int.from_bytes(message[4:8], "little") == op.SETATTR
    ]  # fmt: skip
    assert valid
    return [bool(bits & FATTR_KILL_SUIDGID) for bits in valid]


@pytest.mark.parametrize("killpriv", [False, True])
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_a_new_owner(rig, kind, killpriv):
    made = rig(options={"killpriv_v2": killpriv})
    fs = made.fs
    if kind == "file":
        fs.close(fs.open("/x", os.O_CREAT | os.O_WRONLY))
    elif kind == "directory":
        fs.mkdir("/x")
    else:
        fs.symlink("y", "/x")
    expected = killpriv and kind != "directory"
    for uid, gid in ((os.getuid(), -1), (-1, os.getgid()), (os.getuid(), os.getgid())):
        assert told(made, lambda uid=uid, gid=gid: fs.lchown("/x", uid, gid)) == [expected]
    assert told(made, lambda: fs.utime("/x", (1, 1), follow_symlinks=False)) == [False]
