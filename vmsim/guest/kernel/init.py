"""FUSE_INIT from the client's side: the offer of a Linux 6.12 virtio-fs guest, and what became of it."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.headers import FUSE_KERNEL_VERSION
from vmsim.fuse.abi.replies import (
    FUSE_COMPAT_22_INIT_OUT_SIZE,
    FUSE_COMPAT_INIT_OUT_SIZE,
    INIT_OUT,
    InitOut,
)
from vmsim.guest.config import CACHE_WRITEBACK, GuestConfig
from vmsim.guest.state import Session

MAX_READAHEAD: Final = 128 << 10
INIT_EXT_MINOR: Final = 36
DEFAULT_MAX_PAGES: Final = 32


def offer(config: GuestConfig) -> int:
    """The flags that a guest so configured offers (flags2 in the upper half)."""
    flags = init_flags.LINUX_6_12_OFFER
    if config.cache != CACHE_WRITEBACK:
        flags &= ~init_flags.WRITEBACK_CACHE
    if not config.remote_locks:
        flags &= ~(init_flags.POSIX_LOCKS | init_flags.FLOCK_LOCKS)
    if not config.readdirplus:
        flags &= ~(init_flags.DO_READDIRPLUS | init_flags.READDIRPLUS_AUTO)
    if config.fuse_minor < INIT_EXT_MINOR:
        flags &= 0xFFFFFFFF & ~init_flags.INIT_EXT
    return flags


def init_arguments(config: GuestConfig) -> tuple[tuple[Any, ...], bool]:
    """The arguments of FUSE_INIT, and whether they have the shape from before minor 36."""
    flags = offer(config)
    head = (FUSE_KERNEL_VERSION, config.fuse_minor, MAX_READAHEAD, flags & 0xFFFFFFFF)
    if config.fuse_minor < INIT_EXT_MINOR:
        return head, True
    return (*head, flags >> 32, b""), False


def decode_init(config: GuestConfig, reply: bytes) -> Session:
    """The session that the server's reply makes; EPROTO for one that a client cannot work with."""
    if len(reply) < FUSE_COMPAT_INIT_OUT_SIZE:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    short = len(reply) < FUSE_COMPAT_22_INIT_OUT_SIZE
    out: InitOut = INIT_OUT.unpack(reply.ljust(INIT_OUT.size, b"\0"))
    if out.major != FUSE_KERNEL_VERSION:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    flags = out.flags
    if flags & init_flags.INIT_EXT:
        flags |= out.flags2 << 32
    flags &= offer(config)
    max_pages = min(max(out.max_pages, 1), 256) if flags & init_flags.MAX_PAGES else DEFAULT_MAX_PAGES
    return Session(
        major=out.major,
        minor=min(out.minor, config.fuse_minor),
        flags=flags,
        max_readahead=min(out.max_readahead, MAX_READAHEAD),
        max_write=max(4096, 4096 if short else out.max_write),
        max_pages=max_pages,
        time_gran=min(max(out.time_gran, 1), 1_000_000_000),
        max_background=out.max_background,
    )
