"""A host that is the same every time: what only the host decides, replaced at seam S3.

    host = DeterministicHost(schedule.now_ns)
    Seams(host_fs=lambda inner: TracedHostFs(host.wrap(inner), source))

The same seed gives the same history, but for what a history takes over from the host: numbers of inodes,
devices, mounts and descriptors, file handles, times, blocks, and the kernel's names of deleted files. They
come back as other bytes of a stream and, since a guest drops pages whose file has a new time, as other
requests. Behind this wrapper all of them are functions of what went through it: numbers count first
appearances, and time is that of the schedule. Everything else, contents, names, order of directories, errnos,
is the host's own, untouched: two runs on equal trees of one file system have the same history, event for
event, with nothing left to normalise in a comparison.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

NSEC: Final = 1_000_000_000
EPOCH_NS: Final = 1_700_000_000 * NSEC
"""When the schedule's clock read zero."""
UTIME_NOW: Final = 0x3FFFFFFF
UTIME_OMIT: Final = 0x3FFFFFFE
FIRST_FD: Final = 3
DELETED: Final = re.compile(rb"#\d+ \(deleted\)$")
SECTOR: Final = 512

_ATTR_TIMES: Final = (3, 4, 5)  # atime, mtime, ctime; their nanoseconds follow in the same order
_STATX: Final = {"ino": 7, "size": 8, "blocks": 9, "times": 11, "dev": 21}


class _Open(NamedTuple):
    """A descriptor: the host's, and the file's number."""

    fd: int
    file: int


class DeterministicHost:
    """What was seen of the host so far; ``wrap`` makes every server's host calls go through it.

    One for all machines of a run: what one calls a file, the next calls the same.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.now_ns = now_ns
        self.fds: dict[int, _Open] = {}
        self.times: dict[int, list[int]] = {}
        """atime, mtime, ctime of files by number, in ns."""
        self.handles: dict[bytes, bytes] = {}
        """Real file handles by those that we show."""
        self._numbers: dict[tuple[str, object], int] = {}
        self._counts: dict[str, itertools.count[int]] = {}

    def wrap(self, inner: Any) -> Any:
        """``inner`` (a HostFs) with deterministic answers."""
        return DeterministicHostFs(inner, self)

    def number(self, kind: str, real: object) -> int:
        """The number of the ``real`` thing: which one it was of its kind."""
        key = (kind, real)
        if key not in self._numbers:
            self._numbers[key] = next(self._counts.setdefault(kind, itertools.count(1)))
        return self._numbers[key]

    def add_fd(self, fd: int, file: int) -> int:
        """The lowest number that is free, as the kernel gives them."""
        shown = FIRST_FD
        while shown in self.fds:
            shown += 1
        self.fds[shown] = _Open(fd, file)
        return shown

    def touch(self, file: int, *, content: bool = True) -> None:
        """A file was changed: mtime (for ``content``) and ctime are now."""
        now = EPOCH_NS + self.now_ns()
        times = self.times_of(file)
        times[2] = now
        if content:
            times[1] = now

    def times_of(self, file: int) -> list[int]:
        """atime, mtime and ctime; a file that was never seen is new."""
        times = self.times.get(file)
        if times is None:
            now = EPOCH_NS + self.now_ns()
            times = self.times[file] = [now, now, now]
        return times


class DeterministicHostFs:
    """Seam S3: see the module. Calls that no row is for pass their descriptors on and change nothing."""

    def __init__(self, inner: Any, host: DeterministicHost) -> None:
        self._inner = inner
        self._host = host

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not callable(method) or name in WITHOUT_FDS:
            return method
        places = FD_PLACES.get(name, (0,))
        touched = TOUCHES.get(name, ())
        content = name not in ATTRIBUTES_ONLY
        convert = RESULTS.get(name)
        host = self._host

        def call(*words: Any, **named: Any) -> Any:
            real = list(words)
            for place in places:
                real[place] = self._real(words[place])
            result = method(*real, **named)
            for place in touched if result != 0 else ():  # a write of nothing changes nothing
                host.touch(host.fds[words[place]].file, content=content)
            return result if convert is None else convert(self, words, result)

        self.__dict__[name] = call  # found without __getattr__ from now on
        return call

    # Calls with a way of their own

    def close(self, fd: int) -> None:
        """Close; an unknown descriptor is the host's business."""
        opened = self._host.fds.pop(fd, None)
        self._inner.close(fd if opened is None else opened.fd)

    def open_share(self, path: bytes) -> int:
        """Open the share."""
        return self._opened(self._inner.open_share(path))

    def memory_file(self, name: bytes) -> int:
        """Make a file in memory."""
        return self._opened(self._inner.memory_file(name))

    def open_beneath(self, dir_fd: int, path: bytes, flags: int, mode: int = 0, umask: int = 0) -> int:
        """Open; the directory changes if something is created in it."""
        shown = self._opened(self._inner.open_beneath(self._real(dir_fd), path, flags, mode, umask))
        host = self._host
        if flags & os.O_CREAT:
            host.touch(host.fds[dir_fd].file)
        if flags & (os.O_TRUNC | os.O_CREAT):
            host.touch(host.fds[shown].file)
        return shown

    def reopen(self, fd: int, flags: int) -> int:
        """Open once more."""
        shown = self._opened(self._inner.reopen(self._real(fd), flags))
        if flags & os.O_TRUNC:
            self._host.touch(self._host.fds[shown].file)
        return shown

    def open_handle(self, mount_fd: int, handle_type: int, raw: bytes, flags: int) -> int:
        """Open by a handle that we showed, or by one that nobody ever had."""
        real = self._host.handles.get(raw, raw)
        return self._opened(self._inner.open_handle(self._real(mount_fd), handle_type, real, flags))

    def open_parent(self, fd: int) -> int:
        """Open what is above."""
        return self._opened(self._inner.open_parent(self._real(fd)))

    def clone_mount(self, fd: int) -> int:
        """Open a copy of the mount."""
        return self._opened(self._inner.clone_mount(self._real(fd)))

    def utimens(self, fd: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        """Set the times, of which we keep account ourselves."""
        self._inner.utimens(self._real(fd), atime, mtime)
        host = self._host
        file = host.fds[fd].file
        host.touch(file, content=False)
        times = host.times_of(file)
        for place, (seconds, nanoseconds) in enumerate((atime, mtime)):
            if nanoseconds == UTIME_NOW:
                times[place] = times[2]
            elif nanoseconds != UTIME_OMIT:
                times[place] = seconds * NSEC + nanoseconds

    def mount_points(self) -> list[tuple[int, bytes]]:
        """All mounts."""
        return [(self._host.number("mount", mnt_id), path) for mnt_id, path in self._inner.mount_points()]

    def mounts(self) -> list[tuple[int, int, bytes, bytes]]:
        """All mounts, with those beneath them and their types."""
        number = self._host.number
        return [
            (number("mount", mnt_id), number("mount", below), path, kind)
            for mnt_id, below, path, kind in self._inner.mounts()
        ]

    # Files and descriptors

    def _real(self, fd: int) -> int:
        opened = self._host.fds.get(fd)
        return fd if opened is None else opened.fd

    def _opened(self, fd: int) -> int:
        return self._host.add_fd(fd, self._file(fd))

    def _file(self, fd: int) -> int:
        """The number of an open file. An inode number may be used again: only a file handle is for ever."""
        try:
            _, kind, raw = self._inner.file_handle(fd)
        except OSError:
            attr, dev, _, _ = self._inner.identify(fd)
            return self._host.number("file", (dev, attr[0]))
        return self._host.number("file", (kind, raw))

    def _file_at(self, fd: int, name: bytes) -> int:
        real = self._real(fd)
        try:
            _, kind, raw = self._inner.file_handle_at(real, name)
        except OSError:
            dev, ino, _, _ = self._inner.identify_at(real, name)
            return self._host.number("file", (dev, ino))
        return self._host.number("file", (kind, raw))

    def _file_of(self, words: Sequence[Any]) -> int:
        """Which file a call was about: that of a name in a directory, or that of a descriptor."""
        if len(words) > 1 and isinstance(words[1], bytes):
            return self._file_at(words[0], words[1])
        return self._host.fds[words[0]].file

    # Results

    def _attr(self, words: Sequence[Any], attr: tuple[int, ...]) -> tuple[int, ...]:
        shown, file = list(attr), self._file_of(words)
        shown[0], shown[2] = file, -(-attr[1] // SECTOR)
        for place, time in zip(_ATTR_TIMES, self._host.times_of(file), strict=True):
            shown[place], shown[place + 3] = divmod(time, NSEC)
        return tuple(shown)

    def _identity(self, words: Sequence[Any], identity: Any) -> Any:
        attr, dev, mnt_id, is_root = identity
        number = self._host.number
        return self._attr(words, attr), number("device", dev), number("mount", mnt_id), is_root

    def _brief(self, words: Sequence[Any], found: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        dev, _, mnt_id, mode = found
        number = self._host.number
        return number("device", dev), self._file_of(words), number("mount", mnt_id), mode

    def _birth(self, words: Sequence[Any], birth: tuple[int, int]) -> tuple[int, int]:
        return (EPOCH_NS // NSEC, self._file_of(words)) if any(birth) else birth

    def _statx(self, words: Sequence[Any], found: tuple[int, ...]) -> tuple[int, ...]:
        shown, file = list(found), self._host.fds[words[0]].file
        atime, mtime, ctime = self._host.times_of(file)
        shown[_STATX["ino"]], shown[_STATX["blocks"]] = file, -(-found[_STATX["size"]] // SECTOR)
        for place, time in enumerate((atime, EPOCH_NS + file, ctime, mtime)):
            at = _STATX["times"] + 2 * place
            shown[at : at + 2] = divmod(time, NSEC)
        dev = _STATX["dev"]
        shown[dev : dev + 2] = (0, self._host.number("device", os.makedev(*found[dev : dev + 2])))
        return tuple(shown)

    def _handle(self, words: Sequence[Any], found: tuple[int, int, bytes]) -> tuple[int, int, bytes]:
        mnt_id, kind, raw = found
        shown = self._host.number("file", (kind, raw)).to_bytes(8, "little")
        self._host.handles[shown] = raw
        return self._host.number("mount", mnt_id), kind, shown

    def _path(self, words: Sequence[Any], path: bytes) -> bytes:
        return DELETED.sub(b"#%d (deleted)" % self._file_of(words), path)

    def _entries(self, words: Sequence[Any], entries: Any) -> Any:
        fd = words[0]
        return [(self._file_at(fd, name), after, kind, name) for _, after, kind, name in entries]

    def _statvfs(self, words: Sequence[Any], found: tuple[int, ...]) -> tuple[int, ...]:
        blocks, _, _, files, _, *rest = found
        return (blocks, blocks, blocks, files, files, *rest)


WITHOUT_FDS: Final = frozenset(
    {"handles_allowed", "fd_limit", "become", "become_self", "drop_groups"}
)
FD_PLACES: Final = {"rename": (0, 2), "link": (0, 1), "symlink": (1,), "copy_file_range": (0, 2)}
"""Where a call has descriptors, other than in the first place."""
TOUCHES: Final = {
    "chmod": (0,), "chown": (0,), "setxattr": (0,), "removexattr": (0,), "mkdir": (0,), "mknod": (0,),
    "symlink": (1,), "link": (1,), "unlink": (0,), "rmdir": (0,), "rename": (0, 2), "pwritev": (0,),
    "appendv": (0,), "ftruncate": (0,), "fallocate": (0,), "copy_file_range": (2,),
}  # fmt: skip
"""Which of its descriptors' files a call changes."""
ATTRIBUTES_ONLY: Final = frozenset({"chmod", "chown", "setxattr", "removexattr"})
RESULTS: Final[dict[str, Callable[[DeterministicHostFs, Sequence[Any], Any], Any]]] = {
    "fstat": DeterministicHostFs._attr, "identify": DeterministicHostFs._identity,
    "identify_name": DeterministicHostFs._identity, "identify_at": DeterministicHostFs._brief,
    "birth": DeterministicHostFs._birth, "birth_at": DeterministicHostFs._birth,
    "statx": DeterministicHostFs._statx, "file_handle": DeterministicHostFs._handle,
    "file_handle_at": DeterministicHostFs._handle, "path_of": DeterministicHostFs._path,
    "getdents": DeterministicHostFs._entries, "fstatvfs": DeterministicHostFs._statvfs,
}  # fmt: skip
"""What a call's answer is made into."""
