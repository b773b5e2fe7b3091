"""A back-end to check: ``vmsim serve``."""

from __future__ import annotations

import os
import shlex
import sys

import pytest

SERVE = shlex.join(
    [sys.executable, "-P", "-m", "vmsim.cli", "serve", "--socket-path", "{socket}", "--shared-dir", "{dir}"]
)


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """The command that starts it. Its modules are compiled once for all of its starts."""
    cache, kept = tmp_path_factory.mktemp("compiled"), dict(os.environ)
    os.environ["PYTHONPYCACHEPREFIX"] = str(cache)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    yield SERVE
    os.environ.clear()
    os.environ.update(kept)
