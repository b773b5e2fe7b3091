"""Extended attributes, as ``os`` presents them."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.fuse.abi.flags import SETXATTR_ACL_KILL_SGID
from vmsim.guest.calls import acl, permissions
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.capabilities import CAP_SETFCAP, CAP_SYS_ADMIN
from vmsim.guest.calls.context import Path, ProcessContext, encode_path, fail, names_file
from vmsim.guest.calls.walk import PathWalk
from vmsim.guest.state import Attr
from vmsim.limits import XATTR_SIZE_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

XATTR_NAME_MAX = 255
SECURITY: Final = b"security."
TRUSTED: Final = b"trusted."
CAPABILITY: Final = b"security.capability"
CAPABILITY_REVISIONS: Final = ((20, 2), (24, 3))
"""Bytes and revision of ``vfs_cap_data``; the first revision is not written any more."""



class ExtendedAttributes:
    """getxattr, setxattr, listxattr and removexattr on paths and descriptors."""

    def __init__(self, ctx: ProcessContext, access: Access, walk: PathWalk) -> None:
        self._ctx = ctx
        self._access = access
        self._walk = walk

    def _attribute(self, name: Path) -> bytes:
        raw = encode_path(name)
        if not raw or len(raw) > XATTR_NAME_MAX:
            fail(errno.ERANGE)
        return raw

    def _may_xattr(self, nodeid: int, name: bytes, write: bool) -> None:
        """xattr_permission and cap_inode_setxattr, by the attribute's name space (xattr(7)).

        ``trusted.`` and the writing of ``security.`` take CAP_SYS_ADMIN; ``system.`` is the file system's.
        ``user.`` exists on files and directories only, and the owner alone writes it on sticky ones; it and
        all else follows the mode bits.
        """
        process = self._ctx.process
        if name.startswith(SECURITY):
            if write and not permissions.capable(process, CAP_SYS_ADMIN):
                fail(errno.EPERM)
        elif name.startswith(TRUSTED):
            if not permissions.capable(process, CAP_SYS_ADMIN):
                fail(errno.EPERM if write else errno.ENODATA)
        elif not name.startswith(b"system."):
            attr = self._access.attr(nodeid)
            directory = stat.S_ISDIR(attr.mode)
            if name.startswith(b"user."):
                if not directory and not stat.S_ISREG(attr.mode):
                    fail(errno.EPERM if write else errno.ENODATA)
                if write and directory and attr.mode & stat.S_ISVTX:
                    permissions.check_owner(process, attr)
            self._access.permit(nodeid, attr, permissions.W_OK if write else permissions.R_OK)

    def _may_set(self, nodeid: int, name: bytes, value: bytes) -> None:
        """``_may_xattr`` for a new value; file capabilities take CAP_SETFCAP, and EINVAL where they are none
        (cap_convert_nscap)."""
        if name != CAPABILITY:
            self._may_xattr(nodeid, name, True)
            return
        if value and (len(value), value[3] if len(value) > 3 else 0) not in CAPABILITY_REVISIONS:
            fail(errno.EINVAL)
        if value and not permissions.capable(self._ctx.process, CAP_SETFCAP):
            fail(errno.EPERM)

    def _may_remove_xattr(self, nodeid: int, name: bytes) -> None:
        """``_may_xattr`` for the removal; that of file capabilities takes CAP_SETFCAP."""
        if name != CAPABILITY:
            self._may_xattr(nodeid, name, True)
        elif not permissions.capable(self._ctx.process, CAP_SETFCAP):
            fail(errno.EPERM)

    def _may_set_acl(self, nodeid: int, name: bytes) -> Attr | None:
        """vfs_set_acl: the owner's right; None where a default ACL has no place."""
        attr = self._access.attr(nodeid)
        if stat.S_ISLNK(attr.mode):
            fail(errno.EOPNOTSUPP)
        if name == acl.DEFAULT and not stat.S_ISDIR(attr.mode):
            return None
        permissions.check_owner(self._ctx.process, attr)
        return attr

    def _set_acl(self, nodeid: int, name: bytes, value: bytes) -> None:
        """An ACL instead of the one there is; one without entries removes that. Flags do not count."""
        entries = acl.decode(value)
        attr = self._may_set_acl(nodeid, name)
        if attr is None:
            if entries:
                fail(errno.EACCES)
            return
        if not entries:
            self._remove_acl(nodeid, name)
            return
        acl.check(entries)
        if len(value) > acl.ACL_BYTES_MAX:
            fail(errno.E2BIG)
        kill = 0 if permissions.keeps_sgid(self._ctx.process, attr.gid) else SETXATTR_ACL_KILL_SGID
        self._send_setxattr(nodeid, name, value, 0, kill)

    def _remove_acl(self, nodeid: int, name: bytes) -> None:
        """Without an ACL; that there was none is no error."""
        try:
            self._send_removexattr(nodeid, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise

    @names_file
    def getxattr(self, path: Path | int, attribute: Path, *, follow_symlinks: bool = True) -> bytes:
        """The value of an attribute."""
        name = self._attribute(attribute)
        nodeid, _, _ = self._walk.target(path, None, follow_symlinks, opened=True)
        with self._ctx.holding(nodeid):
            self._may_xattr(nodeid, name, False)
            return self.fetch(op.GETXATTR, nodeid, (name,))

    @names_file
    def listxattr(self, path: Path | int | None = None, *, follow_symlinks: bool = True) -> list[str]:
        """The names of all attributes; ``trusted.`` ones are for CAP_SYS_ADMIN alone."""
        nodeid, _, _ = self._walk.target(
            "." if path is None else path, None, follow_symlinks, opened=True
        )
        with self._ctx.holding(nodeid):
            names = self.fetch(op.LISTXATTR, nodeid, ())
        found = [name for name in names.split(b"\0") if name]
        if not permissions.capable(self._ctx.process, CAP_SYS_ADMIN):
            found = [name for name in found if not name.startswith(TRUSTED)]
        return [os.fsdecode(name) for name in found]

    def fetch(self, opcode: int, nodeid: int, names: tuple[bytes, ...]) -> bytes:
        """GETXATTR or LISTXATTR with room for the largest answer; EOPNOTSUPP if the server has none."""
        self._ctx.require(opcode, errno.EOPNOTSUPP)
        gpa, size = self._ctx.buffer(XATTR_SIZE_MAX)
        try:
            buffer = [(gpa, size)]
            request = self._ctx.call(opcode, nodeid, (size, 0), names, writes=buffer, owned=list(buffer))
        except OSError as error:
            if self._ctx.lacks(opcode, error):
                fail(errno.EOPNOTSUPP)
            raise
        kernel = self._ctx.kernel
        value = kernel.memory.read(gpa, min(request.written, size))
        kernel.free_owned(request)
        return value

    @names_file
    def setxattr(
        self,
        path: Path | int,
        attribute: Path,
        value: Buffer,
        flags: int = 0,
        *,
        follow_symlinks: bool = True,
    ) -> None:
        """Set an attribute (``flags``: XATTR_CREATE, XATTR_REPLACE)."""
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
            fail(errno.EINVAL)
        name, data = self._attribute(attribute), bytes(value)
        if len(data) > XATTR_SIZE_MAX:
            fail(errno.E2BIG)
        nodeid, _, _ = self._walk.target(path, None, follow_symlinks, opened=True)
        with self._ctx.holding(nodeid):
            if name in acl.NAMES:
                self._set_acl(nodeid, name, data)
                return
            self._may_set(nodeid, name, data)
            self._send_setxattr(nodeid, name, data, flags, 0)

    def _send_setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int, more: int) -> None:
        self._ctx.require(op.SETXATTR, errno.EOPNOTSUPP)
        extended = bool(self._ctx.kernel.state.session.flags & init_flags.SETXATTR_EXT)
        args = (len(value), flags, more, 0) if extended else (len(value), flags)
        try:
            self._ctx.call(op.SETXATTR, nodeid, args, (name,), value, compat=not extended)
        except OSError as error:
            if self._ctx.lacks(op.SETXATTR, error):
                fail(errno.EOPNOTSUPP)
            raise
        self._ctx.kernel.inodes.touch(self._ctx.node(nodeid))

    @names_file
    def removexattr(self, path: Path | int, attribute: Path, *, follow_symlinks: bool = True) -> None:
        """Remove an attribute."""
        name = self._attribute(attribute)
        nodeid, _, _ = self._walk.target(path, None, follow_symlinks, opened=True)
        with self._ctx.holding(nodeid):
            if name in acl.NAMES:
                if self._may_set_acl(nodeid, name) is not None:
                    self._remove_acl(nodeid, name)
                return
            self._may_remove_xattr(nodeid, name)
            self._send_removexattr(nodeid, name)

    def _send_removexattr(self, nodeid: int, name: bytes) -> None:
        self._ctx.require(op.REMOVEXATTR, errno.EOPNOTSUPP)
        try:
            self._ctx.call(op.REMOVEXATTR, nodeid, (), (name,))
        except OSError as error:
            if self._ctx.lacks(op.REMOVEXATTR, error):
                fail(errno.EOPNOTSUPP)
            raise
        self._ctx.kernel.inodes.touch(self._ctx.node(nodeid))
