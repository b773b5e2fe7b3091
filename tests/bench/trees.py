"""Directories full of small files, and a file server that knows them all."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.passthrough.fs import PassthroughFs
from vmsim.fuse.abi.init_flags import LINUX_6_12_OFFER
from vmsim.fuse.filesystem import Context
from vmsim.fuse.init import agree
from vmsim.fuse.session import Session
from vmsim.host.fs import LinuxFs

PER_FOLDER = 500


def plant(root: Path, count: int) -> int:
    """Make ``count`` inodes below ``root``: directories with empty files; how many were made."""
    made = 0
    while made < count:
        folder = root / f"directory-{made // (PER_FOLDER + 1):04}"
        folder.mkdir()
        made += 1
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for number in range(min(PER_FOLDER, count - made)):
            os.close(os.open(f"file-{number:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd))
            made += 1
        os.close(fd)
    return made


class Server:
    """A file server and its session, as after INIT. ``options`` are those of the device."""

    def __init__(self, share: Path, **options: object) -> None:
        self.fs = PassthroughFs(LinuxFs(), os.fsencode(share), FsOptions(**options))
        self.session = Session(self.fs, self.fs.options.init_options())

    def boot(self) -> Server:
        """The session begins."""
        self.session.restore(agree(LINUX_6_12_OFFER, 41, 1 << 20, self.session.options))
        return self

    def look_up_all(self, share: Path) -> int:
        """Every file is looked up, as ``find`` in the guest would; how many inodes the server knows then."""
        ctx = Context(0, 0, 1, 1, os.getuid(), os.getgid(), 1, 0, 0)
        lookup = self.fs.lookup
        for folder in sorted(share.iterdir()):
            node = lookup(ctx, 1, os.fsencode(folder.name))[0]
            with os.scandir(os.fsencode(folder)) as entries:
                for entry in entries:
                    lookup(ctx, node, entry.name)
        return len(self.fs.inodes)

    def close(self) -> None:
        """Everything is given back."""
        self.session.reset()
        self.fs.close()


def raise_fd_limit() -> None:
    """The file server chooses its number of descriptors by the limit; use all that we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
