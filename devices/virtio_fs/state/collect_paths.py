"""Finding where an inode is in the share: its last known name, the kernel's opinion, or a look at everything.

A *place* is ``(parent, name)``; ``parent`` is a nodeid, or a :class:`Missing` directory that lies between a
known one and the inode although the guest does not know it. Every place is checked against the inode's
identity before it counts.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from vmsim.limits import PATH_MAX

from ..passthrough.host_calls import NLINK
from ..passthrough.inodes import pack_handle, unpack_handle
from ..passthrough.reach import LISTING, open_listing
from .records import FileHandle

if TYPE_CHECKING:
    from ..passthrough.fs import PassthroughFs
    from ..passthrough.host_calls import HostFs
    from ..passthrough.inodes import Inode

DELETED = b" (deleted)"
DT_UNKNOWN, DT_DIR = 0, 4


class Missing:
    """A directory that the guest does not know, on the way to something that it knows."""

    __slots__ = ("id", "key", "name", "parent")

    def __init__(self, key: Key, parent: Parent, name: bytes) -> None:
        self.key = key
        self.parent = parent
        self.name = name
        self.id = 0


Parent: TypeAlias = "int | Missing"
Place: TypeAlias = "tuple[Parent, bytes]"
Key: TypeAlias = tuple[int, int, int]


GONE = (errno.ESTALE, errno.ENOENT)
"""What the host says of an inode that does not exist any more."""


class NotFound(Exception):
    """An inode has no place; the text says why. ``unlinked``: no name is left of it at all.

    ``gone``: it cannot be reached any more; to the guest it is ESTALE already, and there is nothing to lose.
    """

    def __init__(self, why: str, *, unlinked: bool = False, gone: bool = False) -> None:
        super().__init__(why)
        self.unlinked = unlinked
        self.gone = gone


def reason_of(error: OSError) -> str:
    """What a refusal means and which call it came from, as far as it says."""
    meaning = os.strerror(error.errno) if error.errno else "failed"
    text = error.strerror or ""
    return text if meaning in text else f"{meaning} ({text})" if text else meaning


class PathFinder:
    """Finds places in the share of ``fs`` without changing anything there."""

    def __init__(self, fs: PassthroughFs) -> None:
        self._fs = fs
        self._host = fs.host
        self._inodes = fs.inodes
        self._missing: dict[Key, Missing] = {}
        self._prefix = b""

    # -- checks ----------------------------------------------------------------------------------

    def is_at(self, inode: Inode, parent: Parent, name: bytes) -> bool:
        """Whether ``inode`` is what ``name`` in ``parent`` refers to."""
        if b"/" in name or name in (b"", b".", b".."):
            return False
        try:
            if isinstance(parent, Missing):
                with self.opened(parent, os.O_PATH) as dir_fd:
                    return self._is_in(inode, dir_fd, name)
            directory = self._inodes.get(parent)
            if directory is None:
                return False
            dir_fd = directory.fd
            return self._is_in(inode, dir_fd if dir_fd >= 0 else self._fs.path_fd(directory), name)
        except OSError:
            return False

    def _is_in(self, inode: Inode, dir_fd: int, name: bytes) -> bool:
        """Without a descriptor that holds it, an inode number proves nothing: then the evidence counts."""
        mount = inode.mount
        handle = inode.handle
        if inode.fd >= 0 or handle is None:
            dev, ino, mnt_id, _ = self._host.identify_at(dir_fd, name)
            return ino == inode.ino and dev == mount.dev and mnt_id == mount.mnt_id
        if handle[3] < 0x80:
            mnt_id, kind, raw = self._host.file_handle_at(dir_fd, name)
            return handle == pack_handle(kind, raw) and mnt_id == mount.mnt_id
        # A birth time, where the file system has no file handles.
        dev, ino, mnt_id, _ = self._host.identify_at(dir_fd, name)
        if ino != inode.ino or dev != mount.dev or mnt_id != mount.mnt_id:
            return False
        return self._fs.evidence_at(dir_fd, name, handle) == handle

    def opened(self, parent: Parent, flags: int) -> Opened:
        """A context with a descriptor of ``parent`` opened with ``flags``; OSError if it cannot be opened."""
        names: list[bytes] = []
        while isinstance(parent, Missing):
            names.append(parent.name)
            parent = parent.parent
        anchor = self._inodes.get(parent)
        if anchor is None:
            raise OSError(errno.ESTALE, "a parent is gone")
        return Opened(self._host, self._fs.path_fd(anchor), names[::-1], flags)

    def hides(self, inode: Inode) -> bool:
        """Whether nothing but a search by name leads to the inode: no descriptor, no file handle."""
        if inode.fd >= 0 or self._fs.handles.of_inode(inode.id):
            return False
        by_handle = self._fs.by_handle and inode.mount.fd >= 0 and inode.handle is not None
        return not by_handle or unpack_handle(inode.handle or b"")[0] < 0

    # -- the kernel's opinion --------------------------------------------------------------------

    def by_link(self, inode: Inode) -> Place | None:
        """The place that /proc/self/fd tells; None if only a scan can find it, NotFound if nothing can."""
        try:
            fd = self._fs.path_fd(inode)
            link = self._host.path_of(fd)
            nlink = self._host.fstat(fd)[NLINK]
        except OSError as error:
            raise NotFound(f"cannot be opened: {reason_of(error)}", gone=error.errno in GONE) from None
        place = None
        if link.startswith(b"/"):
            place = self._walk(inode, link)
        if place is None and nlink == 0:
            raise NotFound("unlinked, no name is left", unlinked=True)
        return place

    def _walk(self, inode: Inode, link: bytes) -> Place | None:
        """The place at the absolute path ``link``, if it is in the share and really the inode's."""
        names = self._relative(link)
        if not names:
            return None
        parent: Parent = 1
        try:
            for name in names[:-1]:
                below = self._child(parent, name)
                if below is None:
                    return None
                parent = below
        except OSError:
            return None
        return (parent, names[-1]) if self.is_at(inode, parent, names[-1]) else None

    def _relative(self, link: bytes) -> list[bytes] | None:
        """The components of ``link`` below the share; None if it is elsewhere."""
        root = self._inodes.get(1)
        if root is None:
            return None
        prefix = self._host.path_of(self._fs.path_fd(root)).rstrip(b"/") + b"/"
        return link[len(prefix) :].split(b"/") if link.startswith(prefix) else None

    def _child(self, parent: Parent, name: bytes) -> Parent | None:
        """The directory ``name`` in ``parent``: a known inode, or else a Missing one."""
        with self.opened(parent, os.O_PATH) as dir_fd:
            dev, ino, mnt_id, mode = self._host.identify_at(dir_fd, name)
        if not stat.S_ISDIR(mode):
            return None
        known = self._inodes.find(dev, ino, mnt_id)
        return known.id if known is not None else self.missing((dev, ino, mnt_id), parent, name)

    def missing(self, key: Key, parent: Parent, name: bytes) -> Missing:
        """The record of an unknown directory, which is now at this place."""
        record = self._missing.get(key)
        if record is None:
            record = self._missing[key] = Missing(key, parent, name)
        record.parent = parent
        record.name = name
        return record

    def broken(self) -> set[Missing]:
        """The unknown directories that are not where they were any more."""
        return {directory for directory in self._missing.values() if not self._is_intact(directory)}

    def _is_intact(self, directory: Missing) -> bool:
        try:
            with self.opened(directory, os.O_PATH) as fd:
                attr, dev, mnt_id, _ = self._host.identify(fd)
        except OSError:
            return False
        return (dev, attr[0], mnt_id) == directory.key

    def require_alive(self, inode: Inode) -> None:
        """OSError (ESTALE) if the inode does not exist any more, though its file handle is known.

        What has a descriptor is alive. Anything else is opened for a moment, past the cache: all inodes are
        looked at in turn, and would push each other out of it. Where that is not permitted, its destination
        may be permitted it all the same.
        """
        if inode.fd >= 0 or inode.handle is None or self._fs.handles.of_inode(inode.id):
            return
        mount, root = inode.mount, self._fs.root
        mount_fd = root.fd if mount is root.mount else mount.fd
        kind, raw = unpack_handle(inode.handle)
        if kind < 0 or mount_fd < 0:
            return
        try:
            self._host.close(self._host.open_handle(mount_fd, kind, raw, os.O_PATH | os.O_NOFOLLOW))
        except PermissionError:
            pass

    def handle_of(self, inode: Inode) -> FileHandle:
        """The inode's file handle: what is known of it, or else asked for; OSError where there is none."""
        mount = inode.mount
        if inode.handle is not None:
            kind, raw = unpack_handle(inode.handle)
            if kind >= 0:
                return FileHandle(mount.mnt_id, kind, raw)
        return FileHandle(*self._host.file_handle(self._fs.path_fd(inode)))

    # -- a look at everything --------------------------------------------------------------------

    def scan(self, wanted: dict[Key, Inode]) -> Iterator[tuple[Inode, Place] | None]:
        """Walk through the share, depth first: the place of each inode of ``wanted`` as it is met.

        Yields None after each directory, so that the walk can be spread over time, and an inode with hard
        links once per name. Directories that we may not read are passed over. ``wanted`` may shrink
        meanwhile; the walk ends when it is empty.
        """
        numbers = {key[1] for key in wanted}
        stack: list[Parent] = [1]
        while stack and wanted:
            here = stack.pop()
            below: list[Parent] = []
            try:
                with self.opened(here, LISTING) as fd:
                    for name in self._names(fd, numbers):
                        met = self._meet(here, fd, name, wanted, below)
                        if met is not None:
                            yield met, (here, name)
            except OSError:
                pass
            stack += reversed(below)
            yield None

    def _names(self, fd: int, numbers: set[int]) -> Iterator[bytes]:
        """The names in a directory that may be of interest: directories, and what has a wanted number."""
        while entries := self._host.getdents(fd, -1):
            for ino, _, kind, name in entries:
                if (kind in (DT_DIR, DT_UNKNOWN) or ino in numbers) and name not in (b".", b".."):
                    yield name

    def _meet(
        self, here: Parent, dir_fd: int, name: bytes, wanted: dict[Key, Inode], below: list[Parent]
    ) -> Inode | None:
        """The wanted inode that ``name`` refers to, if any; directories are noted in ``below``."""
        try:
            dev, ino, mnt_id, mode = self._host.identify_at(dir_fd, name)
        except OSError:
            return None
        key = (dev, ino, mnt_id)
        if stat.S_ISDIR(mode):
            known = self._inodes.find(dev, ino, mnt_id)
            below.append(known.id if known is not None else Missing(key, here, name))
        inode = wanted.get(key)
        return inode if inode is not None and self.is_at(inode, here, name) else None


class Opened:
    """A descriptor that is closed at the end of a ``with`` block, unless it is somebody else's."""

    __slots__ = ("_fd", "_host", "_owned")

    def __init__(self, host: HostFs, anchor_fd: int, names: list[bytes], flags: int) -> None:
        self._host = host
        self._owned = bool(names) or flags & os.O_PATH == 0
        self._fd = self._open(anchor_fd, names, flags) if self._owned else anchor_fd

    def _open(self, anchor_fd: int, names: list[bytes], flags: int) -> int:
        """Open ``names`` beneath ``anchor_fd``, in as few steps as PATH_MAX allows."""
        host = self._host
        if not names:
            return self._open_last(partial(host.reopen, anchor_fd), flags)
        here = anchor_fd
        try:
            while True:
                path = names.pop(0)
                while names and len(path) + len(names[0]) + 1 < PATH_MAX:
                    path += b"/" + names.pop(0)
                if names:
                    below = host.open_beneath(here, path, os.O_PATH | os.O_DIRECTORY)
                else:
                    below = self._open_last(partial(host.open_beneath, here, path), flags)
                if here != anchor_fd:
                    host.close(here)
                here = below
                if not names:
                    return here
        except OSError:
            if here != anchor_fd:
                host.close(here)
            raise

    @staticmethod
    def _open_last(open_with: Callable[[int], int], flags: int) -> int:
        return open_listing(open_with) if flags == LISTING else open_with(flags)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self._host.close(self._fd)


def mount_paths(fs: PassthroughFs, used: set[int]) -> dict[int, bytes]:
    """Where each of the mounts ``used`` is, relative to the share (``.``: the share's own)."""
    root = fs.inodes.get(1)
    if root is None:
        return {}
    root_fd = fs.path_fd(root)
    own = root.mount.mnt_id
    paths = {own: b"."} if own in used else {}
    if used <= paths.keys():
        return paths
    skip = len(fs.host.path_of(root_fd).rstrip(b"/")) + 1
    for mnt_id, point in fs.host.mount_points():
        # The paths are a guess: which mount is there counts.
        if mnt_id in used and mnt_id != own and _mounted_at(fs.host, root_fd, point[skip:]) == mnt_id:
            paths[mnt_id] = point[skip:]
    return paths


def _mounted_at(host: HostFs, root_fd: int, path: bytes) -> int:
    """The id of the mount that ``path`` in the share lies in, -1 if there is nothing."""
    try:
        fd = host.open_beneath(root_fd, path, os.O_PATH)
    except OSError:
        return -1
    try:
        return host.identify(fd)[2]
    finally:
        host.close(fd)
