"""The fixed structs of the replies, flat: an AttrOut holds the fields of its fuse_attr in place.

The server's file system returns plain tuples with these fields in this order; the client gets the
typed records. Times are signed, see ``requests``.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from vmsim.wire.layout import I32, I64, U16, U32, U64, Layout


class Attr(NamedTuple):
    """fuse_attr: ``blocks`` in units of 512 bytes, ``flags`` of ATTR_ bits, ``rdev`` as new_encode_dev."""

    ino: U64
    size: U64
    blocks: U64
    atime: I64
    mtime: I64
    ctime: I64
    atimensec: U32
    mtimensec: U32
    ctimensec: U32
    mode: U32
    nlink: U32
    uid: U32
    gid: U32
    rdev: U32
    blksize: U32
    flags: U32


class AttrOut(NamedTuple):
    """fuse_attr_out: how long the attributes are valid, then the attributes."""

    attr_valid: U64
    attr_valid_nsec: U32
    dummy: U32
    ino: U64
    size: U64
    blocks: U64
    atime: I64
    mtime: I64
    ctime: I64
    atimensec: U32
    mtimensec: U32
    ctimensec: U32
    mode: U32
    nlink: U32
    uid: U32
    gid: U32
    rdev: U32
    blksize: U32
    flags: U32


class EntryOut(NamedTuple):
    """fuse_entry_out: nodeid 0 is a negative entry; validity in seconds and nanoseconds."""

    nodeid: U64
    generation: U64
    entry_valid: U64
    attr_valid: U64
    entry_valid_nsec: U32
    attr_valid_nsec: U32
    ino: U64
    size: U64
    blocks: U64
    atime: I64
    mtime: I64
    ctime: I64
    atimensec: U32
    mtimensec: U32
    ctimensec: U32
    mode: U32
    nlink: U32
    uid: U32
    gid: U32
    rdev: U32
    blksize: U32
    flags: U32


class OpenOut(NamedTuple):
    """fuse_open_out: ``open_flags`` of FOPEN_ bits; ``backing_id`` only with PASSTHROUGH (minor 40)."""

    fh: U64
    open_flags: U32
    backing_id: I32


class CreateOut(NamedTuple):
    """The reply to CREATE and TMPFILE: a fuse_entry_out and a fuse_open_out."""

    nodeid: U64
    generation: U64
    entry_valid: U64
    attr_valid: U64
    entry_valid_nsec: U32
    attr_valid_nsec: U32
    ino: U64
    size: U64
    blocks: U64
    atime: I64
    mtime: I64
    ctime: I64
    atimensec: U32
    mtimensec: U32
    ctimensec: U32
    mode: U32
    nlink: U32
    uid: U32
    gid: U32
    rdev: U32
    blksize: U32
    flags: U32
    fh: U64
    open_flags: U32
    backing_id: I32


class WriteOut(NamedTuple):
    """fuse_write_out: bytes taken; also the reply to COPY_FILE_RANGE."""

    size: U32
    padding: U32


class StatfsOut(NamedTuple):
    """fuse_kstatfs: block counts in units of ``frsize`` bytes."""

    blocks: U64
    bfree: U64
    bavail: U64
    files: U64
    ffree: U64
    bsize: U32
    namelen: U32
    frsize: U32
    padding: U32
    spare: Annotated[bytes, "24s"]


class GetxattrOut(NamedTuple):
    """fuse_getxattr_out: the size in bytes, when the request's size was 0."""

    size: U32
    padding: U32


class FileLock(NamedTuple):
    """fuse_file_lock: ``end`` is inclusive, 2^63-1 for the end of file; type F_RDLCK, F_WRLCK, F_UNLCK."""

    start: U64
    end: U64
    type: U32
    pid: U32


class InitOut(NamedTuple):
    """fuse_init_out: ``map_alignment`` is a power of two's exponent."""

    major: U32
    minor: U32
    max_readahead: U32
    flags: U32
    max_background: U16
    congestion_threshold: U16
    max_write: U32
    time_gran: U32
    max_pages: U16
    map_alignment: U16
    flags2: U32
    max_stack_depth: U32
    unused: Annotated[bytes, "24s"]


class CuseInitOut(NamedTuple):
    """cuse_init_out."""

    major: U32
    minor: U32
    unused: U32
    flags: U32
    max_read: U32
    max_write: U32
    dev_major: U32
    dev_minor: U32
    spare: Annotated[bytes, "40s"]


class BmapOut(NamedTuple):
    """fuse_bmap_out."""

    block: U64


class IoctlOut(NamedTuple):
    """fuse_ioctl_out: data follows."""

    result: I32
    flags: U32
    in_iovs: U32
    out_iovs: U32


class IoctlIovec(NamedTuple):
    """fuse_ioctl_iovec: an element of the reply to an unrestricted ioctl."""

    base: U64
    len: U64


class PollOut(NamedTuple):
    """fuse_poll_out."""

    revents: U32
    padding: U32


class LseekOut(NamedTuple):
    """fuse_lseek_out."""

    offset: U64


class Dirent(NamedTuple):
    """fuse_dirent: a name of ``namelen`` bytes follows, padded to 8; ``off`` is where the next one starts."""

    ino: U64
    off: U64
    namelen: U32
    type: U32


class StatxOut(NamedTuple):
    """fuse_statx_out with its fuse_statx; ``mask`` and ``attributes`` as in statx(2)."""

    attr_valid: U64
    attr_valid_nsec: U32
    flags: U32
    spare: Annotated[bytes, "16s"]
    mask: U32
    blksize: U32
    attributes: U64
    nlink: U32
    uid: U32
    gid: U32
    mode: U16
    spare0: U16
    ino: U64
    size: U64
    blocks: U64
    attributes_mask: U64
    atime: I64
    atimensec: U32
    atime_reserved: I32
    btime: I64
    btimensec: U32
    btime_reserved: I32
    ctime: I64
    ctimensec: U32
    ctime_reserved: I32
    mtime: I64
    mtimensec: U32
    mtime_reserved: I32
    rdev_major: U32
    rdev_minor: U32
    dev_major: U32
    dev_minor: U32
    spare2: Annotated[bytes, "112s"]


ATTR: Final = Layout(Attr)
ATTR_OUT: Final = Layout(AttrOut)
ENTRY_OUT: Final = Layout(EntryOut)
OPEN_OUT: Final = Layout(OpenOut)
CREATE_OUT: Final = Layout(CreateOut)
WRITE_OUT: Final = Layout(WriteOut)
STATFS_OUT: Final = Layout(StatfsOut)
GETXATTR_OUT: Final = Layout(GetxattrOut)
FILE_LOCK: Final = Layout(FileLock)
INIT_OUT: Final = Layout(InitOut)
CUSE_INIT_OUT: Final = Layout(CuseInitOut)
BMAP_OUT: Final = Layout(BmapOut)
IOCTL_OUT: Final = Layout(IoctlOut)
IOCTL_IOVEC: Final = Layout(IoctlIovec)
POLL_OUT: Final = Layout(PollOut)
LSEEK_OUT: Final = Layout(LseekOut)
DIRENT: Final = Layout(Dirent)
STATX_OUT: Final = Layout(StatxOut)

FUSE_COMPAT_INIT_OUT_SIZE: Final = 8
"""Bytes of the INIT reply to a client below minor 5."""

FUSE_COMPAT_22_INIT_OUT_SIZE: Final = 24
"""Bytes of the INIT reply to a client below minor 23."""
