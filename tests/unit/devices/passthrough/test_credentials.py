"""Whose file it is: the caller's ids on this thread alone, translated, and ourselves again afterwards."""

from __future__ import annotations

import errno
import os
import struct
import threading

import pytest

from devices.virtio_fs.passthrough.idmap import IdMap
from tests.support.direct_fs import refused
from tests.unit.devices.passthrough.helpers import PRIVILEGED, needs_privilege
from vmsim.errors import UsageError
from vmsim.fuse import opcodes as op
from vmsim.fuse.filesystem import Context

CALLER = 1234


def context(uid, gid, groups=()):
    ctx = Context(40, 0, 1, 1, uid, gid, 1, 0, 0)
    ctx.groups = groups
    return ctx


def owner(path):
    return path.lstat().st_uid, path.lstat().st_gid


@needs_privilege
def test_what_is_made_belongs_to_the_caller(fs, share):
    ctx = context(CALLER, CALLER + 1)
    fs.fs.mkdir(ctx, 1, b"d", 0o755, 0)
    fs.fs.mknod(ctx, 1, b"n", 0o100644, 0, 0)
    fs.fs.symlink(ctx, 1, b"s", b"target")
    fs.fs.create(ctx, 1, b"c", os.O_RDWR, 0o600, 0, 0)
    assert {owner(share / name) for name in "dnsc"} == {(CALLER, CALLER + 1)}
    assert (os.geteuid(), os.getegid()) == (0, 0)


@needs_privilege
def test_other_threads_stay_who_they_are(fs, share):
    """A thread that looks at its own ids all the time never sees a request's."""
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            with open("/proc/thread-self/status") as status:
                seen.add(next(line for line in status if line.startswith("Uid:")))

    watcher = threading.Thread(target=look)
    watcher.start()
    for turn in range(300):
        fs.fs.mkdir(context(CALLER, CALLER), 1, b"d%d" % turn, 0o755, 0)
    stop.set()
    watcher.join()
    assert seen == {"Uid:\t0\t0\t0\t0\n"}


@needs_privilege
def test_ourselves_again_after_a_failure(fs, share):
    (share / "d").mkdir()
    with refused(errno.EEXIST):
        fs.fs.mkdir(context(CALLER, CALLER), 1, b"d", 0o755, 0)
    assert os.geteuid() == 0
    with open("/proc/thread-self/status") as status:
        caps = dict(line.split() for line in status if line.startswith(("CapEff", "CapPrm")))
    assert caps["CapEff:"] == caps["CapPrm:"]


@needs_privilege
def test_supplementary_group_decides(fs, share):
    """With the caller's groups, the kernel checks; without, the guest has checked and we may override."""
    (share / "d").mkdir()
    os.chown(share / "d", 0, 777)
    (share / "d").chmod(0o770)
    node = fs.ask(op.LOOKUP, 1, (), (b"d",)).nodeid
    fs.fs.mkdir(context(CALLER, CALLER, (777,)), node, b"member", 0o755, 0)
    with refused(errno.EACCES):
        fs.fs.mkdir(context(CALLER, CALLER, (778,)), node, b"stranger", 0o755, 0)
    fs.fs.mkdir(context(CALLER, CALLER), node, b"unknown", 0o755, 0)
    assert owner(share / "d" / "unknown") == (CALLER, CALLER)


@needs_privilege
def test_with_acls_one_group_is_not_all_that_decides(serve, share):
    """The group that is told is the directory's; an ACL may have let another in: the guest has checked."""
    fs = serve(posix_acl=True)
    (share / "d").mkdir()
    os.chown(share / "d", 0, 777)
    (share / "d").chmod(0o750)
    node = fs.ask(op.LOOKUP, 1, (), (b"d",)).nodeid
    fs.fs.mkdir(context(CALLER, CALLER, (777,)), node, b"member", 0o755, 0)
    assert owner(share / "d" / "member") == (CALLER, CALLER)


@needs_privilege
def test_our_own_groups_grant_nothing(serve, share):
    """CVE-2022-0358: a group of the server's, in a directory with SGID."""
    from vmsim.host.fs import LinuxFs

    before = os.getgroups()
    os.setgroups([777])
    try:
        fs = serve(host=LinuxFs())
        (share / "d").mkdir()
        os.chown(share / "d", 0, 777)
        (share / "d").chmod(0o2777)
        node = fs.ask(op.LOOKUP, 1, (), (b"d",)).nodeid
        fs.fs.mknod(context(CALLER, CALLER), node, b"x", 0o102755, 0, 0)
        assert (share / "d" / "x").stat().st_mode & 0o2000 == 0
        assert os.getgroups() == [777]
        fs.fs.host.drop_groups()
        assert os.getgroups() == []
    finally:
        os.setgroups(before)


@needs_privilege
def test_access_asks_for_the_caller(fs, share):
    (share / "a").touch(0o600)
    node = fs.ask(op.LOOKUP, 1, (), (b"a",)).nodeid
    fs.fs.access(context(0, 0), node, os.R_OK | os.W_OK)
    with refused(errno.EACCES):
        fs.fs.access(context(CALLER, CALLER), node, os.R_OK)
    os.chown(share / "a", CALLER, CALLER)
    fs.fs.access(context(CALLER, CALLER), node, os.R_OK | os.W_OK)
    with refused(errno.EINVAL):
        fs.fs.access(context(0, 0), node, 64)


@pytest.mark.skipif(PRIVILEGED, reason="with privilege, ids are taken")
def test_without_privilege_it_is_ourselves(fs, share):
    fs.fs.mkdir(context(CALLER, CALLER), 1, b"d", 0o755, 0)
    assert (share / "d").stat().st_uid == os.getuid()
    with refused(errno.EPERM):
        fs.chown("/d", CALLER, CALLER)


def test_a_caller_without_ids(fs, share):
    with refused(errno.EPERM):
        fs.fs.mkdir(context(0xFFFFFFFF, 0xFFFFFFFF), 1, b"d", 0o755, 0)
    assert os.listdir(share) == []


def test_id_map():
    rules = ["map:1000:5000:10", "squash-guest:2000:7:100", "forbid-guest:0:1000", "squash-host:9000:1:5"]
    ids = IdMap(rules)
    assert [ids.to_host(n) for n in (1000, 1009, 2000, 2099, 1010, 4_000_000_000)] == [
        5000, 5009, 7, 7, 1010, 4_000_000_000,
    ]  # fmt: skip
    assert [ids.to_guest(n) for n in (5000, 5009, 5010, 9000, 9004, 7)] == [1000, 1009, 5010, 1, 1, 7]
    with refused(errno.EPERM):
        ids.to_host(999)
    one_way = IdMap(["guest:10:20:1", "host:30:40:1"])
    assert (one_way.to_host(10), one_way.to_guest(20), one_way.to_guest(30)) == (20, 20, 40)
    assert IdMap().identity
    assert not ids.identity


@pytest.mark.parametrize(
    "rules",
    [
        ["map:0:0"], ["map:a:b:c"], ["nonsense:1:2:3"], ["forbid-guest:1:2:3"], ["map:-1:0:1"],
        ["map:0:4294967295:2"], ["map:0:100:10", "guest:5:0:1"], ["host:0:1:9", "squash-host:8:1:1"],
    ],
)  # fmt: skip
def test_bad_id_maps(rules):
    with pytest.raises(UsageError):
        IdMap(rules)


def test_the_guest_sees_translated_ids(serve, share):
    uid, gid = os.getuid(), os.getgid()
    uids, gids = (f"host:{uid}:4000:1", "forbid-guest:4242:1"), (f"map:5000:{gid}:1",)
    fs = serve(translate_uid=uids, translate_gid=gids)
    (share / "a").touch()
    assert (fs.lstat("/a").st_uid, fs.lstat("/a").st_gid) == (4000, 5000)
    entry = fs.ask(op.LOOKUP, 1, (), (b"a",))
    assert (entry.uid, entry.gid) == (4000, 5000)
    statx = fs.ask(op.STATX, entry.nodeid, (0, 0, 0, 0, 0xFFF))
    assert (statx.uid, statx.gid) == (4000, 5000)
    fs.fs.mkdir(context(uid, 5000), 1, b"d", 0o755, 0)
    assert owner(share / "d") == (uid, gid)
    with refused(errno.EPERM):
        fs.fs.mkdir(context(4242, 5000), 1, b"e", 0o755, 0)


@needs_privilege
def test_labels_come_with_what_is_made(serve, share):
    fs = serve(security_label=True)
    ctx = context(0, 0)
    ctx.security = ((b"security.vmsim", b"label"),)
    try:
        fs.fs.mkdir(ctx, 1, b"d", 0o755, 0)
    except OSError as error:
        pytest.skip(f"no security attributes here: {error}")
    assert os.getxattr(share / "d", "security.vmsim") == b"label"
    ctx.security = ((b"nonsense", b"label"),)
    for make in (
        lambda: fs.fs.mkdir(ctx, 1, b"e", 0o755, 0),
        lambda: fs.fs.create(ctx, 1, b"f", os.O_RDWR, 0o600, 0, 0),
        lambda: fs.fs.symlink(ctx, 1, b"g", b"x"),
    ):
        with pytest.raises(OSError):
            make()
    assert os.listdir(share) == ["d"]


def test_extension_with_groups_arrives(serve, share):
    """The whole way: a CREATE whose extension record names one group."""
    fs = serve()
    record = struct.pack("<III4x", 16, 32, 1)[:12] + struct.pack("<I", 777)
    fs.ask(op.CREATE, 1, (os.O_RDWR, 0o600, 0, 0), (b"a",), extensions=record)
    assert (share / "a").exists()
