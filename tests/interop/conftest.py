"""The real peers: skipped with a reason where they are missing, unless they are required."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def peers():
    """Paths: ``qemu``, ``virtiofsd``, ``busybox``, ``kernel``, ``modules``, ``analyze_migration``.

    ``versions`` is a dict. Fetch them with ``tools/peers``; with VMSIM_REQUIRE_PEERS set their absence is a
    failure.
    """
    command = [sys.executable, str(ROOT / "tools" / "peers"), "--offline", "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    facts = json.loads(done.stdout)
    if not facts["ok"]:
        reason = "the real peers are missing: run tools/peers"
        if os.environ.get("VMSIM_REQUIRE_PEERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    paths = {name.replace("-", "_"): path for name, path in facts["paths"].items()}
    return SimpleNamespace(versions=facts["versions"], **paths)
