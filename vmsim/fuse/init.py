"""INIT: what the server offers, what both sides agree on, and whether another's session can go on here."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final, NamedTuple

from vmsim.errors import StreamError, UsageError
from vmsim.fuse.abi.headers import FUSE_KERNEL_MINOR_VERSION, FUSE_KERNEL_VERSION, FUSE_MIN_MINOR_VERSION
from vmsim.fuse.abi.init_flags import (
    ALLOW_IDMAP,
    CACHE_SYMLINKS,
    CREATE_SUPP_GROUP,
    DIRECT_IO_ALLOW_MMAP,
    DO_READDIRPLUS,
    DONT_MASK,
    HANDLE_KILLPRIV_V2,
    INIT_EXT,
    INIT_FLAGS,
    MAP_ALIGNMENT,
    MAX_PAGES,
    POSIX_ACL,
    READDIRPLUS_AUTO,
    SECURITY_CTX,
    SETXATTR_EXT,
    SUBMOUNTS,
    WRITEBACK_CACHE,
    flag_names,
)
from vmsim.fuse.abi.replies import (
    FUSE_COMPAT_22_INIT_OUT_SIZE,
    FUSE_COMPAT_INIT_OUT_SIZE,
    INIT_OUT,
)
from vmsim.fuse.abi.requests import INIT_COMPAT_IN, INIT_IN
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.limits import FUSE_INTERRUPTS_MAX, FUSE_MAX_WRITE

PAGES_WITHOUT_MAX_PAGES: Final = 32
"""Pages of one request when MAX_PAGES was not agreed on."""

_PAGE: Final = 4096

_SERVED_ANYWAY: Final = (
    DO_READDIRPLUS | READDIRPLUS_AUTO | CACHE_SYMLINKS | DIRECT_IO_ALLOW_MMAP
    | CREATE_SUPP_GROUP | ALLOW_IDMAP | HANDLE_KILLPRIV_V2
)  # fmt: skip
"""Flags that a restored session may have although this server would not have offered them."""


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What the server offers in INIT; sizes in bytes, ``time_gran`` in ns. See the table INIT_FLAGS."""

    minor: int = FUSE_KERNEL_MINOR_VERSION
    max_write: int = FUSE_MAX_WRITE
    max_background: int = 65535
    congestion_threshold: int = 49149
    time_gran: int = 1
    map_alignment: int = 21
    writeback: bool = False
    posix_acl: bool = False
    posix_locks: bool = False
    flock_locks: bool = False
    export_support: bool = False
    readdirplus: bool = True
    readdirplus_auto: bool = True
    cache_symlinks: bool = False
    announce_submounts: bool = True
    killpriv_v2: bool = False
    security_label: bool = False
    supp_groups: bool = True
    allow_mmap: bool = False
    allow_idmap: bool = True
    dax: bool = False

    def __post_init__(self) -> None:
        if not FUSE_MIN_MINOR_VERSION <= self.minor <= FUSE_KERNEL_MINOR_VERSION:
            raise UsageError(f"FUSE minor {self.minor} is not between 27 and 41")
        if not _PAGE <= self.max_write <= FUSE_MAX_WRITE:
            raise UsageError(f"max_write {self.max_write} is not between {_PAGE} and {FUSE_MAX_WRITE}")

    def offered(self) -> int:
        """The flags that this server offers."""
        return sum(
            row.mask for row in INIT_FLAGS
            if row.option == "always" or (row.option and getattr(self, row.option))
        )  # fmt: skip

    def required(self) -> int:
        """The flags without which an option cannot be honoured, so that INIT fails."""
        acl = POSIX_ACL | DONT_MASK | SETXATTR_EXT if self.posix_acl else 0
        return acl | (SECURITY_CTX if self.security_label else 0)


class InitReply(NamedTuple):
    """``state`` is None when the client must ask again with our major version."""

    state: NegotiatedState | None
    body: bytes


def negotiate(body: bytes, options: InitOptions, room: int) -> InitReply:
    """Answer fuse_init_in. OSError: EINVAL (cut), EPROTO (version, flag), ENOMEM (``room`` in bytes)."""
    if len(body) < 8:
        raise OSError(errno.EINVAL, "fuse_init_in is cut")
    major, minor, readahead, flags, flags2, _ = INIT_IN.unpack_from(body.ljust(INIT_IN.size, b"\0"))
    if major > FUSE_KERNEL_VERSION:
        return InitReply(None, _version_reply(options, room))
    if major < FUSE_KERNEL_VERSION or minor < FUSE_MIN_MINOR_VERSION:
        raise OSError(errno.EPROTO, f"FUSE {major}.{minor} is not spoken here")
    if len(body) < (INIT_IN.size if flags & INIT_EXT else INIT_COMPAT_IN.size):
        raise OSError(errno.EINVAL, "fuse_init_in is cut")
    if room < INIT_OUT.size:
        raise OSError(errno.ENOMEM, "no room for fuse_init_out")
    wanted = flags | (flags2 << 32 if flags & INIT_EXT else 0)
    state = agree(wanted, min(minor, options.minor), readahead, options)
    return InitReply(state, init_out(state, options))


def agree(wanted: int, minor: int, max_readahead: int, options: InitOptions) -> NegotiatedState:
    """The common ground of a client that wants the flags ``wanted`` and us; OSError EPROTO if none."""
    missing = options.required() & ~wanted
    if missing:
        raise OSError(errno.EPROTO, f"the client lacks {', '.join(flag_names(missing))}")
    flags = options.offered() & wanted
    if not flags & DO_READDIRPLUS:
        flags &= ~READDIRPLUS_AUTO
    pages = -(-options.max_write // _PAGE)
    if not flags & MAX_PAGES:
        pages = min(pages, PAGES_WITHOUT_MAX_PAGES)
    return NegotiatedState(
        initialized=True,
        major=FUSE_KERNEL_VERSION,
        minor=minor,
        flags=flags,
        max_readahead=max_readahead,
        max_write=min(options.max_write, pages * _PAGE),
        max_pages=pages,
        max_background=options.max_background,
        congestion_threshold=options.congestion_threshold,
        time_gran=options.time_gran,
        map_alignment=options.map_alignment if flags & MAP_ALIGNMENT else 0,
    )


def init_out(state: NegotiatedState, options: InitOptions) -> bytes:
    """fuse_init_out for ``state``; the minor told is the server's own, the client takes the lower one."""
    return INIT_OUT.pack(
        state.major, options.minor, state.max_readahead, state.flags & 0xFFFFFFFF,
        state.max_background, state.congestion_threshold, state.max_write, state.time_gran,
        state.max_pages if state.flags & MAX_PAGES else 0, state.map_alignment, state.flags >> 32, 0, b"",
    )  # fmt: skip


def _version_reply(options: InitOptions, room: int) -> bytes:
    """Major and minor alone, as large as an old or new client's buffer takes it."""
    body = INIT_OUT.pack(FUSE_KERNEL_VERSION, options.minor, *[0] * 10, b"")
    for size in (INIT_OUT.size, FUSE_COMPAT_22_INIT_OUT_SIZE, FUSE_COMPAT_INIT_OUT_SIZE):
        if room >= size:
            return body[:size]
    raise OSError(errno.ENOMEM, "no room for fuse_init_out")


def check_restored(state: NegotiatedState, options: InitOptions) -> NegotiatedState:
    """``state`` from a stream, if a server like this can go on with it; StreamError names the field."""
    if not state.initialized:
        return NegotiatedState()
    for field, low, high in (
        ("major", FUSE_KERNEL_VERSION, FUSE_KERNEL_VERSION),
        ("minor", FUSE_MIN_MINOR_VERSION, FUSE_KERNEL_MINOR_VERSION),
        ("flags", 0, (1 << 64) - 1),
        ("max_readahead", 0, (1 << 32) - 1),
        ("max_write", _PAGE, FUSE_MAX_WRITE),
        ("max_pages", 1, 65535),
        ("max_background", 0, 65535),
        ("congestion_threshold", 0, 65535),
        ("time_gran", 1, 1_000_000_000),
        ("map_alignment", 0, 63),
    ):
        value = getattr(state, field)
        if not isinstance(value, int) or not low <= value <= high:
            raise StreamError(f"{value!r} is not within {low}..{high}", field=f"fuse.{field}")
    _check_flags(state.flags, options)
    _check_interrupted(state.interrupted)
    return state


def _check_flags(flags: int, options: InitOptions) -> None:
    lacking = flags & ~options.offered() & ~_SERVED_ANYWAY
    if not lacking:
        return
    switches = {row.option for row in INIT_FLAGS if row.mask & lacking and row.option not in ("", "always")}
    hint = f"turn on {', '.join(sorted(switches))} on this side" if switches else ""
    raise StreamError(
        f"the guest negotiated {', '.join(flag_names(lacking))}, which this server does not offer",
        field="fuse.flags", hint=hint,
    )  # fmt: skip


def _check_interrupted(uniques: tuple[int, ...]) -> None:
    if len(uniques) > FUSE_INTERRUPTS_MAX:
        raise StreamError(f"{len(uniques)} early interrupts", field="fuse.interrupted")
    if not all(isinstance(unique, int) and 0 <= unique < 1 << 64 for unique in uniques):
        raise StreamError("an early interrupt is not a u64", field="fuse.interrupted")


def virtiofsd_state(
    options: InitOptions, *, writeback: bool, announce_submounts: bool, posix_acl: bool, supp_groups: bool
) -> NegotiatedState:
    """What virtiofsd 1.13 negotiated with a Linux client, as far as its state blob tells.

    For sessions that come without ours: the blob has these four booleans alone; the rest is what that
    server always offers and Linux always takes (minor 38).
    """
    base = InitOptions(
        minor=38, posix_acl=posix_acl, announce_submounts=announce_submounts, supp_groups=supp_groups,
        writeback=writeback, killpriv_v2=options.killpriv_v2, security_label=options.security_label,
        allow_mmap=options.allow_mmap, readdirplus=options.readdirplus,
        readdirplus_auto=options.readdirplus_auto,
    )  # fmt: skip
    return agree(base.offered(), base.minor, 1 << 17, base)


def virtiofsd_opts(state: NegotiatedState) -> tuple[bool, bool, bool, bool]:
    """virtiofsd's NegotiatedOpts: writeback, announce_submounts, posix_acl, sup_group_extension."""
    return (
        state.has(WRITEBACK_CACHE), state.has(SUBMOUNTS), state.has(POSIX_ACL), state.has(CREATE_SUPP_GROUP),
    )  # fmt: skip
