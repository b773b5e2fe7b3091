"""Standard streams that are closed, full or broken: every command says so, and nothing else goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmsim.cli.program import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
STREAM = str(ROOT / "tests" / "golden" / "minimal-analyzable.bin")
WORDS = {
    "check": ["check", "--list"],
    "diff": ["diff", STREAM, STREAM],
    "docs": ["docs", "migration"],
    "doctor": ["doctor"],
    "inspect": ["inspect", STREAM],
    "migrate": ["migrate", "--inodes", "5", "--memory", "8M", "{share}"],
    "restore": ["restore", "--help"],
    "serve": ["serve", "--print-capabilities"],
    "shell": ["shell", "{share}", "-c", "ls"],
}
CLOSED = "exec \"$0\" \"$@\" {}"


def command(name, share):
    words = [word.format(share=share) for word in WORDS[name]]
    return [sys.executable, "-P", "-m", "vmsim.cli", *words]


def ended(words, redirections="", **streams):
    """The exit status and what went to standard error."""
    if redirections:
        words = ["bash", "-c", CLOSED.format(redirections), *words]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams}
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=100, check=False, **streams)
    return done.returncode, done.stderr


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "file").write_text("content")
    yield folder
    assert os.listdir(folder) == ["file"]


def test_every_command_is_tried():
    assert sorted(WORDS) == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(WORDS))
def test_an_output_that_takes_nothing(name, share):
    with open("/dev/full", "w") as full:
        status, said = ended(command(name, share), stdout=full)
    assert (status, said.splitlines()[-2:]) == (
        1, ["vmsim: writing standard output: ENOSPC", "  hint: free some space where it goes to"]
    )  # fmt: skip


# What each command writes goes through one place, as the test above shows; how that place fails is tried
# with some of them: one that prints, one with tables, one with lines as it goes, one with a console.
@pytest.mark.parametrize("name", ["docs", "inspect", "migrate", "shell"])
def test_an_output_whose_reader_has_gone(name, share):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        status, said = ended(command(name, share), stdout=writer)
    finally:
        os.close(writer)
    assert (status, said.splitlines()[-2:]) == (
        1, ["vmsim: writing standard output: EPIPE", "  hint: whoever read it has gone"]
    )  # fmt: skip


@pytest.mark.parametrize(("name", "redirections"), [
    ("docs", ">&-"), ("migrate", "<&- >&-"), ("serve", ">&-"), ("serve", "<&- >&-"), ("shell", ">&-"),
])  # fmt: skip
def test_an_output_that_is_closed(name, redirections, share):
    status, said = ended(command(name, share), redirections)
    assert (status, "writing standard output: EBADF" in said) == (1, True)
    assert "Traceback" not in said


# Each way with two commands, each command in two ways; the machine's, which open descriptors of their own and
# report on standard error while they work, in those where a number is free or a write fails.
@pytest.mark.parametrize(("name", "redirections"), [
    ("doctor", "2>/dev/full"), ("doctor", "<&-"), ("inspect", "2>&-"), ("inspect", "<&- 2>&-"),
    ("migrate", "2>/dev/full"), ("migrate", "<&- 2>&-"), ("migrate", "2>&-"), ("shell", "2>&-"),
    ("shell", "<&-"),
])  # fmt: skip
def test_without_diagnosis_all_goes_on(name, redirections, share, tmp_path):
    with open(tmp_path / "out", "wb") as out:
        status, _ = ended(command(name, share), redirections, stdout=out)
    assert status == 0
    assert (tmp_path / "out").read_bytes()


def test_a_failure_keeps_its_status(share):
    with open("/dev/full", "w") as full:
        status, said = ended([*command("migrate", share), "--ring", "round"], stdout=full)
    assert status == 2
    assert "'round'" in said
