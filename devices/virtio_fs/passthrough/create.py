"""Making things: SYMLINK, MKNOD, MKDIR, CREATE, TMPFILE, LINK.

They run with the caller's ids, so that the kernel gives the new inode its owner (and the group that SGID
directories ask for).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from vmsim.fuse.filesystem import Context, EntryReply, OpenReply

from .fdcache import pinned
from .files import FileOps
from .inodes import Inode
from .lookup import PATH_FLAGS

PERMISSIONS: Final = 0o7777


class CreateOps(FileOps):
    """Requests that make an inode or a name."""

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> EntryReply:
        """SYMLINK."""
        directory, dir_fd = self._place(parent, name)
        self.as_caller(ctx, True, lambda: self.host.symlink(target, dir_fd, name))
        return self._made(ctx, directory, dir_fd, name, self.host.unlink)

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> EntryReply:
        """MKNOD."""
        directory, dir_fd = self._place(parent, name)
        mask = self._umask(umask)
        self.as_caller(ctx, True, lambda: self.host.mknod(dir_fd, name, mode, rdev, mask))
        return self._made(ctx, directory, dir_fd, name, self.host.unlink)

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int, umask: int) -> EntryReply:
        """MKDIR."""
        directory, dir_fd = self._place(parent, name)
        mask = self._umask(umask)
        self.as_caller(ctx, True, lambda: self.host.mkdir(dir_fd, name, mode & PERMISSIONS, mask))
        return self._made(ctx, directory, dir_fd, name, self.host.rmdir)

    def link(self, ctx: Context, nodeid: int, newparent: int, newname: bytes) -> EntryReply:
        """LINK."""
        inode = self.require(nodeid)
        directory, dir_fd = self._place(newparent, newname)
        with pinned(directory):
            fd = self.path_fd(inode)
            self.host.link(fd, dir_fd, newname)
            return self.enter(self.open_at(dir_fd, newname), directory, newname)

    def create(
        self, ctx: Context, parent: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """CREATE: always made exclusively, so that a special file is never opened; an old one is opened."""
        self.handles.check_room()
        directory, dir_fd = self._place(parent, name)
        wanted = self.effective_flags(flags) & ~os.O_TRUNC
        mask = self._umask(umask)

        def make() -> int:
            exclusive = wanted | os.O_CREAT | os.O_EXCL
            return self.host.open_beneath(dir_fd, name, exclusive, mode & PERMISSIONS, mask)

        try:
            fd = self.as_caller(ctx, True, make)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self._open_existing(ctx, directory, dir_fd, name, flags, open_flags)
        try:
            self._label(ctx, fd)
        except OSError:
            self.host.close(fd)
            self.host.unlink(dir_fd, name)
            raise
        return self._opened(fd, directory, name, wanted, flags)

    def tmpfile(
        self, ctx: Context, parent: int, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """TMPFILE: it lives as long as its handle, or until LINK gives it a name."""
        self.check_writable()
        self.handles.check_room()
        directory = self.require_dir(parent)
        dir_fd = self.path_fd(directory)
        wanted = self.effective_flags(flags) & ~os.O_TRUNC
        if wanted & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EINVAL, "a temporary file is opened for writing")
        mask = self._umask(umask)
        keep = flags & os.O_EXCL

        def make() -> int:
            unnamed = wanted | os.O_TMPFILE | keep
            return self.host.open_beneath(dir_fd, b".", unnamed, mode & PERMISSIONS, mask)

        fd = self.as_caller(ctx, True, make)
        try:
            self._label(ctx, fd)
        except OSError:
            self.host.close(fd)
            raise
        return self._opened(fd, directory, None, wanted, flags)

    def _place(self, parent: int, name: bytes) -> tuple[Inode, int]:
        """The directory in which something is made, and its descriptor."""
        self.check_writable()
        directory = self.require_dir(parent)
        self.component(name)
        fd = self.path_fd(directory)
        if self.aside is not None:
            self.aside.hold(fd)
        return directory, fd

    def _umask(self, umask: int) -> int:
        """The guest has applied its umask itself, unless DONT_MASK came with POSIX_ACL."""
        return umask & 0o777 if self.posix_acl else 0

    def _made(
        self, ctx: Context, directory: Inode, dir_fd: int, name: bytes, undo: Callable[[int, bytes], None]
    ) -> EntryReply:
        """Look up what was made, with its security label."""
        fd = self.open_at(dir_fd, name)
        try:
            self._label(ctx, fd)
        except OSError:
            self.host.close(fd)
            undo(dir_fd, name)
            raise
        return self.enter(fd, directory, name)

    def _label(self, ctx: Context, fd: int) -> None:
        for name, value in ctx.security:
            self.host.setxattr(fd, self.xattr_map.to_host(name), value, 0)

    def _opened(
        self, fd: int, directory: Inode, name: bytes | None, wanted: int, flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """The replies for a new file that ``fd`` has open."""
        try:
            path_fd = self.host.reopen(fd, os.O_PATH)
            inode, attr = self.admit(path_fd)
        except BaseException:
            self.host.close(fd)
            raise
        handle = self.handles.add(inode, fd, wanted, flags, False)
        return self.entry(inode, attr, directory, name), (handle.id, self.open_reply_flags(False), 0)

    def _open_existing(
        self, ctx: Context, directory: Inode, dir_fd: int, name: bytes, flags: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        inode, attr = self.admit(self.open_at(dir_fd, name, PATH_FLAGS))
        try:
            reply = self.open(ctx, inode.id, flags, open_flags)
        except BaseException:
            if inode.nlookup == 0 and inode is not self.root:
                self.drop(inode)
            raise
        if flags & os.O_TRUNC:
            attr = self._fstat(self.path_fd(inode))
        return self.entry(inode, attr, directory, name), reply
