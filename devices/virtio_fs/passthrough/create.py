"""Making things: SYMLINK, MKNOD, MKDIR, CREATE, TMPFILE, LINK.

They run with the caller's ids, so that the kernel gives the new inode its owner (and the group that SGID
directories ask for).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from vmsim.fuse.filesystem import Context, EntryReply, FileSystem, OpenReply

from .core import Core
from .fdcache import pinned
from .files import FileOps
from .inodes import Inode
from .lookup import PATH_FLAGS, LookupOps
from .reach import Reach

PERMISSIONS: Final = 0o7777


class CreateOps(FileSystem):
    """Requests that make an inode or a name."""

    def __init__(self, core: Core, reach: Reach, lookups: LookupOps, files: FileOps) -> None:
        self._core = core
        self._reach = reach
        self._lookups = lookups
        self._files = files

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> EntryReply:
        """SYMLINK."""
        directory, dir_fd = self.place(parent, name)
        self._core.as_caller(ctx, True, lambda: self._core.host.symlink(target, dir_fd, name))
        return self._made(ctx, directory, dir_fd, name, self._core.host.unlink)

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> EntryReply:
        """MKNOD."""
        directory, dir_fd = self.place(parent, name)
        mask = self._umask(umask)
        self._core.as_caller(ctx, True, lambda: self._core.host.mknod(dir_fd, name, mode, rdev, mask))
        return self._made(ctx, directory, dir_fd, name, self._core.host.unlink)

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int, umask: int) -> EntryReply:
        """MKDIR."""
        directory, dir_fd = self.place(parent, name)
        mask = self._umask(umask)
        self._core.as_caller(ctx, True, lambda: self._core.host.mkdir(dir_fd, name, mode & PERMISSIONS, mask))
        return self._made(ctx, directory, dir_fd, name, self._core.host.rmdir)

    def link(self, ctx: Context, nodeid: int, newparent: int, newname: bytes) -> EntryReply:
        """LINK."""
        inode = self._core.require(nodeid)
        directory, dir_fd = self.place(newparent, newname)
        with pinned(directory):
            fd = self._reach.path_fd(inode)
            self._core.host.link(fd, dir_fd, newname)
            return self._lookups.enter(self._reach.open_at(dir_fd, newname), directory, newname)

    def create(
        self, ctx: Context, parent: int, name: bytes, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """CREATE: always made exclusively, so that a special file is never opened; an old one is opened."""
        self._core.handles.check_room()
        directory, dir_fd = self.place(parent, name)
        wanted = self._files.effective_flags(flags) & ~os.O_TRUNC
        mask = self._umask(umask)

        def make() -> int:
            exclusive = wanted | os.O_CREAT | os.O_EXCL
            return self._core.host.open_beneath(dir_fd, name, exclusive, mode & PERMISSIONS, mask)

        try:
            fd = self._core.as_caller(ctx, True, make)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self._open_existing(ctx, directory, dir_fd, name, flags, open_flags)
        try:
            self._label(ctx, fd)
        except OSError:
            self._core.host.close(fd)
            self._core.host.unlink(dir_fd, name)
            raise
        return self._opened(fd, directory, name, wanted, flags)

    def tmpfile(
        self, ctx: Context, parent: int, flags: int, mode: int, umask: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """TMPFILE: it lives as long as its handle, or until LINK gives it a name."""
        self._core.check_writable()
        self._core.handles.check_room()
        directory = self._core.require_dir(parent)
        dir_fd = self._reach.path_fd(directory)
        wanted = self._files.effective_flags(flags) & ~os.O_TRUNC
        if wanted & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EINVAL, "a temporary file is opened for writing")
        mask = self._umask(umask)
        keep = flags & os.O_EXCL

        def make() -> int:
            unnamed = wanted | os.O_TMPFILE | keep
            return self._core.host.open_beneath(dir_fd, b".", unnamed, mode & PERMISSIONS, mask)

        fd = self._core.as_caller(ctx, True, make)
        try:
            self._label(ctx, fd)
        except OSError:
            self._core.host.close(fd)
            raise
        return self._opened(fd, directory, None, wanted, flags)

    def place(self, parent: int, name: bytes) -> tuple[Inode, int]:
        """The directory in which something is made, and its descriptor."""
        self._core.check_writable()
        directory = self._core.require_dir(parent)
        self._core.component(name)
        fd = self._reach.path_fd(directory)
        if self._core.aside is not None:
            self._core.aside.hold(fd)
        return directory, fd

    def _umask(self, umask: int) -> int:
        """The guest has applied its umask itself, unless DONT_MASK came with POSIX_ACL."""
        return umask & 0o777 if self._core.posix_acl else 0

    def _made(
        self, ctx: Context, directory: Inode, dir_fd: int, name: bytes, undo: Callable[[int, bytes], None]
    ) -> EntryReply:
        """Look up what was made, with its security label."""
        fd = self._reach.open_at(dir_fd, name)
        try:
            self._label(ctx, fd)
        except OSError:
            self._core.host.close(fd)
            undo(dir_fd, name)
            raise
        return self._lookups.enter(fd, directory, name)

    def _label(self, ctx: Context, fd: int) -> None:
        for name, value in ctx.security:
            self._core.host.setxattr(fd, self._core.xattr_map.to_host(name), value, 0)

    def _opened(
        self, fd: int, directory: Inode, name: bytes | None, wanted: int, flags: int
    ) -> tuple[EntryReply, OpenReply]:
        """The replies for a new file that ``fd`` has open."""
        try:
            path_fd = self._core.host.reopen(fd, os.O_PATH)
            inode, attr = self._lookups.admit(path_fd)
        except BaseException:
            self._core.host.close(fd)
            raise
        handle = self._core.handles.add(inode, fd, wanted, flags, False)
        entry = self._lookups.entry(inode, attr, directory, name)
        return entry, (handle.id, self._files.open_reply_flags(False), 0)

    def _open_existing(
        self, ctx: Context, directory: Inode, dir_fd: int, name: bytes, flags: int, open_flags: int
    ) -> tuple[EntryReply, OpenReply]:
        inode, attr = self._lookups.admit(self._reach.open_at(dir_fd, name, PATH_FLAGS))
        try:
            reply = self._files.open(ctx, inode.id, flags, open_flags)
        except BaseException:
            if inode.nlookup == 0 and inode is not self._core.root:
                self._lookups.drop(inode)
            raise
        if flags & os.O_TRUNC:
            attr = self._core.fstat(self._reach.path_fd(inode))
        return self._lookups.entry(inode, attr, directory, name), reply
