"""Calls that ask for permission, written once for ``os`` and for a guest's facade, and who makes them.

As a program it is the oracle: ``python permission_calls.py`` in a directory, with JSON lines
``[[uid, gid, groups, capabilities], [[cell, call], ...]]`` on standard input, makes each call as that user in
``cell/`` and answers each line with the list of outcomes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os as host_os
import struct
import sys
from os import (
    O_APPEND,
    O_CREAT,
    O_DIRECTORY,
    O_EXCL,
    O_NOATIME,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    O_TMPFILE,
    O_TRUNC,
    O_WRONLY,
    makedev,
)
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFREG

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP = 0x10, 0x20, 0x40
SHOWN_FLAGS = IMMUTABLE | APPEND | NODUMP
LONG_AGO = 1_000_000_000
NOBODY = 0xFFFFFFFF


def acl(*entries):
    """A POSIX ACL's attribute out of (tag, permissions[, id])."""
    packed = (struct.pack("<HHI", *(*entry, NOBODY)[:3]) for entry in entries)
    return struct.pack("<I", 2) + b"".join(packed)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
FOR_ALL = acl((USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7))
FOR_SOME = acl((USER_OBJ, 6), (USER, 7, 1234), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0))
BAD_ACLS = {
    "short": b"\2\0", "version": struct.pack("<I", 1) + FOR_ALL[4:], "cut": FOR_ALL[:-1], "none": FOR_ALL[:4],
    "empty": b"", "tag": acl((3, 7), (GROUP_OBJ, 7), (OTHER, 7)), "order": acl((OTHER, 7), (USER_OBJ, 7)),
    "no mask": acl((USER_OBJ, 7), (USER, 7, 1), (GROUP_OBJ, 7), (OTHER, 7)),
    "perm": acl((USER_OBJ, 8), (GROUP_OBJ, 7), (OTHER, 7)), "no other": acl((USER_OBJ, 7), (GROUP_OBJ, 7)),
    "undefined": acl((USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 7)),
}  # fmt: skip
FILE_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)

CALLS = {}


def call(name=None):
    def note(function):
        CALLS[name or function.__name__] = function
        return function

    return note


def with_fd(flags, action, mode=0o777, name="t"):
    """A call on an open file."""

    def act(os, at):
        fd = os.open(at + name, flags, mode)
        try:
            return action(os, fd)
        finally:
            os.close(fd)

    return act


def nothing(os, fd):
    return None


# Opening, and what an open file may be used for

for _name, _flags in {
    "read": O_RDONLY, "write": O_WRONLY, "both": O_RDWR, "append": O_WRONLY | O_APPEND,
    "noatime": O_RDONLY | O_NOATIME, "truncate": O_WRONLY | O_TRUNC, "read-truncate": O_RDONLY | O_TRUNC,
    "path": O_PATH, "directory": O_RDONLY | O_DIRECTORY, "create": O_WRONLY | O_CREAT,
    "exclusive": O_RDWR | O_CREAT | O_EXCL, "append-truncate": O_WRONLY | O_APPEND | O_TRUNC,
}.items():  # fmt: skip
    call("open " + _name)(with_fd(_flags, nothing))


def changed(action, flags=O_WRONLY):
    return with_fd(flags, lambda os, fd: action(os, fd) and None)


def copied(os, at):
    source = os.open(at + "o", O_RDONLY)
    try:
        target = os.open(at + "t", O_WRONLY)
        try:
            return os.copy_file_range(source, target, 3)
        finally:
            os.close(target)
    finally:
        os.close(source)


CALLS.update({
    "write": changed(lambda os, fd: os.write(fd, b"new")),
    "pwrite": changed(lambda os, fd: os.pwrite(fd, b"new", 2), O_RDWR),
    "write nothing": changed(lambda os, fd: os.write(fd, b"")),
    "append": changed(lambda os, fd: os.write(fd, b"new"), O_WRONLY | O_APPEND),
    "ftruncate": changed(lambda os, fd: os.ftruncate(fd, 2)),
    "ftruncate to the same": changed(lambda os, fd: os.ftruncate(fd, 10)),
    "ftruncate what is read": changed(lambda os, fd: os.ftruncate(fd, 2), O_RDONLY),
    "truncate": lambda os, at: os.truncate(at + "t", 3),
    "truncate longer": lambda os, at: os.truncate(at + "t", 30),
    "truncate below zero": lambda os, at: os.truncate(at + "t", -1),
    "fallocate": changed(lambda os, fd: os.posix_fallocate(fd, 0, 20)),
    "copy_file_range": copied,
})  # fmt: skip

# Attributes

for _mode in (0o644, 0o600, 0o777, 0o1777, 0o2755, 0o2644, 0o4755, 0o6755):
    call(f"chmod {_mode:o}")(lambda os, at, mode=_mode: os.chmod(at + "t", mode))
call("fchmod 6755")(with_fd(O_RDONLY, lambda os, fd: os.fchmod(fd, 0o6755)))
call("fchmod of O_PATH")(with_fd(O_PATH, lambda os, fd: os.fchmod(fd, 0o755)))
call("chmod of O_PATH")(with_fd(O_PATH, lambda os, fd: os.chmod(fd, 0o755)))
OWNERS = (
    (-1, -1), (1000, -1), (1001, -1), (0, 0), (-1, 1000), (-1, 2000), (-1, 1002), (1000, 2000), (1000, 1002),
)  # fmt: skip
for _ids in OWNERS:
    call("chown {} {}".format(*_ids))(lambda os, at, ids=_ids: os.chown(at + "t", *ids))
call("lchown")(lambda os, at: os.lchown(at + "t", 1000, -1))
call("fchown")(with_fd(O_RDONLY, lambda os, fd: os.fchown(fd, -1, 2000)))
call("fchown of O_PATH")(with_fd(O_PATH, lambda os, fd: os.fchown(fd, -1, 2000)))
call("touch")(lambda os, at: os.utime(at + "t"))
call("set times")(lambda os, at: os.utime(at + "t", ns=(5 * 10**18 // 10**9, 7 * 10**9)))
call("set times of O_PATH")(with_fd(O_PATH, lambda os, fd: os.utime(fd, ns=(5, 7))))
call("stat")(lambda os, at: os.stat(at + "t").st_mode)
call("readlink")(lambda os, at: os.readlink(at + "t"))
for _mask in range(8):
    call(f"access {_mask}")(lambda os, at, mask=_mask: os.access(at + "t", mask))
    call(f"access {_mask} effective")(
        lambda os, at, mask=_mask: os.access(at + "t", mask, effective_ids=True)
    )

# In a directory

call("listdir")(lambda os, at: sorted(os.listdir(at + "t")))
call("listdir of O_PATH")(with_fd(O_PATH, lambda os, fd: sorted(os.listdir(fd))))
call("search")(lambda os, at: os.stat(at + "t/f").st_mode)
call("search and back")(lambda os, at: os.stat(at + "t/../o").st_mode)
call("read inside")(with_fd(O_RDONLY, nothing, name="t/f"))
call("create")(with_fd(O_WRONLY | O_CREAT | O_EXCL, nothing, 0o644, "t/x"))
call("create 2755")(with_fd(O_WRONLY | O_CREAT | O_EXCL, nothing, 0o2755, "t/x"))
call("create 6777")(with_fd(O_WRONLY | O_CREAT | O_EXCL, nothing, 0o6777, "t/x"))
call("create 2666")(with_fd(O_WRONLY | O_CREAT | O_EXCL, nothing, 0o2666, "t/x"))
call("open inside with O_CREAT")(with_fd(O_RDWR | O_CREAT, nothing, 0o644, "t/f"))
call("tmpfile")(with_fd(O_RDWR | O_TMPFILE, lambda os, fd: os.fstat(fd).st_mode, 0o2755))
call("mkdir")(lambda os, at: os.mkdir(at + "t/x", 0o777))
call("mkdir 2777")(lambda os, at: os.mkdir(at + "t/x", 0o3777))
call("mknod file")(lambda os, at: os.mknod(at + "t/x", S_IFREG | 0o2755))
call("mknod fifo")(lambda os, at: os.mknod(at + "t/x", S_IFIFO | 0o666))
call("mknod char")(lambda os, at: os.mknod(at + "t/x", S_IFCHR | 0o666, makedev(1, 3)))
call("mknod block")(lambda os, at: os.mknod(at + "t/x", S_IFBLK | 0o666, makedev(7, 0)))
call("mknod whiteout")(lambda os, at: os.mknod(at + "t/x", S_IFCHR, 0))
call("symlink")(lambda os, at: os.symlink("f", at + "t/x"))
call("link into")(lambda os, at: os.link(at + "o", at + "t/x"))
call("unlink inside")(lambda os, at: os.unlink(at + "t/f"))
call("rmdir inside")(lambda os, at: os.rmdir(at + "t/d"))
call("rename inside")(lambda os, at: os.rename(at + "t/f", at + "t/x"))
call("rename out")(lambda os, at: os.rename(at + "t/f", at + "e/f"))
call("rename out, a directory")(lambda os, at: os.rename(at + "t/d", at + "e/d"))
call("rename into")(lambda os, at: os.rename(at + "o", at + "t/x"))
call("replace inside")(lambda os, at: os.rename(at + "o", at + "t/f"))


@call()
def chdir(os, at):
    back = os.open(".", O_RDONLY | O_DIRECTORY)
    try:
        os.chdir(at + "t")
        os.fchdir(back)
    finally:
        os.close(back)


# The name itself

call("unlink")(lambda os, at: os.unlink(at + "t"))
call("rmdir")(lambda os, at: os.rmdir(at + "t"))
call("rename")(lambda os, at: os.rename(at + "t", at + "x"))
call("rename away")(lambda os, at: os.rename(at + "t", at + "e/x"))
call("replace")(lambda os, at: os.rename(at + "o", at + "t"))
call("replace by a directory")(lambda os, at: os.rename(at + "e", at + "t"))
call("link")(lambda os, at: os.link(at + "t", at + "e/x"))
call("make beside")(lambda os, at: os.mkdir(at + "x"))

WITH_OTHERS = {
    "copy_file_range", "search and back", "link into", "rename out", "rename out, a directory", "rename into",
    "replace inside", "rename away", "replace", "replace by a directory", "link",
}  # fmt: skip
"""Calls that take another file or directory than the target."""

# Extended attributes

NAMES = ("user.a", "trusted.a", "security.a", "security.capability", "bogus.a")
for _name in NAMES:
    _value = FILE_CAPABILITY if _name == "security.capability" else b"1"
    call(f"set {_name}")(
        lambda os, at, name=_name, value=_value: os.setxattr(at + "t", name, value, follow_symlinks=False)
    )
    call(f"get {_name}")(lambda os, at, name=_name: os.getxattr(at + "t", name, follow_symlinks=False))
    call(f"remove {_name}")(lambda os, at, name=_name: os.removexattr(at + "t", name, follow_symlinks=False))
call("bad capability")(lambda os, at: os.setxattr(at + "t", "security.capability", FILE_CAPABILITY[:12]))
call("no capability")(lambda os, at: os.setxattr(at + "t", "security.capability", b""))
call("bad flags")(lambda os, at: os.setxattr(at + "t", "user.a", b"1", 4))
call("xattr of O_PATH")(with_fd(O_PATH, lambda os, fd: os.setxattr(fd, "user.a", b"1")))
call("fsetxattr of what is read")(with_fd(O_RDONLY, lambda os, fd: os.setxattr(fd, "user.a", b"1")))
call("listxattr")(lambda os, at: sorted(os.listxattr(at + "t", follow_symlinks=False)))
for _kind in ("access", "default"):
    _acl = f"system.posix_acl_{_kind}"
    call(f"set {_kind} ACL")(lambda os, at, n=_acl: os.setxattr(at + "t", n, FOR_ALL, follow_symlinks=False))
    call(f"set long {_kind} ACL")(lambda os, at, n=_acl: os.setxattr(at + "t", n, FOR_SOME))
    call(f"get {_kind} ACL")(lambda os, at, n=_acl: os.getxattr(at + "t", n, follow_symlinks=False))
    call(f"remove {_kind} ACL")(lambda os, at, n=_acl: os.removexattr(at + "t", n, follow_symlinks=False))
    for _bad, _value in BAD_ACLS.items():
        call(f"{_kind} ACL: {_bad}")(lambda os, at, n=_acl, value=_value: os.setxattr(at + "t", n, value))


# Flags


def flagged(change):
    def act(os, fd):
        (flags,) = struct.unpack("i", os.ioctl(fd, GETFLAGS, bytes(8))[:4])
        os.ioctl(fd, SETFLAGS, struct.pack("q", change(flags)))

    return with_fd(O_RDONLY, act)


def extended(change):
    def act(os, fd):
        fields = list(struct.unpack("5I8s", os.ioctl(fd, FSGETXATTR, bytes(28))))
        fields[0] = change(fields[0])
        os.ioctl(fd, FSSETXATTR, struct.pack("5I8s", *fields))

    return with_fd(O_RDONLY, act)


FLAGS = (("immutable", IMMUTABLE, 0x8), ("append", APPEND, 0x10), ("nodump", NODUMP, 0x80))
for _name, _flag, _xflag in FLAGS:
    call(f"+{_name}")(flagged(lambda flags, flag=_flag: flags | flag))
    call(f"-{_name}")(flagged(lambda flags, flag=_flag: flags & ~flag))
    call(f"+{_name} by fsxattr")(extended(lambda flags, flag=_xflag: flags | flag))
    call(f"-{_name} by fsxattr")(extended(lambda flags, flag=_xflag: flags & ~flag))


# Making them


class HostCalls:
    """``os`` with the few calls that a guest's facade has besides."""

    def __getattr__(self, name):
        return getattr(host_os, name)

    ioctl = staticmethod(fcntl.ioctl)


def attempt(os, at, name):
    """What became of a call: the errno's name, or the plain result."""
    try:
        result = CALLS[name](os, at)
    except OSError as error:
        return errno.errorcode[error.errno]
    return result.hex() if isinstance(result, bytes) else result


def become(uid, gid, groups, capabilities):
    libc = ctypes.CDLL(None, use_errno=True)
    if capabilities is not None:
        libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    host_os.setgroups(groups)
    host_os.setresgid(gid, gid, gid)
    host_os.setresuid(uid, uid, uid)
    if capabilities is not None:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert not libc.capget(header, data)
        for half in range(2):
            bits = sum(1 << number % 32 for number in capabilities if number // 32 == half)
            data[3 * half + 1] &= bits
            data[3 * half] = data[3 * half + 1]
        assert not libc.capset(header, data), ctypes.get_errno()


def main():
    host_os.umask(0o022)
    for line in sys.stdin:
        who, cells = json.loads(line)
        reader, writer = host_os.pipe()
        child = host_os.fork()
        if not child:
            host_os.close(reader)
            become(*who)
            answers = [attempt(HostCalls(), cell + "/", name) for cell, name in cells]
            with open(writer, "w") as out:
                json.dump(answers, out)
            host_os._exit(0)
        host_os.close(writer)
        with open(reader) as answers:
            print(answers.read(), flush=True)
        host_os.waitpid(child, 0)


if __name__ == "__main__":
    main()
