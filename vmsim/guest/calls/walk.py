"""Path resolution in the guest: components, symlinks, ``..``, trailing slashes; never above the root.

A walk holds one reference: on the directory where it stands. ``step`` takes one on the child before the one
on the parent is given back, so that neither can be forgotten in between; whoever gets the node at the end
gets the reference with it, and every error on the way gives it back. That matters since the server may be
asked in each step: while the walk waits, other programs rename, the cache gives up names, and the machine
migrates. Of the walk only numbers and bytes are kept across such a wait.

* A **symlink** is followed by putting its components in front of the rest (``rest`` is a stack, the next
  component last), so that the depth of the Python stack does not depend on the tree. Forty are followed
  (MAXSYMLINKS of Linux), counted over the whole path, those at the end of an O_CREAT too.
* ``..`` goes where the directory lies now, not where it was found: a directory has one parent, and the node
  table keeps it. A removed directory has none (ENOENT). The root is its own parent: nothing leads above it.
* **Permission to search** is asked of each directory before the name in it, as Linux does: of two errors the
  one that comes first on the path wins.
"""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.headers import FUSE_ROOT_ID
from vmsim.guest.calls import permissions
from vmsim.guest.calls.access import Access
from vmsim.guest.calls.context import O_PATH, Path, ProcessContext, encode_path, fail
from vmsim.guest.state import Node
from vmsim.limits import NAME_MAX, PATH_MAX

SYMLINKS_MAX: Final = 40
DOTS: Final = (b".", b"..", b"")


class Place(NamedTuple):
    """Where a name belongs: a directory (a reference is held for the caller) and the last component.

    ``name`` is ``.``, ``..`` or empty (the root itself) when the path ends so; ``slash``: slashes follow it.
    """

    parent: int
    name: bytes
    slash: bool


def components(path: bytes) -> list[bytes]:
    """The non-empty components of a path, last one first."""
    parts = [part for part in path.split(b"/") if part]
    parts.reverse()
    return parts


class PathWalk:
    """From paths to nodes."""

    def __init__(self, ctx: ProcessContext, access: Access) -> None:
        self._ctx = ctx
        self._access = access

    def start(self, path: bytes, dir_fd: int | None) -> int:
        """Where the walk begins; a reference is held for the caller."""
        if not path:
            fail(errno.ENOENT)
        if len(path) >= PATH_MAX:
            fail(errno.ENAMETOOLONG)
        if path.startswith(b"/"):
            nodeid = FUSE_ROOT_ID
        elif dir_fd is None:
            nodeid = self._ctx.process.cwd
        else:
            nodeid = self._ctx.file(dir_fd).nodeid
            if not stat.S_ISDIR(self._ctx.node(nodeid).attr.mode):
                fail(errno.ENOTDIR)
        self._ctx.kernel.nodes.hold(nodeid)
        return nodeid

    def resolve(self, path: bytes, dir_fd: int | None = None, follow: bool = True) -> tuple[int, bool]:
        """The node that a path names (a reference is held), and whether its attributes have just come."""
        at = self.start(path, dir_fd)
        at, _, fresh = self._walk(at, components(path), path.endswith(b"/"), follow)
        return at, fresh

    def place(self, path: bytes, dir_fd: int | None = None) -> Place:
        """The directory (held) and name that a path ends in; the last component is not looked up."""
        at = self.start(path, dir_fd)
        return self.place_from(at, path, 0)[0]

    def place_from(self, at: int, path: bytes, links: int) -> tuple[Place, int]:
        """``place`` from a node on (the reference is taken over), and the symlinks followed up to there."""
        rest = components(path)
        name = rest[0] if rest else b""
        at, links, _ = self._walk(at, rest[1:], True, True, links)
        self._check_directory(at)
        return Place(at, name, path.endswith(b"/")), links

    def _check_directory(self, nodeid: int) -> None:
        """ENOTDIR or EACCES (and the reference is given back) unless names in it may be looked up."""
        try:
            self._access.may(nodeid, permissions.X_OK)
        except BaseException:
            self._ctx.cell.kernel.nodes.drop(nodeid)
            raise

    def _walk(
        self, at: int, rest: list[bytes], slash: bool, follow: bool, links: int = 0
    ) -> tuple[int, int, bool]:
        """Walk from ``at`` (the reference is taken over) through ``rest``, whose first component comes last.

        ``slash``: the end must be a directory. The node (held), symlinks followed, freshness. Errors give
        back the reference.
        """
        fresh = False
        try:
            while rest:
                name = rest.pop()
                self._access.may(at, permissions.X_OK)
                if name == b".":
                    fresh = False
                    continue
                child, fresh = self.step(at, name)
                if stat.S_ISLNK(self._ctx.node(child).attr.mode) and (rest or follow or slash):
                    links += 1
                    at, slash = self._follow(at, child, rest, slash, links)
                    continue
                self._ctx.kernel.nodes.drop(at)
                at = child
            if slash and not stat.S_ISDIR(self._ctx.node(at).attr.mode):
                fail(errno.ENOTDIR)
        except BaseException:
            self._ctx.cell.kernel.nodes.drop(at)
            raise
        return at, links, fresh

    def _follow(self, at: int, link: int, rest: list[bytes], slash: bool, links: int) -> tuple[int, bool]:
        """Push a symlink's target in front of ``rest``; where to go on. Takes the reference on ``link``."""
        with self._ctx.holding(link):
            if links > SYMLINKS_MAX:
                fail(errno.ELOOP)
            target = self.read_link(link)
        if not target:
            fail(errno.ENOENT)
        if not rest and target.endswith(b"/"):
            slash = True
        rest.extend(components(target))
        if target.startswith(b"/") and at != FUSE_ROOT_ID:
            nodes = self._ctx.kernel.nodes
            nodes.hold(FUSE_ROOT_ID)
            nodes.drop(at)
            at = FUSE_ROOT_ID
        return at, slash

    def step(self, at: int, name: bytes) -> tuple[int, bool]:
        """One component: the child (held) and whether its attributes have just come."""
        if name == b"..":
            node = self._ctx.node(at)
            if not node.parent:
                fail(errno.ENOENT)
            self._ctx.kernel.nodes.hold(node.parent)
            return node.parent, False
        if len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG)
        kernel = self._ctx.kernel
        if kernel.dentries is not None:
            known = kernel.dentries.get(at, name, kernel.schedule.now_ns())
            if known:
                kernel.nodes.hold(known)
                return known, False
            if known == 0:
                fail(errno.ENOENT)
        node, version = self._lookup(at, name)
        return node.id, node.attr_version <= version

    def _lookup(self, parent: int, name: bytes) -> tuple[Node, int]:
        """LOOKUP: the node (held) and the version its attributes were asked at. ENOENT if there is none."""
        kernel = self._ctx.running()
        version, names_version = kernel.state.attr_version, kernel.state.names_version
        entry = self._ctx.record(op.LOOKUP, self._ctx.call(op.LOOKUP, parent, (), (name,)))
        kernel = self._ctx.kernel
        if not entry.nodeid:
            if names_version == kernel.state.names_version:
                expiry = kernel.inodes.expiry(entry.entry_valid, entry.entry_valid_nsec)
                kernel.inodes.remember_name(parent, name, 0, expiry)
            fail(errno.ENOENT)
        return kernel.inodes.apply_entry(parent, name, entry, version, names_version), version

    def read_link(self, nodeid: int) -> bytes:
        """READLINK: the symlink's target; EIO if it has a NUL byte in it."""
        gpa, size = self._ctx.buffer(PATH_MAX)
        request = self._ctx.call(op.READLINK, nodeid, writes=[(gpa, size)], owned=[(gpa, size)])
        kernel = self._ctx.kernel
        target = kernel.memory.read(gpa, min(request.written, size))
        kernel.free_owned(request)
        if b"\0" in target:
            fail(errno.EIO)
        return target

    def target(
        self, path: Path | int, dir_fd: int | None, follow: bool, opened: bool = False
    ) -> tuple[int, int | None, bool]:
        """A path or descriptor as (node, handle, fresh); a reference on the node is held for the caller.

        EBADF for an O_PATH descriptor if the file must have been ``opened``.
        """
        if isinstance(path, int):
            file = self._ctx.usable(path) if opened else self._ctx.file(path)
            if file.fh is None and not file.flags & O_PATH:
                fail(errno.ESTALE)
            self._ctx.kernel.nodes.hold(file.nodeid)
            return file.nodeid, None if file.directory else file.fh, False
        nodeid, fresh = self.resolve(encode_path(path), dir_fd, follow)
        return nodeid, None, fresh
