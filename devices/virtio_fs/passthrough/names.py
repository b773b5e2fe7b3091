"""Names that go or move: UNLINK, RMDIR, RENAME, RENAME2."""

from __future__ import annotations

from vmsim.fuse.abi.flags import RENAME_EXCHANGE
from vmsim.fuse.filesystem import Context

from .create import CreateOps
from .inodes import PINNED, Inode


class NameOps(CreateOps):
    """Requests that take names away or move them; what we know of places follows."""

    def unlink(self, ctx: Context, parent: int, name: bytes) -> None:
        """UNLINK."""
        directory, dir_fd = self._place(parent, name)
        inode = self._about_to_go(directory, dir_fd, name)
        self.host.unlink(dir_fd, name)
        self._gone(inode, directory, name)

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> None:
        """RMDIR."""
        directory, dir_fd = self._place(parent, name)
        inode = self._about_to_go(directory, dir_fd, name)
        self.host.rmdir(dir_fd, name)
        self._gone(inode, directory, name)

    def _about_to_go(self, directory: Inode, dir_fd: int, name: bytes) -> Inode | None:
        directory.hot |= PINNED
        try:
            return self.known_at(dir_fd, name)
        finally:
            directory.hot &= ~PINNED

    def _gone(self, inode: Inode | None, directory: Inode, name: bytes) -> None:
        _forget_place(inode, directory, name)
        if self.watch is not None:
            self.watch.unlinked(inode, directory, name)

    def rename(
        self, ctx: Context, parent: int, name: bytes, newparent: int, newname: bytes, flags: int
    ) -> None:
        """RENAME and RENAME2."""
        directory, dir_fd = self._place(parent, name)
        directory.hot |= PINNED
        target: Inode | None = None
        try:
            target, target_fd = self._place(newparent, newname)
            target.hot |= PINNED
            inode = self.known_at(dir_fd, name)
            replaced = self.known_at(target_fd, newname)
            self.host.rename(dir_fd, name, target_fd, newname, flags)
        finally:
            directory.hot &= ~PINNED
            if target is not None:
                target.hot &= ~PINNED
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
        if self.watch is not None:
            self.watch.renamed(inode, directory, name, target, newname, replaced, exchanged)


def _forget_place(inode: Inode | None, directory: Inode, name: bytes) -> None:
    if inode is not None and inode.parent_id == directory.id and inode.name == name:
        inode.parent_id = 0
        inode.name = None
