"""Attributes as far as they are known, and what they (or an ACL) let a process do."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_MODE
from vmsim.fuse.abi.init_flags import HANDLE_KILLPRIV_V2, POSIX_ACL
from vmsim.fuse.abi.replies import ATTR_OUT
from vmsim.guest.calls import acl, permissions
from vmsim.guest.calls.capabilities import CAP_FSETID
from vmsim.guest.calls.context import ProcessContext, fail
from vmsim.guest.kernel.nodes import make_stat
from vmsim.guest.state import Attr, Process

ATTR_TRIES: Final = 4
_S_IFMT: Final = 0o170000
_ATTR_BYTES: Final = ATTR_OUT.size
_unpack_attr: Final = ATTR_OUT.unpack_from


class Access:
    """GETATTR where it takes one, and the permission checks that every call makes."""

    def __init__(self, ctx: ProcessContext) -> None:
        self._ctx = ctx

    def attr(self, nodeid: int, fh: int | None = None, fresh: bool = False) -> Attr:
        """Attributes that are still valid, asked for if they are not."""
        kernel = self._ctx.cell.kernel
        node = kernel.nodes.nodes.get(nodeid)
        if node is None:
            fail(errno.ESTALE)
        if fresh or (node.attr_expiry_ns and node.attr_expiry_ns > kernel.schedule.now_ns()):
            return node.attr
        args = (0, 0, 0) if fh is None else (1, 0, fh)
        tries = 0
        while True:
            version = kernel.state.attr_version
            reply = self._ctx.ask(op.GETATTR, nodeid, args)
            kernel = self._ctx.cell.kernel
            if self.take_attr(nodeid, reply, version):
                return kernel.nodes.nodes[nodeid].attr
            # Somebody changed the file meanwhile: what we know of its size is newer, of the rest older.
            if tries == ATTR_TRIES:
                known = kernel.nodes.nodes[nodeid].attr
                attr = Attr(*_unpack_attr(reply)[3:])
                attr.size, attr.mtime, attr.mtimensec = known.size, known.mtime, known.mtimensec
                return attr
            tries += 1

    def take_attr(self, nodeid: int, reply: bytes, version: int) -> bool:
        """Attributes out of an ``fuse_attr_out``, unless they are out of date already; EIO if the file turned
        into another kind."""
        if len(reply) < _ATTR_BYTES:
            fail(errno.EIO)
        raw = _unpack_attr(reply)
        kernel = self._ctx.cell.kernel
        node = kernel.nodes.nodes.get(nodeid)
        if node is None or (raw[12] ^ node.attr.mode) & _S_IFMT:
            fail(errno.EIO)
        return kernel.inodes.apply_attr(node, raw[3:], raw[0], raw[1], version)

    # Permissions

    def may(self, nodeid: int, mask: int) -> None:
        """ENOTDIR for X_OK on what is no directory; EACCES if ``mask`` is not allowed (inode_permission)."""
        node = self._ctx.node(nodeid)
        if mask & permissions.X_OK and not stat.S_ISDIR(node.attr.mode):
            fail(errno.ENOTDIR)
        process, config = self._ctx.process, self._ctx.kernel.config
        if (not process.uid and process.capabilities is None) or not config.default_permissions:
            return
        self.permit(nodeid, self.attr(nodeid), mask)

    def permit(self, nodeid: int, attr: Attr, mask: int) -> None:
        """EACCES if what is known of the node forbids ``mask``."""
        if not self.allowed(self._ctx.process, nodeid, attr, mask):
            fail(errno.EACCES)

    def allowed(self, process: Process, nodeid: int, attr: Attr, mask: int) -> bool:
        """Whether the process may do ``mask``: capabilities, the owner's bits, the ACL, or the other bits.

        An ACL is looked at only where it could matter: not for the owner, and not where the group's bits
        (which are its mask) are all off.
        """
        if permissions.overrides(process, attr.mode, mask):
            return True
        may_have_acl = attr.mode & stat.S_IRWXG and process.uid != attr.uid
        if may_have_acl and self._ctx.kernel.state.session.flags & POSIX_ACL:
            entries = acl.decode(self._acl(nodeid))
            if entries:
                return acl.allows(process, attr, entries, mask)
        return permissions.by_mode(process, attr, mask)

    def _acl(self, nodeid: int) -> bytes:
        """The access ACL of a node, kept as long as its attributes are; empty if it has none."""
        kernel = self._ctx.running()
        node = kernel.nodes.get(nodeid)
        if node.acl_expiry_ns and node.acl_expiry_ns > kernel.schedule.now_ns():
            return node.acl
        if op.GETXATTR in kernel.missing:
            return b""
        version = kernel.state.attr_version
        gpa, size = self._ctx.buffer(acl.ACL_BYTES_MAX)
        value = b""
        try:
            request = self._ctx.call(
                op.GETXATTR, nodeid, (size, 0), (acl.ACCESS,), writes=[(gpa, size)], owned=[(gpa, size)]
            )
        except OSError as error:
            known = (errno.ENODATA, errno.EOPNOTSUPP)
            if not self._ctx.lacks(op.GETXATTR, error) and error.errno not in known:
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        else:
            value = self._ctx.kernel.memory.read(gpa, min(request.written, size))
            self._ctx.kernel.free_owned(request)
        node = self._ctx.kernel.nodes.get(nodeid)
        if node.attr_version <= version:
            node.acl, node.acl_expiry_ns = value, node.attr_expiry_ns
        return value

    def remove_privs(self, nodeid: int, delegated: bool = True) -> None:
        """Before the content changes: take away the bits that must not survive that.

        With HANDLE_KILLPRIV_V2 the server does it, if the request that follows tells it to (``delegated``);
        but it knows no groups, and keeps the group's bit of what is no program.
        """
        attr = self._ctx.node(nodeid).attr
        if not attr.mode & permissions.SPECIAL_BITS:
            return
        mode = permissions.kept_mode(self._ctx.process, attr)
        kernel = self._ctx.kernel
        killed = delegated and kernel.state.session.flags & HANDLE_KILLPRIV_V2
        if mode == attr.mode or (killed and not permissions.needs_groups(attr.mode & ~mode, mode)):
            return
        version = kernel.state.attr_version
        args = (FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0, 0, 0)
        reply = self._ctx.call(op.SETATTR, nodeid, args).reply
        self.take_attr(nodeid, reply, max(version, self._ctx.node(nodeid).attr_version))

    def server_kills(self) -> bool:
        """Whether a request has to say that set-id bits go: the server kills them (HANDLE_KILLPRIV_V2), and
        the process has no CAP_FSETID."""
        killpriv = self._ctx.kernel.state.session.flags & HANDLE_KILLPRIV_V2
        return bool(killpriv) and not permissions.capable(self._ctx.process, CAP_FSETID)

    def stat_of(self, nodeid: int, fh: int | None = None, fresh: bool = False) -> os.stat_result:
        """The attributes as ``os`` presents them."""
        attr = self.attr(nodeid, fh, fresh)
        return make_stat(attr, self._ctx.node(nodeid).device_number)
