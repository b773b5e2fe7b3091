"""tools/fuzz: each target runs, a fault is found, kept and replayed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FUZZING = ROOT / "tools" / "fuzzing"
TARGETS = ("ring-split", "ring-packed", "fuse", "messages", "blob", "stream")
LIMIT_S = 110


def fuzz(*args, preset=""):
    """Run it as its own process; ``preset`` is code that comes first."""
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(FUZZING)!r}); {preset}\n"
        f"sys.argv = ['fuzz', *sys.argv[1:]]; runpy.run_path({str(FUZZING)!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=ROOT, check=False,
        timeout=LIMIT_S,
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_finds_nothing_in_a_few(tmp_path, target):
    done = fuzz(target, "--count", 10, "--seed", 1, "--place", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target}: seed 1" in done.stdout
    assert list((tmp_path / "corpus" / target).iterdir())
    assert not list((tmp_path / "findings").iterdir())


def test_a_fault_is_found_kept_and_replayed(tmp_path):
    """The cache of packed rings as it was: what stood for nothing was what a descriptor may begin with."""
    fault = (
        "import vmsim.virtio.packed_device as packed; from vmsim.virtio.chain import Chain; "
        "packed._NOTHING = (b'', Chain())"
    )
    done = fuzz("ring-packed", "--count", 40, "--seed", 1, "--place", tmp_path, preset=fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AttributeError" in done.stdout
    kept = [path for path in (tmp_path / "findings").iterdir() if not path.suffix]
    again = fuzz("--replay", kept[0], preset=fault)
    assert again.returncode == 1
    assert "AttributeError" in again.stdout
    assert fuzz("--replay", kept[0]).returncode == 0


def test_wrong_usage():
    done = fuzz("ring")
    assert done.returncode == 2
    assert "no target" in done.stderr
