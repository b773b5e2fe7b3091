"""Who may do what: each call, as each user, on each kind of file, by the guest and on the host.

Errors and effects (mode, owner, size, times, attributes, ACLs, flags, names) must be the same.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import tempfile
import time
from contextlib import contextmanager
from itertools import product

import pytest

from tests.support.guest_rig import GuestRig
from tests.support.permission_calls import (
    APPEND,
    CALLS,
    FOR_SOME,
    GROUP,
    GROUP_OBJ,
    IMMUTABLE,
    MASK,
    NAMES,
    OTHER,
    USER,
    USER_OBJ,
    acl,
)
from tests.support.permission_table import USERS, Scene, Side, Table, change_flags, users
from vmsim.host.fs import LinuxFs

pytestmark = pytest.mark.skipif(not LinuxFs().privileged, reason="needs to be anybody")


def sysctl(name):
    with open(f"/proc/sys/fs/{name}") as value:
        return int(value.read())


GUESTS = {
    "direct": ({}, {}),
    "cached": ({"killpriv_v2": True, "writeback": True}, {"dentries": 4096, "cache": "writeback"}),
}
"""Back-end options and configuration of a guest without caches, and of one with all of them."""

SAMPLE = 3
"""The guest with caches makes one call in so many: its checks are the same code, fed from its caches. Where
caches and ``killpriv_v2`` decide (who takes set-id bits away) it makes all of them."""
ONE_IN = 6
"""Cells of a table of which a plain run of the tests takes one."""


@contextmanager
def table_in(folder, name, sample=SAMPLE):
    host_root = pathlib.Path(folder, "host")
    host_root.mkdir()
    try:
        os.setxattr(host_root, "system.posix_acl_access", FOR_SOME)
        os.setxattr(host_root, "user.x", b"")
        change_flags(host_root, 0)
    except OSError as error:
        pytest.skip(f"no ACLs, attributes or flags here: {error}")
    sides = []
    for kind, (options, config) in GUESTS.items():
        share = pathlib.Path(folder, kind)
        share.mkdir()
        options = {"posix_acl": True, "preserve_noatime": True, **options}
        config = {"protected_hardlinks": bool(sysctl("protected_hardlinks")), **config}
        now = time.time_ns() - time.monotonic_ns()
        guest = GuestRig(share, options=options, realtime_ns=now, **config)
        sides.append(Side(guest, str(share), 1 if kind == "direct" else sample))
    yield Table(sides, host_root, f"permissions: {name}", ONE_IN)
    for side in sides:
        side.guest.close()


@contextmanager
def table_in_memory(name, sample=SAMPLE):
    """Where files are made fast."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = tempfile.mkdtemp(dir=memory)
    try:
        with table_in(folder, name, sample) as made:
            yield made
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)  # three times faster than shutil's


@pytest.fixture
def table(request):
    with table_in_memory(request.node.name) as made:
        yield made


@pytest.fixture
def both_table(request):
    """A table of which both guests make every call."""
    with table_in_memory(request.node.name, sample=1) as made:
        yield made


@pytest.fixture
def disk_table(request, tmp_path):
    """A table on a disk: where an ACL is removed, tmpfs takes S_ISGID as well, which the others do not."""
    with table_in(tmp_path, request.node.name) as made:
        yield made


def check(table):
    wrong = table.run()
    assert not wrong, f"{len(wrong)} of {len(table.cells)} differ:\n" + "\n".join(wrong[:40])


NAMED_USER = acl((USER_OBJ, 6), (USER, 0, 1001), (USER, 6, 1002), (GROUP_OBJ, 6), (MASK, 6), (OTHER, 6))
DENIED_GROUP = acl((USER_OBJ, 6), (GROUP_OBJ, 6), (GROUP, 0, 3000), (MASK, 6), (OTHER, 6))
NO_OWN_GROUP = acl((USER_OBJ, 6), (GROUP_OBJ, 0), (GROUP, 7, 3000), (MASK, 7), (OTHER, 0))
UNDER_MASK = acl((USER_OBJ, 7), (USER, 7, 1002), (GROUP_OBJ, 7), (GROUP, 7, 3000), (MASK, 4), (OTHER, 3))
NO_MASK_BITS = acl((USER_OBJ, 6), (USER, 7, 1002), (GROUP_OBJ, 7), (MASK, 0), (OTHER, 6))
ACLS = [NAMED_USER, DENIED_GROUP, NO_OWN_GROUP, UNDER_MASK, NO_MASK_BITS]
MODES = [0o644, 0o600, 0o640, 0o660, 0o606, 0o060, 0o000, 0o444, 0o711, 0o777]
SET_IDS = [0o4777, 0o2777, 0o6777, 0o4666, 0o2666, 0o6766, 0o6676]
CONTENT = [name for name in CALLS if name.startswith("open ")]
CHANGES = [
    "write", "pwrite", "write nothing", "append", "ftruncate", "ftruncate to the same", "truncate",
    "truncate longer", "fallocate", "copy_file_range", "open truncate", "open read-truncate",
]  # fmt: skip


DAC = ("dac_override", "dac_read_search")


def calls(*beginnings):
    return [name for name in CALLS if name.startswith(beginnings)]


def test_content(table):
    scenes = [Scene(mode=mode) for mode in MODES] + [Scene(acl=each) for each in ACLS]
    table.add(scenes, [*CONTENT, "ftruncate what is read", "truncate", "truncate below zero"], users(*DAC))
    check(table)


def test_changes_take_set_id_bits_away(both_table):
    scenes = [Scene(mode=mode, owner=owner) for mode in SET_IDS for owner in ((1000, 2000), (1000, 0))]
    scenes += [Scene(mode=mode, attributes=True) for mode in (0o777, 0o6777)]
    both_table.add(scenes, CHANGES, [*USERS, "root without fsetid", "root without any"])
    # These say nothing of the caller's capabilities to a server that kills by itself.
    unsaid = ("fallocate", "copy_file_range", "open truncate", "open read-truncate")
    both_table.add(scenes, [name for name in CHANGES if name not in unsaid], ["stranger with fsetid"])
    check(both_table)


def test_attributes(table):
    scenes = [Scene(mode=mode) for mode in (0o644, *SET_IDS, 0o2644, 0o6644)]
    scenes += [Scene("directory", mode) for mode in (0o755, 0o3777, 0o6755)]
    scenes += [Scene("fifo", mode) for mode in (0o6755, 0o2644)]
    scenes += [Scene("symlink"), Scene(owner=(0, 0), mode=0o6755), Scene(acl=NAMED_USER, mode=0o2640)]
    table.add(scenes, calls("chmod", "chown", "lchown"), users("chown", "fowner", "fsetid"))
    opened = [Scene(mode=0o6755), Scene("directory", 0o2755)]
    table.add(opened, calls("fch", "chmod of"), users("chown", "fowner", "fsetid"))
    check(table)


def test_times_and_access(table):
    scenes = [Scene(mode=mode) for mode in MODES] + [Scene(acl=each) for each in ACLS]
    scenes += [Scene("directory", mode) for mode in (0o755, 0o700, 0o711, 0o722)]
    scenes += [Scene(parent=(0, 0, 0o700)), Scene(parent=(0, 2000, 0o710))]
    table.add(scenes, ["touch", *calls("set times", "access"), "stat"], users(*DAC, "fowner"))
    check(table)


INSIDE = [
    *calls("listdir", "search"), "read inside", "open inside with O_CREAT", *calls("create"), "tmpfile",
    *calls("mkdir", "mknod"), "symlink", "link into", "unlink inside", "rmdir inside",
    *calls("rename inside", "rename out", "rename into"), "replace inside", "chdir",
]  # fmt: skip


def test_directories(table):
    modes = [0o755, 0o777, 0o700, 0o770, 0o711, 0o744, 0o1777, 0o2777, 0o2775, 0o000]
    scenes = [Scene("directory", mode) for mode in modes]
    scenes += [Scene("directory", 0o2777, default_acl=FOR_SOME), Scene("directory", acl=UNDER_MASK)]
    scenes += [Scene("directory", acl=acl((USER_OBJ, 7), (USER, 7, 1002), (GROUP_OBJ, 5), (GROUP, 7, 3000),
                                          (MASK, 7), (OTHER, 1)))]  # fmt: skip
    able = [user for user in users(*DAC, "fowner", "fsetid", "mknod") if user not in SERVER_DECIDES]
    table.add(scenes, INSIDE, able)
    check(table)


SERVER_DECIDES = {"stranger with fsetid", "stranger with mknod"}
"""New files are made by the server with the caller's ids, which have no capabilities there."""


def test_names(table):
    parents = [(0, 0, 0o755), (0, 0, 0o777), (0, 0, 0o1777), (1000, 0, 0o1777), (1002, 0, 0o1777),
               (1000, 1000, 0o755), (0, 2000, 0o775), (0, 2000, 0o3775), (0, 0, 0o766)]  # fmt: skip
    targets = [Scene(), Scene("directory", 0o755), Scene("directory", 0o777), Scene("symlink")]
    scenes = [target._replace(parent=parent) for target, parent in product(targets, parents)]
    names = ["unlink", "rmdir", "rename", "rename away", *calls("replace"), "make beside"]
    table.add(scenes, names, users("fowner"))
    table.add(scenes[: len(parents)], names, users(*DAC))
    sources = [Scene(mode=mode) for mode in (0o644, 0o666, 0o660, *SET_IDS)]
    sources += [Scene(acl=NAMED_USER), Scene("directory", 0o777), Scene("symlink"), Scene("fifo", 0o666)]
    table.add(sources, ["link"], users(*DAC, "fowner"))
    check(table)


def test_extended_attributes(table):
    scenes = [Scene(kind, mode, attributes=True) for kind, mode in (
        ("file", 0o644), ("file", 0o666), ("file", 0o600), ("directory", 0o755), ("directory", 0o1777),
        ("symlink", 0o777), ("fifo", 0o666))]  # fmt: skip
    scenes += [Scene(mode=0o666), Scene(owner=(0, 0), mode=0o600), Scene(acl=NAMED_USER)]
    names = [f"{verb} {name}" for verb in ("set", "get", "remove") for name in NAMES]
    able = users("sys_admin", "setfcap", "fowner", "dac_override")
    table.add(scenes, [*names, *calls("bad ", "no "), "listxattr"], able)
    opened = [scene for scene in scenes if scene.kind != "fifo"]
    table.add(opened, ["xattr of O_PATH", "fsetxattr of what is read"], USERS)
    check(table)


def test_acls(disk_table):
    scenes = [Scene(mode=mode, owner=owner) for mode in (0o644, 0o2755, 0o2644, 0o6777)
              for owner in ((1000, 2000), (1000, 0), (0, 0))]  # fmt: skip
    scenes += [Scene("directory", 0o755), Scene("directory", 0o3777)]
    scenes += [Scene("directory", default_acl=FOR_SOME), Scene("symlink"), Scene("fifo", 0o2644)]
    scenes += [Scene(acl=NAMED_USER, mode=0o2640)]
    names = [n for n in CALLS if "ACL" in n]
    disk_table.add(scenes, [n for n in names if ": " not in n], users("fowner", "fsetid", "sys_admin"))
    disk_table.add(scenes[-6:], [n for n in names if ": " in n], ["owner", "stranger", "root"])
    check(disk_table)


def test_who_may_change_flags(table):
    scenes = [Scene(), Scene("directory", 0o755), Scene(owner=(0, 0))]
    scenes += [Scene(flags=APPEND), Scene(flags=IMMUTABLE)]
    table.add(scenes, calls("+", "-"), users("linux_immutable", "fowner", "dac_override", "sys_admin"))
    check(table)


def test_what_flags_forbid(table):
    """A FUSE client does not know flags: it may find another reason first, but nobody gets around them."""
    table.any_refusal = True
    for where in ("flags", "parent_flags"):
        for flag in (IMMUTABLE, APPEND):
            flagged = {where: flag}
            attributes = calls("chmod", "chown", "touch", "set ", "remove ")
            names = [*CONTENT, *CHANGES, *attributes, *calls("unlink", "rename", "replace"), "link"]
            names = [n for n in names if n not in INSIDE and "default ACL" not in n]
            if flagged == {"flags": APPEND}:  # what may be done with it is no matter of permission
                names = [n for n in names if n not in ("append", "open append")]
            table.add([Scene(mode=0o666, **flagged)], names, WITH_FLAGS)
            names = [*INSIDE, *attributes, "rmdir", "rename", "replace by a directory"]
            table.add([Scene("directory", 0o777, **flagged)], names, WITH_FLAGS)
    check(table)


WITH_FLAGS = ("owner", "root", "stranger", "root without linux_immutable")
