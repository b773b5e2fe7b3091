"""An oracle: what a POSIX file system has to answer, written without looking at one.

It knows nothing of FUSE, inodes or hosts, only names, bytes, handles and errnos as Linux gives them.
Everything is in memory and plain, so that a run can be compared after every step.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NoReturn

SYMLINKS_MAX: Final = 40
ACCESS: Final = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


def fail(code: int) -> NoReturn:
    """Raise OSError with this errno."""
    raise OSError(code, os.strerror(code))


class Node:
    """A file, directory or symlink; it lives as long as a name or a handle refers to it."""

    __slots__ = ("children", "data", "mode", "nlink", "target", "xattrs")

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.nlink = 0
        self.data = bytearray()
        self.children: dict[str, Node] = {}
        self.target = ""
        self.xattrs: dict[str, bytes] = {}

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symlink."""
        return stat.S_ISLNK(self.mode)

    @property
    def size(self) -> int:
        """What st_size has to be; directories have no size that could be foreseen."""
        return len(self.target.encode()) if self.is_link else len(self.data)

    def facts(self) -> tuple[int, int, int]:
        """(mode, size, names) as stat has to report them; 0 where a file system is free."""
        return (self.mode, 0, 0) if self.is_dir else (self.mode, self.size, self.nlink)


class Handle:
    """An open file description."""

    __slots__ = ("flags", "node", "offset")

    def __init__(self, node: Node, flags: int) -> None:
        self.node = node
        self.flags = flags
        self.offset = 0

    @property
    def readable(self) -> bool:
        """Whether read() is allowed."""
        return self.flags & ACCESS != os.O_WRONLY

    @property
    def writable(self) -> bool:
        """Whether write() is allowed."""
        return self.flags & ACCESS != os.O_RDONLY


class Model:
    """The tree and the handles. Functions have the names and semantics of ``os``; handles count from 0."""

    def __init__(self, umask: int = 0o022) -> None:
        self.umask = umask
        self.root = Node(stat.S_IFDIR | 0o755)
        self.handles: dict[int, Handle] = {}
        self._next_slot = 0

    # Names

    def _find(self, path: str, *, follow: bool) -> tuple[Node, str, Node | None]:
        """The last directory on the way, the last name, and what is there if anything is."""
        todo = [name for name in path.split("/") if name]
        place, links = [self.root], 0
        name, node = "", None
        while todo:
            name = todo.pop(0)
            parent = place[-1]
            if not parent.is_dir:
                fail(errno.ENOTDIR)
            node = parent.children.get(name)
            if node is None:
                if todo:
                    fail(errno.ENOENT)
                return parent, name, None
            if node.is_link and (todo or follow):
                links += 1
                if links > SYMLINKS_MAX:
                    fail(errno.ELOOP)
                todo = [part for part in node.target.split("/") if part] + todo
            elif todo:
                place.append(node)
            else:
                return parent, name, node
        return place[-1], name, place[-1]

    def get(self, path: str, *, follow: bool) -> Node:
        """What a path leads to; OSError if nowhere."""
        node = self._find(path, follow=follow)[2]
        if node is None:
            fail(errno.ENOENT)
        return node

    def _vacant(self, path: str) -> tuple[Node, str]:
        """Where a new name goes."""
        parent, name, node = self._find(path, follow=False)
        if node is not None:
            fail(errno.EEXIST)
        return parent, name

    def _enter(self, parent: Node, name: str, node: Node) -> None:
        parent.children[name] = node
        node.nlink += 1

    def _leave(self, parent: Node, name: str) -> None:
        parent.children.pop(name).nlink -= 1

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """As of ``os``."""
        parent, name = self._vacant(path)
        self._enter(parent, name, Node(stat.S_IFDIR | mode & ~self.umask & 0o7777))

    def symlink(self, src: str, dst: str) -> None:
        """As of ``os``."""
        parent, name = self._vacant(dst)
        node = Node(stat.S_IFLNK | 0o777)
        node.target = src
        self._enter(parent, name, node)

    def link(self, src: str, dst: str) -> None:
        """As of ``os``; ``src`` is no symlink."""
        node = self.get(src, follow=False)
        parent, name = self._vacant(dst)
        if node.is_dir:
            fail(errno.EPERM)
        self._enter(parent, name, node)

    def unlink(self, path: str) -> None:
        """As of ``os``."""
        parent, name, node = self._find(path, follow=False)
        if node is None:
            fail(errno.ENOENT)
        if node.is_dir:
            fail(errno.EISDIR)
        self._leave(parent, name)

    def rmdir(self, path: str) -> None:
        """As of ``os``."""
        parent, name, node = self._find(path, follow=False)
        if node is None:
            fail(errno.ENOENT)
        if not node.is_dir:
            fail(errno.ENOTDIR)
        if node.children:
            fail(errno.ENOTEMPTY)
        self._leave(parent, name)

    def rename(self, src: str, dst: str) -> None:
        """As of ``os``, errors in the order in which Linux looks for them."""
        old_parent, old_name, node = self._find(src, follow=False)
        new_parent, new_name, victim = self._find(dst, follow=False)
        if node is None:
            fail(errno.ENOENT)
        if node.is_dir and _holds(node, new_parent):
            fail(errno.EINVAL)
        if victim is not None and victim.is_dir and _holds(victim, old_parent):
            fail(errno.ENOTEMPTY)
        if victim is node:
            return
        if victim is not None:
            if node.is_dir and not victim.is_dir:
                fail(errno.ENOTDIR)
            if victim.is_dir and not node.is_dir:
                fail(errno.EISDIR)
            if victim.children:
                fail(errno.ENOTEMPTY)
            self._leave(new_parent, new_name)
        self._leave(old_parent, old_name)
        self._enter(new_parent, new_name, node)

    def readlink(self, path: str) -> str:
        """As of ``os``."""
        node = self.get(path, follow=False)
        if not node.is_link:
            fail(errno.EINVAL)
        return node.target

    def listdir(self, path: str) -> list[str]:
        """As of ``os``, sorted."""
        node = self.get(path, follow=True)
        if not node.is_dir:
            fail(errno.ENOTDIR)
        return sorted(node.children)

    # Attributes

    def stat(self, path: str) -> tuple[int, int, int]:
        """The facts of what the path leads to."""
        return self.get(path, follow=True).facts()

    def lstat(self, path: str) -> tuple[int, int, int]:
        """The facts of what is there, symlink or not."""
        return self.get(path, follow=False).facts()

    def fstat(self, slot: int) -> tuple[int, int, int]:
        """The facts of what a handle refers to."""
        return self.handles[slot].node.facts()

    def chmod(self, path: str, mode: int) -> None:
        """As of ``os``."""
        node = self.get(path, follow=True)
        node.mode = stat.S_IFMT(node.mode) | mode

    def truncate(self, path: str, length: int) -> None:
        """As of ``os``."""
        node = self.get(path, follow=True)
        if node.is_dir:
            fail(errno.EISDIR)
        _resize(node.data, length)

    def setxattr(self, path: str, attribute: str, value: bytes) -> None:
        """As of ``os``."""
        self.get(path, follow=True).xattrs[attribute] = value

    def getxattr(self, path: str, attribute: str) -> bytes:
        """As of ``os``."""
        node = self.get(path, follow=True)
        if attribute not in node.xattrs:
            fail(errno.ENODATA)
        return node.xattrs[attribute]

    def listxattr(self, path: str) -> list[str]:
        """The attributes that were set by setxattr, sorted."""
        return sorted(self.get(path, follow=True).xattrs)

    def removexattr(self, path: str, attribute: str) -> None:
        """As of ``os``."""
        node = self.get(path, follow=True)
        if attribute not in node.xattrs:
            fail(errno.ENODATA)
        del node.xattrs[attribute]

    # Handles

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        """As of ``os``; the slot of the new handle."""
        exclusive = bool(flags & os.O_CREAT and flags & os.O_EXCL)
        parent, name, node = self._find(path, follow=not exclusive)
        if node is None:
            if not flags & os.O_CREAT:
                fail(errno.ENOENT)
            node = Node(stat.S_IFREG | mode & ~self.umask & 0o7777)
            self._enter(parent, name, node)
        elif exclusive:
            fail(errno.EEXIST)
        elif node.is_dir and (flags & ACCESS != os.O_RDONLY or flags & os.O_CREAT):
            fail(errno.EISDIR)
        elif flags & os.O_DIRECTORY and not node.is_dir:
            fail(errno.ENOTDIR)
        elif flags & os.O_TRUNC:
            node.data.clear()
        slot = self._next_slot
        self._next_slot += 1
        self.handles[slot] = Handle(node, flags)
        return slot

    def close(self, slot: int) -> None:
        """As of ``os``."""
        del self.handles[slot]

    def _for_reading(self, slot: int) -> Handle:
        handle = self.handles[slot]
        if not handle.readable:
            fail(errno.EBADF)
        if handle.node.is_dir:
            fail(errno.EISDIR)
        return handle

    def _for_writing(self, slot: int, otherwise: int) -> Handle:
        handle = self.handles[slot]
        if not handle.writable:
            fail(otherwise)
        return handle

    def read(self, slot: int, n: int) -> bytes:
        """As of ``os``; a regular file never answers with less than there is."""
        handle = self._for_reading(slot)
        data = bytes(handle.node.data[handle.offset : handle.offset + n])
        handle.offset += len(data)
        return data

    def pread(self, slot: int, n: int, offset: int) -> bytes:
        """As of ``os``."""
        return bytes(self._for_reading(slot).node.data[offset : offset + n])

    def write(self, slot: int, data: bytes) -> int:
        """As of ``os``; with O_APPEND at the end, wherever the offset is, if there is anything to write."""
        handle = self._for_writing(slot, errno.EBADF)
        if handle.flags & os.O_APPEND and data:
            handle.offset = len(handle.node.data)
        _patch(handle.node.data, handle.offset, data)
        handle.offset += len(data)
        return len(data)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        """As of ``os``; on Linux O_APPEND beats the offset."""
        handle = self._for_writing(slot, errno.EBADF)
        _patch(handle.node.data, len(handle.node.data) if handle.flags & os.O_APPEND else offset, data)
        return len(data)

    def lseek(self, slot: int, pos: int, how: int) -> int:
        """As of ``os``, for files."""
        handle = self.handles[slot]
        base = {os.SEEK_SET: 0, os.SEEK_CUR: handle.offset, os.SEEK_END: len(handle.node.data)}[how]
        if base + pos < 0:
            fail(errno.EINVAL)
        handle.offset = base + pos
        return handle.offset

    def ftruncate(self, slot: int, length: int) -> None:
        """As of ``os``."""
        _resize(self._for_writing(slot, errno.EINVAL).node.data, length)

    def fsync(self, slot: int) -> None:
        """As of ``os``: nothing that could be seen."""

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path with its node, the root first."""
        todo = [("", self.root)]
        while todo:
            path, node = todo.pop()
            yield path or "/", node
            todo += [(f"{path}/{name}", child) for name, child in sorted(node.children.items())]


def _holds(node: Node, other: Node) -> bool:
    """Whether ``other`` is ``node`` or below it."""
    return node is other or any(_holds(child, other) for child in node.children.values() if child.is_dir)


def _patch(data: bytearray, offset: int, piece: bytes) -> None:
    if not piece:
        return
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


def _resize(data: bytearray, length: int) -> None:
    if length < len(data):
        del data[length:]
    else:
        data.extend(bytes(length - len(data)))
