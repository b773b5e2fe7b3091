"""The INIT flags, one row each: bit, name, what turns it on here, what it means."""

from __future__ import annotations

from typing import Final, NamedTuple


class InitFlag(NamedTuple):
    """One row: ``option`` is the field of InitOptions that offers it, "always", or "" when never offered."""

    bit: int
    name: str
    option: str
    meaning: str

    @property
    def mask(self) -> int:
        """The flag's value in the 64-bit set (flags2 is its upper half)."""
        return 1 << self.bit


INIT_FLAGS: Final = (
    InitFlag(0, "ASYNC_READ", "always", "several reads of one file at a time"),
    InitFlag(1, "POSIX_LOCKS", "posix_locks", "fcntl locks are the server's"),
    InitFlag(2, "FILE_OPS", "", "unused by Linux"),
    InitFlag(3, "ATOMIC_O_TRUNC", "always", "O_TRUNC reaches OPEN"),
    InitFlag(4, "EXPORT_SUPPORT", "export_support", "LOOKUP of '.' and '..'"),
    InitFlag(5, "BIG_WRITES", "always", "writes of more than a page"),
    InitFlag(6, "DONT_MASK", "posix_acl", "the server applies the umask"),
    InitFlag(7, "SPLICE_WRITE", "", "of the character device only"),
    InitFlag(8, "SPLICE_MOVE", "", "of the character device only"),
    InitFlag(9, "SPLICE_READ", "", "of the character device only"),
    InitFlag(10, "FLOCK_LOCKS", "flock_locks", "flock locks are the server's"),
    InitFlag(11, "HAS_IOCTL_DIR", "always", "ioctl on directories"),
    InitFlag(12, "AUTO_INVAL_DATA", "always", "cached pages go when mtime or size changed"),
    InitFlag(13, "DO_READDIRPLUS", "readdirplus", "READDIRPLUS is there"),
    InitFlag(14, "READDIRPLUS_AUTO", "readdirplus_auto", "the client chooses between both READDIRs"),
    InitFlag(15, "ASYNC_DIO", "always", "several direct I/O requests at a time"),
    InitFlag(16, "WRITEBACK_CACHE", "writeback", "the client owns size and mtime of dirty files"),
    InitFlag(17, "NO_OPEN_SUPPORT", "", "ENOSYS to OPEN makes files stateless"),
    InitFlag(18, "PARALLEL_DIROPS", "always", "several LOOKUPs and READDIRs in one directory"),
    InitFlag(19, "HANDLE_KILLPRIV", "", "first version: the server clears suid, sgid and capabilities"),
    InitFlag(20, "POSIX_ACL", "posix_acl", "ACLs are kept and obeyed"),
    InitFlag(21, "ABORT_ERROR", "", "of the character device only"),
    InitFlag(22, "MAX_PAGES", "always", "max_pages of the reply counts"),
    InitFlag(23, "CACHE_SYMLINKS", "cache_symlinks", "the client keeps symlink targets"),
    InitFlag(24, "NO_OPENDIR_SUPPORT", "", "ENOSYS to OPENDIR makes directories stateless"),
    InitFlag(25, "EXPLICIT_INVAL_DATA", "", "cached pages go only by notification"),
    InitFlag(26, "MAP_ALIGNMENT", "dax", "map_alignment of the reply counts"),
    InitFlag(27, "SUBMOUNTS", "announce_submounts", "the attribute flag SUBMOUNT marks mount points"),
    InitFlag(28, "HANDLE_KILLPRIV_V2", "killpriv_v2", "the server clears suid, sgid and caps when told"),
    InitFlag(29, "SETXATTR_EXT", "posix_acl", "SETXATTR has 16 bytes of arguments"),
    InitFlag(30, "INIT_EXT", "always", "flags2 counts"),
    InitFlag(31, "INIT_RESERVED", "", "reserved"),
    InitFlag(32, "SECURITY_CTX", "security_label", "creating requests carry a security label"),
    InitFlag(33, "HAS_INODE_DAX", "dax", "the attribute flag DAX counts"),
    InitFlag(34, "CREATE_SUPP_GROUP", "supp_groups", "creating requests carry one matching group"),
    InitFlag(35, "HAS_EXPIRE_ONLY", "", "entry notifications that only expire"),
    InitFlag(36, "DIRECT_IO_ALLOW_MMAP", "allow_mmap", "mmap of files with direct I/O"),
    InitFlag(37, "PASSTHROUGH", "", "backing files; of the character device only"),
    InitFlag(38, "NO_EXPORT_SUPPORT", "", "no NFS export at all"),
    InitFlag(39, "HAS_RESEND", "", "the server may ask for requests again"),
    InitFlag(40, "ALLOW_IDMAP", "allow_idmap", "id-mapped mounts"),
)

INIT_FLAG_MASKS: Final = {row.name: row.mask for row in INIT_FLAGS}
"""Flag values by name."""

ASYNC_READ: Final = 1 << 0
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
EXPORT_SUPPORT: Final = 1 << 4
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
FLOCK_LOCKS: Final = 1 << 10
HAS_IOCTL_DIR: Final = 1 << 11
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
WRITEBACK_CACHE: Final = 1 << 16
PARALLEL_DIROPS: Final = 1 << 18
POSIX_ACL: Final = 1 << 20
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
MAP_ALIGNMENT: Final = 1 << 26
SUBMOUNTS: Final = 1 << 27
HANDLE_KILLPRIV_V2: Final = 1 << 28
SETXATTR_EXT: Final = 1 << 29
INIT_EXT: Final = 1 << 30
SECURITY_CTX: Final = 1 << 32
HAS_INODE_DAX: Final = 1 << 33
CREATE_SUPP_GROUP: Final = 1 << 34
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
ALLOW_IDMAP: Final = 1 << 40

LINUX_6_12_OFFER: Final = sum(
    row.mask
    for row in INIT_FLAGS
    if row.name not in ("FILE_OPS", "MAP_ALIGNMENT", "INIT_RESERVED", "HAS_INODE_DAX", "PASSTHROUGH")
)
"""What a Linux 6.12 virtio-fs client without DAX offers."""


def flag_names(flags: int) -> list[str]:
    """The names of the set bits, lowest first; unknown bits as ``bit N``."""
    names = {row.bit: row.name for row in INIT_FLAGS}
    return [names.get(bit, f"bit {bit}") for bit in range(64) if flags >> bit & 1]
