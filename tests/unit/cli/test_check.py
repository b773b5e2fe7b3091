"""``vmsim check``: options, output, exit codes."""

from __future__ import annotations

import json
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from vmsim.check.cases import CASES
from vmsim.check.outcome import Result
from vmsim.cli import run
from vmsim.cli.check import Telling
from vmsim.cli.interrupts import Interrupted

BAD = Path(__file__).parents[1] / "check" / "bad_backend.py"


def start(*what: str) -> str:
    return shlex.join([sys.executable, str(BAD), "{socket}", *what])


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


def test_a_verdict_that_differs(capsys, tmp_path):
    """It is bad, whichever way it ends more often; one that is the same each time is what it is."""
    noted, junit = str(tmp_path / "noted"), tmp_path / "junit.xml"
    words = ["check", "--start", start("flags", noted), "--only", "messages.reply-ack", "--repeat", "3"]
    assert run([*words, "--junit-xml", str(junit)]) == 1
    out = capsys.readouterr().out
    assert "unstable  reply-ack" in out
    assert "ended: 1 fail, 2 pass" in out
    assert out.splitlines()[-1].endswith("1 did not end the same way each time")
    assert ElementTree.parse(junit).getroot()[0].attrib["failures"] == "1"
    assert run([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["unstable"], facts["cases"][0]["verdicts"]) == (True, [], {"pass": 3})
    Path(noted).unlink()
    assert run([*words, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["unstable"]) == (False, ["messages.reply-ack"])


def test_results_that_cannot_be_written_are_noticed_before_the_run(capsys, tmp_path):
    command = ["check", "--start", start("nothing"), "--only", "messages.reply-ack", "--junit-xml"]
    for place in ("none/junit.xml", "test_check.py/junit.xml"):
        assert run([*command, str(tmp_path / place)]) == 2
        captured = capsys.readouterr()
        assert "cannot write" in captured.err
        assert "reply-ack" not in captured.out


def test_an_interrupted_run_leaves_the_results_that_it_has(monkeypatch, capsys, tmp_path):
    junit = tmp_path / "junit.xml"
    told = Telling.result

    def result(self: Telling, result: Result) -> None:
        told(self, result)
        if result.id == "messages.ack-once":
            raise Interrupted

    monkeypatch.setattr(Telling, "result", result)
    assert run(["check", "--start", start("nothing"), "--only", "messages.*ack*", "--json", "--junit-xml",
                str(junit)]) == Interrupted.status  # fmt: skip
    names = [case.get("name") for case in ElementTree.parse(junit).getroot().iter("testcase")]
    assert names[-1] == "messages.ack-once"
    assert 1 < len(names) < 10
    facts = json.loads(capsys.readouterr().out)
    assert ([case["id"] for case in facts["cases"]], facts["ok"]) == (names, False)


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


def test_results_that_cannot_be_written_are_told(tmp_path, capfd):
    serve = f"{sys.executable} -P -m vmsim.cli serve --socket-path={{socket}} --shared-dir={{dir}}"
    words = ["check", "--start", serve, "--only", "messages.reply-ack", "--junit-xml", "/dev/full"]
    assert run(words) == 1
    assert "cannot write /dev/full: ENOSPC" in capfd.readouterr().err
