"""Extended attributes: SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.

They go through paths below /proc/self/fd, so they also work on what is never opened: symlinks, FIFOs, sockets
and devices.
"""

from __future__ import annotations

import errno
import stat
from typing import Final

from vmsim.fuse.abi.flags import SETXATTR_ACL_KILL_SGID
from vmsim.fuse.filesystem import Context, FileSystem
from vmsim.limits import FUSE_REPLY_BUFFER_MAX, XATTR_SIZE_MAX

from .core import Core
from .host_calls import MODE
from .reach import Reach

ACL_PREFIX: Final = b"system.posix_acl_"
ACL_ACCESS: Final = b"system.posix_acl_access"
NAME_MAX: Final = 255


class XattrOps(FileSystem):
    """Extended attributes by the guest's names."""

    def __init__(self, core: Core, reach: Reach) -> None:
        self._core = core
        self._reach = reach

    def _host_name(self, name: bytes) -> bytes:
        """The host's name; ENOTSUP for ACLs unless they were negotiated, and see ``XattrMap.to_host``."""
        if not self._core.options.xattr:
            raise OSError(errno.ENOSYS, "extended attributes are off")
        if name.startswith(ACL_PREFIX) and not self._core.posix_acl:
            raise OSError(errno.ENOTSUP, "POSIX ACLs were not negotiated")
        mapped = self._core.xattr_map.to_host(name)
        if not mapped or b"\0" in mapped or len(mapped) > NAME_MAX:
            raise OSError(errno.ERANGE, "name too long on the host")
        return mapped

    def setxattr(
        self, ctx: Context, nodeid: int, name: bytes, value: bytes, flags: int, setxattr_flags: int
    ) -> None:
        """SETXATTR."""
        host_name = self._host_name(name)
        self._core.check_writable()
        if len(value) > XATTR_SIZE_MAX:
            raise OSError(errno.E2BIG, "value too long")
        if flags & ~3:
            raise OSError(errno.EINVAL, "no such flags")
        fd = self._reach.path_fd(self._core.require(nodeid))
        self._core.host.setxattr(fd, host_name, value, flags)
        if setxattr_flags & SETXATTR_ACL_KILL_SGID and name == ACL_ACCESS:
            mode = self._core.host.fstat(fd)[MODE]
            if mode & stat.S_ISGID:
                self._core.change_mode(fd, mode & ~stat.S_ISGID)

    def getxattr(self, ctx: Context, nodeid: int, name: bytes, size: int) -> bytes | int:
        """GETXATTR; what the map calls bad is not there (ENODATA)."""
        _check_room(size)
        try:
            host_name = self._host_name(name)
        except PermissionError:
            raise OSError(errno.ENODATA, "no such attribute") from None
        value = self._core.host.getxattr(self._reach.path_fd(self._core.require(nodeid)), host_name)
        return _sized(value, size)

    def listxattr(self, ctx: Context, nodeid: int, size: int) -> bytes | int:
        """LISTXATTR."""
        if not self._core.options.xattr:
            raise OSError(errno.ENOSYS, "extended attributes are off")
        _check_room(size)
        names = self._core.host.listxattr(self._reach.path_fd(self._core.require(nodeid)))
        mapped = [guest for name in names if (guest := self._core.xattr_map.to_guest(name))]
        if not self._core.posix_acl:
            mapped = [name for name in mapped if not name.startswith(ACL_PREFIX)]
        return _sized(b"".join(name + b"\0" for name in mapped), size)

    def removexattr(self, ctx: Context, nodeid: int, name: bytes) -> None:
        """REMOVEXATTR."""
        host_name = self._host_name(name)
        self._core.check_writable()
        self._core.host.removexattr(self._reach.path_fd(self._core.require(nodeid)), host_name)


def drop_capability(core: Core, fd: int) -> None:
    """Remove security.capability under its mapped name, which the kernel does not know (CVE-2021-20263)."""
    name = core.mapped_capability
    if name is None:
        return
    try:
        core.host.removexattr(fd, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise


def _check_room(size: int) -> None:
    if size > FUSE_REPLY_BUFFER_MAX:
        raise OSError(errno.ENOMEM, "the reply buffer is too large")


def _sized(value: bytes, size: int) -> bytes | int:
    if size == 0:
        return len(value)
    if len(value) > size:
        raise OSError(errno.ERANGE, "the value is larger")
    return value
