"""The passthrough file system: a directory of the host behind the FUSE server's interface."""

from __future__ import annotations

import errno

from vmsim.fuse.abi.init_flags import POSIX_ACL, SECURITY_CTX
from vmsim.fuse.filesystem import Context
from vmsim.fuse.negotiated import NegotiatedState

from ..options import FsOptions
from .core import _nothing
from .dirs import DirOps
from .host_calls import HostFs
from .lock_table import LockTable
from .lock_waiters import WaitTable
from .names import NameOps
from .restore import RestoreOps
from .slow import SlowOps
from .xattr import XattrOps


class PassthroughFs(NameOps, DirOps, XattrOps, RestoreOps, SlowOps):
    """Serves the directory ``share`` of ``host``.

    ``inodes``, ``handles``, ``locks`` and ``waits`` are its whole state (besides ``negotiated``); ``watch``
    follows changes of names. OSError if the directory cannot be opened, UsageError for impossible options.
    """

    def __init__(
        self, host: HostFs, share: str | bytes, options: FsOptions | None = None, *, share_fd: int = -1
    ) -> None:
        super().__init__(host, share, options, share_fd=share_fd)
        self.locks = LockTable()
        self.waits = WaitTable()
        self.on_waits = _nothing
        self._to_resume = []

    def init(self, ctx: Context, negotiated: NegotiatedState) -> None:
        """INIT: EPROTO if the guest lacks what an option needs."""
        options = self.options
        lacks_acl = options.posix_acl and not negotiated.has(POSIX_ACL)
        lacks_label = options.security_label and not negotiated.has(SECURITY_CTX)
        if lacks_acl or lacks_label:
            raise OSError(errno.EPROTO, "the guest does not support a flag that an option needs")
        self.destroy()
        self._negotiate(negotiated)

    def adopt(self, negotiated: NegotiatedState) -> None:
        """Go on with what another server negotiated."""
        self._negotiate(negotiated)

    def destroy(self) -> None:
        """Drop all nodes but the root, all handles, all locks; nodeids and fhs begin anew."""
        if self.aside is not None:
            self.aside.abandon()
        owners = self.locks.clear()
        self._to_resume = []
        for waiter in self.waits.clear():
            waiter.done(OSError(errno.ECONNABORTED, "the session ended"))
        for owner in owners:
            self.close_file(owner.fd)
        for handle in self.handles:
            if handle.fd >= 0:
                self.close_file(handle.fd)
        self.handles.clear()
        self.fds.clear()
        for mount in self.inodes.mounts.values():
            if mount.fd >= 0 and mount is not self.root.mount:
                self.host.close(mount.fd)
        if self.watch is not None:
            for inode in self.inodes.items()[1:]:
                self.watch.forgotten(inode)
        self.inodes.clear()
        self.told.clear()
        self.translates = self._maps_ids()
        self.root.nlookup = 1
        self._negotiate(NegotiatedState())

    def close(self) -> None:
        """Give back every descriptor; the file system is of no use afterwards. May be called twice."""
        self.destroy()
        if self.root.fd >= 0:
            self.host.close(self.root.fd)
            self.root.fd = self.root.mount.fd = -1
