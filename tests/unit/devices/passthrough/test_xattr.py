"""Extended attributes: mapping of names, ACLs, special files, sizes."""

from __future__ import annotations

import errno
import os
import stat
import struct

import pytest

from devices.virtio_fs.passthrough.xattrmap import XattrMap
from tests.support.direct_fs import refused
from tests.unit.devices.passthrough.helpers import needs_privilege
from vmsim.errors import UsageError
from vmsim.fuse import opcodes as op


@pytest.fixture
def probed(share):
    try:
        os.setxattr(share, "user.probe", b"1")
    except OSError as error:
        pytest.skip(f"no user attributes on the file system of the tests: {error}")
    os.removexattr(share, "user.probe")


def test_prefix_and_bad():
    rules = XattrMap(":prefix:all::user.virtiofs.::bad:all:::")
    assert rules.to_host(b"trusted.x") == b"user.virtiofs.trusted.x"
    assert rules.to_guest(b"user.virtiofs.trusted.x") == b"trusted.x"
    assert rules.to_guest(b"security.selinux") is None


def test_documented_example_with_four_rules():
    text = """/prefix/all/trusted./user.virtiofs./
              /bad/server//trusted./
              /bad/client/user.virtiofs.//
              /ok/all///"""
    for rules in (XattrMap(text), XattrMap("/map/trusted./user.virtiofs./")):
        assert rules.to_host(b"trusted.x") == b"user.virtiofs.trusted.x"
        assert rules.to_guest(b"user.virtiofs.trusted.x") == b"trusted.x"
        assert rules.to_guest(b"trusted.x") is None
        with refused(errno.EPERM):
            rules.to_host(b"user.virtiofs.x")
        assert rules.to_host(b"user.y") == rules.to_guest(b"user.y") == b"user.y"


def test_unsupported():
    rules = XattrMap("/unsupported/all/security.selinux/security.selinux//ok/all///")
    with refused(errno.ENOTSUP):
        rules.to_host(b"security.selinux")
    assert rules.to_guest(b"security.selinux") is None
    assert rules.to_host(b"user.x") == b"user.x"


def test_no_rule_matches():
    rules = XattrMap(":ok:client:user.::")
    with refused(errno.EPERM):
        rules.to_host(b"trusted.x")
    assert rules.to_guest(b"user.x") is None


@pytest.mark.parametrize(
    "text",
    [
        ":what:all:::", ":ok:nobody:::", ":ok:all:", ":prefix:all:x",
        ":map:a:b::ok:all:::", ":map:a:b::map:c:d:",
    ],
)  # fmt: skip
def test_bad_rules(text):
    with pytest.raises(UsageError, match="xattrmap"):
        XattrMap(text)


@pytest.mark.usefixtures("probed")
def test_the_guest_sees_its_own_names(serve, share):
    fs = serve(xattrmap=":map::user.vm.:")
    (share / "a").touch()
    os.setxattr(share / "a", "user.hidden", b"h")
    fs.setxattr("/a", "trusted.mine", b"1")
    assert os.getxattr(share / "a", "user.vm.trusted.mine") == b"1"
    assert fs.listxattr("/a") == ["trusted.mine"]
    assert fs.getxattr("/a", "trusted.mine") == b"1"
    with refused(errno.ENODATA):
        fs.getxattr("/a", "user.hidden")
    with refused(errno.ERANGE):
        fs.setxattr("/a", "user." + "x" * 250, b"1")


@pytest.mark.usefixtures("probed")
def test_a_mapped_capability_goes_when_the_file_changes(serve, share):
    fs = serve(xattrmap=":map::user.vm.:", killpriv_v2=True)
    (share / "a").write_bytes(b"data")
    fs.setxattr("/a", "security.capability", b"caps")
    fs.truncate("/a", 1)
    assert fs.listxattr("/a") == []


@pytest.mark.parametrize("change", ["write", "fallocate", "copy", "truncate", "O_TRUNC", "chown"])
@pytest.mark.usefixtures("probed")
def test_a_mapped_capability_goes_without_being_told(serve, share, change):
    """On the host it has a name that the kernel does not know, and the guest's does not look for it."""
    fs = serve(xattrmap=":map::user.vm.:")
    (share / "a").write_bytes(b"data")
    fs.setxattr("/a", "security.capability", b"caps")
    node = fs.ask(op.LOOKUP, 1, (), (b"a",)).nodeid
    fh = fs.ask(op.OPEN, node, (os.O_RDWR, 0)).fh
    if change == "write":
        fs.ask(op.WRITE, node, (fh, 0, 1, 0, 0, 0, 0), (), b"x")
    elif change == "fallocate":
        fs.ask(op.FALLOCATE, node, (fh, 0, 10, 0, 0))
    elif change == "truncate":
        fs.truncate("/a", 1)
    elif change == "O_TRUNC":
        fs.close(fs.open("/a", os.O_WRONLY | os.O_TRUNC))
    elif change == "chown":
        fs.chown("/a", os.getuid(), os.getgid())
    else:
        fs.ask(op.COPY_FILE_RANGE, node, (fh, 0, node, fh, 2, 2, 0))
    assert fs.listxattr("/a") == []


@pytest.mark.usefixtures("probed")
def test_a_directory_keeps_its_mapped_capability(serve, share):
    """As the kernel lets directories keep theirs in chown_common."""
    fs = serve(xattrmap=":map::user.vm.:")
    fs.mkdir("/d")
    fs.setxattr("/d", "security.capability", b"caps")
    fs.chown("/d", os.getuid(), os.getgid())
    assert fs.listxattr("/d") == ["security.capability"]


@pytest.mark.parametrize("group", [0, 777])
@pytest.mark.parametrize(("name", "kill", "mode"), [
    ("access", 1, 0o640), ("access", 0, 0o2640), ("default", 1, 0o2755),
])  # fmt: skip
@needs_privilege
def test_an_acl_takes_the_group_bit_when_told(serve, share, group, name, kill, mode):
    """Also of a file whose group we are in ourselves."""
    fs = serve(posix_acl=True)
    target = share / "a"
    if name == "access":
        target.touch()
    else:
        target.mkdir()
    os.chown(target, 1000, group)
    target.chmod(0o2755)
    entries = ((1, 6), (4, 4), (32, 0))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry, 0xFFFFFFFF) for entry in entries)
    node = fs.ask(op.LOOKUP, 1, (), (b"a",)).nodeid
    try:
        fs.fs.setxattr(None, node, b"system.posix_acl_" + name.encode(), value, 0, kill)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
    assert stat.S_IMODE(target.stat().st_mode) == mode


@pytest.mark.usefixtures("probed")
def test_sizes(fs, share):
    (share / "a").touch()
    os.setxattr(share / "a", "user.x", b"12345")
    node = fs.ask(op.LOOKUP, 1, (), (b"a",)).nodeid
    assert fs.ask(op.GETXATTR, node, (0, 0), (b"user.x",), size_query=True).size == 5
    assert fs.ask(op.GETXATTR, node, (5, 0), (b"user.x",), size=5) == b"12345"
    with refused(errno.ERANGE):
        fs.ask(op.GETXATTR, node, (4, 0), (b"user.x",), size=4)
    with refused(errno.ERANGE):
        fs.ask(op.LISTXATTR, node, (3, 0), size=3)
    with refused(errno.ENOMEM):
        fs.fs.getxattr(None, node, b"user.x", (1 << 20) + 1)
    with refused(errno.E2BIG):
        fs.fs.setxattr(None, node, b"user.y", bytes(65537), 0, 0)
    with refused(errno.EINVAL):
        fs.fs.setxattr(None, node, b"user.y", b"", 4, 0)


def test_switched_off(serve, share):
    fs = serve(xattr=False)
    (share / "a").touch()
    for call in (
        lambda: fs.getxattr("/a", "user.x"),
        lambda: fs.setxattr("/a", "user.x", b"1"),
        lambda: fs.listxattr("/a"),
        lambda: fs.removexattr("/a", "user.x"),
    ):
        with refused(errno.ENOSYS):
            call()


def test_acls_only_when_negotiated(serve, share):
    (share / "a").touch()
    with refused(errno.ENOTSUP):
        serve().getxattr("/a", "system.posix_acl_access")
    with pytest.raises(OSError) as caught:
        serve(posix_acl=True).getxattr("/a", "system.posix_acl_access")
    assert caught.value.errno in (errno.ENODATA, errno.ENOTSUP)


@needs_privilege
@pytest.mark.usefixtures("probed")
def test_on_what_is_never_opened(fs, share):
    os.mkfifo(share / "fifo")
    (share / "link").symlink_to("nowhere")
    for name in ("fifo", "link"):
        fs.setxattr(f"/{name}", "trusted.x", name.encode())
        assert os.getxattr(share / name, "trusted.x", follow_symlinks=False) == name.encode()
        assert fs.getxattr(f"/{name}", "trusted.x") == name.encode()
        assert "trusted.x" in fs.listxattr(f"/{name}")
        fs.removexattr(f"/{name}", "trusted.x")


def test_a_map_has_an_end():
    with pytest.raises(UsageError, match="480000 characters"):
        XattrMap(":prefix:all:a:b:" * 30000)
