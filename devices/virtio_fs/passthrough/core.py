"""What all operations share: the tables, the options, what was negotiated, and who asks."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from vmsim.errors import UsageError
from vmsim.fuse.abi.init_flags import (
    DO_READDIRPLUS,
    HANDLE_KILLPRIV_V2,
    POSIX_ACL,
    SECURITY_CTX,
    SUBMOUNTS,
    WRITEBACK_CACHE,
)
from vmsim.fuse.filesystem import Context
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.limits import MOUNT_FDS_MAX

from ..options import FsOptions
from .aside import AsideHost, Pool
from .fdcache import FdCache
from .handles import Handle, HandleTable
from .host_calls import CTIME, CTIME_NS, MODE, NLINK, SECOND, UID, HostAttr, HostFs
from .idmap import IdMap
from .inodes import OK, ROOT_ID, Inode, InodeTable, Mount, pack_handle, unpack_handle, unusable
from .lock_table import LockTable
from .lock_waiters import WaitTable
from .told import Told, ToldTable
from .watch import TreeWatch
from .xattrmap import XattrMap

RESERVED_FDS: Final = 128
"""Descriptors left for everything else in this process."""

INODE_FDS_MAX: Final = 16384
FDS_MIN: Final = 16
INVALID_ID: Final = 0xFFFFFFFF
BIRTH: Final = -1
"""The type of an ``Inode.handle`` that is a birth time, for file systems without file handles."""

CAPABILITY: Final = b"security.capability"
SGID_PROGRAM: Final = stat.S_ISGID | stat.S_IXGRP

T = TypeVar("T")


class Core:
    """The state of one passthrough file system over the directory ``share``, and what every operation needs.

    Whatever the host refuses is an OSError; UsageError if the options ask for file handles
    that this process may not use. ``share_fd``, which is ours then, is the directory itself, if somebody has
    it open: ``share`` is only its name in that case.
    """

    def __init__(
        self, host: HostFs, share: str | bytes, options: FsOptions | None = None, *, share_fd: int = -1
    ) -> None:
        self.host = host
        self.share = os.fsencode(share)
        self.options = options if options is not None else FsOptions()
        self.watch: TreeWatch | None = None
        self.uids = IdMap(self.options.translate_uid)
        self.gids = IdMap(self.options.translate_gid)
        self.told = ToldTable()
        self.translates = self.maps_ids()
        """Whether the guest is told other attributes than the host's."""
        self.xattr_map = XattrMap(self.options.xattrmap)
        self.mapped_capability = self._map_capability()
        self.by_handle = self._use_handles()
        room = max(host.fd_limit() - RESERVED_FDS, 2 * FDS_MIN)
        inode_fds = min(self.options.inode_fds, room) or max(FDS_MIN, min(room // 4, INODE_FDS_MAX))
        self.fds = FdCache(inode_fds, self._may_drop, host.close)
        self.handles = HandleTable(min(self.options.guest_fds, room) or max(FDS_MIN, room // 2))
        self.inodes = InodeTable(host.close)
        self.fstat = host.fstat
        self.pool: Pool | None = None
        self.aside: AsideHost | None = None
        """Makes the calls that may sleep; None while there is no reason to."""
        self.kinds: dict[int, bytes] = {}
        """The types of file systems by mnt_id."""
        self.slow_names: frozenset[tuple[int, bytes]] = frozenset()
        """(mnt_id of the directory, name) of places where mounts that may hang lie."""
        self.locks = LockTable()
        self.waits = WaitTable()
        self.on_waits: Callable[[], None] = _nothing
        """Called when requests wait that ``retry_waiting`` has to be called for."""
        # What is different where calls may be made elsewhere: ``SlowOps.use_pool``.
        self.close_file: Callable[[int], None] = self._close
        """Closes a descriptor of a file, perhaps its last."""
        self.check_emptying: Callable[[Inode], None] = _nothing
        """TryAgain if the content of an inode should rather go where nobody waits for it."""
        self.check_freeing: Callable[[HostAttr], None] | None = None
        """The same of the file with these attributes."""
        self.find_slow_mounts: Callable[[], None] = _nothing
        self.note_kind: Callable[[Mount], None] = _nothing
        self._open_root(share_fd)
        self.negotiate(NegotiatedState())

    def _map_capability(self) -> bytes | None:
        """The host's name of the guest's security.capability, if that is another one."""
        try:
            name = self.xattr_map.to_host(CAPABILITY)
        except OSError:
            return None
        return None if name == CAPABILITY else name

    def _use_handles(self) -> bool:
        wish = self.options.inode_file_handles
        allowed = wish != "never" and self.host.handles_allowed()
        if wish == "mandatory" and not allowed:
            raise UsageError(
                "inode_file_handles=mandatory needs CAP_DAC_READ_SEARCH", hint="use prefer, or privilege"
            )
        return allowed

    def _open_root(self, fd: int) -> None:
        if fd < 0:
            fd = self.host.open_share(self.share)
        try:
            attr, dev, mnt_id, _ = self.host.identify(fd)
        except BaseException:
            self.host.close(fd)
            raise
        mount = self.inodes.mount(dev, mnt_id)
        mount.fd = fd
        root = self.inodes.restore(ROOT_ID, mount, attr[0], stat.S_IFMT(attr[MODE]))
        root.nlookup = 1
        root.fd = fd
        self.root = root

    def negotiate(self, negotiated: NegotiatedState) -> None:
        """Serve by what INIT agreed on."""
        self.negotiated = negotiated
        self.writeback = negotiated.has(WRITEBACK_CACHE)
        self.posix_acl = negotiated.has(POSIX_ACL)
        self.killpriv = negotiated.has(HANDLE_KILLPRIV_V2)
        self.submounts = negotiated.has(SUBMOUNTS)
        self.security_labels = negotiated.has(SECURITY_CTX)
        self.plus = negotiated.has(DO_READDIRPLUS)
        self.validity_s = self.options.validity_s

    # -- nodes and handles -----------------------------------------------------------------------

    def require(self, nodeid: int) -> Inode:
        """The inode; EBADF if the guest has no such node, EIO if it did not survive a migration."""
        inode = self.inodes.get(nodeid)
        if inode is None:
            raise OSError(errno.EBADF, "no such node")
        if inode.state != OK:
            raise unusable(inode)
        return inode

    def require_dir(self, nodeid: int) -> Inode:
        """The inode; ENOTDIR if it is no directory, and see ``require``."""
        inode = self.require(nodeid)
        if not stat.S_ISDIR(inode.mode):
            raise OSError(errno.ENOTDIR, "not a directory")
        return inode

    def require_handle(self, fh: int, nodeid: int) -> Handle:
        """The handle; EBADF unless it is one of this node."""
        return self.handles.require(fh, nodeid)

    def component(self, name: bytes) -> bytes:
        """``name`` if it is one path component; EINVAL otherwise, whoever should have checked before."""
        if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise OSError(errno.EINVAL, "not one component")
        return name

    def check_writable(self) -> None:
        """EROFS for a share that is served read-only."""
        if self.options.readonly:
            raise OSError(errno.EROFS, "the share is served read-only")

    # -- telling inodes apart --------------------------------------------------------------------

    def evidence(self, fd: int) -> bytes:
        """What tells this file from one that gets the same inode number later, see ``Inode.handle``."""
        try:
            _, kind, raw = self.host.file_handle(fd)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EOVERFLOW):
                raise
            return _pack_birth(self.host.birth(fd))
        return pack_handle(kind, raw)

    def evidence_at(self, dir_fd: int, name: bytes, like: bytes) -> bytes:
        """The evidence for a name in a directory, of the same sort as ``like``."""
        if unpack_handle(like)[0] == BIRTH:
            return _pack_birth(self.host.birth_at(dir_fd, name))
        _, kind, raw = self.host.file_handle_at(dir_fd, name)
        return pack_handle(kind, raw)

    def _may_drop(self, inode: Inode) -> bool:
        """Whether ``inode`` will be found again without its descriptor; records what that takes."""
        if self.aside is not None and self.aside.run is not None:
            with self.aside.inline():  # the queue may not change meanwhile
                return self._may_drop(inode)
        try:
            if inode.handle is None:
                inode.handle = self.evidence(inode.fd)
            # Without a name, it may be our descriptor that keeps the inode alive.
            if self.host.fstat(inode.fd)[NLINK] == 0:
                return False
            by_handle = self.by_handle and inode.mount.fd >= 0 and unpack_handle(inode.handle)[0] != BIRTH
            return by_handle or inode.name is not None
        except OSError:
            return False

    def mount_of(self, dev: int, mnt_id: int, fd: int, mode: int) -> Mount:
        """The record of the mount that ``fd`` lies in; a new one gets a descriptor for open_by_handle_at."""
        mount = self.inodes.mounts.get((dev, mnt_id))
        if mount is None:
            if self.pool is not None and mnt_id not in self.kinds:
                self.find_slow_mounts()
            mount = self.inodes.mount(dev, mnt_id)
            if self.pool is not None:
                self.note_kind(mount)
            if self.by_handle and stat.S_ISDIR(mode) and len(self.inodes.mounts) <= MOUNT_FDS_MAX:
                try:
                    mount.fd = self.host.reopen(fd, os.O_RDONLY | os.O_DIRECTORY)
                except OSError:
                    mount.fd = -1
        return mount

    # -- who asks --------------------------------------------------------------------------------

    def as_caller(self, ctx: Context, override: bool, call: Callable[[], T]) -> T:
        """``call()`` with the caller's ids, where we may take them; else as ourselves.

        ``override`` keeps CAP_DAC_OVERRIDE when the groups that decide are unknown: the caller's, or with
        ACLs those besides the directory's, which alone is told. The guest's kernel has checked already.
        EPERM for ids that the translation forbids or that no id-mapped mount of the guest could express.
        """
        uid = self.uids.to_host(ctx.uid)
        gid = self.gids.to_host(ctx.gid)
        host = self.host
        if INVALID_ID in (uid, gid):
            raise OSError(errno.EPERM, "the caller has no id that can be expressed here")
        if not host.privileged or uid == 0 == gid:
            return call()
        groups = tuple(self.gids.to_host(group) for group in ctx.groups)
        host.become(uid, gid, groups, override and (self.posix_acl or not groups))
        try:
            return call()
        finally:
            host.become_self()

    def drop_set_ids(self, fd: int) -> None:
        """Take S_ISUID away, and S_ISGID where it marks a program: what FUSE means by killing them.

        The kernel, which does so for a writer without CAP_FSETID, looks at the writer's groups besides, and
        of the guest's we are not told.
        """
        mode = self.fstat(fd)[MODE]
        kept = mode & ~stat.S_ISUID
        if mode & SGID_PROGRAM == SGID_PROGRAM:
            kept &= ~stat.S_ISGID
        if kept != mode:
            self.change_mode(fd, kept)

    def change_mode(self, fd: int, mode: int) -> None:
        """Set the mode, unless that is not ours to do: then the kernel lets nothing of it survive a write."""
        try:
            self.host.chmod(fd, stat.S_IMODE(mode))
        except PermissionError:
            pass

    def _close(self, fd: int) -> None:
        self.host.close(fd)

    def maps_ids(self) -> bool:
        """Whether ids are translated."""
        return not (self.uids.identity and self.gids.identity)

    def tell(self, nodeid: int, told: Told) -> None:
        """Tell the guest these facts of an inode, whatever the host says."""
        self.told.add(nodeid, told)
        self.translates = True

    def root_attr(self) -> HostAttr:
        """The host's attributes of the share's root."""
        return self.host.fstat(self.root.fd)

    def keep_root_ctime(self, before: HostAttr) -> None:
        """Tell the guest the ctime that the root had ``before``, until it changes again."""
        seconds, nanoseconds = self.told.ctime(ROOT_ID, before[CTIME], before[CTIME_NS])
        told = self.told.by_id.get(ROOT_ID)
        attr = self.root_attr()
        since_ns = attr[CTIME] * SECOND + attr[CTIME_NS]
        birth_ns = told.birth_ns if told is not None else 0
        self.tell(ROOT_ID, Told(0, since_ns, seconds * SECOND + nanoseconds, birth_ns))

    def reserve_numbers(self, numbers: Sequence[int]) -> None:
        """Numbers that the guest was told of files which it may still know."""
        self.told.reserve(numbers)
        self.translates = self.maps_ids() or bool(self.told)

    def guest_attr(self, nodeid: int, attr: HostAttr) -> HostAttr:
        """The attributes as the guest knows them: with its ids, and what it was told before a migration."""
        if self.told:
            attr = self.told.attr(nodeid, attr)
        uid = self.uids.to_guest(attr[UID])
        gid = self.gids.to_guest(attr[UID + 1])
        return (*attr[:UID], uid, gid, *attr[UID + 2 :])


def _nothing(*_: object) -> None:
    """Nobody wants to know."""


def _pack_birth(birth: tuple[int, int]) -> bytes:
    return pack_handle(BIRTH, b"%d.%d" % birth)
