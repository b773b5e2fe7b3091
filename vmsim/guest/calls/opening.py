"""open(2) and close(2): flags, creation, truncation, descriptors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.flags import (
    FATTR_FH,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_SIZE,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    OPEN_KILL_SUIDGID,
)
from vmsim.guest.calls import permissions
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.cached_io import CachedIo
from vmsim.guest.calls.context import (
    FD_MAX,
    O_ACCMODE,
    O_PATH,
    Path,
    ProcessContext,
    encode_path,
    fail,
    names_file,
)
from vmsim.guest.calls.locks import Locks
from vmsim.guest.calls.names import Names
from vmsim.guest.calls.permissions import R_OK, W_OK, X_OK
from vmsim.guest.calls.walk import DOTS, SYMLINKS_MAX, PathWalk, Place
from vmsim.guest.state import OpenFile, Request

O_TMPFILE: Final = os.O_TMPFILE
NOT_SENT: Final = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_CLOEXEC
CREATE_TRIES: Final = 8


class Opening:
    """Opening and closing."""

    def __init__(
        self, ctx: ProcessContext, access: Access, walk: PathWalk, names: Names, locks: Locks,
        cached: CachedIo,
    ) -> None:  # fmt: skip
        self._ctx = ctx
        self._access = access
        self._walk = walk
        self._names = names
        self._locks = locks
        self._cached = cached

    @names_file
    def open(self, path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """Open a file or directory; its descriptor, the lowest free one."""
        raw = encode_path(path)
        if flags & O_PATH:
            flags &= O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        elif flags & O_TMPFILE == O_TMPFILE:
            return self._open_tmpfile(raw, flags, mode, dir_fd)
        elif flags & os.O_CREAT:
            if flags & os.O_DIRECTORY:
                fail(errno.EINVAL)
            return self._open_create(raw, flags, mode & 0o7777, dir_fd)
        nodeid, _ = self._walk.resolve(raw, dir_fd, not flags & os.O_NOFOLLOW)
        return self.open_held(nodeid, flags)

    def openat(self, dir_fd: int | None, path: Path, flags: int, mode: int = 0o777) -> int:
        """``open`` relative to an open directory."""
        return self.open(path, flags, mode, dir_fd=dir_fd)

    def open_held(self, nodeid: int, flags: int) -> int:
        """Open a node; the caller's reference on it goes to the descriptor, or back on failure."""
        try:
            return self._open_node(nodeid, flags)
        except BaseException:
            self._ctx.cell.kernel.nodes.drop(nodeid)
            raise

    def _open_node(self, nodeid: int, flags: int, created: bool = False) -> int:
        mode = self._ctx.node(nodeid).attr.mode
        directory = stat.S_ISDIR(mode)
        if stat.S_ISLNK(mode) and not (flags & O_PATH and not flags & os.O_DIRECTORY):
            fail(errno.ENOTDIR if flags & os.O_DIRECTORY else errno.ELOOP)
        if flags & os.O_DIRECTORY and not directory:
            fail(errno.ENOTDIR)
        if flags & O_PATH:
            return self._ctx.new_file(nodeid, None, flags, 0, directory)
        writing = flags & O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if directory and (writing or flags & os.O_CREAT):
            fail(errno.EISDIR)
        if not directory and not stat.S_ISREG(mode):
            fail(errno.ENXIO)  # FIFOs, sockets and devices belong to the guest, not to the file system
        if not created:
            self._may_open(nodeid, flags)
        if flags & os.O_TRUNC:
            with self._truncating(nodeid):
                return self._open_sent(nodeid, flags, directory)
        return self._open_sent(nodeid, flags, directory)

    def _open_sent(self, nodeid: int, flags: int, directory: bool) -> int:
        fh, open_flags = self._send_open(nodeid, flags, directory)
        fd = self._ctx.new_file(nodeid, fh, flags & ~(NOT_SENT | os.O_TRUNC), open_flags, directory)
        try:
            self._opened(fd, nodeid, flags, open_flags)
        except BaseException:
            self._ctx.kernel.nodes.hold(nodeid)
            self.close(fd)
            raise
        return fd

    def _may_open(self, nodeid: int, flags: int) -> None:
        process, config = self._ctx.process, self._ctx.kernel.config
        if (not process.uid and process.capabilities is None) or not config.default_permissions:
            return
        access = flags & O_ACCMODE
        mask = {os.O_RDONLY: R_OK, os.O_WRONLY: W_OK, os.O_RDWR: R_OK | W_OK}.get(access, R_OK | W_OK)
        if flags & os.O_TRUNC:
            mask |= W_OK
        attr = self._access.attr(nodeid)
        self._access.permit(nodeid, attr, mask)
        if flags & os.O_NOATIME:
            permissions.check_owner(process, attr)

    def _sent_flags(self, flags: int) -> int:
        """The flags that the server sees: no creation; no truncation unless it does that atomically.

        O_APPEND goes out with a writeback cache, too, as Linux sends it: what may only be appended to opens
        with nothing else. Servers know that the guest then decides where data goes.
        """
        flags &= ~NOT_SENT
        kernel = self._ctx.kernel
        if not kernel.state.session.flags & init_flags.ATOMIC_O_TRUNC:
            flags &= ~os.O_TRUNC
        return flags

    def _send_open(self, nodeid: int, flags: int, directory: bool) -> tuple[int, int]:
        """OPEN or OPENDIR: file handle and FOPEN flags; handle 0 when the server is stateless."""
        opcode = op.OPENDIR if directory else op.OPEN
        if opcode in self._ctx.running().missing:
            return 0, FOPEN_KEEP_CACHE
        kill = OPEN_KILL_SUIDGID if flags & os.O_TRUNC and self._access.server_kills() else 0
        try:
            reply = self._ctx.record(opcode, self._ctx.call(opcode, nodeid, (self._sent_flags(flags), kill)))
        except OSError as error:
            if self._ctx.lacks(opcode, error):
                return 0, FOPEN_KEEP_CACHE
            raise
        return reply.fh, reply.open_flags

    def _opened(self, fd: int, nodeid: int, flags: int, open_flags: int) -> None:
        """What follows a successful open: cached pages go unless they may be kept, and O_TRUNC."""
        kernel = self._ctx.kernel
        node = kernel.nodes.get(nodeid)
        if kernel.pages is not None and not open_flags & FOPEN_KEEP_CACHE:
            kernel.pages.drop_clean(nodeid)
        if flags & os.O_TRUNC and stat.S_ISREG(node.attr.mode):
            if kernel.state.session.flags & init_flags.ATOMIC_O_TRUNC:
                self._set_size(nodeid, 0)
                self._access.remove_privs(nodeid)
            else:
                self.truncate_node(nodeid, 0, self._ctx.file(fd).fh)

    def _set_size(self, nodeid: int, size: int) -> None:
        """The file has another size now, and we know it."""
        kernel = self._ctx.kernel
        node = kernel.nodes.get(nodeid)
        kernel.inodes.touch(node)
        if size < node.attr.size and kernel.pages is not None:
            node.pages_epoch += 1
            kernel.pages.drop(nodeid, -(-size // 4096))
            kernel.inodes.zero_tail(nodeid, size)
        node.attr.size = size

    def truncate_node(self, nodeid: int, size: int, fh: int | None) -> None:
        """SETATTR of the size."""
        with self._truncating(nodeid):
            valid = FATTR_SIZE | (FATTR_FH if fh is not None else 0)
            attr = self._ctx.node(nodeid).attr
            mode = permissions.kept_mode(self._ctx.process, attr)
            if mode != attr.mode:
                killpriv = self._ctx.kernel.state.session.flags & init_flags.HANDLE_KILLPRIV_V2
                groups = permissions.needs_groups(attr.mode & ~mode, mode)
                valid |= FATTR_KILL_SUIDGID if killpriv and not groups else FATTR_MODE
            version = self._ctx.kernel.state.attr_version
            args = (valid, 0, fh or 0, size, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0, 0, 0)
            request = self._ctx.call(op.SETATTR, nodeid, args)
            self._set_size(nodeid, size)
            self._access.take_attr(nodeid, request.reply, max(version, self._ctx.node(nodeid).attr_version))

    @contextmanager
    def _truncating(self, nodeid: int) -> Iterator[None]:
        """Nothing of the node is under write-out from here to the end: what lies behind the new end of the
        file must not reach the server after the truncation (Linux: fuse_set_nowrite)."""
        self._cached.before_truncate(nodeid)
        self._ctx.node(nodeid).truncating += 1
        try:
            yield
        finally:
            node = self._ctx.cell.kernel.nodes.nodes.get(nodeid)
            if node is not None and node.truncating:
                node.truncating -= 1

    # Creating

    def _open_create(self, raw: bytes, flags: int, mode: int, dir_fd: int | None) -> int:
        """O_CREAT: find the last component's directory, following symlinks that end there."""
        links = 0
        at = self._walk.start(raw, dir_fd)
        path = raw
        while True:
            place, links = self._walk.place_from(at, path, links)
            with self._ctx.holding(place.parent):
                if place.slash or place.name in DOTS:
                    fail(errno.EISDIR)
                fd, target = self._create_or_open(place, flags, mode)
                if fd is not None:
                    return fd
                assert target is not None
                links += 1
                if links > SYMLINKS_MAX:
                    fail(errno.ELOOP)
                if not target:
                    fail(errno.ENOENT)
                absolute = target.startswith(b"/")
                at = self._walk.start(target, None) if absolute else place.parent
                if not absolute:
                    self._ctx.kernel.nodes.hold(at)
                path = target

    def _create_or_open(self, place: Place, flags: int, mode: int) -> tuple[int | None, bytes | None]:
        """Open what is there or create it: (descriptor, None), or (None, target) of a symlink to follow."""
        for _ in range(CREATE_TRIES):
            try:
                nodeid, _ = self._walk.step(place.parent, place.name)
            except FileNotFoundError:
                self._access.may(place.parent, W_OK | X_OK)
                try:
                    return self._create_file(place, flags, mode), None
                except FileExistsError:
                    if flags & os.O_EXCL:
                        raise
                    self._ctx.kernel.inodes.forget_name(place.parent, place.name)
                    continue
            if flags & os.O_EXCL:
                self._ctx.kernel.nodes.drop(nodeid)
                fail(errno.EEXIST)
            if stat.S_ISLNK(self._ctx.node(nodeid).attr.mode) and not flags & os.O_NOFOLLOW:
                with self._ctx.holding(nodeid):
                    return None, self._walk.read_link(nodeid)
            return self.open_held(nodeid, flags), None
        fail(errno.EEXIST)

    def _create_file(self, place: Place, flags: int, mode: int) -> int:
        """CREATE, or MKNOD and OPEN on a server without it; the descriptor."""
        mode, umask = self._names.masked(place.parent, mode)
        if op.CREATE in self._ctx.running().missing:
            return self._create_in_steps(place, flags, mode, umask)
        sent = self._sent_flags(flags) | os.O_CREAT | (flags & os.O_EXCL)
        args = (sent, stat.S_IFREG | mode, umask, 0)
        version = self._ctx.kernel.state.attr_version
        try:
            request = self._ctx.call(
                op.CREATE, place.parent, args, (place.name,), extensions=self._ctx.creation(place.parent)
            )
        except OSError as error:
            if self._ctx.lacks(op.CREATE, error):
                return self._create_in_steps(place, flags, mode, umask)
            raise
        self._names.changed((place.parent, place.name))
        return self._enter_created(request, place.parent, place.name, flags, version)

    def _enter_created(self, request: Request, parent: int, name: bytes, flags: int, version: int) -> int:
        """The descriptor for the reply to a CREATE or TMPFILE."""
        created = self._ctx.record(request.opcode, request)
        kernel = self._ctx.kernel
        if not created.nodeid or not stat.S_ISREG(created.mode):
            kernel.give_back(request)
            fail(errno.EIO)
        named = kernel.state.names_version if name else 0
        try:
            node = kernel.inodes.apply_entry(parent, name, created, version, named)
        except OSError:
            kernel.release(created.nodeid, (created.fh, 0, 0, 0))
            raise
        keep = flags & ~(NOT_SENT | os.O_TRUNC)
        try:
            fd = self._ctx.new_file(node.id, created.fh, keep, created.open_flags, False)
        except BaseException:
            self._ctx.cell.kernel.nodes.drop(node.id)
            raise
        if flags & os.O_TRUNC and node.attr.size:
            self._set_size(node.id, 0)
        return fd

    def _create_in_steps(self, place: Place, flags: int, mode: int, umask: int) -> int:
        self._names.create(op.MKNOD, place, (stat.S_IFREG | mode, 0, umask, 0))
        nodeid, _ = self._walk.step(place.parent, place.name)
        try:
            return self._open_node(nodeid, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC), created=True)
        except BaseException:
            self._ctx.cell.kernel.nodes.drop(nodeid)
            raise

    def _open_tmpfile(self, raw: bytes, flags: int, mode: int, dir_fd: int | None) -> int:
        """O_TMPFILE: a file without a name in the directory at the path."""
        if flags & O_ACCMODE == os.O_RDONLY:
            fail(errno.EINVAL)
        parent, _ = self._walk.resolve(raw, dir_fd)
        with self._ctx.holding(parent):
            self._access.may(parent, W_OK | X_OK)
            self._ctx.require(op.TMPFILE, errno.EOPNOTSUPP)
            mode, umask = self._names.masked(parent, mode & 0o7777)
            sent = self._sent_flags(flags) | (flags & os.O_EXCL)
            version = self._ctx.kernel.state.attr_version
            try:
                request = self._ctx.call(
                    op.TMPFILE, parent, (sent, stat.S_IFREG | mode, umask, 0), (b"/",),
                    extensions=self._ctx.creation(parent),
                )  # fmt: skip
            except OSError as error:
                if self._ctx.lacks(op.TMPFILE, error):
                    fail(errno.EOPNOTSUPP)
                raise
            return self._enter_created(request, parent, b"", flags & ~O_TMPFILE, version)

    # Descriptors

    def close(self, fd: int) -> None:
        """Close a descriptor; raises what FLUSH or a failed write-out reports, and it is closed anyway."""
        file = self._ctx.file(fd)
        del self._ctx.process.fds[fd]
        try:
            if file.fh is not None and not file.directory and not self._ctx.kernel.state.broken:
                self._flush(file)
        finally:
            self._ctx.put_file(file.id)

    def _flush(self, file: OpenFile) -> None:
        """Write-out and FLUSH, as close(2) of every descriptor does."""
        number, nodeid, fh = file.id, file.nodeid, file.fh
        self._cached.write_out(nodeid)
        self._locks.unlock_local(number, nodeid)
        if not (file.open_flags & FOPEN_NOFLUSH and not self._ctx.kernel.writeback):
            self._ctx.optional(op.FLUSH, nodeid, (fh, 0, 0, self._ctx.pid))
        node = self._ctx.kernel.nodes.nodes.get(nodeid)
        if node is not None and node.error:
            error, node.error = node.error, 0
            fail(error)

    def dup(self, fd: int) -> int:
        """Another descriptor of the same open file description."""
        file = self._ctx.file(fd)
        file.refs += 1
        try:
            return self._ctx.new_fd(file.id)
        except OSError:
            file.refs -= 1
            raise

    def dup2(self, fd: int, fd2: int, inheritable: bool = True) -> int:
        """Make ``fd2`` another descriptor of what ``fd`` is."""
        self._ctx.file(fd)
        if not 0 <= fd2 < FD_MAX:
            fail(errno.EBADF)
        if fd != fd2:
            while fd2 in self._ctx.process.fds:
                try:
                    self.close(fd2)
                except OSError:
                    pass  # dup2(2) does not report it
            file = self._ctx.file(fd)
            file.refs += 1
            self._ctx.process.fds[fd2] = file.id
        return fd2
