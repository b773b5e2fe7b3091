"""The examples are run, and print what they say they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
LINES_MAX = 40


def promised(text: str) -> re.Pattern[str]:
    """What a program says that it prints; ``...`` is anything."""
    line = re.search(r"^Prints: (.+)$", text, re.MULTILINE)
    assert line, "it says what it prints"
    parts = line[1].split("...")
    return re.compile(r"\s*.*?\s*".join(re.escape(part.strip()) for part in parts), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_prints_what_it_says(example, tmp_path):
    text = example.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    assert f"Run:    python {example.name} DIR\n" in text
    done = subprocess.run(
        [sys.executable, example, tmp_path], capture_output=True, text=True, check=False, timeout=100,
        cwd=FOLDER.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert promised(text).fullmatch(done.stdout.strip()), done.stdout


def test_the_readme_names_all_of_them():
    rows = re.findall(r"^\| `(\w+\.py)`", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == [example.name for example in EXAMPLES]
