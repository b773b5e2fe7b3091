"""The passthrough file system: a directory of the host behind the FUSE server's interface."""

from __future__ import annotations

import errno
from collections.abc import Callable

from vmsim.fuse.abi.init_flags import POSIX_ACL, SECURITY_CTX
from vmsim.fuse.filesystem import Context, FileSystem
from vmsim.fuse.negotiated import NegotiatedState

from ..options import FsOptions
from .aside import AsideHost
from .attrs import AttrOps
from .core import Core
from .create import CreateOps
from .dirs import DirOps
from .files import FileOps
from .host_calls import HostFs
from .locks import LockOps
from .lookup import LookupOps
from .names import NameOps
from .reach import Reach
from .restore import RestoreOps
from .slow import SlowOps
from .watch import TreeWatch
from .xattr import XattrOps


class PassthroughFs(FileSystem):
    """Serves the directory ``share`` of ``host``.

    ``inodes``, ``handles``, ``locks`` and ``waits`` are its whole state (besides ``negotiated``); ``watch``
    follows changes of names. OSError if the directory cannot be opened, UsageError for impossible options.

    Operations are carried out by objects, one per topic, each of them a FileSystem that knows a few. They
    share a ``Core`` and are handed the others that they build on; none knows this class.
    """

    def __init__(
        self, host: HostFs, share: str | bytes, options: FsOptions | None = None, *, share_fd: int = -1
    ) -> None:
        self.core = core = Core(host, share, options, share_fd=share_fd)
        reach = Reach(core)
        slow = SlowOps(core, reach)
        lookups = LookupOps(core, reach)
        attrs = AttrOps(core, reach)
        xattrs = XattrOps(core, reach)
        locking = LockOps(core)
        files = FileOps(core, reach, locking)
        creation = CreateOps(core, reach, lookups, files)
        dirs = DirOps(core, lookups, files)
        names = NameOps(core, lookups, creation)
        restoring = RestoreOps(core, files)
        for part in (lookups, attrs, xattrs, locking, files, creation, dirs, names):
            for name in vars(FileSystem).keys() & vars(type(part)).keys():
                if not name.startswith("_"):
                    setattr(self, name, getattr(part, name))  # in this class's place, without a step between
        # The state, for whoever saves and loads it.
        self.options, self.share, self.root = core.options, core.share, core.root
        self.inodes, self.handles, self.fds = core.inodes, core.handles, core.fds
        self.locks, self.waits, self.told = core.locks, core.waits, core.told
        self.uids, self.gids = core.uids, core.gids
        self.xattr_map, self.by_handle = core.xattr_map, core.by_handle
        self.tell, self.reserve_numbers = core.tell, core.reserve_numbers
        self.root_attr, self.keep_root_ctime = core.root_attr, core.keep_root_ctime
        self.mount_of, self.evidence, self.evidence_at = core.mount_of, core.evidence, core.evidence_at
        self.path_fd, self.drop = reach.path_fd, lookups.drop
        self.suspend_locks, self.resume_locks = locking.suspend_locks, locking.resume_locks
        self.retry_waiting, self.lender = locking.retry_waiting, locking.lender
        self.waits_outside = locking.waits_outside
        self.restore_lock, self.restore_flock = locking.restore_lock, locking.restore_flock
        self.restore_locks = locking.restore_locks
        self.restore_handle = restoring.restore_handle
        self.restore_broken_handle = restoring.restore_broken_handle
        self.use_pool, self.join_aside = slow.use_pool, slow.join_aside
        self.aside_key, self.start_aside = slow.aside_key, slow.start_aside
        self._locking = locking

    @property
    def host(self) -> HostFs:
        """Who makes the host calls, at this time."""
        return self.core.host

    @property
    def aside(self) -> AsideHost | None:
        """Who makes the calls that may sleep; None while there is no reason to."""
        return self.core.aside

    @property
    def negotiated(self) -> NegotiatedState:
        """What INIT agreed on."""
        return self.core.negotiated

    @property
    def writeback(self) -> bool:
        """Whether the guest writes back its cache."""
        return self.core.writeback

    @property
    def watch(self) -> TreeWatch | None:
        """Who is told of changes of names."""
        return self.core.watch

    @watch.setter
    def watch(self, watch: TreeWatch | None) -> None:
        self.core.watch = watch

    @property
    def on_waits(self) -> Callable[[], None]:
        """Called when requests wait that ``retry_waiting`` has to be called for."""
        return self.core.on_waits

    @on_waits.setter
    def on_waits(self, call: Callable[[], None]) -> None:
        self.core.on_waits = call

    def find_slow_mounts(self) -> None:
        """Look again which mounts there are below the share, if that matters."""
        self.core.find_slow_mounts()

    # -- session ---------------------------------------------------------------------------------

    def init(self, ctx: Context, negotiated: NegotiatedState) -> None:
        """INIT: EPROTO if the guest lacks what an option needs."""
        options = self.options
        lacks_acl = options.posix_acl and not negotiated.has(POSIX_ACL)
        lacks_label = options.security_label and not negotiated.has(SECURITY_CTX)
        if lacks_acl or lacks_label:
            raise OSError(errno.EPROTO, "the guest does not support a flag that an option needs")
        self.destroy()
        self.core.negotiate(negotiated)

    def adopt(self, negotiated: NegotiatedState) -> None:
        """Go on with what another server negotiated."""
        self.core.negotiate(negotiated)

    def destroy(self) -> None:
        """Drop all nodes but the root, all handles, all locks; nodeids and fhs begin anew."""
        core = self.core
        if core.aside is not None:
            core.aside.abandon()
        owners = self.locks.clear()
        self._locking.forget_suspended()
        for waiter in self.waits.clear():
            waiter.done(OSError(errno.ECONNABORTED, "the session ended"))
        for owner in owners:
            core.close_file(owner.fd)
        for handle in self.handles:
            if handle.fd >= 0:
                core.close_file(handle.fd)
        self.handles.clear()
        self.fds.clear()
        for mount in self.inodes.mounts.values():
            if mount.fd >= 0 and mount is not self.root.mount:
                core.host.close(mount.fd)
        if core.watch is not None:
            for inode in self.inodes.items()[1:]:
                core.watch.forgotten(inode)
        self.inodes.clear()
        self.told.clear()
        core.translates = core.maps_ids()
        self.root.nlookup = 1
        core.negotiate(NegotiatedState())

    def close(self) -> None:
        """Give back every descriptor; the file system is of no use afterwards. May be called twice."""
        self.destroy()
        if self.root.fd >= 0:
            self.core.host.close(self.root.fd)
            self.root.fd = self.root.mount.fd = -1
