"""Taking along what an unlinked file holds: attributes, extended attributes, and the data that is no hole."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from vmsim.limits import NAME_MAX, STATE_EXTENTS_MAX, UNLINKED_CONTENT_MAX, XATTR_SIZE_MAX

from ..passthrough.host_calls import SECOND
from .extension import Anonymous

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.host_calls import HostFs
    from ..passthrough.inodes import Inode

CHUNK = 1 << 20
FS_IOC_GETFLAGS = 0x80086601


class TooLarge(Exception):
    """The contents of unlinked files exceed the limit."""


class ContentBudget:
    """How many bytes of contents may still travel."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = UNLINKED_CONTENT_MAX


def capture(
    fs: PassthroughFs, inode: Inode, budget: ContentBudget, *, contents: bool = True
) -> Anonymous:
    """All of an unlinked file; OSError when it cannot be read, TooLarge when the budget is exceeded.

    Without ``contents`` its data are measured, taken off the budget, and left where they are.

    The file is left as it is: it is read through a descriptor of its own, without touching its access time
    where we may.
    """
    host = fs.host
    fd = fs.path_fd(inode)
    attr = fs.told.attr(inode.id, host.fstat(fd))
    ino, size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid, rdev, _, _ = attr
    birth, birth_ns = fs.told.birth(inode.id, *host.birth(fd))
    record = Anonymous(
        inode.id, mode & 0xFFFF, uid, gid, rdev, 0, atime * SECOND + atime_ns, mtime * SECOND + mtime_ns,
        ino=ino, ctime_ns=ctime * SECOND + ctime_ns, birth_ns=birth * SECOND + birth_ns, blocks=blocks,
    )  # fmt: skip
    if stat.S_ISLNK(mode):
        record.target = host.readlink(fd)
    elif stat.S_ISREG(mode):
        record.size = size
        with _Readable(fs, inode) as source:
            record.extents = _read_extents(host, source, size, budget, contents=contents)
            record.flags = inode_flags(host, source)
    elif stat.S_ISDIR(mode):
        with _Readable(fs, inode) as source:
            record.flags = inode_flags(host, source)
    record.xattrs = _xattrs(host, fd)
    return record


def inode_flags(host: HostFs, fd: int) -> int:
    """FS_IOC_GETFLAGS; 0 where the file system has none."""
    try:
        return int.from_bytes(host.ioctl(fd, FS_IOC_GETFLAGS, b"", 4)[1], "little")
    except OSError:
        return 0


class _Readable:
    """A descriptor for reading an inode: opened anew, or else one that the guest holds open for reading."""

    __slots__ = ("_fd", "_host", "_owned")

    def __init__(self, fs: PassthroughFs, inode: Inode) -> None:
        self._host = fs.host
        self._owned = True
        fd = fs.path_fd(inode)
        for flags in (os.O_RDONLY | os.O_NOATIME, os.O_RDONLY):
            try:
                self._fd = fs.host.reopen(fd, flags)
                return
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES):
                    raise
        self._owned = False
        for handle in fs.handles.of_inode(inode.id):
            if handle.flags & os.O_ACCMODE != os.O_WRONLY:
                self._fd = handle.fd
                return
        raise OSError(errno.EACCES, "the unlinked file may not be read")

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self._host.close(self._fd)


def _read_extents(
    host: HostFs, fd: int, size: int, budget: ContentBudget, *, contents: bool
) -> list[tuple[int, bytes]]:
    """The file's data without its holes; it is taken off the budget, or TooLarge and nothing is."""
    extents: list[tuple[int, bytes]] = []
    left = budget.left
    position = 0
    while position < size:
        try:
            position = host.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                break
            if error.errno != errno.EINVAL:
                raise
        end = _data_end(host, fd, position, size)
        left -= end - position
        if left < 0:
            raise TooLarge(
                f"its data does not fit into the {budget.left} bytes left of {UNLINKED_CONTENT_MAX}"
            )
        if not contents:
            position = end
            continue
        data = _read(host, fd, position, end - position)
        if not data:
            break
        if len(extents) == STATE_EXTENTS_MAX:
            raise TooLarge(f"its data is in more than {STATE_EXTENTS_MAX} pieces")
        extents.append((position, data))
        position += len(data)
    budget.left = left
    return extents


def _data_end(host: HostFs, fd: int, position: int, size: int) -> int:
    try:
        return min(host.lseek(fd, position, os.SEEK_HOLE), size)
    except OSError:
        return size


def _read(host: HostFs, fd: int, position: int, size: int) -> bytes:
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        count = host.preadv(fd, [view[done : done + CHUNK]], position + done)
        if count == 0:
            break
        done += count
    return bytes(view[:done])


def _xattrs(host: HostFs, fd: int) -> list[tuple[bytes, bytes]]:
    try:
        names = host.listxattr(fd)
    except OSError:
        return []
    found = []
    for name in names:
        try:
            value = host.getxattr(fd, name)
        except OSError:
            continue
        if 0 < len(name) <= NAME_MAX and len(value) <= XATTR_SIZE_MAX:
            found.append((name, value))
    return found
