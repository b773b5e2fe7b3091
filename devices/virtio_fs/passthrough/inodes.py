"""The inodes that the guest knows: small records, found by nodeid and by what they are on the host.

A nodeid is never used twice within a session, so entry replies always carry generation 0. An inode does not
need an open descriptor: :mod:`.fdcache` keeps some, and :mod:`.reach` finds the others again.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, KeysView
from operator import attrgetter
from typing import Final

from vmsim.errors import StateError
from vmsim.limits import STATE_INODES_MAX

ROOT_ID: Final = 1
"""nodeid of the share's root."""

OK: Final = 0
INVALID: Final = 1
STALE: Final = 2
"""States of an inode: usable; lost in a migration (every use: EIO); gone before one (every use: ESTALE)."""

COLD: Final = 0
HOT: Final = 1
PINNED: Final = 2
"""Bits of ``Inode.hot``: used since the last sweep, must keep its descriptor; COLD may lose it."""

FILE_TYPES: Final = {kind << 12: kind << 12 for kind in range(16)}
"""The S_IFMT bits of each type of file."""

_HANDLE_TYPE = struct.Struct("<i")


def pack_handle(handle_type: int, raw: bytes) -> bytes:
    """A file handle as ``Inode.handle`` keeps it: its type (4 bytes) and its bytes."""
    return _HANDLE_TYPE.pack(handle_type) + raw


def unpack_handle(handle: bytes) -> tuple[int, bytes]:
    """The type and the bytes of ``Inode.handle``; a negative type is a birth time, not a file handle."""
    return _HANDLE_TYPE.unpack_from(handle)[0], handle[4:]


class Mount:
    """A file system as it is mounted beneath the share.

    ``fd`` is a descriptor that open_by_handle_at accepts (-1: none); ``index`` finds inodes by number, and
    ``count`` is how many the guest knows. With the last of them the record goes, and its descriptor, so that
    the host can unmount.
    """

    __slots__ = ("count", "dev", "fd", "index", "memory", "mnt_id", "slow")

    def __init__(self, dev: int, mnt_id: int) -> None:
        self.dev = dev
        self.mnt_id = mnt_id
        self.fd = -1
        self.count = 0
        self.slow = False
        """Whether its calls may wait for somebody who does not answer."""
        self.memory = False
        """Whether it is no disk either."""
        self.index: dict[int, Inode] = {}


class Inode:
    """One inode that the guest knows.

    ``id`` is its nodeid and ``nlookup`` its lookup count; ``mode`` holds the S_IFMT bits. ``parent_id`` and
    ``name`` are where it was last seen (0 and None when that is not known any more). ``handle`` tells it from
    a successor with the same inode number, see ``pack_handle``; it is filled in before ``fd`` is given up.
    """

    __slots__ = ("fd", "handle", "hot", "id", "ino", "mode", "mount", "name", "nlookup", "parent_id", "state")

    def __init__(self, nodeid: int, mount: Mount, ino: int, mode: int) -> None:
        self.id = nodeid
        self.mount = mount
        self.ino = ino
        self.mode = FILE_TYPES.get(mode, mode)  # one int for all, not one for each
        self.nlookup = 0
        self.parent_id = 0
        self.name: bytes | None = None
        self.handle: bytes | None = None
        self.fd = -1
        self.hot = COLD
        self.state = OK

    @property
    def key(self) -> tuple[int, int, int]:
        """What it is on the host: (dev, ino, mnt_id)."""
        return (self.mount.dev, self.ino, self.mount.mnt_id)

    def __repr__(self) -> str:
        return f"Inode(id={self.id}, ino={self.ino}, nlookup={self.nlookup}, name={self.name!r})"


def unusable(inode: Inode) -> OSError:
    """What every use of an inode that is not OK ends with."""
    if inode.state == STALE:
        return OSError(errno.ESTALE, "the node was gone before a migration")
    return OSError(errno.EIO, "the node did not survive a migration")


NOWHERE: Final = Mount(0, 0)
"""The mount of invalid inodes; they are never indexed."""


def _keep(fd: int) -> None:
    """Nobody closes it."""


class InodeTable:
    """All inodes by nodeid, in ascending order of ids unless a restored state said otherwise.

    ``close`` closes the descriptor of a mount of which the guest knows nothing any more.
    """

    __slots__ = ("_by_id", "_close", "get", "mounts", "next_id", "root")

    def __init__(self, close: Callable[[int], None] = _keep) -> None:
        self._close = close
        self._by_id: dict[int, Inode] = {}
        self.get = self._by_id.get
        self.mounts: dict[tuple[int, int], Mount] = {}
        self.next_id = ROOT_ID + 1
        self.root: Inode | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._by_id

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._by_id.values())

    def clear(self) -> None:
        """Forget all but the root; nodeids begin anew."""
        self._by_id.clear()
        self.mounts.clear()
        self.next_id = ROOT_ID + 1
        if self.root is not None:
            root = self.root
            root.mount.index = {root.ino: root}
            root.mount.count = 1
            self.mounts[root.mount.dev, root.mount.mnt_id] = root.mount
            self._by_id[root.id] = root

    def ids(self) -> KeysView[int]:
        """All nodeids, as they are at any time."""
        return self._by_id.keys()

    def items(self) -> list[Inode]:
        """A snapshot of all inodes, ascending by nodeid."""
        inodes = list(self._by_id.values())
        inodes.sort(key=attrgetter("id"))
        return inodes

    def mount(self, dev: int, mnt_id: int) -> Mount:
        """The record of a mount, made when it is new."""
        mount = self.mounts.get((dev, mnt_id))
        if mount is None:
            mount = self.mounts[dev, mnt_id] = Mount(dev, mnt_id)
        return mount

    def find(self, dev: int, ino: int, mnt_id: int) -> Inode | None:
        """The inode with this key."""
        mount = self.mounts.get((dev, mnt_id))
        return None if mount is None else mount.index.get(ino)

    def add(self, mount: Mount, ino: int, mode: int) -> Inode:
        """A new inode with the next free nodeid; an older one with the same key leaves the index.

        ENFILE when the guest knows as many as it may.
        """
        if len(self._by_id) >= STATE_INODES_MAX:
            self._left(mount)
            raise OSError(errno.ENFILE, "the guest knows too many inodes")
        nodeid = self.next_id
        mount.count += 1
        inode = self._by_id[nodeid] = mount.index[ino] = Inode(nodeid, mount, ino, mode)
        self.next_id = nodeid + 1
        return inode

    def restore(self, nodeid: int, mount: Mount, ino: int, mode: int) -> Inode:
        """An inode with a given nodeid; StateError if that is taken or no nodeid."""
        if nodeid in self._by_id or not 0 < nodeid < 1 << 64:
            raise StateError(f"nodeid {nodeid} is taken or out of range", hint="the state is damaged")
        inode = self._by_id[nodeid] = Inode(nodeid, mount, ino, mode)
        if mount is not NOWHERE:
            mount.index.setdefault(ino, inode)
            mount.count += 1
        if nodeid == ROOT_ID:
            self.root = inode
        elif nodeid >= self.next_id:
            self.next_id = nodeid + 1
        return inode

    def unindex(self, inode: Inode) -> None:
        """Do not find this inode by its key any more: what it was is gone, or it is forgotten."""
        index = inode.mount.index
        if index.get(inode.ino) is inode:
            del index[inode.ino]

    def remove(self, inode: Inode) -> None:
        """Drop an inode that the guest does not know any more."""
        if self._by_id.pop(inode.id, None) is None:
            return  # another request has found that nobody knows it, while this one slept
        self.unindex(inode)
        mount = inode.mount
        if mount is not NOWHERE:
            mount.count -= 1
            self._left(mount)

    def close_with(self, close: Callable[[int], None]) -> None:
        """Close descriptors of mounts with this from now on."""
        self._close = close

    def _left(self, mount: Mount) -> None:
        """Drop the record of a mount of which the guest knows nothing."""
        if mount.count == 0 and self.mounts.pop((mount.dev, mount.mnt_id), None) is mount and mount.fd >= 0:
            self._close(mount.fd)
            mount.fd = -1
