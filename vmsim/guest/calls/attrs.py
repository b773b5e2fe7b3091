"""stat, chmod, chown, truncate, utime, statvfs, access: the calls on a file's attributes."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags as f
from vmsim.fuse.abi.init_flags import HANDLE_KILLPRIV_V2
from vmsim.guest.calls import permissions
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.cached_io import CachedIo
from vmsim.guest.calls.context import Path, ProcessContext, encode_path, fail, names_file
from vmsim.guest.calls.credentials import Credentials
from vmsim.guest.calls.files import OFFSET_MAX
from vmsim.guest.calls.opening import Opening
from vmsim.guest.calls.walk import PathWalk
from vmsim.guest.kernel.nodes import NSEC, make_stat


class Attributes:
    """Attributes of files and of the file system."""

    def __init__(
        self, ctx: ProcessContext, credentials: Credentials, access: Access, walk: PathWalk,
        cached: CachedIo, opening: Opening,
    ) -> None:  # fmt: skip
        self._ctx = ctx
        self._credentials = credentials
        self._access = access
        self._walk = walk
        self._cached = cached
        self._opening = opening

    @names_file
    def stat(
        self, path: Path | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        """The attributes of what a path or descriptor leads to."""
        if isinstance(path, int):
            return self.fstat(path)
        nodeid, fresh = self._walk.resolve(encode_path(path), dir_fd, follow_symlinks)
        with self._ctx.holding(nodeid):
            return self._access.stat_of(nodeid, None, fresh)

    @names_file
    def lstat(self, path: Path, *, dir_fd: int | None = None) -> os.stat_result:
        """The attributes of the file itself, also of a symlink."""
        return self.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    def fstat(self, fd: int) -> os.stat_result:
        """The attributes of an open file."""
        file = self._ctx.file(fd)
        nodeid = file.nodeid
        if file.fh is None and not file.flags & os.O_PATH:
            fail(errno.ESTALE)
        attr = self._access.attr(nodeid, None if file.directory else file.fh)
        return make_stat(attr, self._ctx.cell.kernel.nodes.nodes[nodeid].device_number)

    # Changing attributes

    def _setattr(self, nodeid: int, fh: int | None, valid: int, values: dict[str, int]) -> None:
        """One SETATTR; its reply has the new attributes."""
        kernel = self._ctx.running()
        if fh is not None:
            valid |= f.FATTR_FH
        get = values.get
        version = kernel.state.attr_version
        args = (
            valid, 0, fh or 0, 0, 0, get("atime", 0), get("mtime", 0), 0,
            get("atimensec", 0), get("mtimensec", 0),
            0, get("mode", 0), 0, get("uid", 0), get("gid", 0), 0,
        )  # fmt: skip
        request = self._ctx.call(op.SETATTR, nodeid, args)
        self._access.take_attr(nodeid, request.reply, max(version, self._ctx.node(nodeid).attr_version))

    @names_file
    def chmod(
        self, path: Path | int, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        """Change the permission bits; those of a symlink cannot be (EOPNOTSUPP)."""
        nodeid, fh, _ = self._walk.target(path, dir_fd, follow_symlinks, opened=True)
        with self._ctx.holding(nodeid):
            attr = self._access.attr(nodeid, fh)
            permissions.check_owner(self._ctx.process, attr)
            if stat.S_ISLNK(attr.mode):
                fail(errno.EOPNOTSUPP)
            mode = permissions.mode_for_chmod(self._ctx.process, attr, mode & 0o7777)
            self._setattr(nodeid, fh, f.FATTR_MODE, {"mode": stat.S_IFMT(attr.mode) | mode})

    def fchmod(self, fd: int, mode: int) -> None:
        """Change the permission bits of an open file."""
        self._ctx.usable(fd)
        self.chmod(fd, mode)

    @names_file
    def chown(
        self, path: Path | int, uid: int, gid: int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        """Change owner and group; -1 leaves one as it is."""
        nodeid, fh, _ = self._walk.target(path, dir_fd, follow_symlinks, opened=True)
        with self._ctx.holding(nodeid):
            attr = self._access.attr(nodeid, fh)
            permissions.check_chown(self._ctx.process, attr, uid, gid)
            valid, values = 0, {}
            if uid != -1:
                valid, values["uid"] = valid | f.FATTR_UID, uid
            if gid != -1:
                valid, values["gid"] = valid | f.FATTR_GID, gid
            keep = permissions.mode_after_chown(self._ctx.process, attr, gid)
            if not stat.S_ISDIR(attr.mode) and self._ctx.kernel.state.session.flags & HANDLE_KILLPRIV_V2:
                valid |= f.FATTR_KILL_SUIDGID
            if keep != attr.mode and not stat.S_ISLNK(attr.mode):
                valid, values["mode"] = valid | f.FATTR_MODE, keep
            self._setattr(nodeid, fh, valid, values)

    def lchown(self, path: Path, uid: int, gid: int) -> None:
        """Change owner and group of the file itself, also of a symlink."""
        self.chown(path, uid, gid, follow_symlinks=False)

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        """Change owner and group of an open file."""
        self._ctx.usable(fd)
        self.chown(fd, uid, gid)

    @names_file
    def truncate(self, path: Path | int, length: int) -> None:
        """Change a file's size."""
        if isinstance(path, int):
            self.ftruncate(path, length)
            return
        nodeid, fresh = self._walk.resolve(encode_path(path))
        with self._ctx.holding(nodeid):
            self._check_truncate(nodeid, length)
            self._access.permit(nodeid, self._access.attr(nodeid, None, fresh), permissions.W_OK)
            self._opening.truncate_node(nodeid, length, None)

    def ftruncate(self, fd: int, length: int) -> None:
        """Change the size of a file that is open for writing."""
        file = self._ctx.usable(fd)
        if file.directory or file.flags & 3 == 0:
            fail(errno.EINVAL)
        with self._ctx.held(file):
            nodeid, fh = file.nodeid, file.fh
            self._check_truncate(nodeid, length)
            self._opening.truncate_node(nodeid, length, fh)

    def _check_truncate(self, nodeid: int, length: int) -> None:
        mode = self._ctx.node(nodeid).attr.mode
        if stat.S_ISDIR(mode):
            fail(errno.EISDIR)
        if length < 0 or not stat.S_ISREG(mode):
            fail(errno.EINVAL)
        if length > OFFSET_MAX:
            fail(errno.EFBIG)

    @names_file
    def utime(
        self, path: Path | int, times: tuple[float, float] | None = None, *,
        ns: tuple[int, int] | None = None,
        dir_fd: int | None = None, follow_symlinks: bool = True,
    ) -> None:  # fmt: skip
        """Set access and modification time, to now unless ``times`` (seconds) or ``ns`` is given."""
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        nodeid, fh, _ = self._walk.target(path, dir_fd, follow_symlinks, opened=True)
        with self._ctx.holding(nodeid):
            attr = self._access.attr(nodeid, fh)
            process = self._ctx.process
            if times is None and ns is None:
                if not permissions.owns(process, attr):
                    self._access.permit(nodeid, attr, permissions.W_OK)
                valid, values = f.FATTR_ATIME | f.FATTR_MTIME | f.FATTR_ATIME_NOW | f.FATTR_MTIME_NOW, {}
            else:
                permissions.check_owner(process, attr)
                atime, mtime = ns if ns is not None else _nanoseconds(times or (0, 0))
                valid = f.FATTR_ATIME | f.FATTR_MTIME
                values = {
                    "atime": atime // NSEC, "atimensec": atime % NSEC,
                    "mtime": mtime // NSEC, "mtimensec": mtime % NSEC,
                }  # fmt: skip
            self._cached.write_out(nodeid)
            self._setattr(nodeid, fh, valid, values)

    # The file system, and access

    @names_file
    def statvfs(self, path: Path | int) -> os.statvfs_result:
        """Sizes of the file system."""
        nodeid, _, _ = self._walk.target(path, None, True)
        with self._ctx.holding(nodeid):
            out = self._ctx.record(op.STATFS, self._ctx.call(op.STATFS, nodeid))
        return os.statvfs_result((
            out.bsize, out.frsize or out.bsize, out.blocks, out.bfree, out.bavail, out.files, out.ffree,
            out.ffree,
            0, out.namelen, 0,
        ))  # fmt: skip

    def fstatvfs(self, fd: int) -> os.statvfs_result:
        """Sizes of the file system that an open file is on."""
        return self.statvfs(fd)

    def access(
        self, path: Path | int, mode: int, *, dir_fd: int | None = None, effective_ids: bool = False,
        follow_symlinks: bool = True,
    ) -> bool:  # fmt: skip
        """Whether the process may do ``mode`` (F_OK, R_OK | W_OK | X_OK; other bits never).

        By its real ids, and as if it had their rights alone, unless the effective ones are asked for.
        """
        if mode & ~7:
            return False
        with nullcontext() if effective_ids else self._credentials.real_ids():
            try:
                nodeid, fh, fresh = self._walk.target(path, dir_fd, follow_symlinks)
                with self._ctx.holding(nodeid):
                    attr = self._access.attr(nodeid, fh, fresh)
                    return not mode or self._access.allowed(self._ctx.process, nodeid, attr, mode)
            except OSError:
                return False


def _nanoseconds(times: tuple[float, float]) -> tuple[int, int]:
    """Seconds as Python's os rounds them: towards minus infinity."""
    first, second = (value * NSEC if isinstance(value, int) else _floor(value) for value in times)
    return first, second


def _floor(seconds: float) -> int:
    whole = int(seconds // 1)
    return whole * NSEC + int((seconds - whole) * 1e9)
