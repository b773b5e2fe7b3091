"""A program whose umask is its own: makes everything by LinuxFs, and by ``os`` with the guest's umask set.

    modes_like_os.py FOLDER ONE_IN REMAINDER

Takes one in so many of all combinations; prints a line for each difference, and how many things were made.
"""

from __future__ import annotations

import itertools
import os
import stat
import struct
import sys

from vmsim.host.fs import LinuxFs

PROCESS = (0o000, 0o022, 0o027, 0o077, 0o777)
GUEST = (0o000, 0o022, 0o777)
ASKED = (0o777, 0o755, 0o640, 0o000, 0o6755, 0o2070, 0o2700, 0o1777)
KINDS = {"file": stat.S_IFREG, "pipe": stat.S_IFIFO, "socket": stat.S_IFSOCK}
ROOT = os.geteuid() == 0
CALLERS = ((0, 0, ()), (1234, 1234, ()), (1234, 1234, (50,))) if ROOT else ((os.geteuid(), os.getegid(), ()),)
OWN_GROUP = 50 if ROOT else os.getegid()
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, allowed, who)
    for tag, allowed, who in ((1, 7, -1 & 0xFFFFFFFF), (2, 6, 4321), (4, 5, -1 & 0xFFFFFFFF),
                              (16, 7, -1 & 0xFFFFFFFF), (32, 1, -1 & 0xFFFFFFFF))
)  # fmt: skip


def folders(base):
    """Directories that treat new names differently."""
    for name in ("plain", "group", "acl"):
        path = os.path.join(base, name)
        os.mkdir(path)
        os.chmod(path, 0o777)
        if name == "group":
            os.chown(path, -1, OWN_GROUP)
            os.chmod(path, 0o2777)
        if name == "acl":
            try:
                os.setxattr(path, "system.posix_acl_default", ACL)
            except OSError:
                continue
        yield path


def ways(host):
    """Name of a call, what makes it by the seam, and what by ``os``."""
    yield (
        "mkdir", lambda at, name, mode, umask: host.mkdir(at, name, mode & 0o1777, umask),
        lambda at, name, mode: os.mkdir(name, mode & 0o1777, dir_fd=at),
    )  # fmt: skip
    for kind, bits in KINDS.items():
        yield (
            kind, lambda at, name, mode, umask, bits=bits: host.mknod(at, name, bits | mode, 0, umask),
            lambda at, name, mode, bits=bits: os.mknod(name, bits | mode, dir_fd=at),
        )  # fmt: skip
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    yield (
        "create", lambda at, name, mode, umask: os.close(host.open_beneath(at, name, flags, mode, umask)),
        lambda at, name, mode: os.close(os.open(name, flags, mode, dir_fd=at)),
    )  # fmt: skip
    unnamed = os.O_TMPFILE | os.O_RDWR

    def named(at, fd, name):
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=at, follow_symlinks=True)
        os.close(fd)

    yield (
        "tmpfile",
        lambda at, name, mode, umask: named(at, host.open_beneath(at, b".", unnamed, mode, umask), name),
        lambda at, name, mode: named(at, os.open(b".", unnamed, mode, dir_fd=at), name),
    )  # fmt: skip


def looks(at, name):
    found = os.lstat(name, dir_fd=at)
    acls = []
    for acl in ("system.posix_acl_access", "system.posix_acl_default"):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=at)
        try:
            acls.append(os.getxattr(f"/proc/self/fd/{fd}", acl).hex())
        except OSError:
            acls.append("")
        finally:
            os.close(fd)
    return oct(found.st_mode), found.st_uid, found.st_gid, *acls


def main() -> None:
    os.umask(0)
    host = LinuxFs()
    made, one_in, left = 0, int(sys.argv[2]), int(sys.argv[3])
    for folder in folders(sys.argv[1]):
        at = os.open(folder, os.O_RDONLY)
        for (what, ours, theirs), caller in itertools.product(ways(host), CALLERS):
            for (place_1, mask), (place_2, umask), (place_3, mode) in itertools.product(
                enumerate(PROCESS), enumerate(GUEST), enumerate(ASKED)
            ):
                if (place_1 + place_2 + place_3) % one_in != left:
                    continue
                if ROOT:
                    host.become(*caller, True)
                try:
                    os.umask(umask)
                    theirs(at, b"theirs", mode)
                    os.umask(mask)
                    ours(at, b"ours", mode, umask)
                finally:
                    mask_left = os.umask(0)
                    host.become_self()
                here, there = looks(at, b"ours"), looks(at, b"theirs")
                for name in (b"ours", b"theirs"):
                    (os.rmdir if what == "mkdir" else os.unlink)(name, dir_fd=at)
                made += 1
                if here != there or mask_left != mask:
                    place = os.path.basename(folder)
                    print(f"{what} {mode:#o} in {place} by {caller}, umask {umask:#o} in a program with "
                          f"{mask:#o}: {here}, not {there}; its umask is {mask_left:#o}")
        os.close(at)
    print(made)


main()
