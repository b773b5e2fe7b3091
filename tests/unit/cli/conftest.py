"""Commands run in this process, as from a command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vmsim.cli import run


class Ended(NamedTuple):
    """How a command ended: its exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        facts = json.loads(self.out)
        assert isinstance(facts, dict)
        return facts


Vmsim = Callable[..., Ended]


@pytest.fixture
def vmsim(capfdbinary: pytest.CaptureFixture[bytes]) -> Vmsim:
    """Call it with the words of a command line."""

    def call(*words: object) -> Ended:
        capfdbinary.readouterr()
        status = run([str(word) for word in words])
        out, err = capfdbinary.readouterr()
        return Ended(status, os.fsdecode(out), os.fsdecode(err))

    return call


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A directory with a little in it."""
    folder = tmp_path / "share"
    (folder / "docs").mkdir(parents=True)
    (folder / "hello.txt").write_text("hello\n")
    (folder / "docs" / "one").write_text("1" * 100_000)
    (folder / "link").symlink_to("hello.txt")
    return folder
