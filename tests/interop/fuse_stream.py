"""A seeded stream of FUSE requests for two servers at once: plausible, odd, and wrong in every argument.

Numbers that a server gives out (nodeids, handles) differ between two servers, so a request names them by
``Ref``, which has one value for each side.
"""

from __future__ import annotations

import os
import random
import stat
from typing import Any, NamedTuple

from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.requests import FORGET_ONE

NAMES = [b"a", b"b", b"c", b"dir", b"dir2", b"link", "ünï".encode(), b"x (deleted)", b"s p", b"z" * 255]
NO_NAME = [b"", b".", b"..", b"none/x"]
"""What no directory entry can be called. Nothing can be made, moved or removed by these on any server."""
PATHS = [b"/", b"/a", b"a/b", b"../a", b"a/", b"./a"]
"""For LOOKUP alone: virtiofsd takes more than one component, and where it changes things, also outside the
share (reference section 6.1)."""
SIZES = [0, 1, 7, 4096, 5000, 60_000, 100_000]
OFFSETS = [0, 0, 0, 1, 5, 4095, 4096, 70_000, (1 << 31) + 3, 1 << 40]
HUGE = [(1 << 63) - 1, 1 << 63, (1 << 64) - 1]
IDS = [0, 0, 0, 1000, 12345]
XATTRS = [
    b"user.a", b"user.b", b"user." + b"n" * 250, b"user.", b"trusted.t", b"security.x", b"odd",
    "user.ä".encode(),
]  # fmt: skip
OPEN_BITS = [
    0, 0, 0, os.O_TRUNC, os.O_APPEND, os.O_SYNC, os.O_DSYNC, os.O_NONBLOCK, os.O_NOATIME, os.O_DIRECT,
    os.O_NOFOLLOW, os.O_LARGEFILE, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CLOEXEC,
]  # fmt: skip
KEPT_BY_CREATE = os.O_DIRECT | os.O_APPEND
"""virtiofsd's CREATE hands them on to the host, its OPEN does not; see the tests of that."""
ROOM = 30_000
OLD_NS = 1_000_000_000
"""Times that requests set lie before this many seconds, those of the host's clock after it."""


class Ref:
    """A nodeid or handle: ``pair`` has its number on either side. ``count`` are lookups, or 0."""

    def __init__(self, pair: tuple[int, int], node: Ref | None = None, kind: int = 0) -> None:
        self.pair = pair
        self.node = node
        self.kind = kind
        self.count = 0
        self.inos: tuple[int, int] | None = None


class Ask(NamedTuple):
    """One request. ``args``, ``nodeid`` and BATCH_FORGET's ``tail`` may have Refs in them."""

    opcode: int
    nodeid: Any = 1
    args: tuple[Any, ...] = ()
    names: tuple[bytes, ...] = ()
    data: bytes = b""
    room: int = ROOM
    ids: tuple[int, int] = (0, 0)
    extensions: bytes = b""
    forgets: tuple[tuple[Any, int], ...] = ()
    compat: bool = False

    def bytes_for(self, side: int, unique: int) -> bytes:
        """The request for one side (0 ours, 1 theirs)."""
        data = self.data + b"".join(FORGET_ONE.pack(on(ref, side), count) for ref, count in self.forgets)
        return client.encode(
            self.opcode, unique, on(self.nodeid, side), *self.ids, 77,
            tuple(on(value, side) for value in self.args), self.names, data,
            extensions=self.extensions, compat=self.compat,
        )  # fmt: skip

    def __str__(self) -> str:
        shown = [list(value.pair) if isinstance(value, Ref) else value for value in self.args]
        node = self.nodeid.pair if isinstance(self.nodeid, Ref) else self.nodeid
        names = [name[:20] for name in self.names]
        return (
            f"{op.BY_NUMBER[self.opcode].name} node {node} args {shown} names {names} "
            f"{len(self.data)} bytes, ids {self.ids}"
        )


def on(value: Any, side: int) -> Any:
    """The value for one side."""
    return value.pair[side] if isinstance(value, Ref) else value


class Stream:
    """Makes requests from a seed; ``learn`` keeps its picture of what exists up to date."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.xattrs = list(XATTRS)
        self.root = Ref((1, 1), kind=stat.S_IFDIR)
        self.root.count = 1
        self.nodes: dict[tuple[int, int], Ref] = {(1, 1): self.root}
        self.handles: list[Ref] = []
        self.gone: list[Ref] = [Ref((0, 0)), Ref((999_999, 999_999)), Ref(((1 << 64) - 1,) * 2)]
        self.closed = self.gone[1:]
        self.makers = [(weight, getattr(self, "ask_" + opcode.lower())) for opcode, weight in WEIGHTS.items()]

    # -- picking

    def pick(self, choices: Any) -> Any:
        return self.random.choice(choices)

    def chance(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == 0

    def node(self, kind: int = 0) -> Ref:
        """A node, mostly of that kind."""
        if self.chance(25):
            return self.pick(self.gone)
        fitting = [ref for ref in self.nodes.values() if not kind or ref.kind == kind]
        if not fitting or self.chance(12):
            fitting = list(self.nodes.values())
        return self.pick(fitting)

    def folder(self) -> Ref:
        return self.root if self.chance(3) else self.node(stat.S_IFDIR)

    def handle(self, kind: int = stat.S_IFREG) -> tuple[Ref, Ref]:
        """(node, handle), mostly of that kind and mostly matching."""
        fitting = [ref for ref in self.handles if ref.kind == kind]
        if not fitting or self.chance(15):
            fitting = self.handles
        if not fitting or self.chance(25):
            return self.node(), self.pick(self.closed)
        handle = self.pick(fitting)
        return (self.node() if self.chance(25) else handle.node), handle

    def name(self) -> bytes:
        return self.pick(NO_NAME) if self.chance(30) else b"y" * 256 if self.chance(60) else self.pick(NAMES)

    def number(self, usual: list[int], huge: list[int] = HUGE) -> int:
        return self.pick(huge) if self.chance(20) else self.pick(usual)

    def ids(self) -> tuple[int, int]:
        return self.pick(IDS), self.pick(IDS)

    def open_flags(self) -> int:
        if self.chance(40):
            return 3
        access = self.pick([0, 1, 2, 2, 2])
        return access | self.pick(OPEN_BITS) | self.pick(OPEN_BITS)

    def mode(self) -> int:
        return self.pick([0o644, 0o600, 0o755, 0o666, 0o4755, 0o2750, 0o1777, 0])

    def next(self) -> Ask:
        """The next request."""
        makers = self.makers
        (maker,) = self.random.choices([maker for _, maker in makers], [weight for weight, _ in makers])
        asked: Ask = maker()
        return asked

    # -- making: names

    def ask_lookup(self) -> Ask:
        return Ask(op.LOOKUP, self.folder(), (), (self.pick(PATHS) if self.chance(30) else self.name(),))

    def ask_mkdir(self) -> Ask:
        return Ask(op.MKDIR, self.folder(), (self.mode(), 0o22), (self.name(),), ids=self.ids())

    def ask_mknod(self) -> Ask:
        kinds = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, 0, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFLNK)
        kind = self.pick(kinds)
        return Ask(
            op.MKNOD, self.folder(), (kind | self.mode(), self.pick([0, 0x103]), 0o22, 0), (self.name(),),
            ids=self.ids(),
        )  # fmt: skip

    def ask_symlink(self) -> Ask:
        target = self.pick([b"a", b"/etc/passwd", b"../..", b"", b"t" * 300, b"\xff\xfe"])
        return Ask(op.SYMLINK, self.folder(), (), (self.name(), target), ids=self.ids())

    def ask_create(self) -> Ask:
        flags = self.open_flags() & ~KEPT_BY_CREATE
        args = (flags, stat.S_IFREG * self.pick([0, 1]) | self.mode(), 0o22, 0)
        extensions = client.encode_extensions(groups=[self.pick(IDS)]) if self.chance(4) else b""
        return Ask(op.CREATE, self.folder(), args, (self.name(),), ids=self.ids(), extensions=extensions)

    def ask_link(self) -> Ask:
        return Ask(op.LINK, self.folder(), (self.node(),), (self.name(),))

    def ask_unlink(self) -> Ask:
        return Ask(op.UNLINK, self.folder(), (), (self.name(),))

    def ask_rmdir(self) -> Ask:
        return Ask(op.RMDIR, self.folder(), (), (self.name(),))

    def ask_rename(self) -> Ask:
        return Ask(op.RENAME, self.folder(), (self.folder(),), (self.name(), self.name()))

    def ask_rename2(self) -> Ask:
        if self.chance(10):  # unknown flags, where nothing would move
            folder, name = self.folder(), self.name()
            return Ask(op.RENAME2, folder, (folder, self.pick([8, 1 << 31]), 0), (name, name))
        flags = self.pick([0, 1, 2, 1, 2, 3, 4])
        return Ask(op.RENAME2, self.folder(), (self.folder(), flags, 0), (self.name(), self.name()))

    def ask_readlink(self) -> Ask:
        return Ask(op.READLINK, self.node(stat.S_IFLNK))

    # -- making: attributes

    def ask_getattr(self) -> Ask:
        if self.chance(3):
            node, handle = self.handle()
            return Ask(op.GETATTR, node, (1, 0, handle))
        return Ask(op.GETATTR, self.node(), (self.pick([0, 0, 2]), 0, 0))

    def ask_setattr(self) -> Ask:
        valid = 0
        for bit in range(11):
            valid |= (1 << bit) * self.chance(5)
        nsec, ids = [0, 5, 999_999_999], (self.pick(IDS), self.pick(IDS))
        if self.chance(20):  # what is refused is asked for alone: nobody promises what happened before
            valid, nsec = self.pick([1 << 4, 1 << 5]), [1_000_000_000]
        elif self.chance(20):
            valid, ids = self.pick([1 << 1, 1 << 2]), (0xFFFFFFFF,) * 2
        elif valid & 1 << 3:
            valid &= 1 << 3 | 1 << 6
        node, handle = self.handle() if valid & 1 << 6 else (self.node(), 0)
        seconds = [0, 1, OLD_NS - 1, 12345]
        args = (
            valid, 0, handle, self.number([*SIZES[:5], 1 << 40]), 0, self.pick(seconds), self.pick(seconds),
            self.pick(seconds), self.pick(nsec), self.pick(nsec), self.pick(nsec),
            self.pick([0, stat.S_IFREG]) | self.mode(), 0,
            *ids, 0,
        )  # fmt: skip
        return Ask(op.SETATTR, node, args, ids=self.ids())

    def ask_access(self) -> Ask:
        mask = self.pick([0, 1, 2, 4, 6, 7, 7, 8])
        return Ask(op.ACCESS, self.node(), (mask, 0), ids=self.ids())

    def ask_statfs(self) -> Ask:
        return Ask(op.STATFS, self.node())

    def ask_setxattr(self) -> Ask:
        value = bytes(self.pick([0, 1, 20, 1000]))
        return Ask(
            op.SETXATTR, self.node(), (len(value), self.pick([0, 0, 1, 2, 3])),
            (self.pick(self.xattrs),), value,
            compat=True,
        )  # fmt: skip

    def ask_getxattr(self) -> Ask:
        size = self.pick([0, 0, 5, 2000, 30_000])
        return Ask(op.GETXATTR, self.node(), (size, 0), (self.pick(self.xattrs),), room=16 + max(8, size))

    def ask_listxattr(self) -> Ask:
        size = self.pick([0, 0, 5, 2000, 30_000])
        return Ask(op.LISTXATTR, self.node(), (size, 0), room=16 + max(8, size))

    def ask_removexattr(self) -> Ask:
        return Ask(op.REMOVEXATTR, self.node(), (), (self.pick(self.xattrs),))

    # -- making: open files

    def ask_open(self) -> Ask:
        flags = self.open_flags()
        if flags & os.O_EXCL:
            flags &= ~os.O_TRUNC
        return Ask(op.OPEN, self.node(stat.S_IFREG), (flags, self.pick([0, 0, 1])))

    def ask_opendir(self) -> Ask:
        flags = self.pick([0, os.O_DIRECTORY, os.O_NOATIME, os.O_NONBLOCK])
        return Ask(op.OPENDIR, self.node(stat.S_IFDIR), (flags, 0))

    def ask_read(self) -> Ask:
        node, handle = self.handle()
        size = self.pick([*SIZES[:6], 1 << 20, 1 << 31])
        room = ROOM if self.chance(8) else 16 + min(size, ROOM)
        return Ask(op.READ, node, (handle, self.number(OFFSETS), size, 0, 0, 0, 0), room=room)

    def ask_write(self) -> Ask:
        node, handle = self.handle()
        data = self.random.randbytes(self.pick([0, 1, 10, 4096, 5000]))
        flags = self.pick([0, 0, 1, 2, 4])
        file_flags = self.pick([1, 2, os.O_APPEND | 1])
        offset = self.number(OFFSETS[:8], [1 << 40])
        return Ask(op.WRITE, node, (handle, offset, len(data), flags, 5, file_flags, 0), (), data)

    def ask_release(self) -> Ask:
        node, handle = self.handle()
        return Ask(op.RELEASE, node, (handle, 0, self.pick([0, 0, 1, 2]), 5))

    def ask_releasedir(self) -> Ask:
        node, handle = self.handle(stat.S_IFDIR)
        return Ask(op.RELEASEDIR, node, (handle, 0, 0, 0))

    def ask_flush(self) -> Ask:
        node, handle = self.handle()
        return Ask(op.FLUSH, node, (handle, 0, 0, 5))

    def ask_fsync(self) -> Ask:
        node, handle = self.handle()
        return Ask(op.FSYNC, node, (handle, self.pick([0, 1]), 0))

    def ask_fsyncdir(self) -> Ask:
        node, handle = self.handle(stat.S_IFDIR)
        return Ask(op.FSYNCDIR, node, (handle, self.pick([0, 1]), 0))

    def ask_readdir(self) -> Ask:
        node, handle = self.handle(stat.S_IFDIR)
        size = self.pick([0, 20, 29_000, 29_000, 29_000, 2 << 20])
        return Ask(op.READDIR, node, (handle, 0, size, 0, 0, 0, 0))

    def ask_readdirplus(self) -> Ask:
        return self.ask_readdir()._replace(opcode=op.READDIRPLUS)

    def ask_lseek(self) -> Ask:
        node, handle = self.handle()
        offset = self.number(OFFSETS, [HUGE[0], -1, -(1 << 63)])
        return Ask(op.LSEEK, node, (handle, offset, self.pick([0, 2, 3, 4, 3, 4, 99]), 0))

    def ask_fallocate(self) -> Ask:
        node, handle = self.handle()
        length = self.number([0, 1, 4096, 10_000])
        mode = self.pick([0, 0, 1, 3, 16, 255])
        return Ask(op.FALLOCATE, node, (handle, self.number(OFFSETS[:8]), length, mode, 0))

    def ask_copy_file_range(self) -> Ask:
        node, handle = self.handle()
        target, other = self.handle()
        return Ask(op.COPY_FILE_RANGE, node, (
            handle, self.number(OFFSETS[:8]), target, other, self.number(OFFSETS[:8]),
            self.number([0, 1, 4096, 100_000], [1 << 40]), self.pick([0, 0, 0, 0, 1]),
        ))  # fmt: skip

    def ask_syncfs(self) -> Ask:
        return Ask(op.SYNCFS, self.node(), (0,))

    # -- making: the rest

    def ask_forget(self) -> Ask:
        node = self.node()
        if node is self.root:
            return self.ask_getattr()
        return Ask(op.FORGET, node, (self.pick([1, 1, 1, 2, 100]),), room=0)

    def ask_batch_forget(self) -> Ask:
        refs = [ref for ref in (self.node() for _ in range(self.pick([0, 1, 3]))) if ref is not self.root]
        forgets = tuple((ref, self.pick([1, 1, 2])) for ref in refs)
        return Ask(op.BATCH_FORGET, 0, (len(forgets), 0), forgets=forgets, room=0)

    def ask_unoffered(self) -> Ask:
        """What one of the servers does not offer."""
        node, handle = self.handle()
        lock = (handle, 5, 0, 10, self.pick([0, 1, 2]), 1, 0, 0)
        return self.pick([
            Ask(op.GETLK, node, lock), Ask(op.SETLK, node, lock),
            Ask(op.BMAP, self.node(), (0, 512, 0)), Ask(op.POLL, node, (handle, 1, 0, 1)),
            Ask(op.IOCTL, node, (handle, 0, self.pick([0x80086601, 0x5401]), 0, 0, 4)),
            Ask(op.STATX, self.node(), (0, 0, 0, 0, 0xFFF)),
            Ask(op.SETUPMAPPING, node, (handle, 0, 4096, 0, 0)), Ask(op.REMOVEMAPPING, node, (0,)),
            Ask(op.INTERRUPT, 0, (5,), room=0),
        ])  # fmt: skip

    # -- learning

    def entered(self, pair: tuple[int, int], mode: int, inos: tuple[int, int]) -> Ref:
        """Both replied with an entry."""
        ref = self.nodes.get(pair)
        if ref is None:
            ref = self.nodes[pair] = Ref(pair, kind=stat.S_IFMT(mode))
            ref.inos = inos
        ref.count += 1
        return ref

    def opened(self, pair: tuple[int, int], node: Ref, kind: int) -> None:
        """Both opened something."""
        self.handles.append(Ref(pair, node, kind))

    def released(self, ask: Ask) -> None:
        """Both closed a handle."""
        handle = ask.args[0]
        self.handles.remove(handle)
        self.closed.append(handle)

    def forgotten(self, ref: Ref, count: int) -> None:
        """Both were told to forget lookups."""
        if ref.pair in self.nodes:
            ref.count -= count
            if ref.count <= 0:
                del self.nodes[ref.pair]
                self.gone.append(ref)


WEIGHTS = {
    "LOOKUP": 12, "MKDIR": 5, "MKNOD": 4, "SYMLINK": 4, "CREATE": 9, "LINK": 4, "UNLINK": 5, "RMDIR": 3,
    "RENAME": 4, "RENAME2": 3, "READLINK": 3, "GETATTR": 6, "SETATTR": 8, "ACCESS": 4, "STATFS": 1,
    "SETXATTR": 4, "GETXATTR": 4, "LISTXATTR": 3, "REMOVEXATTR": 2, "OPEN": 10, "OPENDIR": 3, "READ": 8,
    "WRITE": 9, "RELEASE": 6, "RELEASEDIR": 2, "FLUSH": 2, "FSYNC": 1, "FSYNCDIR": 1, "READDIR": 4,
    "READDIRPLUS": 4, "LSEEK": 4, "FALLOCATE": 4, "COPY_FILE_RANGE": 4, "SYNCFS": 1, "FORGET": 3,
    "BATCH_FORGET": 1, "UNOFFERED": 3,
}  # fmt: skip
"""How often each opcode is asked for, of all."""
