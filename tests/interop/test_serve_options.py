"""``vmsim serve`` knows every option of the real virtiofsd by name, and prints the same capabilities."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from vmsim.cli.serve_options import ELSEWHERE, OPTIONS

pytestmark = pytest.mark.interop


def output(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_option_is_known(peers):
    text = output(peers.virtiofsd, "--help")
    entries = re.findall(r"^ +(-{1,2}[a-zA-Z].*)$", text, re.MULTILINE)
    theirs = {word for entry in entries for word in re.findall(r"(?:^|, )(--?[a-zA-Z][a-z0-9-]*)", entry)}
    assert len(theirs) > 40
    ours = {spelling for row in OPTIONS for spelling in row.spellings} | set(ELSEWHERE)
    assert sorted(theirs - ours) == []
    print(f"{len(theirs)} options of virtiofsd, {len(ours - theirs)} more of ours")


def test_capabilities_are_the_same(peers):
    ours = output(sys.executable, "-P", "-m", "vmsim.cli", "serve", "--print-capabilities")
    assert json.loads(ours) == json.loads(output(peers.virtiofsd, "--print-capabilities"))
