"""What several groups of cases use."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from vmsim.check.outcome import fail


def raises(names: str, act: Callable[[], object]) -> None:
    """Fail unless ``act`` ends with an OSError of one of these errnos, by name."""
    try:
        act()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        if name not in names.split():
            fail(" or ".join(names.split()), f"{name}: {os.strerror(error.errno or 0)}")
        return
    fail(" or ".join(names.split()), "it succeeded")


def populate(folder: Path, count: int) -> list[str]:
    """Make so many empty files."""
    names = [f"file-{number:05d}-{'x' * 50}" for number in range(count)]
    for name in names:
        (folder / name).touch()
    return names
