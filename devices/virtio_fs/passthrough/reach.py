"""From an inode to a descriptor: the cache, an open handle, the file handle, its place, a search.

Whatever is found by name is compared with what the inode was (device, number, mount, and the file handle or
birth time), so that an impostor under its name is never served: the guest gets ESTALE instead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from vmsim.limits import PATH_MAX

from .core import BIRTH, Core
from .host_calls import MODE
from .inodes import HOT, OK, Inode, unpack_handle, unusable

NOT_THERE: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE, errno.ENAMETOOLONG)
)
NO_MORE_FDS: Final = (errno.EMFILE, errno.ENFILE)
DT_UNKNOWN: Final = 0
DT_DIR: Final = 4


LISTING: Final = os.O_RDONLY | os.O_DIRECTORY


def open_listing(open_with: Callable[[int], int]) -> int:
    """Open a directory to read it for ourselves: its access time stays, where that is ours to say."""
    try:
        return open_with(LISTING | os.O_NOATIME)
    except PermissionError:
        return open_with(LISTING)


class Reach:
    """Finds inodes on the host."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def path_fd(self, inode: Inode) -> int:
        """A descriptor of the inode, good until the next call that opens something; ESTALE if it is gone.

        It may be an O_PATH one. It belongs to the cache: do not close it.
        """
        if inode.fd >= 0:
            inode.hot |= HOT
            return inode.fd
        if inode.state != OK:
            raise unusable(inode)
        for handle in self._core.handles.of_inode(inode.id):
            return handle.fd
        fd = self._open_by_handle(inode)
        if fd < 0:
            return self._walk_to(inode)
        self._core.fds.insert(inode, fd)
        return fd

    def open_at(self, dir_fd: int, path: bytes, flags: int = os.O_PATH) -> int:
        """Open beneath ``dir_fd``; when descriptors run out, the cache gives one up first."""
        try:
            return self._core.host.open_beneath(dir_fd, path, flags)
        except OSError as error:
            if error.errno not in NO_MORE_FDS or not self._core.fds.evict():
                raise
        return self._core.host.open_beneath(dir_fd, path, flags)

    def _open_by_handle(self, inode: Inode) -> int:
        """A new descriptor, or -1 if the inode has no usable file handle."""
        if not self._core.by_handle or inode.mount.fd < 0 or inode.handle is None:
            return -1
        kind, raw = unpack_handle(inode.handle)
        if kind == BIRTH:
            return -1
        try:
            return self._core.host.open_handle(inode.mount.fd, kind, raw, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in NO_MORE_FDS or not self._core.fds.evict():
                raise
        return self._core.host.open_handle(inode.mount.fd, kind, raw, os.O_PATH | os.O_NOFOLLOW)

    def _walk_to(self, inode: Inode) -> int:
        """Go from the nearest ancestor with a descriptor down to the inode; search where that fails."""
        parent: Inode | None = None
        for step in self._way_to(inode):
            if step.fd < 0:
                fd = self._open_child(parent, step)
                try:
                    self._core.fds.insert(step, fd if fd >= 0 else self._search(step))
                except OSError as error:
                    # A directory that is gone may have had something in it that is elsewhere now.
                    if step is inode or error.errno != errno.ESTALE:
                        raise
            parent = step
        return inode.fd

    def _way_to(self, inode: Inode) -> list[Inode]:
        """The inodes from one that has a descriptor, or whose place is unknown, down to ``inode``."""
        way = [inode]
        seen = {inode.id}
        node = inode
        while node.fd < 0 and node.name is not None:
            parent = self._core.inodes.get(node.parent_id)
            # Third parties can rename so that our hints form a circle.
            if parent is None or parent.state != OK or parent.id in seen:
                break
            seen.add(parent.id)
            way.append(parent)
            node = parent
        way.reverse()
        return way

    def _open_child(self, parent: Inode | None, child: Inode) -> int:
        """What is at the child's place, or -1 if it is not the child."""
        if parent is None or parent.fd < 0 or child.name is None or child.parent_id != parent.id:
            return -1
        try:
            fd = self.open_at(parent.fd, child.name)
        except OSError as error:
            if error.errno in NOT_THERE:
                return -1
            raise
        if self.is_same(child, fd):
            return fd
        self._core.host.close(fd)
        return -1

    def is_same(self, inode: Inode, fd: int) -> bool:
        """Whether ``fd`` refers to what ``inode`` is."""
        try:
            attr, dev, mnt_id, _ = self._core.host.identify(fd)
            if (dev, attr[0], mnt_id) != inode.key or stat.S_IFMT(attr[MODE]) != inode.mode:
                return False
            return inode.handle is None or self._core.evidence(fd) == inode.handle
        except OSError:
            return False

    # -- searching -------------------------------------------------------------------------------

    def _search(self, inode: Inode) -> int:
        """Look through the share, the last known directory first; ESTALE if it is not found.

        Somebody else has renamed it. The number of entries that are looked at is bounded
        (``search_entries``), and so is the length of paths.
        """
        inode.name = None
        parent = self._core.inodes.get(inode.parent_id)
        inode.parent_id = 0
        budget = self._core.options.search_entries
        if parent is not None and parent.fd >= 0:
            for dir_fd, name in self._candidates(parent.fd, inode, budget, recurse=False):
                if (fd := self._candidate(inode, dir_fd, name)) >= 0:
                    return fd
        for dir_fd, name in self._candidates(self._core.root.fd, inode, budget, recurse=True):
            if (fd := self._candidate(inode, dir_fd, name)) >= 0:
                return fd
        raise OSError(errno.ESTALE, "the inode is not in the share any more")

    def _candidate(self, inode: Inode, dir_fd: int, name: bytes) -> int:
        """The inode's descriptor if this name is it, else -1; the place is remembered."""
        try:
            if self._core.host.identify_at(dir_fd, name)[:3] != inode.key:
                return -1
            fd = self.open_at(dir_fd, name)
        except OSError:
            return -1
        if not self.is_same(inode, fd):
            self._core.host.close(fd)
            return -1
        attr, dev, mnt_id, _ = self._core.host.identify(dir_fd)
        parent = self._core.inodes.find(dev, attr[0], mnt_id)
        if parent is not None and parent is not inode:
            inode.parent_id = parent.id
            inode.name = name
        return fd

    def _candidates(
        self, base_fd: int, inode: Inode, budget: int, recurse: bool
    ) -> Iterator[tuple[int, bytes]]:
        """(directory, name) of what may be the inode; the descriptor is good until the next is asked for."""
        todo = [b""]
        while todo and budget > 0:
            path = todo.pop()
            try:
                if path:
                    dir_fd = open_listing(partial(self.open_at, base_fd, path))
                else:
                    dir_fd = open_listing(partial(self._core.host.reopen, base_fd))
            except OSError:
                continue
            try:
                position = 0
                while budget > 0 and (entries := self._core.host.getdents(dir_fd, position)):
                    budget -= len(entries)
                    position = -1
                    for ino, _, kind, name in entries:
                        if self._core.slow_names and any(name == place for _, place in self._core.slow_names):
                            continue
                        below = kind in (DT_DIR, DT_UNKNOWN) and name not in (b".", b"..")
                        # The number of a mount point is here that of the directory beneath the mount.
                        if below or ino == inode.ino:
                            yield dir_fd, name
                        if recurse and below and len(path) + len(name) + 2 < PATH_MAX:
                            todo.append(path + b"/" + name if path else name)
            except OSError:
                continue
            finally:
                self._core.host.close(dir_fd)
