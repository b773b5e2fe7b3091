"""A back-end to check: ``vmsim serve``."""

from __future__ import annotations

import os
import shlex
import sys

import pytest

SERVE = [
    sys.executable, "-P", "-m", "vmsim.cli", "serve", "--socket-path", "{socket}", "--shared-dir", "{dir}",
]  # fmt: skip


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """The command that starts it. Its modules are compiled once for all of its starts, if not before."""
    if "PYTHONDONTWRITEBYTECODE" not in os.environ:
        return shlex.join(SERVE)
    cache = tmp_path_factory.mktemp("compiled")
    return shlex.join(["env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={cache}", *SERVE])
