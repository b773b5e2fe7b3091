"""File systems that a test mounts for itself, where it may."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(*arguments: object) -> Iterator[None]:
    """``mount ARGUMENTS`` (the last one is where) while the block runs; the test skips without the right."""
    words = [str(word) for word in arguments]
    try:
        refused = subprocess.run(["mount", *words], capture_output=True, check=False).returncode
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if refused:
        pytest.skip("this process may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", words[-1]], capture_output=True, check=False)


@contextmanager
def tmpfs(where: Path, options: str = "size=1m") -> Iterator[Path]:
    """A tmpfs of its own at ``where``, which is made."""
    where.mkdir(exist_ok=True)
    with mounted("-t", "tmpfs", "-o", options, "none", where):
        yield where
