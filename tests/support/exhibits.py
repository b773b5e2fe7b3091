"""Files of every kind with everything that a file can have, named and unlinked, held open by the guest."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Any, Final

from tests.support.inode_flags import GETFLAGS, NOATIME, NODUMP, SETFLAGS
from tests.support.permission_calls import FILE_CAPABILITY, FOR_SOME

CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL
KIB: Final = 1024
IN_2040: Final = 2_208_988_800


def plain(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE, 0o640)
    fs.write(fd, b"some data")
    fs.utime(path, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    fs.lseek(fd, 5, os.SEEK_SET)
    return [fd, fs.open(path, os.O_WRONLY | os.O_APPEND), fs.open(path, os.O_RDONLY)]


def privileged(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE)
    possible(lambda: fs.chown(path, 1234, 4321))
    fs.chmod(path, 0o6751)
    fs.setxattr(path, "user.one", b"1")
    possible(lambda: fs.setxattr(path, "trusted.two", b"2"))
    possible(lambda: fs.setxattr(path, "security.capability", FILE_CAPABILITY))
    return [fd]


def flagged(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE)
    flag(fs, fd, NODUMP | NOATIME)
    return [fd]


def with_acl(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE, 0o600)
    possible(lambda: fs.setxattr(path, "system.posix_acl_access", FOR_SOME))
    return [fd]


def sparse(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE)
    fs.pwrite(fd, b"the end", 900 * KIB)
    return [fd]


def preallocated(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE)
    fs.write(fd, b"more to come")
    possible(lambda: fs.fallocate(fd, 1, 0, 256 * KIB))
    return [fd]


def locked(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE)
    fs.setlk(fd, fcntl.F_WRLCK, 10, 5)
    fs.setlk(fd, fcntl.F_RDLCK, 100, 0)
    return [fd]


def linked(fs: Any, path: str) -> list[int]:
    fd = fs.open(path, CREATE)
    fs.link(path, path + "-2")
    return [fd]


def fifo(fs: Any, path: str) -> list[int]:
    fs.mkfifo(path, 0o640)
    fs.utime(path, ns=(17, 19))
    return [fs.open(path, os.O_PATH)]


def device(fs: Any, path: str) -> list[int]:
    possible(lambda: fs.mknod(path, stat.S_IFCHR | 0o620, os.makedev(1, 3)))
    return [fs.open(path, os.O_PATH)] if fs.access(path, os.F_OK) else []


def symlink(fs: Any, path: str) -> list[int]:
    fs.symlink("where to", path)
    fs.utime(path, ns=(IN_2040 * 10**9 + 23, 29), follow_symlinks=False)  # so late that reading leaves it
    return [fs.open(path, os.O_PATH | os.O_NOFOLLOW)]


def directory(fs: Any, path: str) -> list[int]:
    fs.mkdir(path)
    fs.chmod(path, 0o2771)
    fs.setxattr(path, "user.one", b"1")
    possible(lambda: fs.setxattr(path, "system.posix_acl_default", FOR_SOME))
    fd = fs.open(path, os.O_RDONLY | os.O_DIRECTORY)
    flag(fs, fd, NODUMP)
    fs.utime(path, ns=(11, 13))
    return [fd]


KINDS: Final[tuple[Callable[[Any, str], list[int]], ...]] = (
    plain, privileged, flagged, with_acl, sparse, preallocated, locked, linked, fifo, device, symlink,
    directory,
)  # fmt: skip


def possible(call: Callable[[], object]) -> None:
    """What this host, this file system or these rights may not have."""
    try:
        call()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL):
            raise


def flag(fs: Any, fd: int, flags: int) -> None:
    def change() -> None:
        found = int.from_bytes(fs.ioctl(fd, GETFLAGS, bytes(4)), "little")
        fs.ioctl(fd, SETFLAGS, (found | flags).to_bytes(4, "little"))

    possible(change)


def exhibit(fs: Any, folder: str, kinds: Any = KINDS) -> list[int]:
    """Make each kind in ``folder``, once to keep its name and once to lose it; the descriptors."""
    fs.mkdir(folder)
    fds = []
    for kind in kinds:
        fds += kind(fs, f"{folder}/{kind.__name__}")
        gone = f"{folder}/{kind.__name__}-gone"
        fds += kind(fs, gone)
        for name in fs.listdir(folder):
            if "-gone" in name:
                remove = fs.rmdir if kind is directory else fs.unlink
                remove(f"{folder}/{name}")
    return fds
