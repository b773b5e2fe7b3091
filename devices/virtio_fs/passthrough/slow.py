"""Which requests may make the host sleep for long, and how they are served aside.

File systems of FAST answer from memory or a disk of this machine, so their calls are made at once; only what
writes a disk or allocates there has no bound (WRITES). Everything of all others (NFS, FUSE, 9p, /proc) may
wait for somebody who does not answer any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any, Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.request import Request
from vmsim.limits import FUSE_ALLOCATE_MAX

from .aside import AsideHost, Pool
from .core import Core
from .inodes import Inode, Mount

MEMORY: Final = frozenset({b"tmpfs", b"ramfs", b"devtmpfs", b"rootfs"})
FAST: Final = MEMORY | {
    b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"bcachefs", b"f2fs", b"zfs", b"overlay", b"jfs",
    b"nilfs2", b"vfat", b"exfat", b"ntfs3", b"hfs", b"hfsplus", b"udf", b"iso9660", b"squashfs", b"erofs",
    b"minix", b"reiserfs", b"ubifs",
}  # fmt: skip
"""Their server is this kernel."""

WRITES: Final = frozenset({op.FSYNC, op.FSYNCDIR, op.SYNCFS, op.FALLOCATE})
"""What may take long on a disk."""

INLINE: Final = frozenset(
    {op.GETLK, op.SETLK, op.SETLKW, op.RELEASE, op.RELEASEDIR, op.POLL, op.NOTIFY_REPLY}
)
"""Changes tables between its calls, or makes none that it waits for; the host bounds each of these calls."""

NODEIDS: Final = frozenset({"nodeid_out", "oldnodeid", "newdir"})
"""Arguments that name a node besides the header's."""


class SlowOps(Core):
    """Knows the mounts that may hang, and serves what concerns them aside."""

    def use_pool(self, pool: Pool, on_slow: Callable[[], None]) -> None:
        """From now on; ``on_slow`` is told when there is a mount that may hang."""
        self.pool = pool
        self._on_slow = on_slow
        self.find_slow_mounts()

    def find_slow_mounts(self) -> None:
        """Look which mounts there are below the share: now, and whenever they change."""
        if self.pool is None:
            return
        share = self.host.path_of(self.root.fd).rstrip(b"/")
        self.kinds = {}
        names = set()
        for mnt_id, parent_id, path, kind in self.host.mounts():
            self.kinds[mnt_id] = kind
            if kind not in FAST and path.startswith(share + b"/"):
                names.add((parent_id, os.path.basename(path)))
        self.slow_names = frozenset(names)
        for mount in {self.root.mount, *self.inodes.mounts.values()}:
            self.note_kind(mount)
        if names or self.root.mount.slow:
            self._be_slow()
        if self.aside is not None:
            self.aside.names = frozenset(name for _, name in names)

    def note_kind(self, mount: Mount) -> None:
        """Whether a mount may hang."""
        kind = self.kinds.get(mount.mnt_id, b"")
        mount.slow = kind not in FAST
        mount.memory = kind in MEMORY

    def _be_slow(self) -> None:
        self._use_aside()
        self._on_slow()

    def _use_aside(self) -> AsideHost:
        if self.aside is None:
            assert self.pool is not None
            host = self.aside = AsideHost(self.host, self.pool)
            self.host = host
            self._fstat = self.host.fstat
            self.fds.close_with(self.host.close)
            self.inodes.close_with(self.host.close)
            for fd in {self.root.fd, *(mount.fd for mount in self.inodes.mounts.values() if mount.slow)}:
                if self.root.mount.slow and fd >= 0:
                    host.may_hang(fd, self.root.mount)
        return self.aside

    def aside_key(self, request: Request) -> Hashable | None:
        """What may hang on account of this request; None: nothing."""
        row = request.plan.row
        number = row.number
        if number in INLINE:
            return None
        inode = self.inodes.get(request.ctx.nodeid)
        if inode is None:
            return None
        mount = inode.mount
        if mount.slow:
            return mount
        if number in WRITES and not mount.memory and (number != op.FALLOCATE or self._is_long(request)):
            return mount
        if not self.slow_names:
            return None
        if row.args is not None:
            for field, value in zip(row.args.fields, request.args, strict=False):
                if field.name in NODEIDS:
                    other = self.inodes.get(value)
                    if other is not None and (other.mount.slow or self._names(other, request.names)):
                        return other.mount
        return mount if self._names(inode, request.names) else None

    def _names(self, directory: Inode, names: list[bytes]) -> bool:
        return any((directory.mount.mnt_id, name) in self.slow_names for name in names)

    @staticmethod
    def _is_long(request: Request) -> bool:
        _, _, length, mode, _ = request.args
        return length > FUSE_ALLOCATE_MAX or bool(mode & ~1)

    def start_aside(
        self, request: Request, key: Hashable, serve: Callable[[], Any], done: Callable[[Any], object]
    ) -> None:
        """Serve a request aside; the descriptors of its handles stay open until it has ended."""
        host = self._use_aside()
        row = request.plan.row
        handles = []
        if row.args is not None:
            for field, value in zip(row.args.fields, request.args, strict=False):
                if field.name.startswith("fh"):
                    handles.append(self.handles.get(value))

        def held() -> Any:
            for handle in handles:
                if handle is not None and handle.fd >= 0:
                    host.hold(handle.fd)
            return serve()

        host.start(key, held, done)

    def join_aside(self) -> None:
        """Go on with the requests whose calls have ended."""
        if self.aside is not None:
            self.aside.join()
