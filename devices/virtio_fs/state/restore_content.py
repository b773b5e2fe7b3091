"""Making unlinked files anew on the destination: anonymous, with the contents and attributes they had."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from .extension import Anonymous

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.host_calls import HostFs

SECOND = 1_000_000_000
NAMES_TRIED = 100
NO_TMPFILE = (
    errno.EOPNOTSUPP, errno.EISDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EINVAL,
)  # fmt: skip
"""What O_TMPFILE answers where the share has none or may not be written."""


def recreate(fs: PassthroughFs, file: Anonymous, notes: list[str]) -> int:
    """A descriptor of a new file without a name that is what ``file`` was; OSError if that is impossible.

    A regular file is an O_TMPFILE in the share, or else in memory. Other kinds are made under a name that
    nobody uses, opened, and the name is removed. What could not be set is told in ``notes``.
    """
    if stat.S_ISREG(file.mode):
        fd = _regular(fs, file, notes)
    elif fs.options.readonly:
        raise OSError(errno.EROFS, "the share is served read-only")
    else:
        fd = _other(fs, file)
    try:
        _set_attributes(fs.host, fd, file, notes)
    except BaseException:
        fs.host.close(fd)
        raise
    return fd


def _regular(fs: PassthroughFs, file: Anonymous, notes: list[str]) -> int:
    host = fs.host
    try:
        if fs.options.readonly:
            raise OSError(errno.EROFS, "the share is served read-only")
        flags = os.O_TMPFILE | os.O_RDWR | (0 if _guest_could_make(fs, file) else os.O_EXCL)
        fd = host.open_beneath(fs.path_fd(fs.root), b".", flags, 0o600)
    except OSError as error:
        if error.errno not in NO_TMPFILE:
            raise
        fd = host.memory_file(b"unlinked-%d" % file.id)
        notes.append(f"inode {file.id}: its contents are in memory, the share takes no unnamed file")
    try:
        for offset, data in file.extents:
            _write(host, fd, offset, data)
        host.ftruncate(fd, file.size)
    except BaseException:
        host.close(fd)
        raise
    return fd


def _guest_could_make(fs: PassthroughFs, file: Anonymous) -> bool:
    """Whether the guest may give it a name (LINK): not if its owner or attributes are none of the guest's.

    A state from somebody else must not bring a file into the share that the id translation or the attribute
    map of this side keeps guests from making, such as one that belongs to the host's root and is setuid.
    """
    try:
        for ids, number in ((fs.uids, file.uid), (fs.gids, file.gid)):
            if ids.to_host(ids.to_guest(number)) != number:
                return False
        for name, _ in file.xattrs:
            guest_name = fs.xattr_map.to_guest(name)
            if guest_name is None or fs.xattr_map.to_host(guest_name) != name:
                return False
    except OSError:
        return False
    return True


def _write(host: HostFs, fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        count = host.pwritev(fd, [view], offset)
        if count <= 0:
            raise OSError(errno.EIO, "nothing could be written")
        view = view[count:]
        offset += count


def _other(fs: PassthroughFs, file: Anonymous) -> int:
    """A directory, symlink, fifo, socket or device that has lost its name."""
    host = fs.host
    root_fd = fs.path_fd(fs.root)
    name = _make(host, root_fd, file)
    remove = host.rmdir if stat.S_ISDIR(file.mode) else host.unlink
    try:
        fd = host.open_beneath(root_fd, name, os.O_PATH)
    except BaseException:
        remove(root_fd, name)
        raise
    try:
        remove(root_fd, name)
    except BaseException:
        host.close(fd)
        raise
    return fd


def _make(host: HostFs, root_fd: int, file: Anonymous) -> bytes:
    """Make it under a name that nobody uses; the name."""
    for attempt in range(NAMES_TRIED):
        name = b".vmsim-unlinked-%d-%d" % (file.id, attempt)
        try:
            if stat.S_ISDIR(file.mode):
                host.mkdir(root_fd, name, 0o700, 0)
            elif stat.S_ISLNK(file.mode):
                host.symlink(file.target, root_fd, name)
            else:
                host.mknod(root_fd, name, file.mode & ~0o7777 | 0o600, file.rdev, 0)
        except FileExistsError:
            continue
        return name
    raise OSError(errno.EEXIST, "no free name for an unlinked file")


def _set_attributes(host: HostFs, fd: int, file: Anonymous, notes: list[str]) -> None:
    """Owner, mode, extended attributes and times; owner first, since chown clears suid and sgid bits."""
    lacking = []
    attr = host.fstat(fd)
    if (attr[11], attr[12]) != (file.uid, file.gid) and not _done(lambda: host.chown(fd, file.uid, file.gid)):
        lacking.append("owner")
    if not stat.S_ISLNK(file.mode) and not _done(lambda: host.chmod(fd, file.mode & 0o7777)):
        lacking.append("mode")
    for name, value in file.xattrs:
        if not _done(lambda name=name, value=value: host.setxattr(fd, name, value, 0)):
            lacking.append(os.fsdecode(name))
    times = divmod(file.atime_ns, SECOND), divmod(file.mtime_ns, SECOND)
    if not _done(lambda: host.utimens(fd, *times)):
        lacking.append("times")
    if lacking:
        notes.append(f"inode {file.id}: could not be set again: {', '.join(lacking)}")


def _done(call: object) -> bool:
    try:
        call()  # type: ignore[operator]
    except OSError:
        return False
    return True
