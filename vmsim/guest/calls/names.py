"""The calls that change names: mkdir, mknod, rmdir, unlink, rename, link, symlink, readlink, chdir."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.flags import RENAME_EXCHANGE, RENAME_NOREPLACE
from vmsim.guest.calls import permissions
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.capabilities import CAP_MKNOD
from vmsim.guest.calls.context import Path, ProcessContext, encode_path, fail, names_file, names_two_files
from vmsim.guest.calls.permissions import R_OK, W_OK, X_OK
from vmsim.guest.calls.walk import DOTS, PathWalk, Place
from vmsim.limits import NAME_MAX


class Names:
    """Creating, removing and moving names, with the semantics of Python's ``os``."""

    def __init__(self, ctx: ProcessContext, access: Access, walk: PathWalk) -> None:
        self._ctx = ctx
        self._access = access
        self._walk = walk

    @names_file
    def mkdir(self, path: Path, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """Create a directory."""
        place = self._walk.place(encode_path(path), dir_fd)
        with self._ctx.holding(place.parent):
            if place.name in DOTS:
                fail(errno.EEXIST)
            mode, umask = self.masked(place.parent, mode & 0o1777)
            self.create(op.MKDIR, place, (mode, umask))

    def makedirs(self, name: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Create a directory and those above it (``os.makedirs``)."""
        head, tail = os.path.split(os.fspath(name))
        if not tail:
            head, tail = os.path.split(head)
        if head and tail and not self._exists(head):
            try:
                self.makedirs(head, exist_ok=exist_ok)
            except FileExistsError:
                pass
            if tail in (".", b"."):
                return
        try:
            self.mkdir(name, mode)
        except OSError:
            if not exist_ok or not self._is_directory(name):
                raise

    @names_file
    def mknod(self, path: Path, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
        """Create a file, FIFO, socket or device node."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind == stat.S_IFDIR:
            fail(errno.EPERM)
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            fail(errno.EINVAL)
        place = self._walk.place(encode_path(path), dir_fd)
        with self._ctx.holding(place.parent):
            self._refuse_slash(place)
            rdev = (os.minor(device) & 0xFF) | os.major(device) << 8 | (os.minor(device) & ~0xFF) << 12
            permission, umask = self.masked(place.parent, mode & 0o7777)
            whiteout = kind == stat.S_IFCHR and not device  # of an overlay; anybody may make one
            device_node = kind in (stat.S_IFCHR, stat.S_IFBLK) and not whiteout
            forbidden = device_node and not permissions.capable(self._ctx.process, CAP_MKNOD)
            self.create(op.MKNOD, place, (kind | permission, rdev, umask, 0), forbidden=forbidden)

    @names_file
    def mkfifo(self, path: Path, mode: int = 0o666, *, dir_fd: int | None = None) -> None:
        """Create a FIFO."""
        self.mknod(path, stat.S_IFIFO | stat.S_IMODE(mode), dir_fd=dir_fd)

    @names_two_files
    def symlink(
        self, src: Path, dst: Path, target_is_directory: bool = False, *, dir_fd: int | None = None
    ) -> None:
        """Create the symlink ``dst`` that says ``src``."""
        target = encode_path(src)
        if not target:
            fail(errno.ENOENT)
        place = self._walk.place(encode_path(dst), dir_fd)
        with self._ctx.holding(place.parent):
            self._refuse_slash(place)
            self.create(op.SYMLINK, place, (), (target,))

    @names_two_files
    def link(
        self, src: Path, dst: Path, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:  # fmt: skip
        """Give ``src`` a further name; like CPython on Linux, follows symlinks only with a ``dir_fd``."""
        follow = follow_symlinks and (src_dir_fd is not None or dst_dir_fd is not None)
        nodeid, _ = self._walk.resolve(encode_path(src), src_dir_fd, follow)
        with self._ctx.holding(nodeid):
            place = self._walk.place(encode_path(dst), dst_dir_fd)
            with self._ctx.holding(place.parent):
                self._refuse_slash(place)
                self._absent(place)
                self._may_link(nodeid)
                forbidden = stat.S_ISDIR(self._ctx.node(nodeid).attr.mode)
                self.create(op.LINK, place, (nodeid,), forbidden=forbidden)

    def _may_link(self, nodeid: int) -> None:
        """EPERM for a file that is neither the process's nor a safe source (may_linkat)."""
        process, attr = self._ctx.process, self._access.attr(nodeid)
        if not self._ctx.kernel.config.protected_hardlinks or permissions.owns(process, attr):
            return
        mode = attr.mode
        unsafe = mode & stat.S_ISUID or mode & permissions.SGID_PROGRAM == permissions.SGID_PROGRAM
        if not stat.S_ISREG(mode) or unsafe or not self._access.allowed(process, nodeid, attr, R_OK | W_OK):
            fail(errno.EPERM)

    def masked(self, parent: int, mode: int) -> tuple[int, int]:
        """Mode and umask to send for something new in ``parent``: the server applies the umask only with
        DONT_MASK."""
        umask = self._ctx.process.umask
        if mode & permissions.SGID_PROGRAM == permissions.SGID_PROGRAM:
            mode = permissions.mode_for_new(self._ctx.process, self._access.attr(parent), mode)
        if self._ctx.kernel.state.session.flags & init_flags.DONT_MASK:
            return mode, umask
        return mode & ~umask, umask

    def _refuse_slash(self, place: Place) -> None:
        """What is not a directory cannot be created at ``.``, ``..``, the root, or before a slash."""
        if place.name in DOTS:
            fail(errno.EEXIST)
        if place.slash:
            try:
                child, _ = self._walk.step(place.parent, place.name)
            except FileNotFoundError:
                fail(errno.ENOENT)
            self._ctx.kernel.nodes.drop(child)
            fail(errno.EEXIST)

    def _absent(self, place: Place) -> None:
        """EEXIST if the name is there; the directory must be writable if it is not."""
        try:
            child, _ = self._walk.step(place.parent, place.name)
        except FileNotFoundError:
            self._access.may(place.parent, W_OK | X_OK)
            return
        self._ctx.kernel.nodes.drop(child)
        fail(errno.EEXIST)

    def create(
        self,
        opcode: int,
        place: Place,
        args: Sequence[Any],
        more: tuple[bytes, ...] = (),
        forbidden: bool = False,
    ) -> None:
        """A creating request whose reply is an entry; EPERM (after EEXIST) if it is ``forbidden``."""
        if len(place.name) > NAME_MAX:
            fail(errno.ENAMETOOLONG)
        self._absent(place)
        if forbidden:
            fail(errno.EPERM)
        extensions = b"" if opcode == op.LINK else self._ctx.creation(place.parent)
        kernel = self._ctx.running()
        version = kernel.state.attr_version
        request = self._ctx.call(opcode, place.parent, args, (place.name, *more), extensions=extensions)
        entry = self._ctx.record(opcode, request)
        kernel = self._ctx.kernel
        self.changed((place.parent, place.name))
        if not entry.nodeid:
            fail(errno.EIO)
        node = kernel.inodes.apply_entry(place.parent, place.name, entry, version, kernel.state.names_version)
        kernel.nodes.drop(node.id)

    def changed(self, *names: tuple[int, bytes]) -> None:
        """We changed these names: their dentries, and what we know of their directories, are out of date."""
        kernel = self._ctx.kernel
        kernel.inodes.names_changed(*names)
        for parent, _ in names:
            node = kernel.nodes.nodes.get(parent)
            if node is not None:
                kernel.inodes.touch(node)

    # Removing

    @names_file
    def unlink(self, path: Path, *, dir_fd: int | None = None) -> None:
        """Remove a name of a file."""
        place = self._walk.place(encode_path(path), dir_fd)
        with self._ctx.holding(place.parent):
            if place.name in DOTS:
                fail(errno.EISDIR)
            victim = self._victim(place)
            with self._ctx.holding(victim):
                directory = stat.S_ISDIR(self._ctx.node(victim).attr.mode)
                if place.slash:
                    fail(errno.EISDIR if directory else errno.ENOTDIR)
                self._may_remove(place.parent, victim)
                if directory:
                    fail(errno.EISDIR)
                self._ctx.call(op.UNLINK, place.parent, (), (place.name,))
                self.changed((place.parent, place.name))
                self._ctx.kernel.inodes.touch(self._ctx.node(victim))

    remove = unlink

    @names_file
    def rmdir(self, path: Path, *, dir_fd: int | None = None) -> None:
        """Remove an empty directory."""
        place = self._walk.place(encode_path(path), dir_fd)
        with self._ctx.holding(place.parent):
            if place.name in DOTS:
                fail({b".": errno.EINVAL, b"..": errno.ENOTEMPTY, b"": errno.EBUSY}[place.name])
            victim = self._victim(place)
            with self._ctx.holding(victim):
                self._may_remove(place.parent, victim)
                if not stat.S_ISDIR(self._ctx.node(victim).attr.mode):
                    fail(errno.ENOTDIR)
                self._ctx.call(op.RMDIR, place.parent, (), (place.name,))
                self.changed((place.parent, place.name))
                node = self._ctx.node(victim)
                node.detached = True
                self._ctx.kernel.inodes.touch(node)

    def _victim(self, place: Place) -> int:
        """The node at a place; a reference is held for the caller."""
        return self._walk.step(place.parent, place.name)[0]

    def _may_remove(self, parent: int, victim: int) -> None:
        self._access.may(parent, W_OK | X_OK)
        permissions.check_sticky(self._ctx.process, self._ctx.node(parent).attr, self._ctx.node(victim).attr)

    # Moving

    @names_two_files
    def rename(
        self, src: Path, dst: Path, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        """Move a name, replacing what is there."""
        self._rename(src, dst, 0, src_dir_fd, dst_dir_fd)

    replace = rename

    @names_two_files
    def renameat2(
        self,
        src: Path,
        dst: Path,
        flags: int = 0,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        """Move a name as renameat2(2): RENAME_NOREPLACE 1, RENAME_EXCHANGE 2, RENAME_WHITEOUT 4."""
        self._rename(src, dst, flags, src_dir_fd, dst_dir_fd)

    def _rename(
        self, src: Path, dst: Path, flags: int, src_dir_fd: int | None, dst_dir_fd: int | None
    ) -> None:
        if flags & ~7 or (flags & RENAME_EXCHANGE and flags & ~RENAME_EXCHANGE):
            fail(errno.EINVAL)
        old = self._walk.place(encode_path(src), src_dir_fd)
        with self._ctx.holding(old.parent):
            new = self._walk.place(encode_path(dst), dst_dir_fd)
            with self._ctx.holding(new.parent):
                if old.name in DOTS or new.name in DOTS:
                    fail(errno.EEXIST if flags & RENAME_NOREPLACE and new.name in DOTS else errno.EBUSY)
                moved = self._victim(old)
                with self._ctx.holding(moved):
                    self._rename_node(old, new, moved, flags)

    def _rename_node(self, old: Place, new: Place, moved: int, flags: int) -> None:
        self._check_rename(old, new, moved)
        try:
            replaced = self._victim(new)
        except FileNotFoundError:
            if flags & RENAME_EXCHANGE:
                raise
            self._may_remove(old.parent, moved)
            self._access.may(new.parent, W_OK | X_OK)
            self._may_turn(old, new, moved)
            self._send_rename(old, new, moved, 0, flags)
            return
        with self._ctx.holding(replaced):
            if flags & RENAME_NOREPLACE:
                fail(errno.EEXIST)
            if self._is_above(replaced, old.parent):
                fail(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
            if moved != replaced:
                self._may_remove(old.parent, moved)
                self._may_remove(new.parent, replaced)
            self._check_kinds(moved, replaced, flags)
            if moved != replaced:
                self._may_turn(old, new, moved)
                if flags & RENAME_EXCHANGE:
                    self._may_turn(new, old, replaced)
            self._send_rename(old, new, moved, replaced, flags)

    def _may_turn(self, old: Place, new: Place, nodeid: int) -> None:
        """A directory that gets another parent is itself written to: its ``..`` changes."""
        if old.parent != new.parent and stat.S_ISDIR(self._ctx.node(nodeid).attr.mode):
            self._access.may(nodeid, W_OK)

    def _check_rename(self, old: Place, new: Place, moved: int) -> None:
        """Trailing slashes, and no directory beneath itself."""
        directory = stat.S_ISDIR(self._ctx.node(moved).attr.mode)
        if (old.slash or new.slash) and not directory:
            fail(errno.ENOTDIR)
        if directory and self._is_above(moved, new.parent):
            fail(errno.EINVAL)

    def _is_above(self, nodeid: int, at: int) -> bool:
        """Whether the directory ``at`` is ``nodeid`` or lies beneath it."""
        while at != nodeid:
            above = self._ctx.node(at).parent
            if above in (at, 0):
                return False
            at = above
        return True

    def _check_kinds(self, moved: int, replaced: int, flags: int) -> None:
        """A directory replaces only a directory, and what is none only what is none."""
        if flags & RENAME_EXCHANGE or moved == replaced:
            return
        old = stat.S_ISDIR(self._ctx.node(moved).attr.mode)
        new = stat.S_ISDIR(self._ctx.node(replaced).attr.mode)
        if old != new:
            fail(errno.ENOTDIR if old else errno.EISDIR)

    def _send_rename(self, old: Place, new: Place, moved: int, replaced: int, flags: int) -> None:
        names = (old.name, new.name)
        if flags:
            self._ctx.require(op.RENAME2, errno.EINVAL)
            try:
                self._ctx.call(op.RENAME2, old.parent, (new.parent, flags, 0), names)
            except OSError as error:
                if self._ctx.lacks(op.RENAME2, error):
                    fail(errno.EINVAL)
                raise
        else:
            self._ctx.call(op.RENAME, old.parent, (new.parent,), names)
        kernel = self._ctx.kernel
        self.changed((old.parent, old.name), (new.parent, new.name))
        if moved == replaced:
            return
        kernel.inodes.touch(kernel.nodes.get(moved))
        kernel.nodes.place(kernel.nodes.get(moved), new.parent, new.name)
        if replaced:
            node = kernel.nodes.get(replaced)
            kernel.inodes.touch(node)
            if flags & RENAME_EXCHANGE:
                kernel.nodes.place(node, old.parent, old.name)
            else:
                node.detached = stat.S_ISDIR(node.attr.mode)

    # Reading links, the working directory

    @names_file
    def readlink(self, path: Path, *, dir_fd: int | None = None) -> str | bytes:
        """A symlink's target, of the type of ``path``."""
        nodeid, _ = self._walk.resolve(encode_path(path), dir_fd, follow=False)
        with self._ctx.holding(nodeid):
            if not stat.S_ISLNK(self._ctx.node(nodeid).attr.mode):
                fail(errno.EINVAL)
            target = self._walk.read_link(nodeid)
        return target if isinstance(os.fspath(path), bytes) else os.fsdecode(target)

    @names_file
    def chdir(self, path: Path | int) -> None:
        """Change the working directory."""
        nodeid, _, _ = self._walk.target(path, None, True)
        try:
            self._access.may(nodeid, X_OK)
        except BaseException:
            self._ctx.cell.kernel.nodes.drop(nodeid)
            raise
        process = self._ctx.process
        old, process.cwd = process.cwd, nodeid
        self._ctx.kernel.nodes.drop(old)

    def fchdir(self, fd: int) -> None:
        """Change the working directory to an open one."""
        self.chdir(fd)

    def getcwdb(self) -> bytes:
        """The working directory's path; FileNotFoundError if it was removed."""
        return self._ctx.kernel.nodes.path(self._ctx.process.cwd)

    def getcwd(self) -> str:
        """The working directory's path; FileNotFoundError if it was removed."""
        return os.fsdecode(self.getcwdb())

    def umask(self, mask: int) -> int:
        """Set the umask; the old one."""
        process = self._ctx.process
        old, process.umask = process.umask, mask & 0o777
        return old

    def _exists(self, path: Path) -> bool:
        return self._kind(path) is not None

    def _is_directory(self, path: Path) -> bool:
        return stat.S_ISDIR(self._kind(path) or 0)

    def _kind(self, path: Path) -> int | None:
        """The mode of what a path leads to, None if nothing."""
        try:
            nodeid, _ = self._walk.resolve(encode_path(path))
        except OSError:
            return None
        with self._ctx.holding(nodeid):
            return self._ctx.node(nodeid).attr.mode
