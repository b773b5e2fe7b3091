"""Path resolution in the guest: components, symlinks, ``..``, trailing slashes; never above the root."""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple

from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.headers import FUSE_ROOT_ID
from vmsim.guest.calls import permissions
from vmsim.guest.calls.access import AccessCalls
from vmsim.guest.calls.context import O_PATH, Path, encode_path, fail
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


class PathWalk(AccessCalls):
    """From paths to nodes."""

    def _start(self, path: bytes, dir_fd: int | None) -> int:
        """Where the walk begins; a reference is held for the caller."""
        if not path:
            fail(errno.ENOENT)
        if len(path) >= PATH_MAX:
            fail(errno.ENAMETOOLONG)
        if path.startswith(b"/"):
            nodeid = FUSE_ROOT_ID
        elif dir_fd is None:
            nodeid = self.process.cwd
        else:
            nodeid = self._file(dir_fd).nodeid
            if not stat.S_ISDIR(self._node(nodeid).attr.mode):
                fail(errno.ENOTDIR)
        self.kernel.nodes.hold(nodeid)
        return nodeid

    def _resolve(self, path: bytes, dir_fd: int | None = None, follow: bool = True) -> tuple[int, bool]:
        """The node that a path names (a reference is held), and whether its attributes have just come."""
        at = self._start(path, dir_fd)
        at, _, fresh = self._walk(at, components(path), path.endswith(b"/"), follow)
        return at, fresh

    def _place(self, path: bytes, dir_fd: int | None = None) -> Place:
        """The directory (held) and name that a path ends in; the last component is not looked up."""
        at = self._start(path, dir_fd)
        return self._place_from(at, path, 0)[0]

    def _place_from(self, at: int, path: bytes, links: int) -> tuple[Place, int]:
        rest = components(path)
        name = rest[0] if rest else b""
        at, links, _ = self._walk(at, rest[1:], True, True, links)
        self._check_directory(at)
        return Place(at, name, path.endswith(b"/")), links

    def _check_directory(self, nodeid: int) -> None:
        """ENOTDIR or EACCES (and the reference is given back) unless names in it may be looked up."""
        try:
            self._may(nodeid, permissions.X_OK)
        except OSError:
            self.kernel.nodes.drop(nodeid)
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
                self._may(at, permissions.X_OK)
                if name == b".":
                    fresh = False
                    continue
                child, fresh = self._step(at, name)
                if stat.S_ISLNK(self._node(child).attr.mode) and (rest or follow or slash):
                    links += 1
                    at, slash = self._follow(at, child, rest, slash, links)
                    continue
                self.kernel.nodes.drop(at)
                at = child
            if slash and not stat.S_ISDIR(self._node(at).attr.mode):
                fail(errno.ENOTDIR)
        except BaseException:
            self._cell.kernel.nodes.drop(at)
            raise
        return at, links, fresh

    def _follow(self, at: int, link: int, rest: list[bytes], slash: bool, links: int) -> tuple[int, bool]:
        """Push a symlink's target in front of ``rest``; where to go on. Takes the reference on ``link``."""
        with self._holding(link):
            if links > SYMLINKS_MAX:
                fail(errno.ELOOP)
            target = self._read_link(link)
        if not target:
            fail(errno.ENOENT)
        if not rest and target.endswith(b"/"):
            slash = True
        rest.extend(components(target))
        if target.startswith(b"/") and at != FUSE_ROOT_ID:
            nodes = self.kernel.nodes
            nodes.hold(FUSE_ROOT_ID)
            nodes.drop(at)
            at = FUSE_ROOT_ID
        return at, slash

    def _step(self, at: int, name: bytes) -> tuple[int, bool]:
        """One component: the child (held) and whether its attributes have just come."""
        if name == b"..":
            node = self._node(at)
            if not node.parent:
                fail(errno.ENOENT)
            self.kernel.nodes.hold(node.parent)
            return node.parent, False
        if len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG)
        kernel = self.kernel
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
        kernel = self._running()
        version, names_version = kernel.state.attr_version, kernel.state.names_version
        entry = self._record(op.LOOKUP, self._call(op.LOOKUP, parent, (), (name,)))
        kernel = self.kernel
        if not entry.nodeid:
            if names_version == kernel.state.names_version:
                expiry = kernel.expiry(entry.entry_valid, entry.entry_valid_nsec)
                kernel.remember_name(parent, name, 0, expiry)
            fail(errno.ENOENT)
        return kernel.apply_entry(parent, name, entry, version, names_version), version

    def _read_link(self, nodeid: int) -> bytes:
        gpa, size = self._buffer(PATH_MAX)
        request = self._call(op.READLINK, nodeid, writes=[(gpa, size)], owned=[(gpa, size)])
        kernel = self.kernel
        target = kernel.memory.read(gpa, min(request.written, size))
        kernel.free_owned(request)
        if b"\0" in target:
            fail(errno.EIO)
        return target

    def _target(
        self, path: Path | int, dir_fd: int | None, follow: bool, opened: bool = False
    ) -> tuple[int, int | None, bool]:
        """A path or descriptor as (node, handle, fresh); a reference on the node is held for the caller.

        EBADF for an O_PATH descriptor if the file must have been ``opened``.
        """
        if isinstance(path, int):
            file = self._usable(path) if opened else self._file(path)
            if file.fh is None and not file.flags & O_PATH:
                fail(errno.ESTALE)
            self.kernel.nodes.hold(file.nodeid)
            return file.nodeid, None if file.directory else file.fh, False
        nodeid, fresh = self._resolve(encode_path(path), dir_fd, follow)
        return nodeid, None, fresh
