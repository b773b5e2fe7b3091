"""What a FUSE server serves: one method per opcode, each refused with ENOSYS until it is overridden.

The session has already checked everything that can be checked without knowing the files:

* names are bytes without NUL, '/', '.' or '..', of 1 to 255 bytes (LOOKUP gets '.' and '..' only with
  EXPORT_SUPPORT; TMPFILE's name means nothing); symlink targets have 1 to 4095 bytes;
* offsets, sizes and lengths are within 0 .. 2^63-1, and so are their sums; lock ranges are in order;
* ``size`` of WRITE is the number of bytes that are really there, ``views`` hold exactly these.

Refuse with ``OSError(errno, ...)``. Anything else that is raised becomes EIO and is our own bug.

Replies are plain tuples of ints in the order of the ABI, so that the session packs them in one call:

==============  =================================================================================
AttrReply       18 values, the fields of ``AttrOut``: valid, valid_nsec, 0, then the 16 of ``Attr``
EntryReply      22 values, the fields of ``EntryOut``: nodeid, generation, entry_valid, attr_valid,
                entry_valid_nsec, attr_valid_nsec, then the 16 of ``Attr``
OpenReply       3 values, the fields of ``OpenOut``: fh, open_flags (FOPEN_), 0
StatfsReply     8 values: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
StatxReply      the fields of ``StatxOut`` (spares are ``b""`` or 0)
LockReply       4 values, the fields of ``FileLock``
==============  =================================================================================

Lookup counts. Each EntryReply with a nodeid other than 0 that a method returns, or hands to ``sink.add``
with success, raises the lookup count of that nodeid by one on both sides: LOOKUP, SYMLINK, MKNOD, MKDIR,
LINK, CREATE, TMPFILE and each entry of READDIRPLUS except '.' and '..' (give these nodeid 0). FORGET takes
``nlookup`` off; at 0 the client does not know the nodeid any more. The session calls such a method only
when there is room for its whole reply, so a count that was taken is always told. A hostile client forgets
more than it looked up: counts stop at 0, and the root (nodeid 1) is never forgotten.

Waiting. ``setlk`` with ``done`` and ``poll`` may return DEFERRED and call ``done(result)`` later, where
result is what the method would have returned, or an OSError. ``interrupt(unique)`` asks for the end of the
wait of the request ``unique``: call its ``done`` with EINTR. ``done`` may be called at once, and calling
it again does nothing. Any method may raise ``TryAgain``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeAlias

from vmsim.fuse.abi.headers import InHeader
from vmsim.fuse.abi.replies import FileLock
from vmsim.fuse.abi.requests import SetattrIn
from vmsim.fuse.negotiated import NegotiatedState

AttrReply: TypeAlias = tuple[int, ...]
EntryReply: TypeAlias = tuple[int, ...]
OpenReply: TypeAlias = tuple[int, ...]
StatfsReply: TypeAlias = tuple[int, ...]
StatxReply: TypeAlias = tuple[Any, ...]
LockReply: TypeAlias = tuple[int, ...]
Views: TypeAlias = list[memoryview]


class Deferred:
    """The type of DEFERRED."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "DEFERRED"


DEFERRED: Final = Deferred()
"""Returned by a method that will call ``done`` later."""


class TryAgain(BlockingIOError):
    """Raised where a request has to wait for somebody outside, such as the holder of a lease.

    It has done nothing that it may not do twice: it is served anew after a while, until it ends otherwise.
    """


class Context(InHeader):
    """Who asks: the request's header (``unique``, ``nodeid``, ``uid``, ``gid``, ``pid``, …).

    ``groups`` are the supplementary groups and ``security`` the (name, value) labels of a creating request
    whose extensions were negotiated.
    """

    groups: tuple[int, ...] = ()
    security: tuple[tuple[bytes, bytes], ...] = ()


class DirSink(Protocol):
    """Takes the entries of one READDIR reply."""

    count: int
    """Entries taken so far."""

    def add(self, ino: int, off: int, kind: int, name: bytes) -> bool:
        """Append an entry: ``off`` is the position after it, ``kind`` a DT_ value; False when it is full."""


class DirPlusSink(Protocol):
    """Takes the entries of one READDIRPLUS reply."""

    count: int
    """Entries taken so far."""

    def fits(self, name: bytes) -> bool:
        """Whether an entry with this name still fits: ask before looking it up, that is before counting."""

    def add(self, entry: EntryReply, off: int, kind: int, name: bytes) -> bool:
        """Append an entry; False when it does not fit, and then its lookup count must not be taken."""


def _enosys() -> NoReturn:
    raise OSError(errno.ENOSYS, "not implemented")


class FileSystem:
    """Base of all file systems: nothing works, INIT does."""

    # -- session ---------------------------------------------------------------------------------

    def init(self, ctx: Context, negotiated: NegotiatedState) -> None:
        """INIT succeeded: begin with the root alone. OSError refuses the session."""

    def adopt(self, negotiated: NegotiatedState) -> None:
        """A session that was negotiated elsewhere goes on here; keep all nodes and handles."""

    def destroy(self) -> None:
        """The session ended: drop all nodes (but the root), handles and locks."""

    def interrupt(self, unique: int) -> None:
        """End the wait of the deferred request ``unique`` with EINTR; unknown ones are ignored."""

    # -- nodes -----------------------------------------------------------------------------------

    def lookup(self, ctx: Context, parent: int, name: bytes) -> EntryReply:
        """LOOKUP; raises ENOENT, or returns nodeid 0 for an absence that may be cached."""
        _enosys()

    def forget(self, nodeid: int, nlookup: int) -> None:
        """FORGET and each element of BATCH_FORGET; unknown nodeids are ignored."""

    def getattr(self, ctx: Context, nodeid: int, fh: int | None) -> AttrReply:
        """GETATTR."""
        _enosys()

    def setattr(self, ctx: Context, nodeid: int, fh: int | None, attr: SetattrIn) -> AttrReply:
        """SETATTR: ``attr.valid`` says what to change; times are in range unless _NOW is asked for."""
        _enosys()

    def statx(self, ctx: Context, nodeid: int, fh: int | None, flags: int, mask: int) -> StatxReply:
        """STATX."""
        _enosys()

    def readlink(self, ctx: Context, nodeid: int) -> bytes:
        """READLINK: the target without NUL."""
        _enosys()

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> EntryReply:
        """SYMLINK."""
        _enosys()

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> EntryReply:
        """MKNOD: ``rdev`` as new_encode_dev packs it into 32 bits."""
        _enosys()

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int, umask: int) -> EntryReply:
        """MKDIR."""
        _enosys()

    def unlink(self, ctx: Context, parent: int, name: bytes) -> None:
        """UNLINK."""
        _enosys()

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> None:
        """RMDIR."""
        _enosys()

    def rename(
        self, ctx: Context, parent: int, name: bytes, newparent: int, newname: bytes, flags: int
    ) -> None:
        """RENAME and RENAME2: ``flags`` of RENAME_ bits; unknown ones were refused."""
        _enosys()

    def link(self, ctx: Context, nodeid: int, newparent: int, newname: bytes) -> EntryReply:
        """LINK."""
        _enosys()

    def access(self, ctx: Context, nodeid: int, mask: int) -> None:
        """ACCESS."""
        _enosys()

    def statfs(self, ctx: Context, nodeid: int) -> StatfsReply:
        """STATFS."""
        _enosys()

    def syncfs(self, ctx: Context, nodeid: int) -> None:
        """SYNCFS."""
        _enosys()

    # -- files -----------------------------------------------------------------------------------

    def open(self, ctx: Context, nodeid: int, flags: int, open_flags: int) -> OpenReply:
        """OPEN: ``flags`` of open(2), ``open_flags`` of OPEN_KILL_SUIDGID."""
        _enosys()

    def create(
        self, ctx: Context, parent: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """CREATE: make (or open) and look up in one step."""
        _enosys()

    def tmpfile(
        self, ctx: Context, parent: int, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """TMPFILE: a file without a name in ``parent``."""
        _enosys()

    def read(
        self, ctx: Context, nodeid: int, fh: int, offset: int, views: Views, flags: int,
        lock_owner: int | None,
    ) -> int:  # fmt: skip
        """READ straight into ``views``; the number of bytes read, 0 at the end of the file."""
        _enosys()

    def write(
        self, ctx: Context, nodeid: int, fh: int, offset: int, views: Views, size: int,
        write_flags: int, flags: int, lock_owner: int | None,
    ) -> int:  # fmt: skip
        """WRITE straight from ``views`` (``size`` bytes in all); the number of bytes written.

        ``write_flags`` of WRITE_CACHE (a page from the writeback cache) and WRITE_KILL_SUIDGID.
        """
        _enosys()

    def flush(self, ctx: Context, nodeid: int, fh: int, lock_owner: int) -> None:
        """FLUSH: drop the owner's POSIX locks."""
        _enosys()

    def release(
        self, ctx: Context, nodeid: int, fh: int, flags: int, release_flags: int, lock_owner: int
    ) -> None:
        """RELEASE: the handle ends, and with RELEASE_FLOCK_UNLOCK its flock."""
        _enosys()

    def fsync(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        """FSYNC."""
        _enosys()

    def fallocate(self, ctx: Context, nodeid: int, fh: int, offset: int, length: int, mode: int) -> None:
        """FALLOCATE: ``mode`` of FALLOC_FL_ bits."""
        _enosys()

    def lseek(self, ctx: Context, nodeid: int, fh: int, offset: int, whence: int) -> int:
        """LSEEK: ``offset`` may be negative; ``whence`` is 0 to 4 (SEEK_DATA 3, SEEK_HOLE 4)."""
        _enosys()

    def copy_file_range(
        self, ctx: Context, nodeid_in: int, fh_in: int, off_in: int,
        nodeid_out: int, fh_out: int, off_out: int, length: int, flags: int,
    ) -> int:  # fmt: skip
        """COPY_FILE_RANGE: the number of bytes copied, less than 2^32."""
        _enosys()

    def bmap(self, ctx: Context, nodeid: int, block: int, blocksize: int) -> int:
        """BMAP."""
        _enosys()

    def ioctl(
        self, ctx: Context, nodeid: int, fh: int, flags: int, cmd: int, arg: int, data: bytes, out_size: int
    ) -> tuple[int, bytes]:
        """IOCTL: the call's result and at most ``out_size`` bytes."""
        _enosys()

    def poll(
        self, ctx: Context, nodeid: int, fh: int, kh: int, flags: int, events: int,
        done: Callable[[int | OSError], None],
    ) -> int | Deferred:  # fmt: skip
        """POLL: the ready events."""
        _enosys()

    # -- directories -----------------------------------------------------------------------------

    def opendir(self, ctx: Context, nodeid: int, flags: int) -> OpenReply:
        """OPENDIR."""
        _enosys()

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, sink: DirSink) -> None:
        """READDIR from position ``offset`` until ``sink.add`` returns False or there is nothing left."""
        _enosys()

    def readdirplus(self, ctx: Context, nodeid: int, fh: int, offset: int, sink: DirPlusSink) -> None:
        """READDIRPLUS. An error after the first entry is dropped: those before were counted."""
        _enosys()

    def releasedir(self, ctx: Context, nodeid: int, fh: int, flags: int) -> None:
        """RELEASEDIR."""
        _enosys()

    def fsyncdir(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        """FSYNCDIR."""
        _enosys()

    # -- extended attributes ---------------------------------------------------------------------

    def setxattr(
        self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int
    ) -> None:
        """SETXATTR: ``flags`` XATTR_CREATE 1 or XATTR_REPLACE 2; ``setxattr_flags`` 0 unless negotiated."""
        _enosys()

    def getxattr(self, ctx: Context, nodeid: int, name: bytes, size: int) -> bytes | int:
        """GETXATTR: the value of at most ``size`` bytes (else ERANGE), or for size 0 its length."""
        _enosys()

    def listxattr(self, ctx: Context, nodeid: int, size: int) -> bytes | int:
        """LISTXATTR: NUL-terminated names of at most ``size`` bytes (else ERANGE); size 0: their length."""
        _enosys()

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """REMOVEXATTR."""
        _enosys()

    # -- locks -----------------------------------------------------------------------------------

    def getlk(
        self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int
    ) -> LockReply:
        """GETLK: the lock in the way, or type F_UNLCK."""
        _enosys()

    def setlk(
        self, ctx: Context, nodeid: int, fh: int, owner: int, lock: FileLock, lk_flags: int,
        done: Callable[[OSError | None], None] | None,
    ) -> Deferred | None:  # fmt: skip
        """SETLK (``done`` is None: EAGAIN if it is held) and SETLKW (wait); LK_FLOCK in ``lk_flags``."""
        _enosys()

    # -- others ----------------------------------------------------------------------------------

    def notify_reply(
        self, ctx: Context, unique: int, nodeid: int, offset: int, views: Views, size: int
    ) -> None:
        """NOTIFY_REPLY: the data that a RETRIEVE notification asked for."""
        _enosys()

    def setupmapping(
        self, ctx: Context, nodeid: int, fh: int, foffset: int, length: int, flags: int, moffset: int
    ) -> None:
        """SETUPMAPPING: map a piece of a file into the DAX window."""
        _enosys()

    def removemapping(self, ctx: Context, nodeid: int, ranges: Sequence[tuple[int, int]]) -> None:
        """REMOVEMAPPING: (moffset, length) each."""
        _enosys()
