"""The guest's inodes: what the server told us about each, and how many lookups we owe it back.

A node lives while somebody refers to it (a descriptor, a working directory, a dentry, a child directory, a
path walk under way). With the last reference its lookups are owed to the server as one FORGET.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from msgspec.structs import astuple

from vmsim.fuse.abi.flags import ATTR_SUBMOUNT
from vmsim.fuse.abi.headers import FUSE_ROOT_ID
from vmsim.guest.state import Attr, KernelState, Node, Submount
from vmsim.limits import SUBMOUNTS_MAX

NSEC: Final = 1_000_000_000
FOREVER_NS: Final = (1 << 63) - 1


def valid_until(now_ns: int, seconds: int, nsec: int) -> int:
    """When something that is valid for the given time from now ends; no later than the end of time."""
    return min(FOREVER_NS, now_ns + seconds * NSEC + min(nsec, NSEC - 1))


def make_stat(attr: Attr, device_number: int) -> os.stat_result:
    """``attr`` as Python's ``os`` presents it."""
    (
        ino, size, blocks, atime, mtime, ctime, ansec, mnsec, cnsec, mode, nlink, uid, gid, rdev, blksize, _,
    ) = astuple(attr)  # fmt: skip
    if rdev:
        rdev = os.makedev((rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))
    # Seconds as floats are computed just as CPython does it, so that they compare equal to the host's.
    return os.stat_result((
        mode, ino, device_number, nlink, uid, gid, size, atime, mtime, ctime,
        atime + 1e-9 * ansec, mtime + 1e-9 * mnsec, ctime + 1e-9 * cnsec,
        atime * NSEC + ansec, mtime * NSEC + mnsec, ctime * NSEC + cnsec, blksize, blocks, rdev,
    ))  # fmt: skip


class NodeTable:
    """Operations on the nodes of a kernel's state."""

    __slots__ = ("gone", "nodes", "state")

    def __init__(self, state: KernelState) -> None:
        self.state = state
        self.nodes = state.nodes
        self.gone: Callable[[int], None] | None = None

    def get(self, nodeid: int) -> Node:
        """The node; ESTALE if it is gone (its session ended)."""
        node = self.nodes.get(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def add_root(self, attr: Attr) -> Node:
        """The root: never looked up, never forgotten, always referenced."""
        node = Node(FUSE_ROOT_ID, 0, attr, refs=1, parent=FUSE_ROOT_ID)
        node.device_number = self.state.config.device_number
        self.nodes[FUSE_ROOT_ID] = node
        return node

    def learn(self, nodeid: int, generation: int, attr: Attr) -> tuple[Node, bool]:
        """Note one lookup of ``nodeid`` with a reference for the caller; the node and whether it is new.

        EIO if the server answers with the root's id, or with another kind of file than it said before.
        """
        if nodeid == FUSE_ROOT_ID:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        node = self.nodes.get(nodeid)
        if node is not None and (
            node.generation != generation or stat.S_IFMT(node.attr.mode) != stat.S_IFMT(attr.mode)
        ):
            self.state.forgets.append((nodeid, 1))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if node is None:
            node = Node(nodeid, generation, attr, nlookup=1, refs=1)
            node.device_number = self.state.config.device_number
            self.nodes[nodeid] = node
            return node, True
        node.nlookup += 1
        node.refs += 1
        return node, False

    def hold(self, nodeid: int) -> None:
        """One more reference."""
        self.get(nodeid).refs += 1

    def drop(self, nodeid: int) -> None:
        """One reference less; the last one queues a FORGET and lets go of the parent."""
        nodes = self.nodes
        while True:
            node = nodes.get(nodeid)
            if node is None:
                return
            node.refs -= 1
            if node.refs > 0 or nodeid == FUSE_ROOT_ID:
                return
            del nodes[nodeid]
            if self.gone is not None:
                self.gone(nodeid)
            if node.nlookup:
                self.state.forgets.append((nodeid, node.nlookup))
            if not node.parent:
                return
            nodeid = node.parent

    def place(self, node: Node, parent: int, name: bytes) -> None:
        """Say where a directory lies; ELOOP if that would put it beneath itself."""
        if not stat.S_ISDIR(node.attr.mode) or node.id == FUSE_ROOT_ID:
            return
        node.detached = False
        above = self.get(parent)
        node.name = name
        if node.parent == parent:
            return
        at = parent
        while at != FUSE_ROOT_ID:
            if at == node.id:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            at = self.get(at).parent
        old, node.parent = node.parent, parent
        above.refs += 1
        if old:
            self.drop(old)

    def put_on_device(self, node: Node, parent: int, name: bytes, flags: int) -> None:
        """Say which device a node is on that was found as ``name``: its directory's, or its own mount's.

        ``flags`` are those of the entry; attributes that come by GETATTR do not tell mounts.
        """
        if node.id == FUSE_ROOT_ID:
            return
        above = self.get(parent)
        if flags & ATTR_SUBMOUNT:
            node.device_number = self._submount(above, name, node.id)
        else:
            node.device_number = above.device_number

    def _submount(self, above: Node, name: bytes, nodeid: int) -> int:
        """The device number of what is mounted at a place: the same as long as the guest remembers it.

        It goes by the place, since nodes come and go while a file system stays mounted; but what is mounted
        over another one, whose root the guest still uses, gets its own. Numbers only count up, as those of
        Linux's anonymous devices: two mounts never share one.
        """
        state = self.state
        place = (above.device_number, above.attr.ino, name)
        known = state.submounts.pop(place, None)
        if known is None or (known.nodeid != nodeid and known.nodeid in self.nodes):
            state.last_device = max(state.last_device, state.config.device_number) + 1
            known = Submount(state.last_device)
            if len(state.submounts) >= SUBMOUNTS_MAX:
                del state.submounts[next(iter(state.submounts))]
        known.nodeid = nodeid
        state.submounts[place] = known
        return known.device_number

    def path(self, nodeid: int) -> bytes:
        """A directory's absolute path; ENOENT if it was removed."""
        names = []
        while nodeid != FUSE_ROOT_ID:
            node = self.get(nodeid)
            if node.detached or not node.parent:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            names.append(node.name)
            nodeid = node.parent
        return b"/" + b"/".join(reversed(names))
