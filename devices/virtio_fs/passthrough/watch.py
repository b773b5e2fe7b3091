"""The hook through which a state collection follows what the guest does to names."""

from __future__ import annotations

from typing import Protocol

from .inodes import Inode


class TreeWatch(Protocol):
    """Told after each operation that succeeded; ``fs.watch`` is None while nobody looks."""

    def named(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """``name`` in ``parent`` is ``inode``: LOOKUP, READDIRPLUS, CREATE, MKNOD, MKDIR, SYMLINK, LINK."""
        ...

    def unlinked(self, inode: Inode | None, parent: Inode, name: bytes) -> None:
        """``name`` is gone (UNLINK, RMDIR); ``inode`` is what it was, None if the guest does not know it."""
        ...

    def renamed(
        self, inode: Inode | None, parent: Inode, name: bytes, newparent: Inode, newname: bytes,
        replaced: Inode | None, exchanged: bool,
    ) -> None:  # fmt: skip
        """``inode`` moved; ``replaced`` was at the new place, and is at the old one now if ``exchanged``.

        Either is None if the guest does not know it.
        """
        ...

    def forgotten(self, inode: Inode) -> None:
        """The guest does not know ``inode`` any more."""
        ...
