"""A file server over a temporary directory, driven the way a guest would drive it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.fs import PassthroughFs
from devices.virtio_fs.state.collect import StateCollector
from devices.virtio_fs.state.early_inodes import EarlyInodes
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.restore import RestoreReport, restore_state
from tests.support.leaks import Held
from vmsim.fuse.abi.init_flags import LINUX_6_12_OFFER
from vmsim.fuse.abi.replies import FileLock
from vmsim.fuse.filesystem import Context
from vmsim.fuse.init import InitOptions, agree
from vmsim.fuse.session import Session
from vmsim.host.fs import LinuxFs

NO_FLAGS = 0


class Guest:
    """One server and its session; nodes are named by path for the sake of the tests."""

    def __init__(self, share: Path, host: LinuxFs | None = None, **options) -> None:
        self.share = share
        self.fs = PassthroughFs(host or LinuxFs(), os.fsencode(share), FsOptions(**options))
        names = ("writeback", "posix_acl", "announce_submounts", "killpriv_v2", "security_label")
        self.session = Session(
            self.fs,
            InitOptions(
                posix_locks=True, flock_locks=True, **{name: getattr(self.fs.options, name) for name in names}
            ),
        )
        self.report: RestoreReport | None = None

    def boot(self) -> Guest:
        self.session.restore(agree(LINUX_6_12_OFFER, 41, 131072, self.session.options))
        return self

    def ctx(self, nodeid: int = 1) -> Context:
        return Context(0, 0, 1, nodeid, os.getuid(), os.getgid(), 1, 0, 0)

    def lookup(self, path: str | bytes) -> int:
        node = 1
        for name in os.fsencode(path).split(b"/"):
            node = self.fs.lookup(self.ctx(node), node, name)[0]
        return node

    def open(self, node: int, flags: int = os.O_RDWR) -> int:
        return self.fs.open(self.ctx(node), node, flags, NO_FLAGS)[0]

    def opendir(self, node: int) -> int:
        return self.fs.opendir(self.ctx(node), node, os.O_DIRECTORY)[0]

    def create(self, parent: int, name: bytes, flags: int = os.O_RDWR, mode: int = 0o644) -> tuple[int, int]:
        entry, opened = self.fs.create(self.ctx(parent), parent, name, flags, mode, 0, NO_FLAGS)
        return entry[0], opened[0]

    def read(self, node: int, fh: int, size: int = 100, offset: int = 0) -> bytes:
        buffer = bytearray(size)
        count = self.fs.read(self.ctx(node), node, fh, offset, [memoryview(buffer)], 0, None)
        return bytes(buffer[:count])

    def write(self, node: int, fh: int, data: bytes, offset: int = 0) -> int:
        views = [memoryview(bytearray(data))]
        return self.fs.write(self.ctx(node), node, fh, offset, views, len(data), 0, 0, None)

    def getattr(self, node: int, fh: int | None = None):
        return self.fs.getattr(self.ctx(node), node, fh)

    def names(self, node: int, fh: int) -> list[bytes]:
        class Sink:
            count = 0
            found: list[bytes] = []  # noqa: RUF012

            def add(self, ino: int, off: int, kind: int, name: bytes) -> bool:
                self.found = [*self.found, name]
                return True

        sink = Sink()
        self.fs.readdir(self.ctx(node), node, fh, 0, sink)
        return sorted(name for name in sink.found if name not in (b".", b".."))

    def lock(self, node: int, fh: int, owner: int, start: int, end: int, kind: int = 1, flags: int = 0):
        self.fs.setlk(self.ctx(node), node, fh, owner, FileLock(start, end, kind, 1), flags, None)

    def rename(self, parent: int, old: bytes, new_parent: int, new: bytes, flags: int = 0) -> None:
        self.fs.rename(self.ctx(parent), parent, old, new_parent, new, flags)

    def unlink(self, parent: int, name: bytes) -> None:
        self.fs.unlink(self.ctx(parent), parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.fs.rmdir(self.ctx(parent), parent, name)

    def collector(self, **options) -> StateCollector:
        return StateCollector(self.fs, self.session, StateOptions(**options))

    def save(self, **options) -> bytes:
        return self.collector(**options).save()

    def load(self, data: bytes, found: EarlyInodes | None = None, **options) -> Guest:
        self.report = restore_state(self.fs, self.session, data, StateOptions(**options), found)
        return self

    def snapshot(self) -> tuple:
        """All that a save must not change and a migration must carry over."""
        return (
            [(inode.id, inode.nlookup, inode.state) for inode in self.fs.inodes.items()],
            self.fs.inodes.next_id,
            [(handle.id, handle.inode_id, handle.flags, handle.is_dir) for handle in self.fs.handles.items()],
            self.fs.handles.next_id,
            self.session.state,
        )

    def close(self) -> None:
        self.session.reset()
        self.fs.close()


@pytest.fixture
def share(tmp_path):
    path = tmp_path / "share"
    (path / "d").mkdir(parents=True)
    (path / "d" / "f.txt").write_bytes(b"content of f")
    (path / "g").write_bytes(b"content of g")
    return path


@pytest.fixture
def make_guest(share):
    """Makes servers over the share; all are closed at the end, and no descriptor is left."""
    before = Held()
    guests: list[Guest] = []

    def make(boot: bool = False, directory: Path = share, **options) -> Guest:
        guest = Guest(directory, **options)
        guests.append(guest)
        return guest.boot() if boot else guest

    yield make
    for guest in guests:
        guest.close()
    assert before.more() == []


@pytest.fixture
def guest(make_guest):
    return make_guest(boot=True)
