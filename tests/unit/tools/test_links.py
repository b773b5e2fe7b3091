"""The links from READMEs to code lead where they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def check(root, *words):
    """(exit status, what it says) of tools/links in a checkout."""
    done = subprocess.run(
        [sys.executable, root / "tools" / "links", *words], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_they_hold():
    assert check(ROOT) == (0, "")


def test_what_does_not_hold_is_said_and_can_be_corrected(tmp_path):
    for name in ("tools/links", "vmsim/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    readme = tmp_path / "vmsim" / "README.md"
    (tmp_path / "vmsim" / "one.py").write_text("\n\nclass A:\n    def b(self):\n        pass\n")
    readme.write_text("See [`A.b`](one.py#L1) and [`A`](one.py).\n")
    status, said = check(tmp_path)
    assert status == 1
    assert re.findall(r"in line (\d+), not (\w+)", said) == [("4", "1"), ("3", "None")]
    assert check(tmp_path, "--write") == (0, "")
    assert readme.read_text() == "See [`A.b`](one.py#L4) and [`A`](one.py#L3).\n"
    (tmp_path / "vmsim" / "one.py").write_text("\n")
    status, said = check(tmp_path, "--write")
    assert status == 1
    assert "there is no such thing" in said
