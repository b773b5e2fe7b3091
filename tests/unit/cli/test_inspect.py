"""The commands ``vmsim inspect`` and ``vmsim diff``."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest

from tests.unit.inspect.states import GOLDEN, encoded, small

STREAM = GOLDEN / "qemu10.0.2-microvm-mmio-split.bin"
PACKED = GOLDEN / "qemu10.0.2-microvm-mmio-packed-offered.bin"
FS = "virtio-mmio@00000000feb02e00/vhost-user-fs"


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(encoded(small()))
    return path


def test_plain_text(vmsim):
    ended = vmsim("inspect", STREAM)
    assert ended.status == 0, ended.err
    for text in ("QEMU migration stream", "/hello.txt, refcount 1", "VERSION_1", "rounds: 1", "O_RDONLY"):
        assert text in ended.out


def test_one_section(vmsim):
    ended = vmsim("inspect", "--section", "*vhost-user-fs", STREAM)
    assert ended.status == 0
    assert "/hello.txt" in ended.out
    assert "cmos_data" not in ended.out
    assert vmsim("inspect", "--section", "nothing", STREAM).status == 2


def test_json(vmsim):
    facts = vmsim("inspect", "--json", STREAM).facts
    assert facts["kind"] == "QEMU migration stream"
    assert facts["findings"] == []
    backend = facts["sections"][FS]["vhost-user-fs-backend"]
    assert backend["inodes"]["2"]["path"] == "/hello.txt"
    assert facts["sections"]["ram"]["blocks"]["mem"]["size"] == 64 << 20


def test_hex(vmsim, state):
    ended = vmsim("inspect", "--hex", "--section", "*vhost-user-fs", STREAM)
    assert "05 15 76 68 6f 73 74" in ended.out
    assert "68 65 6c 6c 6f 2e 74 78 74" in ended.out
    assert "inodes.2" in vmsim("inspect", "--hex", state).out


def test_lint(vmsim, state, tmp_path):
    assert vmsim("inspect", "--lint", state).status == 0
    bad = tmp_path / "bad"
    bad.write_bytes(state.read_bytes()[:-3])
    ended = vmsim("inspect", "--lint", "--as", "state", bad)
    assert ended.status == 1
    assert "state-damaged at 0x" in ended.out
    facts = vmsim("inspect", "--lint", "--json", bad).facts
    assert facts["ok"] is False
    assert facts["findings"][0]["severity"] == "error"
    assert vmsim("inspect", bad).status == 0


def test_lint_against_another(vmsim):
    pci = GOLDEN / "qemu10.0.2-q35-pci-split.bin"
    ended = vmsim("inspect", "--lint", "--against", pci, STREAM)
    assert ended.status == 1
    assert "machine-type" in ended.out
    assert vmsim("inspect", "--against", pci, STREAM).status == 2


@pytest.mark.parametrize("content", [None, b"", b"just some text, nothing more"])
def test_what_cannot_be_read(vmsim, tmp_path, content):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    for words in (("inspect", path), ("inspect", "--lint", path), ("diff", path, STREAM)):
        ended = vmsim(*words)
        assert ended.status == 2
        assert "Traceback" not in ended.err
    assert vmsim("inspect", tmp_path).status == 2


def test_diff(vmsim, state, tmp_path):
    assert vmsim("diff", state, state).status == 0
    other = small()
    other.inodes[2].name = b"other"
    path = tmp_path / "other"
    path.write_bytes(encoded(other))
    ended = vmsim("diff", state, path)
    assert ended.status == 1
    assert "path /d/f → /d/other" in ended.out
    facts = json.loads(vmsim("diff", "--json", state, path).out)
    assert [change["path"] for change in facts["changes"]] == [
        ["state", "inodes", "3"], ["state", "handles", "0"],
    ]  # fmt: skip


def test_diff_of_streams(vmsim):
    ended = vmsim("diff", "--section", "ram", STREAM, PACKED)
    assert ended.status == 1
    assert "pages differ" in ended.out
    assert "cmos_data" not in ended.out


def test_a_saved_machine(vmsim, tmp_path):
    share, saved = tmp_path / "share", tmp_path / "saved"
    share.mkdir()
    done = vmsim("migrate", "--inodes", "5", "--save", saved, share)
    assert done.status == 0, done.err
    facts = vmsim("inspect", "--json", saved).facts
    assert facts["kind"] == "vmsim machine"
    assert facts["sections"]["vmsim/machine"]["configuration"]["tag"] == "vmsim"
    ended = vmsim("inspect", "--lint", saved)
    assert ended.status == 0, ended.out


def test_a_tree_on_a_terminal(state):
    """As people see it: branches and colours, and nothing of that on a pipe."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "vmsim.cli", "inspect", str(state)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, env=environment)
    os.close(theirs)
    parts = []
    with contextlib.suppress(OSError):  # how a terminal says that nobody has it open any more
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    os.close(ours)
    assert process.wait(60) == 0
    shown = b"".join(parts).decode()
    assert "└── " in shown
    assert "\x1b[" in shown
    assert "/d/f, refcount 1" in shown
    plain = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert plain.returncode == 0, plain.stderr
    assert "└" not in plain.stdout
    assert "\x1b" not in plain.stdout
    assert "/d/f, refcount 1" in plain.stdout
