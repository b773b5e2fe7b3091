"""Who may do what: Linux' rules (``default_permissions``, which virtio-fs mounts always have).

Each function is one of the kernel's, on plain values: whoever calls has the attributes (and the ACL) at hand.
References: path_resolution(7), capabilities(7), acl(5), xattr(7), and the functions of fs/ that are named.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NoReturn

from vmsim.guest.calls.capabilities import (
    ALL_CAPABILITIES,
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_FSETID,
)
from vmsim.guest.state import Attr, Process

R_OK = os.R_OK
W_OK = os.W_OK
X_OK = os.X_OK
SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID
SGID_PROGRAM: Final = stat.S_ISGID | stat.S_IXGRP


# The process


def effective(process: Process) -> int:
    """The effective capabilities as bits: unless they were set, all for user 0 and none for others."""
    own = process.capabilities
    return own if own is not None else 0 if process.uid else ALL_CAPABILITIES


def capable(process: Process, capability: int) -> bool:
    """Whether the capability is effective."""
    own = process.capabilities
    return not process.uid if own is None else bool(own >> capability & 1)


def in_group(process: Process, gid: int) -> bool:
    """Whether the process is in the group: as its own or as a supplementary one."""
    return gid == process.gid or gid in process.groups


def keeps_sgid(process: Process, gid: int) -> bool:
    """in_group_or_capable: who may have S_ISGID on a file of this group."""
    return in_group(process, gid) or capable(process, CAP_FSETID)


def owns(process: Process, attr: Attr) -> bool:
    """inode_owner_or_capable."""
    return process.uid == attr.uid or capable(process, CAP_FOWNER)


# Reading, writing, executing, searching


def overrides(process: Process, mode: int, mask: int) -> bool:
    """The second half of generic_permission: whether capabilities let the process do ``mask``."""
    own = effective(process)
    if not own:
        return False
    if own >> CAP_DAC_OVERRIDE & 1 and (not mask & X_OK or stat.S_ISDIR(mode) or mode & 0o111):
        return True
    if not own >> CAP_DAC_READ_SEARCH & 1:
        return False
    return not mask & W_OK if stat.S_ISDIR(mode) else mask == R_OK


def by_mode(process: Process, attr: Attr, mask: int) -> bool:
    """acl_permission_check without an ACL: what the mode bits say."""
    mode = attr.mode
    if process.uid == attr.uid:
        bits = mode >> 6
    elif in_group(process, attr.gid):
        bits = mode >> 3
    else:
        bits = mode
    return bits & mask == mask


# What does not survive


def kept_mode(process: Process, attr: Attr) -> int:
    """The mode after the process has changed the content (setattr_should_drop_suidgid).

    CAP_FSETID keeps both set-id bits; a group bit that marks no program stays where the process is in the
    group.
    """
    mode = attr.mode
    if not mode & SPECIAL_BITS or not stat.S_ISREG(mode) or capable(process, CAP_FSETID):
        return mode
    return _without_set_ids(process, attr)


def mode_after_chown(process: Process, attr: Attr, gid: int) -> int:
    """The mode once the owner or group (``gid``; -1: stays) was changed, by whomever (chown_common)."""
    mode = attr.mode
    if not mode & SPECIAL_BITS or stat.S_ISDIR(mode):
        return mode
    kept = _without_set_ids(process, attr)
    if kept != mode and not keeps_sgid(process, attr.gid if gid == -1 else gid):
        kept &= ~stat.S_ISGID
    return kept


def needs_groups(lost: int, mode: int) -> bool:
    """Whether the bits ``lost`` on the way to ``mode`` include one that a server, not knowing who is in which
    group, keeps."""
    return bool(lost & stat.S_ISGID) and not mode & stat.S_IXGRP


def _without_set_ids(process: Process, attr: Attr) -> int:
    mode = attr.mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or not keeps_sgid(process, attr.gid):
        mode &= ~stat.S_ISGID
    return mode


def mode_for_chmod(process: Process, attr: Attr, mode: int) -> int:
    """The bits that chmod sets: S_ISGID takes being in the group."""
    return mode if keeps_sgid(process, attr.gid) else mode & ~stat.S_ISGID


def mode_for_new(process: Process, directory: Attr, mode: int) -> int:
    """mode_strip_sgid: a set-group-ID program in a set-group-ID directory takes being in that group."""
    if mode & SGID_PROGRAM != SGID_PROGRAM or not directory.mode & stat.S_ISGID:
        return mode
    return mode if keeps_sgid(process, directory.gid) else mode & ~stat.S_ISGID


# Checks that raise


def refuse(number: int) -> NoReturn:
    """Raise the OSError for an errno."""
    raise OSError(number, os.strerror(number))


def check_owner(process: Process, attr: Attr) -> None:
    """EPERM unless the process owns the file or has CAP_FOWNER."""
    if not owns(process, attr):
        refuse(errno.EPERM)


def check_chown(process: Process, attr: Attr, uid: int, gid: int) -> None:
    """EPERM as chown_ok and chgrp_ok: owners may choose among their groups, CAP_CHOWN may all; -1 stays.

    Set-id bits that go are a change of mode, which is the owner's (or CAP_FOWNER's).
    """
    owner, chown = process.uid == attr.uid, capable(process, CAP_CHOWN)
    if uid != -1 and not chown and not (owner and uid == attr.uid):
        refuse(errno.EPERM)
    if gid != -1 and not chown and not (owner and (gid == attr.gid or in_group(process, gid))):
        refuse(errno.EPERM)
    if mode_after_chown(process, attr, gid) != attr.mode:
        check_owner(process, attr)


def check_sticky(process: Process, directory: Attr, victim: Attr) -> None:
    """EPERM if the directory's sticky bit keeps the process from removing the victim."""
    if not directory.mode & stat.S_ISVTX or process.uid in (victim.uid, directory.uid):
        return
    if not capable(process, CAP_FOWNER):
        refuse(errno.EPERM)
