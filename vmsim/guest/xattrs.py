"""Extended attributes, as ``os`` presents them."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import init_flags
from vmsim.guest import permissions
from vmsim.guest.calls import Path, encode_path, fail, names_file
from vmsim.guest.dirs import DirCalls
from vmsim.limits import XATTR_SIZE_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

XATTR_NAME_MAX = 255


class XattrCalls(DirCalls):
    """getxattr, setxattr, listxattr and removexattr on paths and descriptors."""

    def _attribute(self, name: Path) -> bytes:
        raw = encode_path(name)
        if not raw or len(raw) > XATTR_NAME_MAX:
            fail(errno.ERANGE)
        return raw

    def _may_xattr(self, nodeid: int, name: bytes, write: bool) -> None:
        """``user.`` attributes follow the mode bits and exist on files and directories only (xattr(7))."""
        attr = self._node(nodeid).attr
        if name.startswith(b"trusted.") and self.process.uid:
            fail(errno.EPERM if write else errno.ENODATA)
        if name.startswith(b"user."):
            if not stat.S_ISREG(attr.mode) and not stat.S_ISDIR(attr.mode):
                fail(errno.EPERM if write else errno.ENODATA)
            if self.process.uid:
                mask = permissions.W_OK if write else permissions.R_OK
                permissions.check(self.process, self._attr(nodeid), mask)

    @names_file
    def getxattr(self, path: Path | int, attribute: Path, *, follow_symlinks: bool = True) -> bytes:
        """The value of an attribute."""
        name = self._attribute(attribute)
        nodeid, _, _ = self._target(path, None, follow_symlinks)
        with self._holding(nodeid):
            self._may_xattr(nodeid, name, False)
            return self._fetch(op.GETXATTR, nodeid, (name,))

    @names_file
    def listxattr(self, path: Path | int | None = None, *, follow_symlinks: bool = True) -> list[str]:
        """The names of all attributes."""
        nodeid, _, _ = self._target("." if path is None else path, None, follow_symlinks)
        with self._holding(nodeid):
            names = self._fetch(op.LISTXATTR, nodeid, ())
        return [os.fsdecode(name) for name in names.split(b"\0") if name]

    def _fetch(self, opcode: int, nodeid: int, names: tuple[bytes, ...]) -> bytes:
        """GETXATTR or LISTXATTR with room for the largest answer; EOPNOTSUPP if the server has none."""
        self._require(opcode, errno.EOPNOTSUPP)
        gpa, size = self._buffer(XATTR_SIZE_MAX)
        try:
            request = self._call(opcode, nodeid, (size, 0), names, writes=[(gpa, size)], owned=[(gpa, size)])
        except OSError as error:
            if self._lacks(opcode, error):
                fail(errno.EOPNOTSUPP)
            raise
        kernel = self.kernel
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
        name, data = self._attribute(attribute), bytes(value)
        if len(data) > XATTR_SIZE_MAX:
            fail(errno.E2BIG)
        nodeid, _, _ = self._target(path, None, follow_symlinks)
        with self._holding(nodeid):
            self._require(op.SETXATTR, errno.EOPNOTSUPP)
            self._may_xattr(nodeid, name, True)
            extended = bool(self.kernel.state.session.flags & init_flags.SETXATTR_EXT)
            args = (len(data), flags, 0, 0) if extended else (len(data), flags)
            try:
                self._call(op.SETXATTR, nodeid, args, (name,), data, compat=not extended)
            except OSError as error:
                if self._lacks(op.SETXATTR, error):
                    fail(errno.EOPNOTSUPP)
                raise
            self.kernel.touch(self._node(nodeid))

    @names_file
    def removexattr(self, path: Path | int, attribute: Path, *, follow_symlinks: bool = True) -> None:
        """Remove an attribute."""
        name = self._attribute(attribute)
        nodeid, _, _ = self._target(path, None, follow_symlinks)
        with self._holding(nodeid):
            self._require(op.REMOVEXATTR, errno.EOPNOTSUPP)
            self._may_xattr(nodeid, name, True)
            try:
                self._call(op.REMOVEXATTR, nodeid, (), (name,))
            except OSError as error:
                if self._lacks(op.REMOVEXATTR, error):
                    fail(errno.EOPNOTSUPP)
                raise
            self.kernel.touch(self._node(nodeid))
