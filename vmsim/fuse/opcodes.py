"""One row per opcode: what it carries, what it answers, who handles it.

The rows drive the session's decoding and dispatch, the client's encoding and the tests. To
add an opcode add a row, a method to FileSystem, and a handler named like the row to ``handlers``.
"""

from __future__ import annotations

import enum
from typing import Any, Final, NamedTuple

from vmsim.fuse.abi import replies as out
from vmsim.fuse.abi import requests as arg
from vmsim.wire.layout import Layout


class Reply(enum.Enum):
    """What a successful reply looks like."""

    NONE = "no reply at all: nothing is written"
    EMPTY = "the header alone"
    RECORD = "the header and the record of the row"
    BYTES = "the header and bytes, or the record of the row if there is one"
    FILL = "the header and data that the file system puts into the writable views itself"


class Opcode(NamedTuple):
    """One row. ``args`` precede ``names`` NUL-terminated names, then the ``tail`` (data or an array).

    ``payload``: the tail is not copied but handed on as views of guest memory. ``extensions``: security
    labels and groups may follow. ``hiprio``: goes to the hiprio queue only (virtio 1.3 section 5.11.6.2).
    ``waits``: the reply may be deferred. ``method``: the FileSystem method, "" if the session itself answers.
    """

    number: int
    name: str
    method: str
    args: Layout[Any] | None = None
    names: int = 0
    tail: bool = False
    reply: Reply = Reply.EMPTY
    record: Layout[Any] | None = None
    payload: bool = False
    extensions: bool = False
    hiprio: bool = False
    waits: bool = False
    compat_args: Layout[Any] | None = None

    @property
    def args_size(self) -> int:
        """Bytes of the fixed arguments."""
        return self.args.size if self.args is not None else 0

    @property
    def record_size(self) -> int:
        """Bytes of the fixed reply."""
        return self.record.size if self.record is not None else 0

    @property
    def simple(self) -> bool:
        """Fixed arguments in, a fixed reply out, at once: the session's fast path."""
        fixed_in = not (self.names or self.tail or self.payload or self.waits)
        return bool(self.method) and fixed_in and self.reply in (Reply.EMPTY, Reply.RECORD)


_NONE, _RECORD, _BYTES, _FILL = Reply.NONE, Reply.RECORD, Reply.BYTES, Reply.FILL

OPCODES: Final = (
    Opcode(1, "LOOKUP", "lookup", names=1, reply=_RECORD, record=out.ENTRY_OUT),
    Opcode(2, "FORGET", "forget", arg.FORGET_IN, reply=_NONE, hiprio=True),
    Opcode(3, "GETATTR", "getattr", arg.GETATTR_IN, reply=_RECORD, record=out.ATTR_OUT),
    Opcode(4, "SETATTR", "setattr", arg.SETATTR_IN, reply=_RECORD, record=out.ATTR_OUT),
    Opcode(5, "READLINK", "readlink", reply=_BYTES),
    Opcode(6, "SYMLINK", "symlink", names=2, reply=_RECORD, record=out.ENTRY_OUT, extensions=True),
    Opcode(8, "MKNOD", "mknod", arg.MKNOD_IN, 1, reply=_RECORD, record=out.ENTRY_OUT, extensions=True),
    Opcode(9, "MKDIR", "mkdir", arg.MKDIR_IN, 1, reply=_RECORD, record=out.ENTRY_OUT, extensions=True),
    Opcode(10, "UNLINK", "unlink", names=1),
    Opcode(11, "RMDIR", "rmdir", names=1),
    Opcode(12, "RENAME", "rename", arg.RENAME_IN, 2),
    Opcode(13, "LINK", "link", arg.LINK_IN, 1, reply=_RECORD, record=out.ENTRY_OUT),
    Opcode(14, "OPEN", "open", arg.OPEN_IN, reply=_RECORD, record=out.OPEN_OUT),
    Opcode(15, "READ", "read", arg.READ_IN, reply=_FILL),
    Opcode(16, "WRITE", "write", arg.WRITE_IN, reply=_RECORD, record=out.WRITE_OUT, payload=True),
    Opcode(17, "STATFS", "statfs", reply=_RECORD, record=out.STATFS_OUT),
    Opcode(18, "RELEASE", "release", arg.RELEASE_IN),
    Opcode(20, "FSYNC", "fsync", arg.FSYNC_IN),
    Opcode(21, "SETXATTR", "setxattr", arg.SETXATTR_IN, 1, tail=True, compat_args=arg.SETXATTR_COMPAT_IN),
    Opcode(22, "GETXATTR", "getxattr", arg.GETXATTR_IN, 1, reply=_BYTES, record=out.GETXATTR_OUT),
    Opcode(23, "LISTXATTR", "listxattr", arg.GETXATTR_IN, reply=_BYTES, record=out.GETXATTR_OUT),
    Opcode(24, "REMOVEXATTR", "removexattr", names=1),
    Opcode(25, "FLUSH", "flush", arg.FLUSH_IN),
    Opcode(26, "INIT", "", arg.INIT_IN, reply=_BYTES, record=out.INIT_OUT, compat_args=arg.INIT_COMPAT_IN),
    Opcode(27, "OPENDIR", "opendir", arg.OPEN_IN, reply=_RECORD, record=out.OPEN_OUT),
    Opcode(28, "READDIR", "readdir", arg.READ_IN, reply=_BYTES),
    Opcode(29, "RELEASEDIR", "releasedir", arg.RELEASE_IN),
    Opcode(30, "FSYNCDIR", "fsyncdir", arg.FSYNC_IN),
    Opcode(31, "GETLK", "getlk", arg.LK_IN, reply=_RECORD, record=out.FILE_LOCK),
    Opcode(32, "SETLK", "setlk", arg.LK_IN),
    Opcode(33, "SETLKW", "setlk", arg.LK_IN, waits=True),
    Opcode(34, "ACCESS", "access", arg.ACCESS_IN),
    Opcode(35, "CREATE", "create", arg.CREATE_IN, 1, reply=_RECORD, record=out.CREATE_OUT, extensions=True),
    Opcode(36, "INTERRUPT", "", arg.INTERRUPT_IN, reply=_NONE, hiprio=True),
    Opcode(37, "BMAP", "bmap", arg.BMAP_IN, reply=_RECORD, record=out.BMAP_OUT),
    Opcode(38, "DESTROY", "", reply=_NONE),
    Opcode(39, "IOCTL", "ioctl", arg.IOCTL_IN, tail=True, reply=_BYTES),
    Opcode(40, "POLL", "poll", arg.POLL_IN, reply=_RECORD, record=out.POLL_OUT, waits=True),
    Opcode(41, "NOTIFY_REPLY", "notify_reply", arg.NOTIFY_RETRIEVE_IN, reply=_NONE, payload=True),
    Opcode(42, "BATCH_FORGET", "forget", arg.BATCH_FORGET_IN, tail=True, reply=_NONE, hiprio=True),
    Opcode(43, "FALLOCATE", "fallocate", arg.FALLOCATE_IN),
    Opcode(44, "READDIRPLUS", "readdirplus", arg.READ_IN, reply=_BYTES),
    Opcode(45, "RENAME2", "rename", arg.RENAME2_IN, 2),
    Opcode(46, "LSEEK", "lseek", arg.LSEEK_IN, reply=_RECORD, record=out.LSEEK_OUT),
    Opcode(47, "COPY_FILE_RANGE", "copy_file_range", arg.COPY_FILE_RANGE_IN,
           reply=_RECORD, record=out.WRITE_OUT),
    Opcode(48, "SETUPMAPPING", "setupmapping", arg.SETUPMAPPING_IN),
    Opcode(49, "REMOVEMAPPING", "removemapping", arg.REMOVEMAPPING_IN, tail=True),
    Opcode(50, "SYNCFS", "syncfs", arg.SYNCFS_IN),
    Opcode(51, "TMPFILE", "tmpfile", arg.CREATE_IN, 1, reply=_RECORD, record=out.CREATE_OUT, extensions=True),
    Opcode(52, "STATX", "statx", arg.STATX_IN, reply=_RECORD, record=out.STATX_OUT),
)  # fmt: skip
"""All opcodes of minor 41 but CUSE_INIT (4096), which like any unknown number is answered with ENOSYS."""

BY_NUMBER: Final = {row.number: row for row in OPCODES}
"""Rows by opcode."""

BY_NAME: Final = {row.name: row for row in OPCODES}
"""Rows by name, without the FUSE_ prefix."""

CUSE_INIT: Final = 4096
"""Opcode of a character device's INIT."""

FUSE_INIT_BSWAP_RESERVED: Final = 436207616
"""INIT as it looks when the client's byte order is not ours; never an opcode of its own."""

CUSE_INIT_BSWAP_RESERVED: Final = 1048576
"""The same for CUSE_INIT."""

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
GETLK: Final = 31
SETLK: Final = 32
SETLKW: Final = 33
ACCESS: Final = 34
CREATE: Final = 35
INTERRUPT: Final = 36
BMAP: Final = 37
DESTROY: Final = 38
IOCTL: Final = 39
POLL: Final = 40
NOTIFY_REPLY: Final = 41
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
READDIRPLUS: Final = 44
RENAME2: Final = 45
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47
SETUPMAPPING: Final = 48
REMOVEMAPPING: Final = 49
SYNCFS: Final = 50
TMPFILE: Final = 51
STATX: Final = 52
