"""What all commands share, and the outermost: help, version, errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vmsim.cli import run
from vmsim.cli.common import error_facts, error_line, human_bytes, human_ns, printable
from vmsim.errors import HostError, MigrationError, StreamError


def test_sizes_and_times():
    assert [human_bytes(n) for n in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [human_ns(n) for n in (7, 1500, 2.5e6, 3e9)] == ["7 ns", "1.50 µs", "2.50 ms", "3.00 s"]


def test_names_on_a_terminal():
    assert printable("plain ü.txt") == "plain ü.txt"
    assert printable("a\x1b[31m\n\udcff\u202e") == r"a\x1b[31m\n\xff\u202e"


def test_errors_in_a_line():
    error = MigrationError("it broke", step="ring stop", side="source", hint="mend it", errno=5)
    assert error_line(error) == "it broke (step ring stop, side source)"
    assert error_facts(error)["details"] == {"step": "ring stop", "side": "source", "errno": "5"}
    assert error_line(FileNotFoundError(2, "No such file", "a\nb")) == r"No such file: a\nb"
    assert error_line(StreamError("bad", offset=16, field="x")) == "bad in x at offset 0x10"
    assert error_facts(HostError("no", errno=24))["hint"].startswith("raise the limit")
    assert "a bug" in error_line(KeyError("x"))
    json.dumps(error_facts(KeyError("x")))


def test_help_explains_itself(vmsim):
    ended = vmsim("--help")
    assert ended.status == 0
    for word in ("migrate", "restore", "shell", "Exit status"):
        assert word in ended.out
    assert vmsim().out == ended.out
    for command in ("migrate", "restore", "shell"):
        text = vmsim(command, "-h")
        assert text.status == 0
        assert len(text.out.splitlines()) > 10


def test_every_option_has_a_help(vmsim):
    from vmsim.cli import cli

    for command in cli.commands.values():
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or parameter.help, parameter.name


def test_version(vmsim):
    assert vmsim("--version").out.startswith("vmsim, version 0.")


def test_debug_adds_the_traceback_wherever_it_stands(vmsim, tmp_path):
    for words in (("--debug", "migrate", tmp_path / "x"), ("migrate", tmp_path / "x", "--debug")):
        ended = vmsim(*words)
        assert ended.status == 2
        assert "Traceback" in ended.err
        assert ended.err.splitlines()[-1].startswith("  hint:")
    assert "Traceback" not in vmsim("migrate", tmp_path / "x").err


@pytest.mark.parametrize("words", [("nonsense",), ("migrate", "a", "b"), ("restore",)])
def test_misuse(vmsim, words):
    ended = vmsim(*words, "--json")
    assert ended.status == 2
    assert ended.facts["ok"] is False
    assert ended.err.count("\n") == 2


def test_a_bug_is_told_as_one(vmsim, share, monkeypatch):
    from vmsim.workload.job import Job

    monkeypatch.setattr(Job, "_boot", lambda self, share: 1 / 0)
    ended = vmsim("migrate", "--json", share)
    assert ended.status == 1
    assert ended.facts["error"]["type"] == "ZeroDivisionError"
    assert "a bug in vmsim" in ended.err


def test_as_a_program():
    command = [sys.executable, "-m", "vmsim.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("vmsim")


def test_run_leaves_the_arguments_alone(capsys):
    words = ["--debug", "--version"]
    assert run(words) == 0
    assert words == ["--debug", "--version"]
    capsys.readouterr()
