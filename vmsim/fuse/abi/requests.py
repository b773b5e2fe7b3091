"""The fixed argument structs of the requests; names and data follow them on the wire.

Times are declared signed: the kernel transports a signed number of seconds in what the header calls
uint64_t, and a file from before 1970 is legal.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from vmsim.wire.layout import I64, U32, U64, Layout


class ForgetIn(NamedTuple):
    """FORGET: how many lookups of the node the client drops."""

    nlookup: U64


class ForgetOne(NamedTuple):
    """One element of BATCH_FORGET."""

    nodeid: U64
    nlookup: U64


class BatchForgetIn(NamedTuple):
    """BATCH_FORGET: followed by ``count`` ForgetOne."""

    count: U32  # type: ignore[assignment]  # the wire's name wins over tuple.count
    dummy: U32


class GetattrIn(NamedTuple):
    """GETATTR: ``fh`` counts with GETATTR_FH in ``getattr_flags``."""

    getattr_flags: U32
    dummy: U32
    fh: U64


class SetattrIn(NamedTuple):
    """SETATTR: ``valid`` is a set of FATTR_ bits that says which fields count."""

    valid: U32
    padding: U32
    fh: U64
    size: U64
    lock_owner: U64
    atime: I64
    mtime: I64
    ctime: I64
    atimensec: U32
    mtimensec: U32
    ctimensec: U32
    mode: U32
    unused4: U32
    uid: U32
    gid: U32
    unused5: U32


class MknodIn(NamedTuple):
    """MKNOD."""

    mode: U32
    rdev: U32
    umask: U32
    padding: U32


class MkdirIn(NamedTuple):
    """MKDIR."""

    mode: U32
    umask: U32


class RenameIn(NamedTuple):
    """RENAME."""

    newdir: U64


class Rename2In(NamedTuple):
    """RENAME2: ``flags`` are RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, RENAME_WHITEOUT 4."""

    newdir: U64
    flags: U32
    padding: U32


class LinkIn(NamedTuple):
    """LINK: the node that gets another name; the header's nodeid is the new parent."""

    oldnodeid: U64


class OpenIn(NamedTuple):
    """OPEN, OPENDIR: ``flags`` of open(2), ``open_flags`` of the protocol (OPEN_KILL_SUIDGID)."""

    flags: U32
    open_flags: U32


class CreateIn(NamedTuple):
    """CREATE, TMPFILE."""

    flags: U32
    mode: U32
    umask: U32
    open_flags: U32


class ReadIn(NamedTuple):
    """READ, READDIR, READDIRPLUS: ``size`` is the room for the body in bytes."""

    fh: U64
    offset: U64
    size: U32
    read_flags: U32
    lock_owner: U64
    flags: U32
    padding: U32


class WriteIn(NamedTuple):
    """WRITE: ``size`` bytes of data follow."""

    fh: U64
    offset: U64
    size: U32
    write_flags: U32
    lock_owner: U64
    flags: U32
    padding: U32


class ReleaseIn(NamedTuple):
    """RELEASE, RELEASEDIR."""

    fh: U64
    flags: U32
    release_flags: U32
    lock_owner: U64


class FlushIn(NamedTuple):
    """FLUSH: sent at every close(2) of a descriptor."""

    fh: U64
    unused: U32
    padding: U32
    lock_owner: U64


class FsyncIn(NamedTuple):
    """FSYNC, FSYNCDIR."""

    fh: U64
    fsync_flags: U32
    padding: U32


class SetxattrIn(NamedTuple):
    """SETXATTR with SETXATTR_EXT: a name and ``size`` bytes of value follow."""

    size: U32
    flags: U32
    setxattr_flags: U32
    padding: U32


class SetxattrCompatIn(NamedTuple):
    """SETXATTR without SETXATTR_EXT."""

    size: U32
    flags: U32


class GetxattrIn(NamedTuple):
    """GETXATTR, LISTXATTR: ``size`` 0 asks for the size."""

    size: U32
    padding: U32


class LkIn(NamedTuple):
    """GETLK, SETLK, SETLKW: fuse_lk_in with its fuse_file_lock; ``end`` is inclusive."""

    fh: U64
    owner: U64
    start: U64
    end: U64
    type: U32
    pid: U32
    lk_flags: U32
    padding: U32


class AccessIn(NamedTuple):
    """ACCESS: ``mask`` of R_OK, W_OK, X_OK."""

    mask: U32
    padding: U32


class InitIn(NamedTuple):
    """INIT since minor 36; before, only the first four fields are there."""

    major: U32
    minor: U32
    max_readahead: U32
    flags: U32
    flags2: U32
    unused: Annotated[bytes, "44s"]


class InitCompatIn(NamedTuple):
    """INIT before minor 36."""

    major: U32
    minor: U32
    max_readahead: U32
    flags: U32


class CuseInitIn(NamedTuple):
    """CUSE_INIT; character devices are not served, so the answer is ENOSYS."""

    major: U32
    minor: U32
    unused: U32
    flags: U32


class InterruptIn(NamedTuple):
    """INTERRUPT: the ``unique`` of the request to interrupt."""

    unique: U64


class BmapIn(NamedTuple):
    """BMAP."""

    block: U64
    blocksize: U32
    padding: U32


class IoctlIn(NamedTuple):
    """IOCTL: ``in_size`` bytes follow; up to ``out_size`` bytes come back."""

    fh: U64
    flags: U32
    cmd: U32
    arg: U64
    in_size: U32
    out_size: U32


class PollIn(NamedTuple):
    """POLL: ``kh`` identifies the poll in a later wake-up notification."""

    fh: U64
    kh: U64
    flags: U32
    events: U32


class NotifyRetrieveIn(NamedTuple):
    """NOTIFY_REPLY: ``size`` bytes of data follow; the header's unique is the notification's."""

    dummy1: U64
    offset: U64
    size: U32
    dummy2: U32
    dummy3: U64
    dummy4: U64


class FallocateIn(NamedTuple):
    """FALLOCATE."""

    fh: U64
    offset: U64
    length: U64
    mode: U32
    padding: U32


class LseekIn(NamedTuple):
    """LSEEK: ``offset`` is a signed number."""

    fh: U64
    offset: I64
    whence: U32
    padding: U32


class CopyFileRangeIn(NamedTuple):
    """COPY_FILE_RANGE: from the header's nodeid to ``nodeid_out``."""

    fh_in: U64
    off_in: U64
    nodeid_out: U64
    fh_out: U64
    off_out: U64
    len: U64
    flags: U64


class SetupmappingIn(NamedTuple):
    """SETUPMAPPING: flags WRITE 1, READ 2; offsets and length in bytes."""

    fh: U64
    foffset: U64
    len: U64
    flags: U64
    moffset: U64


class RemovemappingIn(NamedTuple):
    """REMOVEMAPPING: followed by ``count`` RemovemappingOne."""

    count: U32  # type: ignore[assignment]  # the wire's name wins over tuple.count


class RemovemappingOne(NamedTuple):
    """One range of REMOVEMAPPING."""

    moffset: U64
    len: U64


class SyncfsIn(NamedTuple):
    """SYNCFS."""

    padding: U64


class StatxIn(NamedTuple):
    """STATX: ``fh`` counts with GETATTR_FH; ``sx_mask`` and ``sx_flags`` as in statx(2)."""

    getattr_flags: U32
    reserved: U32
    fh: U64
    sx_flags: U32
    sx_mask: U32


FORGET_IN: Final = Layout(ForgetIn)
FORGET_ONE: Final = Layout(ForgetOne)
BATCH_FORGET_IN: Final = Layout(BatchForgetIn)
GETATTR_IN: Final = Layout(GetattrIn)
SETATTR_IN: Final = Layout(SetattrIn)
MKNOD_IN: Final = Layout(MknodIn)
MKDIR_IN: Final = Layout(MkdirIn)
RENAME_IN: Final = Layout(RenameIn)
RENAME2_IN: Final = Layout(Rename2In)
LINK_IN: Final = Layout(LinkIn)
OPEN_IN: Final = Layout(OpenIn)
CREATE_IN: Final = Layout(CreateIn)
READ_IN: Final = Layout(ReadIn)
WRITE_IN: Final = Layout(WriteIn)
RELEASE_IN: Final = Layout(ReleaseIn)
FLUSH_IN: Final = Layout(FlushIn)
FSYNC_IN: Final = Layout(FsyncIn)
SETXATTR_IN: Final = Layout(SetxattrIn)
SETXATTR_COMPAT_IN: Final = Layout(SetxattrCompatIn)
GETXATTR_IN: Final = Layout(GetxattrIn)
LK_IN: Final = Layout(LkIn)
ACCESS_IN: Final = Layout(AccessIn)
INIT_IN: Final = Layout(InitIn)
INIT_COMPAT_IN: Final = Layout(InitCompatIn)
CUSE_INIT_IN: Final = Layout(CuseInitIn)
INTERRUPT_IN: Final = Layout(InterruptIn)
BMAP_IN: Final = Layout(BmapIn)
IOCTL_IN: Final = Layout(IoctlIn)
POLL_IN: Final = Layout(PollIn)
NOTIFY_RETRIEVE_IN: Final = Layout(NotifyRetrieveIn)
FALLOCATE_IN: Final = Layout(FallocateIn)
LSEEK_IN: Final = Layout(LseekIn)
COPY_FILE_RANGE_IN: Final = Layout(CopyFileRangeIn)
SETUPMAPPING_IN: Final = Layout(SetupmappingIn)
REMOVEMAPPING_IN: Final = Layout(RemovemappingIn)
REMOVEMAPPING_ONE: Final = Layout(RemovemappingOne)
SYNCFS_IN: Final = Layout(SyncfsIn)
STATX_IN: Final = Layout(StatxIn)
