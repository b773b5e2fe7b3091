"""``vmsim check``: options, output, exit codes."""

from __future__ import annotations

import json
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from vmsim.check.cases import CASES
from vmsim.cli import run

BAD = Path(__file__).parents[1] / "check" / "bad_backend.py"


def start(what: str) -> str:
    return shlex.join([sys.executable, str(BAD), "{socket}", what])


def test_list(capsys):
    assert run(["check", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CASES)
    assert run(["check", "--list", "--only", "state", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cases"]
    assert {row["id"].split(".")[0] for row in rows} == {"state"}


def test_passing(capsys, tmp_path):
    junit = tmp_path / "junit.xml"
    assert run(["check", "--start", start("nothing"), "--only", "messages.reply-ack", "--only", "*.config",
                "--junit-xml", str(junit)]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "pass  reply-ack" in out
    assert "not offered  config" in out
    assert "2 cases in" in out.splitlines()[-1]
    assert ElementTree.parse(junit).getroot()[0].attrib["tests"] == "2"


def test_failing(capsys):
    command = ["check", "--start", start("flags"), "--only", "messages.reply-ack"]
    assert run(command) == 1
    out = capsys.readouterr().out
    for words in ("fail  reply-ack", "expected: a reply", "came: ", "see: vhost-user", "again: vmsim check"):
        assert words in out
    assert run([*command, "--json"]) == 1
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert (facts["ok"], facts["counts"]["fail"]) == (False, 1)
    assert "reply-ack" in captured.err, "progress"


def test_hanging(capsys):
    assert run(["check", "--start", start("silent"), "--only", "messages.reply-ack", "--timeout", "0.3"]) == 1
    assert "hang  reply-ack" in capsys.readouterr().out


def test_wrong_usage(capsys, tmp_path):
    for words, message in (
        ([], "which back-end"), (["--start", "true"], "does not say where"),
        (["--start", "a {socket}", "--socket-path", "b"], "which back-end"),
        (["--socket-path", str(tmp_path / "none")], "nobody listens"),
        (["--only", "nothing.such"], "no case is so named"),
        (["--start", "false {socket}"], "ended with exit status 1"),
        (["--start", "/none/such {socket}"], "starting /none/such"),
    ):  # fmt: skip
        assert run(["check", *words]) == 2, words
        assert message in capsys.readouterr().err
