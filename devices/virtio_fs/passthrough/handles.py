"""The files and directories that the guest holds open."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence

from vmsim.errors import StateError
from vmsim.limits import DIR_ENTRIES_MAX

from .inodes import Inode

DirEntry = tuple[int, int, int, bytes]
"""An entry of a directory: inode number, position after it, DT_ type, name."""


class Handle:
    """An open file or directory.

    ``flags`` are the EFFECTIVE open(2) flags of ``fd``, which are what a migration has to repeat;
    ``guest_flags`` are those that the guest asked for. ``fd`` is -1 for a handle that a migration could not
    open again; ``error`` is then the errno of every use but RELEASE. ``position`` is where the next getdents
    goes on (-1: seek first), ``pending`` are entries that were read but did not fit into the last reply.
    """

    __slots__ = (
        "error", "fd", "flags", "guest_flags", "id", "inode", "inode_id", "is_dir", "pending", "position",
    )  # fmt: skip

    def __init__(self, fh: int, inode: Inode, fd: int, flags: int, guest_flags: int, is_dir: bool) -> None:
        self.id = fh
        self.inode = inode
        self.inode_id = inode.id
        self.fd = fd
        self.flags = flags
        self.guest_flags = guest_flags
        self.is_dir = is_dir
        self.error = 0
        self.position = -1
        self.pending: Sequence[DirEntry] = ()

    def __repr__(self) -> str:
        return f"Handle(id={self.id}, inode_id={self.inode_id}, fd={self.fd}, flags={self.flags:#x})"


class HandleTable:
    """All handles by fh; fh values start at 0 and are never used twice within a session.

    ``limit`` bounds the descriptors that the guest may hold: beyond it ENFILE.
    """

    __slots__ = ("_ahead", "_by_id", "_by_inode", "_entries", "get", "limit", "next_id")

    def __init__(self, limit: int) -> None:
        self._by_id: dict[int, Handle] = {}
        self._by_inode: dict[int, Handle | dict[int, Handle]] = {}
        """Those that have a descriptor; most inodes are open once."""
        self.get = self._by_id.get
        self.next_id = 0
        self.limit = limit
        self._ahead: dict[int, Handle] = {}
        """Those that have ``pending`` entries, ``_entries`` in all, oldest first."""
        self._entries = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._by_id.values())

    def clear(self) -> None:
        """Forget all handles; their descriptors are the caller's to close. fh values begin anew."""
        self._by_id.clear()
        self._by_inode.clear()
        self._ahead.clear()
        self._entries = 0
        self.next_id = 0

    def items(self) -> list[Handle]:
        """A snapshot of all handles, ascending by fh."""
        return sorted(self._by_id.values(), key=lambda handle: handle.id)

    def of_inode(self, nodeid: int) -> Collection[Handle]:
        """The handles of one inode that have a descriptor, as they are until the next change."""
        found = self._by_inode.get(nodeid)
        if found is None:
            return ()
        return found.values() if isinstance(found, dict) else (found,)

    def require(self, fh: int, nodeid: int) -> Handle:
        """The handle; EBADF unless it belongs to ``nodeid``, its own error if it could not be restored."""
        handle = self.get(fh)
        if handle is None or handle.inode_id != nodeid:
            raise OSError(errno.EBADF, "no such handle of this node")
        if handle.error:
            raise OSError(handle.error, "the handle did not survive a migration")
        return handle

    def check_room(self) -> None:
        """ENFILE when the guest holds as many descriptors as it may."""
        if len(self._by_id) >= self.limit:
            raise OSError(errno.ENFILE, "too many open handles")

    def add(self, inode: Inode, fd: int, flags: int, guest_flags: int, is_dir: bool) -> Handle:
        """A new handle with the next free fh, which owns ``fd``."""
        return self._insert(Handle(self.next_id, inode, fd, flags, guest_flags, is_dir))

    def restore(self, fh: int, inode: Inode, fd: int, flags: int, guest_flags: int, is_dir: bool) -> Handle:
        """A handle with a given fh; StateError if that is taken or no fh."""
        if fh in self._by_id or not 0 <= fh < 1 << 64:
            raise StateError(f"fh {fh} is taken or out of range", hint="the state is damaged")
        return self._insert(Handle(fh, inode, fd, flags, guest_flags, is_dir))

    def _insert(self, handle: Handle) -> Handle:
        self._by_id[handle.id] = handle
        if handle.fd >= 0:
            others = self._by_inode.setdefault(handle.inode_id, handle)
            if isinstance(others, dict):
                others[handle.id] = handle
            elif others is not handle:
                self._by_inode[handle.inode_id] = {others.id: others, handle.id: handle}
        if handle.id >= self.next_id:
            self.next_id = handle.id + 1
        return handle

    def remove(self, handle: Handle) -> None:
        """Drop a handle; its descriptor is the caller's to close."""
        self.read_ahead(handle, (), -1)
        del self._by_id[handle.id]
        found = self._by_inode.get(handle.inode_id)
        if isinstance(found, dict):
            found.pop(handle.id, None)
        if not found or found is handle:
            self._by_inode.pop(handle.inode_id, None)

    def read_ahead(self, handle: Handle, entries: Sequence[DirEntry], position: int) -> None:
        """Keep what a directory gave beyond a reply; others lose theirs when it is too much altogether."""
        self._entries += len(entries) - len(handle.pending)
        handle.pending = entries
        handle.position = position
        self._ahead.pop(handle.id, None)
        if entries:
            self._ahead[handle.id] = handle
        while self._entries > DIR_ENTRIES_MAX:
            self.read_ahead(next(iter(self._ahead.values())), (), -1)
