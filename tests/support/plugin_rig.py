"""Runs pytest with vmsim's plugin on tests of somebody else's repository: the example of its README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "vmsim" / "check" / "README.md"
MORE = '''
from vmsim.vhost import constants as c


def test_a_front_end(vhost_frontend):
    assert vhost_frontend.has(c.F_REPLY_ACK)
    assert vhost_frontend.number("GET_QUEUE_NUM") >= 2


def test_a_mount(guest_mount):
    guest_mount.fs.mkdir("made")
    assert (guest_mount.share / "made").is_dir()


def test_case(vmsim_case):
    vmsim_case()
'''


def example() -> str:
    """The test in the README."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 10, "ten lines are promised"
    return code


def run_pytest(folder: Path, *arguments: str, alone: bool = True) -> subprocess.CompletedProcess[str]:
    """pytest with the plugin in a folder of its own; not ``alone``: as it finds plugins, with all others."""
    only = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "vmsim.pytest_plugin"} if alone else {}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q",
               "-rA", "--rootdir", str(folder), *arguments]  # fmt: skip
    return subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        env=dict(os.environ, COLUMNS="200", **only),
    )  # fmt: skip


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """How each test ended, by the last part of its name."""
    rows = re.findall(r"^(PASSED|FAILED|SKIPPED|ERROR) (?:\[\d+\] )?(\S+)", done.stdout, re.MULTILINE)
    return {name.rpartition("::")[2]: outcome.lower() for outcome, name in rows}
