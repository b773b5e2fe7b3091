"""Whether what a file handle of a state leads to lies in the share: by identity, never by comparing paths.

A file handle names any file of a file system, also one outside of the share, and a path string says nothing
about that: in a changed root every path begins like the share's, a share may be renamed or mounted over, and
files that the kernel cannot place have the path "/". What counts instead:

* of a directory, the way up by ``..`` ends at the share's root (device, inode number, mount), or it does not;
* of a file, the kernel knows whether it is below the root of the mount that it was opened through. The mounts
  below the share have their roots in the share; the share's own mount is cloned for this, with the share as
  its root, where that is permitted.

What neither tells has to be found by a name in the share: where it is said to be, or by a look at everything
(``InodeRestorer.unproven``).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vmsim.limits import STATE_MOUNT_FDS

if TYPE_CHECKING:
    from ..passthrough.host_calls import HostFs

Key = tuple[int, int, int]

DEPTH_MAX: Final = 1 << 16
"""Directories on the way up from one that are looked at."""

MOUNT_ROOT: Final = 0x2000
"""STATX_ATTR_MOUNT_ROOT."""

MODE: Final = 9
ATTRIBUTES: Final = 2
"""Its place in the result of ``HostFs.statx``."""


class Way:
    """How handles of one mount are opened: ``fd`` is of the mount ``mnt_id`` itself, ``through`` is used.

    ``tells``: the kernel's word on what was opened through it counts.
    """

    __slots__ = ("fd", "mnt_id", "tells", "through")

    def __init__(self, fd: int, mnt_id: int, through: int, tells: bool) -> None:
        self.fd = fd
        self.mnt_id = mnt_id
        self.through = through
        self.tells = tells


class Proof:
    """Opens mounts below the share for file handles, and judges what was opened. ``close`` gives all back."""

    def __init__(self, host: HostFs, root_fd: int) -> None:
        self._host = host
        self._root_fd = root_fd
        attr, dev, mnt_id, _ = host.identify(root_fd)
        self._root: Key = (dev, attr[0], mnt_id)
        self._inside: set[Key] = {self._root}
        self._ways: dict[bytes, Way] = {}
        self._clone: list[int] = []
        self._own: Way | None = None

    def close(self) -> None:
        """Close all descriptors."""
        with ExitStack() as stack:  # all of them, whatever one of the calls says
            for fd in (*self._clone, *(way.fd for way in self._ways.values())):
                stack.callback(self._host.close, fd)
            self._ways.clear()
            self._clone.clear()
        self._own = None

    def way(self, path: bytes) -> Way:
        """The mount that ``path`` (relative to the share, ``.``: its root) lies in; OSError without it."""
        way = self._ways.get(path)
        if way is None:
            if len(self._ways) >= STATE_MOUNT_FDS:  # a state may name any number of them
                self._host.close(self._ways.pop(next(iter(self._ways))).fd)
            way = self._ways[path] = self._open(path)
        return way

    def _open(self, path: bytes) -> Way:
        host = self._host
        flags = os.O_RDONLY | os.O_DIRECTORY
        if path == b".":
            fd = host.reopen(self._root_fd, flags)
        else:
            fd = self._open_point(path)
        try:
            mnt_id = host.identify(fd)[2]
            if mnt_id != self._root[2]:
                return Way(fd, mnt_id, fd, True)  # mounted below the share, and so is its root
            own = self._own_mount()
            return Way(fd, mnt_id, own.through if own.through >= 0 else fd, own.tells)
        except BaseException:
            host.close(fd)
            raise

    def _open_point(self, path: bytes) -> int:
        """What open_by_handle_at takes for a mount: its directory, or the one file of a bind mount."""
        host = self._host
        there = host.open_beneath(self._root_fd, path, os.O_PATH)
        try:
            mode = host.fstat(there)[MODE]
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise OSError(errno.EINVAL, "special files are never opened")
            return host.reopen(there, os.O_RDONLY | os.O_NONBLOCK)
        finally:
            host.close(there)

    def _own_mount(self) -> Way:
        """How handles of the mount that the share's root lies in are opened."""
        if self._own is None:
            host, root_fd, through = self._host, self._root_fd, -1
            tells = bool(host.statx(root_fd, 0, 0)[ATTRIBUTES] & MOUNT_ROOT)
            if not tells:
                try:
                    self._clone.append(host.clone_mount(root_fd))
                    self._clone.append(host.reopen(self._clone[0], os.O_RDONLY | os.O_DIRECTORY))
                except OSError:
                    pass  # not permitted, or an old kernel
                else:
                    through, tells = self._clone[1], True
                    attr, dev, mnt_id, _ = host.identify(through)
                    self._inside.add((dev, attr[0], mnt_id))
            self._own = Way(root_fd, self._root[2], through, tells)
        return self._own

    def holds(self, way: Way, fd: int, key: Key, mode: int) -> bool:
        """Whether ``fd``, which was opened through ``way`` and is ``key``, is known to be in the share."""
        if stat.S_ISDIR(mode):
            return self._leads_up(fd, key)
        if way.tells:
            return self._host.below_mount(fd)
        return self._is_named(fd, key)

    def _is_named(self, fd: int, key: Key) -> bool:
        """Whether a name in the share is ``key``: the kernel's name of ``fd``, which is only a guess."""
        host = self._host
        try:
            root = host.path_of(self._root_fd)
            guess = host.path_of(fd)[len(root.rstrip(b"/")) + 1 :]
            above, _, name = guess.rpartition(b"/")
            dir_fd = host.open_beneath(self._root_fd, above or b".", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return False
        try:
            return host.identify_at(dir_fd, name)[:3] == key
        except OSError:
            return False
        finally:
            host.close(dir_fd)

    def _leads_up(self, fd: int, key: Key) -> bool:
        """Whether ``..`` leads from a directory to the share's root; what is known of the way is used."""
        host = self._host
        passed: set[Key] = set()
        here = -1
        try:
            while key not in self._inside:
                if key in passed or len(passed) >= DEPTH_MAX:
                    return False  # the root of everything, whose parent is itself
                passed.add(key)
                above = host.open_parent(fd if here < 0 else here)
                if here >= 0:
                    host.close(here)
                here = above
                attr, dev, mnt_id, _ = host.identify(here)
                key = (dev, attr[0], mnt_id)
        except OSError:
            return False  # not connected with the root of its mount
        finally:
            if here >= 0:
                host.close(here)
        self._inside |= passed
        return True

