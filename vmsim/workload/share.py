"""The directory of a job: found or made, and left as it was."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from typing import Final, NoReturn

from vmsim.errors import UsageError

SCRATCH: Final = "vmsim-scratch-"
FOLDER: Final = re.compile(f"/{SCRATCH}[0-9a-f]{{8}}")
"""A scratch folder as the guest sees it; nothing else is ever removed from a directory."""
READ_ONLY_HINT: Final = "use --read-only, or a directory that you may write to"
WRITE_HINTS: Final = {
    errno.EROFS: READ_ONLY_HINT,
    errno.EACCES: READ_ONLY_HINT,
    errno.EPERM: READ_ONLY_HINT,
    errno.EOPNOTSUPP: "this file system cannot do what the guest needs; use --read-only",
    errno.ENOSPC: "free some space, or ask for fewer --inodes",
    errno.EDQUOT: "free some space, or ask for fewer --inodes",
}
SMALL_TREE: Final = (
    ("README", "A directory that vmsim shares with its guest.\n"),
    ("docs/one.txt", "one\n"),
    ("docs/two.txt", "two\n" * 500),
    ("docs/deep/er/three.txt", "three\n"),
)


def existing(share: str) -> str:
    """The directory's real path; UsageError unless it is a directory that can be looked into."""
    try:
        with os.scandir(share):
            return os.path.realpath(share)
    except FileNotFoundError:
        name = share or repr(share)
        raise UsageError(f"{name} does not exist", hint="name the directory to share") from None
    except NotADirectoryError:
        raise UsageError(f"{share} is not a directory", hint="name the directory to share") from None
    except OSError as error:
        hint = "share a directory that you may read"
        raise UsageError(f"{share}: {error.strerror}", hint=hint) from error


def check_target(path: str) -> None:
    """UsageError if a file can certainly not be written at ``path``: better now than after all the work."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is not a directory", hint=f"choose another place than {path}")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory", hint="name the file to save to")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be written to", hint=f"choose another place than {path}")


def make_small_tree(folder: str) -> None:
    """Something to look at in a directory that we made ourselves."""
    for name, text in SMALL_TREE:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    os.symlink("docs/one.txt", os.path.join(folder, "link"))


def refused(share: str, error: OSError) -> NoReturn:
    """The guest cannot work in the directory: UsageError if somebody else's choice helps, else as it is."""
    hint = WRITE_HINTS.get(error.errno or 0)
    if hint is None:
        raise error
    raise UsageError(f"the guest cannot work in {share}: {error.strerror}", hint=hint) from error


class Scratch:
    """The names that a job uses in the directory: a folder and, beside it, the file of a contended lock.

    Nobody else has them, and their length is always the same: the same seed makes the same stream.
    """

    def __init__(self, share: str) -> None:
        name = SCRATCH + secrets.token_hex(4)
        while os.path.lexists(os.path.join(share, name)):
            name = SCRATCH + secrets.token_hex(4)
        self.folder = f"/{name}"
        self.lock = f"/{name}.lock"
        self._share = share

    def remove_folder(self) -> None:
        """Remove the folder with all that is in it, if it is there."""
        remove_tree(self._share + self.folder)

    def remove_lock(self) -> None:
        """Remove the file, if it is there."""
        if os.path.lexists(self._share + self.lock):
            os.unlink(self._share + self.lock)


def remove_tree(path: str) -> None:
    """Remove a folder on the host, whatever the guest made of its permissions; OSError if that fails."""
    if os.path.lexists(path):
        shutil.rmtree(path)
