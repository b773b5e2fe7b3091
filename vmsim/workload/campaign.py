"""Random file operations on a file system and on the oracle, compared after every step.

    campaign = Campaign(seed=7, umask=0o022)
    campaign.run(fs, steps=500)          # raises Divergence, which says how to see it again
    campaign.check(fs)                   # every name, byte, handle and offset

Everything is drawn from the seed. ``run`` may be called again with another facade for the same files, for
example that of the machine on the other side of a migration: handles keep their numbers.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from vmsim.errors import VmsimError
from vmsim.workload.fileapi import FileApi, StatResult
from vmsim.workload.model import Model

NAMES: Final = ("a", "b", "c", "dir", "sub", "x.txt", "a name", "ünï", "n" * 200)
XATTRS: Final = ("user.one", "user.two")
HANDLES_MAX: Final = 12
DEPTH_MAX: Final = 4
FILE_BYTES_MAX: Final = 40_000
INTERESTING: Final = (0, 1, 511, 512, 4095, 4096, 4097, 8192, 16384, 20_000)
TAIL: Final = 12


class Divergence(VmsimError):
    """The file system answered otherwise than the oracle; the message says how to see it again."""


class Slot(NamedTuple):
    """A handle in an operation's arguments."""

    number: int

    def __repr__(self) -> str:
        return f"fd{self.number}"


class Operation(NamedTuple):
    """One call, printable."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(_show, self.arguments))})"


class Generator:
    """Draws operations that have a fair chance to do something."""

    def __init__(self, numbers: random.Random, model: Model, *, xattrs: bool = True) -> None:
        self.numbers = numbers
        self._model = model
        weights = {name: weight for name, weight in WEIGHTS.items() if xattrs or "xattr" not in name}
        self._names = list(weights)
        self._weights = list(weights.values())

    def draw(self) -> Operation:
        """The next operation."""
        while True:
            name = self.numbers.choices(self._names, self._weights)[0]
            arguments = ARGUMENTS[name](self)
            if arguments is not None:
                return Operation(name, arguments)

    def path(self) -> str:
        """Mostly something that exists, else a new name, sometimes nonsense."""
        paths = [path for path, _ in self._model.walk()]
        chance = self.numbers.random()
        if chance < 0.6:
            return self.numbers.choice(paths[1:] or ["/a"])
        if chance < 0.95:
            tree = self._model.walk()
            folders = [path for path, node in tree if node.is_dir and path.count("/") < DEPTH_MAX]
            return f"{self.numbers.choice(folders).rstrip('/')}/{self.numbers.choice(NAMES)}"
        return f"{self.numbers.choice(paths).rstrip('/')}/no/{self.numbers.choice(NAMES)}"

    def plain_path(self) -> str | None:
        """A path that leads to no symlink."""
        path = self.path()
        try:
            node = self._model.get(path, follow=False)
        except OSError:
            return path
        return None if node.is_link else path

    def slot(self, *, files: bool = False) -> Slot | None:
        """An open handle, if there is one."""
        handles = [slot for slot, handle in self._model.handles.items() if not (files and handle.node.is_dir)]
        return Slot(self.numbers.choice(handles)) if handles else None

    def position(self) -> int:
        """An offset or a length; borders of pages and sectors are likely."""
        if self.numbers.random() < 0.5:
            return self.numbers.choice(INTERESTING)
        return self.numbers.randrange(FILE_BYTES_MAX // 2)

    def data(self) -> bytes:
        """Bytes to write; never the same twice."""
        size = self.numbers.choice((0, 1, 7, 512, 4096, self.numbers.randrange(9000)))
        return self.numbers.randbytes(size)

    def mode(self) -> int:
        """Permissions that leave the owner's access alone."""
        return 0o700 | self.numbers.choice((0, 0o44, 0o55, 0o77))

    def open_arguments(self) -> tuple[Any, ...] | None:
        """Flags in all sensible combinations."""
        if len(self._model.handles) >= HANDLES_MAX:
            return None
        flags = self.numbers.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        if self.numbers.random() < 0.5:
            flags |= os.O_CREAT
            if self.numbers.random() < 0.2:
                flags |= os.O_EXCL
        if flags & os.O_RDWR | flags & os.O_WRONLY:
            flags |= self.numbers.choice((0, 0, os.O_APPEND, os.O_TRUNC))
        elif self.numbers.random() < 0.15:
            flags = os.O_RDONLY | os.O_DIRECTORY
        return (self.path(), flags, 0o700 | self.mode())

    def seek_arguments(self) -> tuple[Any, ...] | None:
        """From all three places, also to before the start."""
        slot = self.slot(files=True)
        if slot is None:
            return None
        how = self.numbers.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))
        return (slot, self.position() * self.numbers.choice((1, 1, 1, -1)), how)

    def xattr(self) -> str:
        """An attribute's name."""
        return self.numbers.choice(XATTRS)


def _with_slot(g: Generator, *more: Callable[[], Any], files: bool = False) -> tuple[Any, ...] | None:
    slot = g.slot(files=files)
    return None if slot is None else (slot, *(draw() for draw in more))


def _with_plain_path(g: Generator, *more: Callable[[], Any]) -> tuple[Any, ...] | None:
    path = g.plain_path()
    return None if path is None else (path, *(draw() for draw in more))


ARGUMENTS: Final[dict[str, Callable[[Generator], tuple[Any, ...] | None]]] = {
    "open": Generator.open_arguments,
    "close": _with_slot,
    "read": lambda g: _with_slot(g, g.position),
    "write": lambda g: _with_slot(g, g.data, files=True),
    "pread": lambda g: _with_slot(g, g.position, g.position),
    "pwrite": lambda g: _with_slot(g, g.data, g.position, files=True),
    "lseek": Generator.seek_arguments,
    "ftruncate": lambda g: _with_slot(g, g.position, files=True),
    "fsync": _with_slot,
    "fstat": _with_slot,
    "stat": lambda g: (g.path(),),
    "lstat": lambda g: (g.path(),),
    "truncate": lambda g: (g.path(), g.position()),
    "mkdir": lambda g: (g.path(), g.mode()),
    "rmdir": lambda g: (g.path(),),
    "unlink": lambda g: (g.path(),),
    "rename": lambda g: (g.path(), g.path()),
    "link": lambda g: _with_plain_path(g, g.path),
    "symlink": lambda g: (g.numbers.choice(NAMES), g.path()),
    "readlink": lambda g: (g.path(),),
    "listdir": lambda g: (g.path(),),
    "chmod": lambda g: (g.path(), g.mode()),
    "setxattr": lambda g: (g.path(), g.xattr(), g.data()[:200]),
    "getxattr": lambda g: (g.path(), g.xattr()),
    "listxattr": lambda g: (g.path(),),
    "removexattr": lambda g: (g.path(), g.xattr()),
}
"""How each operation's arguments are drawn; None: not now."""

WEIGHTS: Final = dict.fromkeys(ARGUMENTS, 2) | {
    "open": 10, "close": 4, "read": 6, "write": 10, "pread": 6, "pwrite": 8, "lseek": 4, "mkdir": 5,
    "rename": 6, "unlink": 4, "link": 3, "symlink": 1, "ftruncate": 3,
}
"""How often each operation is drawn."""


class Campaign:
    """A model, what has been done so far, and the numbers of its handles in the file system under test.

    ``repro`` is the command that shows the same run again; it is put into the message of a Divergence.
    """

    def __init__(self, seed: int, *, umask: int = 0o022, xattrs: bool = True, repro: str = "") -> None:
        self.seed = seed
        self.model = Model(umask)
        self.done: list[Operation] = []
        self.fds: dict[int, int] = {}
        self._generator = Generator(random.Random(f"{seed}/fsx"), self.model, xattrs=xattrs)
        self._repro = repro or f"the same campaign with seed {seed}"

    def run(self, fs: FileApi, steps: int) -> None:
        """Do and compare ``steps`` operations; Divergence at the first difference."""
        for _ in range(steps):
            self.step(fs, self._generator.draw())

    def step(self, fs: FileApi, operation: Operation) -> None:
        """Do one operation on both sides and compare the answers."""
        self.done.append(operation)
        words = [word.number if isinstance(word, Slot) else word for word in operation.arguments]
        expected = _answer(getattr(self.model, operation.name), words)
        words = [self.fds[word.number] if isinstance(word, Slot) else word for word in operation.arguments]
        found = _answer(getattr(fs, operation.name), words)
        if operation.name == "open" and not isinstance(expected, OsFailure) and isinstance(found, int):
            self.fds[expected] = found
            return
        if operation.name == "close":
            self.fds.pop(operation.arguments[0].number)
        self.compare(str(operation), expected, _plain(operation.name, found, expected))

    def compare(self, what: str, expected: object, found: object) -> None:
        """Divergence unless the two are equal."""
        if expected == found:
            return
        tail = "\n".join(f"    {operation}" for operation in self.done[-TAIL:])
        raise Divergence(
            f"after {len(self.done)} operations, {what}:\n  expected {_show(expected)}\n"
            f"  found    {_show(found)}\n  the last operations:\n{tail}",
            hint=f"see it again with: {self._repro}", seed=self.seed, step=len(self.done),
        )

    def check(self, fs: FileApi) -> None:
        """Compare everything: names, facts, bytes, targets, attributes, handles, offsets."""
        self.check_tree(fs)
        self.check_handles(fs)

    def check_tree(self, fs: FileApi) -> None:
        """Compare what has a name; ``fs`` may also be the host's view of the same files."""
        for path, node in self.model.walk():
            if node is not self.model.root:
                self.compare(f"lstat of {path}", node.facts(), _facts(fs.lstat(path)))
            if node.is_link:
                self.compare(f"target of {path}", node.target, fs.readlink(path))
                continue
            for attribute, value in node.xattrs.items():
                self.compare(f"{attribute} of {path}", value, fs.getxattr(path, attribute))
            if node.is_dir:
                self.compare(f"names in {path}", sorted(node.children), sorted(fs.listdir(path)))
                continue
            fd = fs.open(path, os.O_RDONLY)
            try:
                self.compare(f"bytes of {path}", bytes(node.data), _all(fs, fd))
            finally:
                fs.close(fd)

    def check_handles(self, fs: FileApi) -> None:
        """Compare what is open, whether it has a name or not."""
        for slot, handle in self.model.handles.items():
            fd = self.fds[slot]
            self.compare(f"fstat of fd{slot}", handle.node.facts(), _facts(fs.fstat(fd)))
            if handle.node.is_dir:
                continue
            self.compare(f"offset of fd{slot}", handle.offset, fs.lseek(fd, 0, os.SEEK_CUR))
            if handle.readable:
                self.compare(f"bytes of fd{slot}", bytes(handle.node.data), _all(fs, fd))

    def close(self, fs: FileApi) -> None:
        """Close all handles."""
        for slot in list(self.fds):
            self.step(fs, Operation("close", (Slot(slot),)))


class OsFailure(NamedTuple):
    """An answer that is an errno."""

    name: str


def _answer(call: Callable[..., Any], words: list[Any]) -> Any:
    try:
        return call(*words)
    except OSError as error:
        return OsFailure(errno.errorcode.get(error.errno or 0, str(error.errno)))


def _facts(result: StatResult) -> tuple[int, int, int]:
    if result.st_mode & 0o170000 == 0o040000:
        return (result.st_mode, 0, 0)
    return (result.st_mode, result.st_size, result.st_nlink)


def _plain(name: str, found: Any, expected: Any) -> Any:
    """An answer in the oracle's terms."""
    if isinstance(found, OsFailure):
        return found
    if name.endswith("stat"):
        return _facts(found)
    if name == "listdir":
        return sorted(found)
    if name == "listxattr":
        return sorted(attribute for attribute in found if attribute in XATTRS)
    return found


def _all(fs: FileApi, fd: int) -> bytes:
    """The whole file, in pieces."""
    data = b""
    while piece := fs.pread(fd, 8192, len(data)):
        data += piece
    return data


def _show(value: object) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes {value[:16].hex()}...>"
    return repr(value).replace(NAMES[-1], f"n*{len(NAMES[-1])}")
