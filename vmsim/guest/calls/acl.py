"""POSIX ACLs as extended attributes carry them (``posix_acl_xattr``), and what they decide."""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from vmsim.guest.calls.permissions import in_group, refuse
from vmsim.guest.state import Attr, Process

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)
ACL_BYTES_MAX: Final = 4096
"""Linux reads a FUSE server's ACLs into one page."""

VERSION: Final = 2
HEADER: Final = struct.Struct("<I")
ENTRY: Final = struct.Struct("<HHI")
USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
UNDEFINED_ID: Final = 0xFFFFFFFF

# posix_acl_valid: what may follow what; the mask is optional unless somebody is named.
_AFTER: Final = {
    0: (USER_OBJ,), USER_OBJ: (USER, GROUP_OBJ), USER: (USER, GROUP_OBJ),
    GROUP_OBJ: (GROUP, MASK, OTHER), GROUP: (GROUP, MASK, OTHER), MASK: (OTHER,), OTHER: (),
}  # fmt: skip


class Entry(NamedTuple):
    """One entry: kind, permissions (4, 2, 1), and whom it is for (kinds USER and GROUP)."""

    tag: int
    perm: int
    id: int


def decode(value: bytes) -> list[Entry]:
    """The entries of an attribute's value; OSError EINVAL, or EOPNOTSUPP for another version.

    As posix_acl_from_xattr: no entries, and no value at all, is no ACL.
    """
    if not value:
        return []
    if len(value) < HEADER.size:
        refuse(errno.EINVAL)
    if HEADER.unpack_from(value)[0] != VERSION:
        refuse(errno.EOPNOTSUPP)
    if (len(value) - HEADER.size) % ENTRY.size:
        refuse(errno.EINVAL)
    entries = [Entry(*entry) for entry in ENTRY.iter_unpack(value[HEADER.size :])]
    for tag, _, who in entries:
        if tag not in _AFTER or (tag in (USER, GROUP) and who == UNDEFINED_ID):
            refuse(errno.EINVAL)
    return entries


def check(entries: list[Entry]) -> None:
    """EINVAL for entries in another order than that of acl(5), or without those that must be there."""
    before, named, masked = 0, False, False
    for tag, perm, _ in entries:
        if perm & ~7 or tag not in _AFTER[before]:
            refuse(errno.EINVAL)
        named |= tag in (USER, GROUP)
        masked |= tag == MASK
        before = tag
    if before != OTHER or (named and not masked):
        refuse(errno.EINVAL)


def allows(process: Process, attr: Attr, entries: list[Entry], wanted: int) -> bool:
    """posix_acl_permission: the first entry that fits decides; among groups any that grants it all.

    The mask limits all but the owner and others. EIO if no entry is for the others.
    """
    found = False
    for at, (tag, perm, who) in enumerate(entries):
        if tag == OTHER:
            return not found and perm & wanted == wanted
        if tag == USER_OBJ:
            if process.uid == attr.uid:
                return perm & wanted == wanted
        elif tag == USER:
            if who == process.uid:
                return _masked(entries, at) & wanted == wanted
        elif tag in (GROUP_OBJ, GROUP) and in_group(
            process, attr.gid if tag == GROUP_OBJ else who
        ):
            found = True
            if perm & wanted == wanted:
                return _masked(entries, at) & wanted == wanted
    refuse(errno.EIO)


def _masked(entries: list[Entry], at: int) -> int:
    """The permissions of an entry under the mask behind it."""
    for tag, perm, _ in entries[at + 1 :]:
        if tag == MASK:
            return entries[at].perm & perm
    return entries[at].perm
