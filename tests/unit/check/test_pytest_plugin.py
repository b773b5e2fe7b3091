"""The pytest plugin on ``vmsim serve``: the README's example, fixtures, cases as tests."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.support.plugin_rig import MORE, example, outcomes, run_pytest

BAD = Path(__file__).with_name("bad_backend.py")


def test_the_example_and_the_fixtures(serve, tmp_path):
    (tmp_path / "test_my_backend.py").write_text(example() + MORE)
    done = run_pytest(
        tmp_path, "--vhost-user-start", serve, "--vmsim-cases", "messages.queue-num", "--vmsim-cases",
        "rings.split", alone=False,
    )  # fmt: skip
    assert outcomes(done) == {
        "test_a_file_moves_with_its_guest": "passed", "test_a_front_end": "passed", "test_a_mount": "passed",
        "test_case[messages.queue-num]": "passed", "test_case[rings.split]": "passed",
    }, done.stdout + done.stderr  # fmt: skip


def test_the_command_in_the_ini_file_and_cases_without_any_test(serve, tmp_path):
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nvhost_user_start = {serve}\n")
    done = run_pytest(tmp_path, "--vmsim-cases", "rings.split-s*")
    assert outcomes(done) == {"rings.split-small": "passed"}, done.stdout + done.stderr


def test_bad_outcomes_fail_and_what_is_not_offered_is_skipped(tmp_path):
    command = shlex.join([sys.executable, str(BAD), "{socket}", "killed"])
    done = run_pytest(
        tmp_path, "--vhost-user-start", command, "--vmsim-cases", "messages.reply-ack", "--vmsim-cases",
        "messages.config",
    )  # fmt: skip
    assert done.returncode == 1
    assert "1 failed, 1 skipped" in done.stdout
    for words in ("crash", "killed by SIGKILL", "--only messages.reply-ack", "CONFIG is not offered"):
        assert words in done.stdout, done.stdout


def test_a_crash_behind_a_tests_back_fails_it(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "from vmsim.vhost import payloads as p\n\n"
        "def test_it(vhost_frontend):\n    vhost_frontend.send('SET_VRING_NUM', p.VringState(0, 8))\n"
        "    try:\n        vhost_frontend.barrier()\n    except Exception:\n        pass\n"
    )
    command = shlex.join([sys.executable, str(BAD), "{socket}", "killed"])
    done = run_pytest(tmp_path, "--vhost-user-start", command)
    assert "killed by SIGKILL" in done.stdout
    assert done.returncode == 1


def test_without_a_command(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(guest_mount):\n    raise AssertionError\n")
    done = run_pytest(tmp_path)
    assert "1 skipped" in done.stdout
    assert "--vhost-user-start" in done.stdout
    done = run_pytest(tmp_path, "--vmsim-cases", "rings")
    assert done.returncode == 4
    assert "--vmsim-cases needs --vhost-user-start" in done.stdout + done.stderr


def test_in_another_working_directory(tmp_path):
    """The command was said where pytest was started; tests go elsewhere, and so may a conftest."""
    start = tmp_path / "start"
    start.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vmsim.cli serve "$@"\n')
    start.chmod(0o755)
    (tmp_path / "conftest.py").write_text("import os\ndef pytest_sessionstart(session): os.chdir('/')\n")
    (tmp_path / "test_elsewhere.py").write_text(ELSEWHERE)
    command = "./start --socket-path={socket} --shared-dir={dir} --sandbox=none {options}"
    done = run_pytest(
        tmp_path, "--vhost-user-start", command, "--vmsim-cases", "messages.queue-num", "--basetemp=basetemp"
    )
    assert outcomes(done) == {
        "messages.queue-num": "passed", "test_it_goes_elsewhere": "passed",
    }, done.stdout + done.stderr  # fmt: skip


ELSEWHERE = '''
import os
import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


def test_it_goes_elsewhere(migrating_pair, tmp_path, monkeypatch):
    migrating_pair.fs.mkdir("made")
    monkeypatch.chdir(tmp_path)
    assert migrating_pair.migrate().listdir("/") == ["made"]
    assert os.listdir(".") == []
'''
