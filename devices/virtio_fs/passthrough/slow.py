"""Which requests may make the host sleep for long, and how they are served aside.

File systems of FAST answer from memory or a disk of this machine, so their calls are made at once; only what
writes a disk, and what allocates or frees space by the gigabyte, has no bound (LONG). Everything of all
others (NFS, FUSE, 9p, /proc) may wait for somebody who does not answer any more.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Hashable
from typing import Any, Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags as f
from vmsim.fuse.filesystem import TryAgain
from vmsim.fuse.request import Request
from vmsim.limits import FUSE_ALLOCATE_MAX

from .aside import AsideHost, Pool
from .core import Core
from .host_calls import BLOCKS, NLINK, HostAttr
from .inodes import Inode, Mount
from .reach import Reach

MEMORY: Final = frozenset({b"tmpfs", b"ramfs", b"devtmpfs", b"rootfs"})
FAST: Final = MEMORY | {
    b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"bcachefs", b"f2fs", b"zfs", b"overlay", b"jfs",
    b"nilfs2", b"vfat", b"exfat", b"ntfs3", b"hfs", b"hfsplus", b"udf", b"iso9660", b"squashfs", b"erofs",
    b"minix", b"reiserfs", b"ubifs",
}  # fmt: skip
"""Their server is this kernel."""

CLOSING: Final = "closing"
"""What is waited for where a large file is freed."""

SECTORS_MAX: Final = FUSE_ALLOCATE_MAX >> 9
"""Of a file that is freed without leaving the loop."""

INLINE: Final = frozenset(
    {op.GETLK, op.SETLK, op.SETLKW, op.RELEASE, op.RELEASEDIR, op.POLL, op.NOTIFY_REPLY}
)
"""Changes tables between its calls, or makes none that it waits for; the host bounds each of these calls."""

NODEIDS: Final = frozenset({"nodeid_out", "oldnodeid", "newdir"})
"""Arguments that name a node besides the header's."""


class SlowOps:
    """Knows the mounts that may hang, and serves what concerns them aside."""

    def __init__(self, core: Core, reach: Reach) -> None:
        self._core = core
        self._reach = reach
        self._on_slow: Callable[[], None]
        self._freed = 0
        """Sectors of files without a name that were closed since nothing was under way aside."""

    def use_pool(self, pool: Pool, on_slow: Callable[[], None]) -> None:
        """From now on; ``on_slow`` is told when there is a mount that may hang."""
        core = self._core
        core.pool = pool
        self._on_slow = on_slow
        core.close_file = self.close_file
        core.check_emptying, core.check_freeing = self.check_emptying, self.check_freeing
        core.find_slow_mounts, core.note_kind = self.find_slow_mounts, self.note_kind
        core.fds.close_with(self.close_file)
        self.find_slow_mounts()

    def find_slow_mounts(self) -> None:
        """Look which mounts there are below the share: now, and whenever they change."""
        share = self._core.host.path_of(self._core.root.fd).rstrip(b"/")
        self._core.kinds = {}
        names = set()
        for mnt_id, parent_id, path, kind in self._core.host.mounts():
            self._core.kinds[mnt_id] = kind
            if kind not in FAST and path.startswith(share + b"/"):
                names.add((parent_id, os.path.basename(path)))
        self._core.slow_names = frozenset(names)
        for mount in {self._core.root.mount, *self._core.inodes.mounts.values()}:
            self.note_kind(mount)
        if names or self._core.root.mount.slow:
            self._be_slow()
        if self._core.aside is not None:
            self._core.aside.names = frozenset(name for _, name in names)

    def note_kind(self, mount: Mount) -> None:
        """Whether a mount may hang."""
        kind = self._core.kinds.get(mount.mnt_id, b"")
        mount.slow = kind not in FAST
        mount.memory = kind in MEMORY

    def _be_slow(self) -> None:
        self._use_aside()
        self._on_slow()

    def _use_aside(self) -> AsideHost:
        core = self._core
        if core.aside is None:
            assert core.pool is not None
            host = core.aside = AsideHost(core.host, core.pool)
            core.host = host
            core.fstat = core.host.fstat
            core.inodes.close_with(core.host.close)
            for fd in {core.root.fd, *(mount.fd for mount in core.inodes.mounts.values() if mount.slow)}:
                if core.root.mount.slow and fd >= 0:
                    host.may_hang(fd, core.root.mount)
        return core.aside

    def aside_key(self, request: Request, *, again: bool = False) -> Hashable | None:
        """What may hang on account of this request; None: nothing. ``again``: it has raised TryAgain."""
        row = request.plan.row
        number = row.number
        if number in INLINE:
            return None
        inode = self._core.inodes.get(request.ctx.nodeid)
        if inode is None:
            return None
        mount = inode.mount
        if mount.slow:
            return mount
        is_long = LONG.get(number) if again or number not in SEEN else None
        if is_long is not None and is_long(self, request, inode):
            return mount
        if not self._core.slow_names:
            return None
        if row.args is not None:
            for field, value in zip(row.args.fields, request.args, strict=False):
                if field.name in NODEIDS:
                    other = self._core.inodes.get(value)
                    if other is not None and (other.mount.slow or self._names(other, request.names)):
                        return other.mount
        return mount if self._names(inode, request.names) else None

    def _names(self, directory: Inode, names: list[bytes]) -> bool:
        return any((directory.mount.mnt_id, name) in self._core.slow_names for name in names)

    # -- what takes long on a fast file system ----------------------------------------------------

    def _is_disk(self, request: Request, inode: Inode) -> bool:
        return not inode.mount.memory

    def _allocates(self, request: Request, inode: Inode) -> bool:
        _, _, length, mode, _ = request.args
        return length > FUSE_ALLOCATE_MAX or bool(mode & ~1)

    def _cuts(self, request: Request, inode: Inode) -> bool:
        return bool(request.args[0] & f.FATTR_SIZE) and self.is_large(inode)

    def _empties(self, request: Request, inode: Inode) -> bool:
        return bool(request.args[0] & os.O_TRUNC) and self.is_large(inode)

    def _empties_name(self, request: Request, inode: Inode) -> bool:
        return bool(request.args[0] & os.O_TRUNC) and self._is_large_name(inode, request.names[0])

    def _removes(self, request: Request, inode: Inode) -> bool:
        return self._is_large_name(inode, request.names[0])

    def _replaces(self, request: Request, inode: Inode) -> bool:
        directory = self._core.inodes.get(request.args[0])
        return directory is not None and self._is_large_name(directory, request.names[1])

    def is_large(self, inode: Inode) -> bool:
        """Whether freeing its space takes long."""
        if not stat.S_ISREG(inode.mode):
            return False
        try:
            return bool(self._core.fstat(self._reach.path_fd(inode))[BLOCKS] > SECTORS_MAX)
        except OSError:
            return False  # whoever asks is told

    def _is_large_name(self, directory: Inode, name: bytes) -> bool:
        """The same of a name, whose removal frees it at once where nobody knows the file."""
        try:
            attr = self._core.host.identify_name(self._reach.path_fd(directory), name)[0]
            return attr[BLOCKS] > SECTORS_MAX
        except OSError:
            return False

    def check_emptying(self, inode: Inode) -> None:
        """TryAgain in the loop, which finds it in LONG."""
        aside = self._core.aside
        if (aside is None or aside.run is None) and self.is_large(inode):
            raise TryAgain(errno.EAGAIN, "its content takes long to free")

    def check_freeing(self, attr: HostAttr) -> None:
        """TryAgain in the loop, which finds it in LONG."""
        aside = self._core.aside
        if attr[BLOCKS] > SECTORS_MAX and (aside is None or aside.run is None):
            raise TryAgain(errno.EAGAIN, "its content takes long to free")

    def close_file(self, fd: int) -> None:
        """Close a descriptor, elsewhere if it may be the last of a large file that has no name.

        Many small ones are a large one: a single BATCH_FORGET, or the end of a session, closes them all.
        """
        if self._core.aside is None or not self._core.aside.hangs(fd):
            attr = self._core.fstat(fd)
            if not attr[NLINK] and attr[BLOCKS]:
                self._freed += attr[BLOCKS]
                if self._freed > SECTORS_MAX:
                    self._use_aside().may_hang(fd, CLOSING)
        self._core.host.close(fd)

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
                    handles.append(self._core.handles.get(value))

        def held() -> Any:
            for handle in handles:
                if handle is not None and handle.fd >= 0:
                    host.hold(handle.fd)
            return serve()

        host.start(key, held, done)

    def join_aside(self) -> None:
        """Go on with the requests whose calls have ended."""
        if self._core.aside is not None:
            self._core.aside.join()
            if not self._core.aside.pool.pending:
                self._freed = 0


LONG: Final[dict[int, Callable[[SlowOps, Request, Inode], bool]]] = {
    op.FSYNC: SlowOps._is_disk, op.FSYNCDIR: SlowOps._is_disk, op.SYNCFS: SlowOps._is_disk,
    op.FALLOCATE: SlowOps._allocates, op.SETATTR: SlowOps._cuts, op.OPEN: SlowOps._empties,
    op.CREATE: SlowOps._empties_name, op.UNLINK: SlowOps._removes, op.RENAME: SlowOps._replaces,
    op.RENAME2: SlowOps._replaces,
}  # fmt: skip
"""What may take long though the file system is FAST, and when."""

SEEN: Final = frozenset({op.OPEN, op.CREATE, op.UNLINK, op.RENAME, op.RENAME2})
"""Those that find it out themselves, with a look that they take in any case, and try again then."""
