"""LOOKUP and FORGET: names become nodeids, lookup counts go up and down."""

from __future__ import annotations

import os
import stat
from typing import Final

from vmsim.fuse.abi.flags import ATTR_SUBMOUNT
from vmsim.fuse.filesystem import Context, EntryReply, FileSystem

from .core import Core
from .host_calls import INO, MODE, HostAttr
from .inodes import HOT, ROOT_ID, Inode, Mount
from .reach import Reach

PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW


class LookupOps(FileSystem):
    """Entries and their lookup counts."""

    def __init__(self, core: Core, reach: Reach) -> None:
        self._core = core
        self._reach = reach

    def lookup(self, ctx: Context, parent: int, name: bytes) -> EntryReply:
        """LOOKUP."""
        directory = self._core.require_dir(parent)
        self._core.component(name)
        return self.meet(self._reach.path_fd(directory), directory, name)

    def meet(self, dir_fd: int, directory: Inode, name: bytes) -> EntryReply:
        """The entry for a name in ``directory``; its lookup count goes up.

        Nothing is opened for an inode that is known: a descriptor that was open all the time proves that it
        is still the same file, and so does the evidence that took the descriptor's place.
        """
        attr, dev, mnt_id, _ = self._core.host.identify_name(dir_fd, name)
        mount = self._core.inodes.mounts.get((dev, mnt_id))
        inode = None if mount is None else mount.index.get(attr[0])
        if inode is not None and inode.mode == attr[MODE] & 0o170000:
            if inode.fd >= 0:
                inode.hot |= HOT
                return self.entry(inode, attr, directory, name)
            evidence = inode.handle
            same = evidence is not None and self._core.evidence_at(dir_fd, name, evidence) == evidence
            if same and self._core.inodes.get(inode.id) is inode:  # not forgotten meanwhile
                return self.entry(inode, attr, directory, name)
        return self.enter(self._reach.open_at(dir_fd, name), directory, name)

    def enter(self, fd: int, parent: Inode, name: bytes) -> EntryReply:
        """The entry for what ``fd`` (O_PATH, ours from now on) refers to; its lookup count goes up."""
        inode, attr = self.admit(fd)
        return self.entry(inode, attr, parent, name)

    def entry(self, inode: Inode, attr: HostAttr, parent: Inode, name: bytes | None) -> EntryReply:
        """The reply, and the count of one lookup; ``name`` None: it has none (TMPFILE)."""
        inode.nlookup += 1
        if name is not None:
            inode.parent_id = parent.id
            inode.name = name
            if self._core.watch is not None:
                self._core.watch.named(inode, parent, name)
        if self._core.translates:
            attr = self._core.guest_attr(inode.id, attr)
        if self._core.submounts and inode.mount is not parent.mount:
            attr = (*attr[:15], ATTR_SUBMOUNT)
        validity = self._core.validity_s
        return (inode.id, 0, validity, validity, 0, 0, *attr)

    def admit(self, fd: int) -> tuple[Inode, HostAttr]:
        """The inode that ``fd`` (O_PATH, ours from now on) refers to, perhaps a new one; not counted yet."""
        try:
            attr, dev, mnt_id, _ = self._core.host.identify(fd)
            mode = stat.S_IFMT(attr[MODE])
            while True:
                mount = self._core.mount_of(dev, mnt_id, fd, mode)
                inode = mount.index.get(attr[0])
                still = inode is None or self._is_still(inode, fd, mode)
                known = self._core.inodes.mounts.get((dev, mnt_id))
                if known is not mount or mount.index.get(attr[0]) is not inode:
                    continue  # another request has changed that while this one slept
                if inode is None or still:
                    break
                self._core.inodes.unindex(inode)
        except BaseException:
            self._core.host.close(fd)
            raise
        if inode is None:
            inode = self._add(mount, attr[0], mode, fd)
        elif inode.fd >= 0:
            inode.hot |= HOT
            self._core.host.close(fd)
        else:
            self._core.fds.insert(inode, fd)
        return inode, attr

    def _add(self, mount: Mount, ino: int, mode: int, fd: int) -> Inode:
        inode = self._core.inodes.add(mount, ino, mode)
        try:
            self._core.fds.insert(inode, fd)
        except OSError:
            self._core.inodes.remove(inode)
            raise
        return inode

    def _is_still(self, inode: Inode, fd: int, mode: int) -> bool:
        """Whether an inode with the same number is really the one that ``fd`` refers to."""
        if inode.fd >= 0:
            return inode.mode == mode
        return inode.mode == mode and (inode.handle is None or inode.handle == self._core.evidence(fd))

    def forget(self, nodeid: int, nlookup: int) -> None:
        """FORGET: counts stop at 0, the root stays."""
        inode = self._core.inodes.get(nodeid)
        if inode is None or nodeid == ROOT_ID:
            return
        left = inode.nlookup - nlookup
        if left > 0:
            inode.nlookup = left
            return
        inode.nlookup = 0
        self.drop(inode)

    def drop(self, inode: Inode) -> None:
        """The guest does not know this inode any more."""
        self._core.fds.discard(inode)
        self._core.inodes.remove(inode)
        self._core.told.forget(inode.id)
        if self._core.watch is not None:
            self._core.watch.forgotten(inode)

    def known_at(self, dir_fd: int, name: bytes, *, frees: bool = False) -> Inode | None:
        """The inode at a name that is about to go, if the guest knows it; it gets a descriptor meanwhile.

        An inode without file handle can only be reached by its name, so that it has to keep the descriptor
        when it loses that. ``frees``: so that TryAgain is raised if its content should go elsewhere.
        """
        try:
            check = self._core.check_freeing if frees else None
            if check is not None:
                attr, dev, mnt_id, _ = self._core.host.identify_name(dir_fd, name)
                ino, mode = attr[INO], attr[MODE]
            else:
                dev, ino, mnt_id, mode = self._core.host.identify_at(dir_fd, name)
        except OSError:
            return None
        if check is not None:
            check(attr)
        try:
            inode = self._core.inodes.find(dev, ino, mnt_id)
            if inode is None or inode.fd >= 0:
                return inode if inode is None or inode.mode == stat.S_IFMT(mode) else None
            fd = self._reach.open_at(dir_fd, name)
        except OSError:
            return None
        if not self._reach.is_same(inode, fd):
            self._core.host.close(fd)
            return None
        self._core.fds.insert(inode, fd)
        return inode
