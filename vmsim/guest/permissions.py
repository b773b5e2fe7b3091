"""Permission checks in the guest (``default_permissions``, which virtio-fs mounts always have)."""

from __future__ import annotations

import errno
import os
import stat

from vmsim.guest.state import Attr, Process

R_OK = os.R_OK
W_OK = os.W_OK
X_OK = os.X_OK
SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID


def allowed(process: Process, attr: Attr, mask: int) -> bool:
    """Whether mode bits let the process do ``mask``; user 0 may all but execute what nobody may."""
    mode = attr.mode
    if process.uid == 0:
        return not mask & X_OK or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if process.uid == attr.uid:
        bits = mode >> 6
    elif attr.gid == process.gid or attr.gid in process.groups:
        bits = mode >> 3
    else:
        bits = mode
    return bits & mask == mask


def kept_mode(process: Process, attr: Attr) -> int:
    """The mode after the process has changed the content: set-user-ID and set-group-ID bits do not survive.

    As Linux' setattr_should_drop_suidgid: user 0 keeps both; a group bit that marks no program stays where
    the process is in the group.
    """
    mode = attr.mode
    if process.uid == 0 or not mode & SPECIAL_BITS or not stat.S_ISREG(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP or attr.gid not in (process.gid, *process.groups):
        mode &= ~stat.S_ISGID
    return mode


def check(process: Process, attr: Attr, mask: int) -> None:
    """EACCES unless ``allowed``."""
    if not allowed(process, attr, mask):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def check_owner(process: Process, attr: Attr) -> None:
    """EPERM unless the process owns the file or is user 0."""
    if process.uid not in (0, attr.uid):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def check_sticky(process: Process, directory: Attr, victim: Attr) -> None:
    """EPERM if the directory's sticky bit keeps the process from removing the victim."""
    if directory.mode & stat.S_ISVTX and process.uid not in (0, victim.uid, directory.uid):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
