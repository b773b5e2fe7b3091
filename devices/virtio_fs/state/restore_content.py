"""Making unlinked files anew on the destination: anonymous, with the contents and attributes they had."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ..passthrough.attrs import UTIME_OMIT
from ..passthrough.host_calls import BLOCKS, MTIME, MTIME_NS, SECOND, UID
from .collect_content import ContentBudget, inode_flags
from .extension import Anonymous

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.host_calls import HostFs

NAMES_TRIED = 100
NO_TMPFILE = (
    errno.EOPNOTSUPP, errno.EISDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EINVAL,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
)  # fmt: skip
"""What O_TMPFILE and writing into it answer where the share has none, may not be written, or is full."""
FS_IOC_SETFLAGS = 0x40086602
FALLOC_FL_KEEP_SIZE = 1
SECTOR, BLOCK = 512, 4096
SETTABLE = 0x80 | 0x40 | 0x8 | 0x1 | 0x4 | 0x2 | 0x800000
"""NOATIME, NODUMP, SYNC, SECRM, COMPR, UNRM, NOCOW: what a file without a name may have."""


def recreate(fs: PassthroughFs, file: Anonymous, notes: list[str]) -> int:
    """A descriptor of a new file without a name that is what ``file`` was; OSError if that is impossible.

    A regular file is an O_TMPFILE in the share, or else in memory: where the share takes none, and where it
    has no room for the contents (a state holds at most UNLINKED_CONTENT_MAX of them). Other kinds are made
    under a name that nobody uses, opened, and the name is removed. Nobody but us may use it yet: what else it
    was is set by ``set_attributes``.
    """
    if stat.S_ISREG(file.mode):
        return _regular(fs, file, notes)
    check_makeable(fs)
    return _other(fs, file)


def check_makeable(fs: PassthroughFs) -> None:
    """OSError if nothing with a name can be made in the share, not even for a moment."""
    if fs.options.readonly:
        raise OSError(errno.EROFS, "the share is served read-only")
    fs.host.access(fs.path_fd(fs.root), os.W_OK | os.X_OK)


def _regular(fs: PassthroughFs, file: Anonymous, notes: list[str]) -> int:
    host = fs.host
    try:
        if fs.options.readonly:
            raise OSError(errno.EROFS, "the share is served read-only")
        flags = os.O_TMPFILE | os.O_RDWR | (0 if _guest_could_make(fs, file) else os.O_EXCL)
        return _filled(host, host.open_beneath(fs.path_fd(fs.root), b".", flags, 0o600), file)
    except OSError as error:
        if error.errno not in NO_TMPFILE:
            raise
        notes.append(f"inode {file.id}: its contents are in memory, not in the share: {error.strerror}")
        return _filled(host, host.memory_file(b"unlinked-%d" % file.id), file)


def _filled(host: HostFs, fd: int, file: Anonymous) -> int:
    """``fd`` with the file's contents; closed if that fails."""
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
    attr = host.fstat(root_fd)
    name = _make(host, root_fd, file)
    remove = host.rmdir if stat.S_ISDIR(file.mode) else host.unlink
    kind = os.O_RDONLY | os.O_DIRECTORY if stat.S_ISDIR(file.mode) else os.O_PATH
    try:
        fd = host.open_beneath(root_fd, name, kind)
    except BaseException:
        remove(root_fd, name)
        raise
    try:
        remove(root_fd, name)
    except BaseException:
        host.close(fd)
        raise
    _done(lambda: host.utimens(root_fd, (0, UTIME_OMIT), (attr[MTIME], attr[MTIME_NS])))
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


def set_attributes(
    host: HostFs, fd: int, file: Anonymous, budget: ContentBudget, notes: list[str]
) -> None:
    """Owner, extended attributes, mode, inode flags, space, times; ``notes`` tell what could not be set.

    The owner comes first, since chown clears suid and sgid bits; the mode after the ACLs, which change it. An
    ACL that the share's root handed down to every new file is none of this one's. ``budget`` bounds the space
    that is allocated for no data.
    """
    lacking = []
    attr = host.fstat(fd)
    owner = file.uid, file.gid
    if (attr[UID], attr[UID + 1]) != owner and not _done(lambda: host.chown(fd, *owner)):
        lacking.append("owner")
    wanted = {name for name, _ in file.xattrs}
    for name in _names(host, fd) - wanted:
        if name.startswith(b"system.posix_acl_"):
            _done(lambda name=name: host.removexattr(fd, name))
    for name, value in file.xattrs:
        if not _done(lambda name=name, value=value: host.setxattr(fd, name, value, 0)):
            lacking.append(os.fsdecode(name))
    if not stat.S_ISLNK(file.mode) and not _done(lambda: host.chmod(fd, file.mode & 0o7777)):
        lacking.append("mode")
    if stat.S_IFMT(file.mode) in (stat.S_IFREG, stat.S_IFDIR) and not _same_flags(host, fd, file.flags):
        lacking.append("inode flags")
    if stat.S_ISREG(file.mode) and not _same_space(host, fd, file, budget):
        lacking.append("preallocated space")
    times = divmod(file.atime_ns, SECOND), divmod(file.mtime_ns, SECOND)
    if not _done(lambda: host.utimens(fd, *times)):
        lacking.append("times")
    if lacking:
        notes.append(f"inode {file.id}: could not be set again: {', '.join(lacking)}")


def _names(host: HostFs, fd: int) -> set[bytes]:
    try:
        return set(host.listxattr(fd))
    except OSError:
        return set()


def _same_flags(host: HostFs, fd: int, flags: int) -> bool:
    """Set the inode flags that may be set; whether they are now what they were."""
    found = inode_flags(host, fd)
    if not (found ^ flags) & SETTABLE:
        return True
    wanted = (found & ~SETTABLE | flags & SETTABLE).to_bytes(4, "little")
    return _done(lambda: host.ioctl(fd, FS_IOC_SETFLAGS, wanted, 0))


def _same_space(host: HostFs, fd: int, file: Anonymous, budget: ContentBudget) -> bool:
    """Allocate what the file had beyond its data, where it had no holes; whether it has as much now.

    What the file system counts besides the data, for attributes say, it counts again.
    """
    space = file.blocks * SECTOR
    have = host.fstat(fd)[BLOCKS] * SECTOR
    if space <= have or space < file.size:
        return True
    data = sum(-(-len(data) // BLOCK) * BLOCK for _, data in file.extents)
    wanted = space - max(0, have - data)
    if wanted > budget.left:
        return False
    budget.left -= wanted
    return _done(lambda: host.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, wanted))


def _done(call: object) -> bool:
    try:
        call()  # type: ignore[operator]
    except OSError:
        return False
    return True
