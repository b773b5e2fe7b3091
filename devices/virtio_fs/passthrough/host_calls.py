"""Seam S3: every system call that the passthrough server makes.

Names and paths are bytes, descriptors are ints, failures are OSError with the host's errno. Records are plain
tuples, so that an implementation needs nothing of this package:

=============  ======================================================================================
HostAttr       the 16 fields of :class:`vmsim.fuse.abi.replies.Attr` in their order, flags 0
Identity       (HostAttr, dev, mnt_id, is_mount_root)
HostStatx      the 23 values from ``mask`` to ``dev_minor`` of :class:`vmsim.fuse.abi.replies.StatxOut`
               without the reserved ones, see ``statx``
DirEntry       (ino, position after it, DT_ type, name)
=============  ======================================================================================

:class:`vmsim.host.fs.LinuxFs` is the real one; anything that wraps it is traced or made to fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

HostAttr: TypeAlias = tuple[int, ...]
Identity: TypeAlias = tuple[HostAttr, int, int, bool]
HostStatx: TypeAlias = tuple[int, ...]
DirEntry: TypeAlias = tuple[int, int, int, bytes]

INO: Final = 0
BLOCKS: Final = 2
ATIME: Final = 3
MTIME: Final = 4
CTIME: Final = 5
ATIME_NS: Final = 6
MTIME_NS: Final = 7
CTIME_NS: Final = 8
MODE: Final = 9
NLINK: Final = 10
UID: Final = 11
"""Positions in HostAttr; BLOCKS in sectors of 512 bytes, the gid behind UID."""

SECOND: Final = 1_000_000_000
"""Nanoseconds: times are pairs of seconds and the rest."""


class Reaching(Protocol):
    """Getting hold of files."""

    def open_share(self, path: bytes) -> int:
        """A descriptor of the shared directory itself (O_RDONLY, O_DIRECTORY)."""
        ...

    def open_beneath(self, dir_fd: int, path: bytes, flags: int, mode: int = 0, umask: int = 0) -> int:
        """Open ``path`` beneath ``dir_fd``: no symlink, no magic link and no ".." on the way, nor at its end.

        With O_PATH the end may be a symlink, which is then opened itself. ``mode`` and ``umask`` count with
        O_CREAT and O_TMPFILE.
        """
        ...

    def reopen(self, fd: int, flags: int) -> int:
        """Open what ``fd`` (perhaps O_PATH) refers to once more; only for files and directories.

        EAGAIN while another process holds a lease that is in the way.
        """
        ...

    def file_handle(self, fd: int) -> tuple[int, int, bytes]:
        """The file's (mnt_id, handle_type, bytes); EOPNOTSUPP where the file system has none."""
        ...

    def file_handle_at(self, dir_fd: int, name: bytes) -> tuple[int, int, bytes]:
        """The same for a name in a directory; a symlink is not followed."""
        ...

    def open_handle(self, mount_fd: int, handle_type: int, raw: bytes, flags: int) -> int:
        """Open by handle; ESTALE when the file is gone, EPERM without CAP_DAC_READ_SEARCH."""
        ...

    def open_parent(self, fd: int) -> int:
        """The directory above the directory ``fd`` (O_PATH), its own for the root of everything.

        ENOENT for what is not below the root of the mount through which it was opened.
        """
        ...

    def clone_mount(self, fd: int) -> int:
        """A mount of its own of the directory ``fd``, seen by nobody, which goes when it is closed.

        EPERM without CAP_SYS_ADMIN, ENOSYS on old kernels.
        """
        ...

    def below_mount(self, fd: int) -> bool:
        """Whether the kernel knows a way from the root of the mount that ``fd`` was opened through to it.

        Also for what is unlinked. False says nothing of that root itself, and nothing of what is not cached.
        """
        ...

    def handles_allowed(self) -> bool:
        """Whether ``open_handle`` is permitted to this process."""
        ...

    def path_of(self, fd: int) -> bytes:
        """Where the kernel thinks that ``fd`` is (/proc/self/fd)."""
        ...

    def memory_file(self, name: bytes) -> int:
        """A new empty file that lives in memory and nowhere else."""
        ...

    def mount_points(self) -> list[tuple[int, bytes]]:
        """The (mnt_id, absolute path) of all mounts that this process sees."""
        ...

    def mounts(self) -> list[tuple[int, int, bytes, bytes]]:
        """The (mnt_id, mnt_id of the mount beneath, absolute path, type of file system) of all of them."""
        ...

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        ...

    def fd_limit(self) -> int:
        """How many descriptors this process may have (RLIMIT_NOFILE)."""
        ...


class Attributes(Protocol):
    """What files are."""

    def fstat(self, fd: int) -> HostAttr:
        """The attributes; the hot path of GETATTR."""
        ...

    def identify(self, fd: int) -> Identity:
        """The attributes, and what tells the file from all others."""
        ...

    def identify_name(self, dir_fd: int, name: bytes) -> Identity:
        """The same for a name in a directory, which is not opened; a symlink is not followed."""
        ...

    def identify_at(self, dir_fd: int, name: bytes) -> tuple[int, int, int, int]:
        """Only (dev, ino, mnt_id, mode) of a name in a directory."""
        ...

    def birth(self, fd: int) -> tuple[int, int]:
        """The birth time in (s, ns); (0, 0) where the file system has none."""
        ...

    def birth_at(self, dir_fd: int, name: bytes) -> tuple[int, int]:
        """The same for a name in a directory; a symlink is not followed."""
        ...

    def statx(self, fd: int, flags: int, mask: int) -> HostStatx:
        """mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask, then (s, ns)
        of atime, btime, ctime and mtime, then rdev and dev as (major, minor): 23 values.
        """
        ...

    def fstatvfs(self, fd: int) -> tuple[int, ...]:
        """blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
        ...

    def chmod(self, fd: int, mode: int) -> None:
        """Change the mode of what an O_PATH descriptor refers to."""
        ...

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """Change the owner (-1: leave) of what an O_PATH descriptor refers to, symlinks included."""
        ...

    def utimens(self, fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        """Set (s, ns) times; ns may be UTIME_NOW or UTIME_OMIT."""
        ...

    def access(self, fd: int, mask: int) -> None:
        """EACCES unless the effective ids may do ``mask`` (R_OK, W_OK, X_OK)."""
        ...

    def getxattr(self, fd: int, name: bytes) -> bytes:
        """An extended attribute of what an O_PATH descriptor refers to."""
        ...

    def setxattr(self, fd: int, name: bytes, value: bytes, flags: int) -> None:
        """Set it; flags XATTR_CREATE 1, XATTR_REPLACE 2."""
        ...

    def listxattr(self, fd: int) -> list[bytes]:
        """All names."""
        ...

    def removexattr(self, fd: int, name: bytes) -> None:
        """Remove it."""
        ...


class Names(Protocol):
    """Changing directories; every name is one component."""

    def mkdir(self, dir_fd: int, name: bytes, mode: int, umask: int) -> None:
        """Make a directory."""
        ...

    def mknod(self, dir_fd: int, name: bytes, mode: int, rdev: int, umask: int) -> None:
        """Make a node; ``rdev`` as new_encode_dev packs it."""
        ...

    def symlink(self, target: bytes, dir_fd: int, name: bytes) -> None:
        """Make a symlink."""
        ...

    def link(self, fd: int, dir_fd: int, name: bytes) -> None:
        """Give what ``fd`` refers to another name."""
        ...

    def unlink(self, dir_fd: int, name: bytes) -> None:
        """Remove a name that is no directory."""
        ...

    def rmdir(self, dir_fd: int, name: bytes) -> None:
        """Remove an empty directory."""
        ...

    def rename(self, dir_fd: int, name: bytes, new_dir_fd: int, new_name: bytes, flags: int) -> None:
        """renameat2."""
        ...

    def readlink(self, fd: int) -> bytes:
        """The target of the symlink that an O_PATH descriptor refers to."""
        ...

    def getdents(self, fd: int, position: int) -> list[DirEntry]:
        """Some entries from ``position`` on (-1: where the last call ended); empty at the end."""
        ...


class Contents(Protocol):
    """What is in files."""

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Read into ``views``."""
        ...

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Write from ``views``."""
        ...

    def appendv(self, fd: int, views: Sequence[memoryview]) -> int:
        """Write from ``views`` at the end of the file, whatever that is at this moment."""
        ...

    def ftruncate(self, fd: int, size: int) -> None:
        """Set the size of a file that is open for writing."""
        ...

    def fsync(self, fd: int, datasync: bool) -> None:
        """Write it to the disk."""
        ...

    def flush(self, fd: int) -> None:
        """Close a duplicate of ``fd``, for the errors that only a close reports."""
        ...

    def syncfs(self, fd: int) -> None:
        """Write the whole file system to the disk."""
        ...

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        ...

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2), for SEEK_DATA and SEEK_HOLE."""
        ...

    def copy_file_range(self, fd_in: int, off_in: int, fd_out: int, off_out: int, length: int) -> int:
        """Copy without a detour through this process."""
        ...

    def ioctl(self, fd: int, cmd: int, data: bytes, size: int) -> tuple[int, bytes]:
        """The result and ``size`` bytes of the argument, which begins as ``data``."""
        ...

    def poll(self, fd: int, events: int) -> int:
        """The events that are ready now."""
        ...

    def flock(self, fd: int, operation: int) -> None:
        """flock(2) with LOCK_NB; EAGAIN when somebody else holds it."""
        ...

    def set_lock(self, fd: int, kind: int, start: int, length: int) -> None:
        """F_OFD_SETLK; EAGAIN when somebody else holds it. Length 0: to the end."""
        ...

    def get_lock(self, fd: int, kind: int, start: int, length: int) -> tuple[int, int, int, int] | None:
        """F_OFD_GETLK: the (kind, start, length, pid) of a lock in the way, or None."""
        ...


class Credentials(Protocol):
    """Acting for somebody else, on this thread alone."""

    privileged: bool
    """Whether ``become`` works."""

    def become(self, uid: int, gid: int, groups: tuple[int, ...], override: bool) -> None:
        """Take these effective ids (gid before uid) and supplementary groups.

        ``override``: CAP_DAC_OVERRIDE is kept.
        """
        ...

    def become_self(self) -> None:
        """Undo ``become``; ends the process if that fails, since going on as somebody else is worse."""
        ...


class HostFs(Reaching, Attributes, Names, Contents, Credentials, Protocol):
    """All of it."""
