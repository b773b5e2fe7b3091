"""A daemon starts its machine with privilege and gives that up: the machine goes on, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "changed_ids.py"


@pytest.fixture
def folder():
    """One that everybody may enter; those of pytest are its user's."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be anybody")
@pytest.mark.parametrize("moment", ["before", "during"])
@pytest.mark.parametrize("transport", ["inproc", "vhost-user"])
def test_privilege_given_up(folder, transport, moment):
    command = [sys.executable, PROGRAM, transport, moment, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *steps, left = done.stdout.splitlines()
    assert left == "left: [] []"
    told = [step for step in steps if not step.endswith(": done")]
    assert all(": VmsimError: " in step and step.startswith("migration") for step in told), told
    if transport == "inproc":
        assert told == []
    assert (folder / "share" / "f").read_bytes() == b"111"
