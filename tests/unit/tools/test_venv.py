"""tools/venv.py: what is installed when, with nothing but the standard library and no network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of its own whose installations are only written down."""
    venv = load("venv")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    home = tmp_path / ".venv"
    for name, value in {
        "ROOT": tmp_path, "HOME": home, "PYTHON": home / "bin" / "python",
        "STAMP": home / "vmsim-installed.json",
    }.items():
        monkeypatch.setattr(venv, name, value)
    venv.commands = []

    def run(command, doing):
        venv.commands.append(command)
        if "venv" in command:
            (home / "bin").mkdir(parents=True, exist_ok=True)
            venv.PYTHON.unlink(missing_ok=True)
            venv.PYTHON.symlink_to(sys.executable)

    monkeypatch.setattr(venv, "run", run)
    return venv


def made(venv):
    """What was done since the last time: made an environment, installed what."""
    done = ["venv" if "venv" in command else command[-1] for command in venv.commands]
    venv.commands.clear()
    return done


def test_the_first_start_makes_and_installs_and_the_second_does_nothing(checkout):
    assert checkout.ensure() == checkout.PYTHON
    assert made(checkout) == ["venv", "."]
    checkout.ensure()
    assert made(checkout) == []


def test_test_tools_come_on_top_and_stay(checkout):
    checkout.ensure()
    made(checkout)
    checkout.ensure("test")
    assert made(checkout) == [".[test]"]
    checkout.ensure()
    checkout.ensure("test")
    assert made(checkout) == []


def test_a_changed_project_file_installs_again_with_what_was_there(checkout):
    checkout.ensure("test")
    made(checkout)
    (checkout.ROOT / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    checkout.ensure()
    assert made(checkout) == [".[test]"]


def test_an_interrupted_installation_is_done_again(checkout, monkeypatch):
    whole = checkout.run

    def interrupted(command, doing):
        whole(command, doing)
        if "install" in command:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkout, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        checkout.ensure()
    assert ended.value.code == checkout.INTERRUPTED
    assert not checkout.STAMP.exists()
    monkeypatch.setattr(checkout, "run", whole)
    made(checkout)
    checkout.ensure()
    assert made(checkout)[-1] == "."
    assert json.loads(checkout.STAMP.read_text())["checkout"] == str(checkout.ROOT)


def test_the_environment_of_another_user_whose_interpreter_is_out_of_reach(checkout, monkeypatch, capsys):
    checkout.ensure()
    allowed = os.access

    def access(path, mode):
        return path not in (checkout.PYTHON, checkout.ROOT) and allowed(path, mode)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(SystemExit) as ended:
        checkout.ensure()
    assert ended.value.code == 2
    assert "cannot be used by you" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["half a stamp", "interpreter gone", "moved"])
def test_damage_is_mended(checkout, damage):
    checkout.ensure()
    made(checkout)
    if damage == "half a stamp":
        checkout.STAMP.write_text('{"chec')
    elif damage == "interpreter gone":
        checkout.PYTHON.unlink()
        checkout.PYTHON.symlink_to("/nowhere/python")
    else:
        checkout.STAMP.write_text(checkout.STAMP.read_text().replace(str(checkout.ROOT), "/elsewhere"))
    checkout.ensure()
    assert made(checkout)[-1] == "."


def test_starts_at_the_same_time_install_once(checkout):
    starts = [threading.Thread(target=checkout.ensure) for _ in range(6)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert made(checkout) == ["venv", "."]


def test_an_old_python_is_told_so(checkout, monkeypatch, capsys):
    monkeypatch.setattr(checkout, "OLDEST", (99, 0))
    with pytest.raises(SystemExit) as caught:
        checkout.ensure()
    assert caught.value.code == 2
    assert "Python 99.0 or newer is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "hint"),
    [("No module named ensurepip", "python3-venv"), ("could not resolve", "network"), ("boom", "rm -rf")],
)
def test_failures_come_with_a_hint(capsys, says, hint):
    venv = load("venv")
    with pytest.raises(SystemExit) as caught:
        venv.run([sys.executable, "-c", f"import sys; print({says!r}); sys.exit(3)"], "trying")
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert hint in printed


def test_the_command_runs_from_anywhere_and_shadows_nothing(tmp_path):
    """A folder with modules of the same names as ours is no obstacle."""
    for name in ("vmsim.py", "random.py", "venv.py"):
        (tmp_path / name).write_text("raise RuntimeError('shadowed')")
    done = subprocess.run(
        [str(TOOLS / "vmsim"), "--help"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": ""},
    )
    assert "shadowed" not in done.stderr
    assert done.returncode == 0, done.stderr
