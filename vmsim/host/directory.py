"""Paths that mean the same whatever becomes of the working directory, and a directory that is held."""

from __future__ import annotations

import contextlib
import errno
import os

from vmsim.errors import HostError
from vmsim.host.apart import apart


def fixed(path: str | os.PathLike[str]) -> str:
    """``path`` made absolute now. Nothing is shortened: ``link/..`` is where the link leads to.

    HostError for a relative path in a program whose working directory has been removed.
    """
    text = os.fspath(path)
    if os.path.isabs(text):
        return text
    try:
        return os.path.join(os.getcwd(), text)
    except OSError as error:
        what = f"{text}: there is no working directory that it could be relative to"
        raise HostError(what, errno=error.errno or errno.ENOENT, hint="give an absolute path") from error


class HeldDirectory:
    """The directory that ``path`` is now, also when it is renamed or the working directory is another one.

    ``path`` becomes absolute. OSError if it cannot be opened, HostError as of ``fixed``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = fixed(path)
        self._fd = apart(os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def now(self) -> str:
        """A path that leads to it at present; HostError(ESTALE) if there is none, or it has been closed."""
        names = [self.path]
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{self._fd}"))
        for name in names:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(name), os.fstat(self._fd)):
                    return name
        raise HostError(
            f"the shared directory {self.path} has been removed, or its name leads elsewhere by now",
            errno=errno.ESTALE, hint="say which directory to go on with: share=DIR",
        )  # fmt: skip

    def close(self) -> None:
        """Let go of it; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
