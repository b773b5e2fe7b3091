"""The options of the file server; names and meanings are virtiofsd's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vmsim.errors import UsageError
from vmsim.fuse.init import InitOptions

CachePolicy = Literal["never", "metadata", "auto", "always"]
FileHandles = Literal["never", "prefer", "mandatory"]

TIMEOUTS: dict[str, int] = {"never": 0, "auto": 1, "metadata": 86400, "always": 86400}
"""Validity of names and attributes in seconds, by cache policy."""

BOUNDS = (
    ("timeout_s", (1 << 32) - 1), ("inode_fds", 1 << 30), ("guest_fds", 1 << 30),
    ("search_entries", 10_000_000),
)  # fmt: skip
"""Options arrive with migration streams as well: nothing in them makes the server work without end."""


@dataclass(slots=True)
class FsOptions:
    """How the share is served.

    ``cache``: guest cache policy: how long names and attributes stay valid, whether the page cache is used.
    ``writeback``, ``posix_acl``, ``killpriv_v2``, ``security_label``, ``announce_submounts``,
    ``readdirplus``, ``locks``: offered to the guest at INIT. ``xattr``: off answers ENOSYS. ``direct_io``:
    honour the guest's O_DIRECT. ``allow_mmap``: shared mappings of files that bypass the page cache.
    ``xattrmap``: rules for names of attributes, see :mod:`.passthrough.xattrmap`. ``translate_uid`` and
    ``translate_gid``: see :mod:`.passthrough.idmap`. ``inode_file_handles``: whether inodes are found again
    by file handle (needs CAP_DAC_READ_SEARCH). ``inode_fds``: descriptors kept for inodes, ``guest_fds``
    open files of the guest (0: from RLIMIT_NOFILE). ``search_entries``: directory entries that are looked at
    to find an inode whose name somebody else has changed.
    """

    cache: CachePolicy = "auto"
    timeout_s: int | None = None
    writeback: bool = False
    xattr: bool = True
    posix_acl: bool = False
    killpriv_v2: bool = False
    announce_submounts: bool = True
    readdirplus: bool = True
    direct_io: bool = False
    allow_mmap: bool = False
    locks: bool = True
    xattrmap: str = ""
    security_label: bool = False
    translate_uid: tuple[str, ...] = ()
    translate_gid: tuple[str, ...] = ()
    readonly: bool = False
    preserve_noatime: bool = False
    inode_file_handles: FileHandles = "prefer"
    inode_fds: int = 0
    guest_fds: int = 0
    search_entries: int = 200_000

    def __post_init__(self) -> None:
        if self.cache not in TIMEOUTS:
            raise UsageError(f"no cache policy {self.cache!r}", hint="never, metadata, auto or always")
        if self.inode_file_handles not in ("never", "prefer", "mandatory"):
            raise UsageError(
                f"no such use of file handles: {self.inode_file_handles!r}", hint="never, prefer or mandatory"
            )
        for name, most in BOUNDS:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise UsageError(f"{name}={value} is out of range", hint=f"0 to {most}")
        if self.posix_acl and not self.xattr:
            raise UsageError("posix_acl needs xattr", hint="POSIX ACLs are extended attributes")
        if self.allow_mmap and self.cache == "always":
            raise UsageError("allow_mmap is for files that bypass the page cache", hint="use another cache")

    def init_options(self) -> InitOptions:
        """What the FUSE session offers at INIT."""
        plus = self.readdirplus and self.cache != "never"
        return InitOptions(
            writeback=self.writeback, posix_acl=self.posix_acl,
            posix_locks=self.locks, flock_locks=self.locks,
            readdirplus=plus, readdirplus_auto=plus, announce_submounts=self.announce_submounts,
            killpriv_v2=self.killpriv_v2, security_label=self.security_label, allow_mmap=self.allow_mmap,
        )  # fmt: skip

    @property
    def validity_s(self) -> int:
        """Seconds for which entries and attributes are valid."""
        return TIMEOUTS[self.cache] if self.timeout_s is None else self.timeout_s
