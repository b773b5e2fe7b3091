"""The options of the file server; names and meanings are virtiofsd's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, get_args

from vmsim.errors import UsageError
from vmsim.fuse.init import InitOptions
from vmsim.vhost.device_options import Option

CachePolicy = Literal["never", "metadata", "auto", "always"]
FileHandles = Literal["never", "prefer", "fallback", "mandatory"]
"""``fallback`` is virtiofsd's older name of ``prefer``."""
ID_RANGE: Final = "TYPE:SOURCE:TARGET:COUNT"
"""A rule of :mod:`.passthrough.idmap`."""

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

    ``timeout_s`` takes the place of the seconds that follow from ``cache``. ``inode_fds`` are descriptors
    kept for inodes, ``guest_fds`` open files of the guest (0: from RLIMIT_NOFILE). ``search_entries``:
    directory entries that are looked at to find an inode whose name somebody else has changed.
    """

    cache: Annotated[CachePolicy, Option(
        "Guest cache policy: how long names and attributes stay valid, and whether the page cache is used.",
    )] = "auto"
    timeout_s: int | None = None
    writeback: Annotated[bool, Option("Offer the writeback cache.")] = False
    allow_mmap: Annotated[bool, Option(
        "Allow shared mappings of files that bypass the guest's page cache.",
    )] = False
    direct_io: Annotated[bool, Option("Honour the guest's O_DIRECT.", spelled="allow-direct-io")] = False
    xattr: Annotated[bool, Option("Serve extended attributes.", served=False)] = True
    posix_acl: Annotated[bool, Option("Serve POSIX ACLs; implies --xattr.")] = False
    security_label: Annotated[bool, Option(
        "Set the label that the guest sends with a new file; implies --xattr.",
    )] = False
    xattrmap: Annotated[str, Option("Rules for the names of extended attributes.", metavar="RULES")] = ""
    readonly: Annotated[bool, Option("Serve the directory read-only.")] = False
    announce_submounts: Annotated[bool, Option("Announce submounts to the guest.")] = True
    readdirplus: Annotated[bool, Option("Offer READDIRPLUS.")] = True
    killpriv_v2: Annotated[bool, Option(
        "Offer HANDLE_KILLPRIV_V2: clear set-id bits when the guest asks for it.", paired=True,
    )] = False
    locks: Annotated[bool, Option(
        "Take the guest's file locks on the host's files, so that others see them "
        "(virtiofsd leaves them to the guest).",
    )] = True
    preserve_noatime: Annotated[bool, Option("Pass the guest's O_NOATIME on.")] = False
    translate_uid: Annotated[tuple[str, ...], Option(
        "Translate user ids between guest and host; may be repeated.", metavar=ID_RANGE,
    )] = ()
    translate_gid: Annotated[tuple[str, ...], Option("The same for group ids.", metavar=ID_RANGE)] = ()
    inode_file_handles: Annotated[FileHandles, Option(
        "Find inodes again by file handle, where that is permitted (the default of virtiofsd since 1.13.3; "
        "never before).",
    )] = "prefer"
    inode_fds: int = 0
    guest_fds: int = 0
    search_entries: int = 200_000

    def __post_init__(self) -> None:
        if self.cache not in TIMEOUTS:
            raise UsageError(f"no cache policy {self.cache!r}", hint="never, metadata, auto or always")
        if self.inode_file_handles == "fallback":
            self.inode_file_handles = "prefer"
        if self.inode_file_handles not in get_args(FileHandles):
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
