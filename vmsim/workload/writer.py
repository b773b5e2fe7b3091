"""A guest program that keeps files alive in every way that a migration could lose, and knows what they hold.

Its state is plain data: it travels with the guest, and goes on in another process as if nothing had happened.

    work = Workload.start(fs, "/scratch", seed=1, inodes=1000)
    for _ in range(500): work.step(fs)              # one small operation each, checked on the spot
    work = Workload(decode_state(work.encode()))    # anywhere else
    assert not verify(work, fs, share_dir)          # every handle, offset, lock and byte

There are always a renamed, an unlinked-but-open, an appended and a locked file, a renamed directory, hard
links and symlinks among what is alive.
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
from typing import Final

from vmsim.workload.fileapi import FileApi
from vmsim.workload.operations import OPERATIONS, REMOVING
from vmsim.workload.record import (
    MASS_PER_FOLDER,
    TOP,
    Bookkeeping,
    FileRecord,
    HandleRecord,
    WorkloadError,
    WorkloadState,
    decode_state,
    mass_data,
    mass_path,
)

__all__ = [
    "FileRecord", "HandleRecord", "Workload", "WorkloadError", "WorkloadState", "decode_state", "mass_data",
    "mass_path",
]

_NAMES: Final = list(OPERATIONS)
_WEIGHTS: Final = [weight for weight, _ in OPERATIONS.values()]


class Workload(Bookkeeping):
    """Does one small operation per step, drawn from (seed, step), and checks and records its answer."""

    @classmethod
    def start(
        cls, fs: FileApi, folder: str, seed: int, inodes: int = 0, *, keep_names: bool = False
    ) -> Workload:
        """Make the scratch folder with ``inodes`` mass files and one of everything that is hard to move.

        ``keep_names``: nothing is ever unlinked or removed.
        """
        work = cls(WorkloadState(seed, folder, mass=inodes, folders={TOP: ""}, keep_names=keep_names))
        fs.mkdir(folder, 0o755)
        for index in range(inodes):
            _make_mass_file(fs, folder, index)
        work._pin_everything(fs, random.Random(f"{seed}/start"))
        return work

    def step(self, fs: FileApi) -> str:
        """Do one operation; its name. WorkloadError if the answer is not what the record says."""
        state = self.state
        numbers = random.Random(f"{state.seed}/{state.steps}")
        state.steps += 1
        name = numbers.choices(_NAMES, _WEIGHTS)[0]
        if not (state.keep_names and name in REMOVING):
            OPERATIONS[name][1](self, fs, numbers)
        return name

    def counts(self) -> dict[str, int]:
        """What is alive, by kind."""
        files, handles = self.state.files.values(), self.state.handles
        return {
            "inodes": self.state.mass + len(files) + len(self.state.folders) + len(self.state.symlinks),
            "files": len(files),
            "handles": len(handles),
            "unlinked": sum(not record.names for record in files),
            "renamed": sum(record.renamed > 0 for record in files),
            "hard_links": sum(max(0, len(record.names) - 1) for record in files),
            "directories": len(self.state.folders),
            "symlinks": len(self.state.symlinks),
            "locks": sum(bool(handle.lock) for handle in handles),
            "steps": self.state.steps,
        }

    def finish(self, fs: FileApi) -> None:
        """Close all handles and remove the scratch folder."""
        for handle in self.state.handles:
            fs.close(handle.fd)
        self.state.handles.clear()
        _remove_tree(fs, self.state.folder)

    def _pin_everything(self, fs: FileApi, numbers: random.Random) -> None:
        folder = self.number()
        fs.mkdir(f"{self.state.folder}/d{folder}", 0o755)
        self.state.folders[folder] = f"d{folder}"
        for purpose in ("renamed", "unlinked", "appended", "flock", "posix", "linked"):
            if purpose == "unlinked" and self.state.keep_names:
                continue
            handle = self.create(fs, numbers, os.O_APPEND if purpose == "appended" else 0)
            handle.pinned = True
            self.write(fs, handle, numbers.randbytes(numbers.randrange(1000, 6000)))
            if purpose == "renamed":
                self.rename_file(fs, numbers, handle.file)
            elif purpose == "unlinked":
                self.unlink(fs, handle.file, 0)
            elif purpose == "linked":
                self.link(fs, numbers, handle.file)
            elif purpose == "flock":
                fs.flock(handle.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                handle.lock = "flock"
            elif purpose == "posix":
                fs.lseek(handle.fd, 0, os.SEEK_SET)
                handle.offset = 0
                fs.lockf(handle.fd, os.F_TLOCK, 0)
                handle.lock = "posix"
        self.rename_folder(fs, numbers)
        self.symlink(fs, numbers)


def _make_mass_file(fs: FileApi, folder: str, index: int) -> None:
    path = mass_path(folder, index)
    if index % MASS_PER_FOLDER == 0:
        fs.mkdir(os.path.dirname(path), 0o755)
    fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    fs.write(fd, mass_data(index))
    fs.close(fd)


def _remove_tree(fs: FileApi, path: str) -> None:
    for name in fs.listdir(path):
        below = f"{path}/{name}"
        if stat.S_ISDIR(fs.lstat(below).st_mode):
            _remove_tree(fs, below)
        else:
            fs.unlink(below)
    fs.rmdir(path)
