"""The headers in front of every request and reply, and the constants of the interface."""

from __future__ import annotations

from typing import Final, NamedTuple

from vmsim.wire.layout import I32, U16, U32, U64, Layout

FUSE_KERNEL_VERSION: Final = 7
"""Major version of the interface."""

FUSE_KERNEL_MINOR_VERSION: Final = 41
"""Highest minor version that vmsim speaks; the lower one of both sides rules."""

FUSE_MIN_MINOR_VERSION: Final = 27
"""Lowest minor version of a guest that is served; below it INIT gets EPROTO."""

FUSE_ROOT_ID: Final = 1
"""nodeid of the root; never looked up, never forgotten."""

FUSE_UNIQUE_RESEND: Final = 1 << 63
"""Set in ``unique`` of a request that the client sends for the second time (minor 40)."""

REC_ALIGN: Final = 8
"""Alignment of directory entries and of extension records."""


class InHeader(NamedTuple):
    """fuse_in_header: ``len`` counts header, arguments, names, data and extensions in bytes."""

    len: U32
    opcode: U32
    unique: U64
    nodeid: U64
    uid: U32
    gid: U32
    pid: U32
    total_extlen: U16
    padding: U16


class OutHeader(NamedTuple):
    """fuse_out_header: ``error`` is 0 or a negative errno; in a notification it is the positive code."""

    len: U32
    error: I32
    unique: U64


class ExtHeader(NamedTuple):
    """fuse_ext_header: ``size`` is that of the record with this header and its padding, in bytes."""

    size: U32
    type: U32


class SecctxHeader(NamedTuple):
    """fuse_secctx_header: an extension record whose type field (0..31) is the number of contexts."""

    size: U32
    nr_secctx: U32


class Secctx(NamedTuple):
    """fuse_secctx: followed by a NUL-terminated name and ``size`` bytes of context, padded to 8."""

    size: U32
    padding: U32


class SuppGroups(NamedTuple):
    """fuse_supp_groups: followed by ``nr_groups`` group ids of 4 bytes each."""

    nr_groups: U32


IN_HEADER: Final = Layout(InHeader)
OUT_HEADER: Final = Layout(OutHeader)
EXT_HEADER: Final = Layout(ExtHeader)
SECCTX_HEADER: Final = Layout(SecctxHeader)
SECCTX: Final = Layout(Secctx)
SUPP_GROUPS: Final = Layout(SuppGroups)


def rec_align(size_bytes: int) -> int:
    """``size_bytes`` rounded up to a multiple of 8 (FUSE_REC_ALIGN)."""
    return (size_bytes + 7) & ~7
