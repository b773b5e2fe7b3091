"""Names that go or move: UNLINK, RMDIR, RENAME, RENAME2."""

from __future__ import annotations

from vmsim.fuse.abi.flags import RENAME_EXCHANGE
from vmsim.fuse.filesystem import Context, FileSystem

from .core import Core
from .create import CreateOps
from .fdcache import pinned
from .inodes import Inode
from .lookup import LookupOps


class NameOps(FileSystem):
    """Requests that take names away or move them; what we know of places follows."""

    def __init__(self, core: Core, lookups: LookupOps, creation: CreateOps) -> None:
        self._core = core
        self._lookups = lookups
        self._creation = creation

    def unlink(self, ctx: Context, parent: int, name: bytes) -> None:
        """UNLINK."""
        directory, dir_fd = self._creation.place(parent, name)
        inode = self._about_to_go(directory, dir_fd, name, frees=True)
        self._core.host.unlink(dir_fd, name)
        self._gone(inode, directory, name)

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> None:
        """RMDIR."""
        directory, dir_fd = self._creation.place(parent, name)
        inode = self._about_to_go(directory, dir_fd, name)
        self._core.host.rmdir(dir_fd, name)
        self._gone(inode, directory, name)

    def _about_to_go(
        self, directory: Inode, dir_fd: int, name: bytes, *, frees: bool = False
    ) -> Inode | None:
        with pinned(directory):
            return self._lookups.known_at(dir_fd, name, frees=frees)

    def _gone(self, inode: Inode | None, directory: Inode, name: bytes) -> None:
        _forget_place(inode, directory, name)
        if self._core.watch is not None:
            self._core.watch.unlinked(inode, directory, name)

    def rename(
        self, ctx: Context, parent: int, name: bytes, newparent: int, newname: bytes, flags: int
    ) -> None:
        """RENAME and RENAME2."""
        directory, dir_fd = self._creation.place(parent, name)
        with pinned(directory):
            target, target_fd = self._creation.place(newparent, newname)
            with pinned(target):
                inode = self._lookups.known_at(dir_fd, name)
                replaced = self._lookups.known_at(target_fd, newname, frees=not flags & RENAME_EXCHANGE)
                self._core.host.rename(dir_fd, name, target_fd, newname, flags)
        if inode is replaced and inode is not None:
            # Two names of one inode: rename(2) does nothing then, and says so to nobody.
            return
        exchanged = bool(flags & RENAME_EXCHANGE)
        if inode is not None:
            inode.parent_id, inode.name = target.id, newname
        if exchanged and replaced is not None:
            replaced.parent_id, replaced.name = directory.id, name
        elif not exchanged:
            _forget_place(replaced, target, newname)
        if self._core.watch is not None:
            self._core.watch.renamed(inode, directory, name, target, newname, replaced, exchanged)


def _forget_place(inode: Inode | None, directory: Inode, name: bytes) -> None:
    if inode is not None and inode.parent_id == directory.id and inode.name == name:
        inode.parent_id = 0
        inode.name = None
