"""Directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.

A position is the host's own d_off. It means the same to every handle of the directory, also to one that was
opened after a migration, so a handle has no position of its own that would have to be saved.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from vmsim.fuse.filesystem import Context, DirPlusSink, DirSink, FileSystem, OpenReply

from .core import Core
from .files import KEPT_FLAGS, FileOps
from .handles import Handle
from .host_calls import DirEntry
from .inodes import ROOT_ID
from .lookup import LookupOps


class DirOps(FileSystem):
    """Handles of directories."""

    def __init__(self, core: Core, lookups: LookupOps, files: FileOps) -> None:
        self._core = core
        self._lookups = lookups
        self._files = files

    def opendir(self, ctx: Context, nodeid: int, flags: int) -> OpenReply:
        """OPENDIR; directories are read, whatever access mode the guest names."""
        inode = self._core.require_dir(nodeid)
        self._core.handles.check_room()
        flags &= ~os.O_ACCMODE
        wanted = flags & KEPT_FLAGS & ~(os.O_TRUNC | os.O_DIRECT) | os.O_DIRECTORY
        if not self._core.options.preserve_noatime:
            wanted &= ~os.O_NOATIME
        fd, effective = self._files.open_inode(inode, wanted, flags)
        handle = self._core.handles.add(inode, fd, effective, flags, True)
        return handle.id, self._files.open_reply_flags(True), 0

    def readdir(self, ctx: Context, nodeid: int, fh: int, offset: int, sink: DirSink) -> None:
        """READDIR."""
        handle = self._dir_handle(fh, nodeid)

        def take(entry: DirEntry) -> bool:
            ino, after, kind, name = entry
            if name == b".." and nodeid == ROOT_ID:
                ino = handle.inode.ino
            if self._core.told:
                ino = self._core.told.number(0, ino)
            return sink.add(ino, after, kind, name)

        self._each(handle, offset, take)

    def readdirplus(self, ctx: Context, nodeid: int, fh: int, offset: int, sink: DirPlusSink) -> None:
        """READDIRPLUS: what cannot be looked up goes out without a nodeid, what has vanished does not."""
        handle = self._dir_handle(fh, nodeid)

        def take(entry: DirEntry) -> bool:
            ino, after, kind, name = entry
            if not sink.fits(name):
                return False
            if self._core.slow_names and (handle.inode.mount.mnt_id, name) in self._core.slow_names:
                pass  # whoever wants to know more of what may hang looks it up
            elif name not in (b".", b".."):
                try:
                    reply = self._lookups.meet(handle.fd, handle.inode, name)
                except FileNotFoundError:
                    return True
                except OSError:
                    pass
                else:
                    if sink.add(reply, after, kind, name):
                        return True
                    self._lookups.forget(reply[0], 1)
                    return False
            elif name == b".." and nodeid == ROOT_ID:
                ino = handle.inode.ino
            return sink.add((0, 0, 0, 0, 0, 0, ino, *_NO_ATTR, kind << 12, *_NO_ATTR[:6]), after, kind, name)

        self._each(handle, offset, take)

    def _dir_handle(self, fh: int, nodeid: int) -> Handle:
        handle = self._core.require_handle(fh, nodeid)
        if not handle.is_dir:
            raise OSError(errno.ENOTDIR, "not a directory")
        return handle

    def _each(self, handle: Handle, offset: int, take: Callable[[DirEntry], bool]) -> None:
        """Hand the entries from ``offset`` on to ``take`` until it returns False.

        Those that the kernel gave but ``take`` did not want are kept for the next request, which usually
        goes on there. Position 0 always reads anew.
        """
        entries: Sequence[DirEntry] = ()
        seek = offset
        if offset and offset == handle.position:
            entries = handle.pending
            seek = -1
        keep = self._core.handles.read_ahead
        keep(handle, (), -1)
        at = offset
        while True:
            if not entries:
                entries = self._core.host.getdents(handle.fd, seek)
                seek = -1
                if not entries:
                    keep(handle, (), at)
                    return
            for index, entry in enumerate(entries):
                if not take(entry):
                    keep(handle, entries[index:], at)
                    return
                at = entry[1]
            entries = ()

    def releasedir(self, ctx: Context, nodeid: int, fh: int, flags: int) -> None:
        """RELEASEDIR."""
        self._files.release(ctx, nodeid, fh, flags, 0, 0)

    def fsyncdir(self, ctx: Context, nodeid: int, fh: int, datasync: bool) -> None:
        """FSYNCDIR."""
        self._core.host.fsync(self._dir_handle(fh, nodeid).fd, datasync)


_NO_ATTR = (0,) * 8
