"""When the guest asks for an ACL: only where it could matter, once for as long as attributes are valid."""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.direct_fs import refused
from tests.support.permission_calls import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, acl
from vmsim.errors import StreamError
from vmsim.fuse import opcodes as op

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files away")

CLOSED = acl((USER_OBJ, 7), (USER, 0, 1000), (GROUP_OBJ, 5), (MASK, 5), (OTHER, 5))
OPEN = acl((USER_OBJ, 7), (USER, 5, 1000), (GROUP_OBJ, 0), (MASK, 5), (OTHER, 0))
ACCESS = "system.posix_acl_access"


def asked(guest, call):
    """How often a call asks for attributes."""
    guest.device.opcodes()
    call()
    return guest.device.opcodes().count(op.GETXATTR)


@pytest.fixture
def folder(rig, tmp_path):
    """Makes a guest whose share has ``d/f``, with ``d`` of the given mode."""

    def make(mode=0o755, posix_acl=True, **config):
        share = tmp_path / "share"
        (share / "d").mkdir()
        (share / "d" / "f").touch()
        (share / "d").chmod(mode)
        os.chown(share, 1000, 1000)
        return rig(options={"posix_acl": posix_acl, "timeout_s": 3600}, **config)

    return make


@pytest.mark.parametrize(
    ("who", "mode", "posix_acl", "times"),
    [(0, 0o755, True, 0), (1000, 0o755, False, 0), (1000, 0o701, True, 0), (1000, 0o755, True, 1)],
)
def test_only_where_it_could_matter(folder, who, mode, posix_acl, times):
    guest = folder(mode, posix_acl)
    with guest.fs.as_user(who, who):
        assert asked(guest, lambda: guest.fs.stat("/d/f")) == times


def test_kept_as_long_as_the_attributes(folder):
    guest = folder(dentries=64)
    with guest.fs.as_user(1000, 1000):
        assert asked(guest, lambda: guest.fs.stat("/d/f")) == 1
        assert asked(guest, lambda: guest.fs.stat("/d/f")) == 0
        guest.clone()
        assert asked(guest, lambda: guest.fs.stat("/d/f")) == 0
    guest.fs.setxattr("/d", ACCESS, CLOSED)
    with guest.fs.as_user(1000, 1000):
        with pytest.raises(PermissionError):
            guest.fs.stat("/d/f")
        os.setxattr(guest.share / "d", ACCESS, OPEN)
        with pytest.raises(PermissionError):
            guest.fs.stat("/d/f")  # what the guest may still believe
        guest.fs.drop_caches()
        guest.kernel.change_clock(0)
        guest.fs.stat("/d/f")


@pytest.mark.parametrize(
    ("value", "error"),
    [(b"\2\0", errno.EINVAL), (b"\1\0\0\0", errno.EOPNOTSUPP), (acl((USER_OBJ, 7)), errno.EIO)],
)
def test_what_the_server_says_that_is_no_acl_lets_nobody_in(folder, monkeypatch, value, error):
    guest = folder()
    monkeypatch.setattr(guest.server, "getxattr", lambda *_: value)
    with guest.fs.as_user(1000, 1000), refused(error):
        guest.fs.stat("/d/f")
    guest.fs.stat("/d/f")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: setattr(state.processes[1], "capabilities", -1), "capabilities"),
        (lambda state: setattr(state.processes[1], "permitted", -1), "capabilities"),
        (lambda state: setattr(state.processes[1], "real", (1 << 32, 0)), "process"),
        (lambda state: setattr(state.nodes[1], "acl", bytes(4097)), "ACL"),
        (lambda state: setattr(state.nodes[1], "acl_expiry_ns", -1), "ACL"),
    ],
)
def test_impossible_credentials_and_acls_are_refused(rig, change, why):
    guest = rig()
    guest.kernel.pause()
    change(guest.kernel.state)
    saved = guest.kernel.save()
    with pytest.raises(StreamError, match=why):
        guest.kernel.restore(saved)
