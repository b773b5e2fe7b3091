"""The README is run: every `sh` block line by line, every `python` block as a script."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
LANGUAGES = {"sh", "python", "text"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its text, the line that it begins on."""

    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    """The fenced blocks of the README."""
    text = README.read_text()
    found = FENCE.finditer(text)
    return [Block(match[1], match[2], text[: match.start()].count("\n") + 1) for match in found]


def commands() -> list[str]:
    """The lines of its sh blocks."""
    lines = [line.strip() for block in blocks() if block.language == "sh" for line in block.text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_every_block_says_what_it_is():
    assert {block.language for block in blocks()} <= LANGUAGES
    assert README.read_text().count("```") == 2 * len(blocks())


def test_the_two_commands_are_there():
    assert {"tools/vmsim migrate", "tools/test"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_command(command):
    words = shlex.split(command)
    assert (ROOT / words[0]).exists(), "commands of the README begin with a file of this repository"
    if words[0] == "tools/test":
        run([*words, "--help"], ROOT)  # it is what runs this test
    elif words[0] == "tools/peers":
        run([*words, "--help"], ROOT)  # it needs the network; .ci/run runs it for real
    else:
        run(words, ROOT)


SCRIPTS = [block for block in blocks() if block.language == "python"]


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: f"line{block.line}")
def test_python(block, tmp_path):
    run([sys.executable, "-c", block.text], tmp_path)


@pytest.mark.parametrize("name", re.findall(r"[\w/]+/README\.md", README.read_text()))
def test_what_it_points_to_exists(name):
    assert (ROOT / name).is_file()
