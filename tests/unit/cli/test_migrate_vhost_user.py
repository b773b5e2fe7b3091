"""The main job, a restore and a shell with back-ends in processes of their own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.machine_rig import HANDLES_ALLOWED
from tests.support.remote_rig import nothing_left
from tests.support.sampling import sample
from vmsim.host.processes import SERVE

REMOTE = ("--transport", "vhost-user", "--inodes", "5", "--memory", "8M")
CHOICES = (
    ("upstream", "rfc2023"), ("split", "packed"), ("internal", "external"), ("find-paths", "file-handles"),
)  # fmt: skip
COMBINATIONS = [
    tuple(values[choice] for values, choice in zip(CHOICES, chosen, strict=True))
    for chosen in itertools.product((0, 1), repeat=4) if sum(chosen) % 2 == 0
]  # fmt: skip
"""Half of the product, with all values of any three of the choices together."""


@pytest.fixture(autouse=True)
def clean(tmp_path):
    with nothing_left(tmp_path / "temporary"):
        yield


@pytest.mark.parametrize(
    ("dialect", "ring", "migration", "mode"), sample(COMBINATIONS, 4, "kinds of machines: vhost-user")
)
def test_dialects_rings_kinds_and_modes(vmsim, share, dialect, ring, migration, mode):
    if mode == "file-handles" and not HANDLES_ALLOWED:
        pytest.skip("opening by file handle needs CAP_DAC_READ_SEARCH")
    before = sorted(os.listdir(share))
    ended = vmsim(
        "migrate", "--json", *REMOTE, "--dialect", dialect, "--ring", ring,
        "--migration", migration, "--migration-mode", mode, share,
    )  # fmt: skip
    assert (ended.status, ended.facts["discrepancies"]) == (0, []), ended.err
    assert ended.facts["machine"]["transport"] == "vhost-user"
    assert ended.facts["left_out"] == []
    hop = ended.facts["hops"][0]
    assert hop["moved"]["waiting"] == 1
    assert hop["moved"]["handles"] > 6
    assert hop["steps"] > 0
    assert sorted(os.listdir(share)) == before


def test_the_report_says_what_a_back_end_keeps_to_itself(vmsim, share):
    ended = vmsim("migrate", *REMOTE, "--hops", 2, share)
    assert ended.status == 0, ended.err
    assert "verdict: everything held" in ended.out
    assert "?" in ended.out


def test_many_queues_read_only(vmsim, share):
    ended = vmsim("migrate", "--json", *REMOTE, "--queues", 3, "--read-only", share)
    assert (ended.status, ended.facts["discrepancies"]) == (0, []), ended.err
    assert ended.facts["hops"][0]["moved"]["rings"] == 4


def test_saved_here_and_restored_there(vmsim, share, tmp_path):
    saved = vmsim("migrate", "--json", *REMOTE, "--save", tmp_path / "file", share)
    assert saved.facts["saved"] == str(tmp_path / "file")
    ended = vmsim(
        "restore", "--json", tmp_path / "file", "--share", share, "--transport", "vhost-user", "--keep"
    )
    assert (ended.status, ended.facts["discrepancies"]) == (0, []), ended.err
    again = vmsim("restore", "--json", tmp_path / "file", "--share", share, "--transport", "inproc")
    assert again.facts["ok"] is False, "the guest worked on: its files are not as they were saved"


def test_a_migration_that_none_blocks(vmsim, share):
    ended = vmsim("migrate", "--json", *REMOTE, "--migration", "none", share)
    assert ended.status == 1
    assert "Migration is blocked" in ended.facts["error"]["message"]


def test_trace_shows_the_messages_of_both_sides(vmsim, share):
    ended = vmsim("migrate", *REMOTE, "--trace", "vhost.request", share)
    assert ended.status == 0
    for where in ("vm1", "vm2"):
        assert any(where in line and "SET_DEVICE_STATE_FD" in line for line in ended.err.splitlines())


def test_nothing_is_unlinked_if_names_are_kept(vmsim, share):
    ended = vmsim("migrate", "--json", *REMOTE, "--keep-names", share)
    assert (ended.status, ended.facts["discrepancies"]) == (0, []), ended.err
    assert ended.facts["workload"]["unlinked"] == 0
    assert ended.facts["left_out"] == ["nothing was unlinked or removed: --keep-names"]


def test_another_back_end_by_its_command(vmsim, share):
    command = " ".join(SERVE).replace(sys.executable, f"'{sys.executable}'") + " {options} --reconnect"
    ended = vmsim("migrate", "--json", *REMOTE, "--backend", command, share)
    assert (ended.status, ended.facts["discrepancies"]) == (0, []), ended.err


def test_a_back_end_that_does_not_start(vmsim, share):
    ended = vmsim("migrate", *REMOTE, "--backend", "sh -c 'echo out of order >&2; exit 7' {socket}", share)
    assert ended.status == 1
    assert "exit status 7" in ended.err
    assert "it said: out of order" in ended.err


def test_a_shell_on_another_process(vmsim, share):
    script = "open hello.txt; read 0 3; migrate 2; read 0 2; rings; inodes; check"
    ended = vmsim("shell", "--transport", "vhost-user", share, "-c", script)
    assert ended.status == 0, ended.err
    assert "hel" in ended.out
    assert "lo" in ended.out
    assert "migrated in" in ended.out
    assert "cannot be asked" in ended.out
    assert Path(share, "hello.txt").read_text() == "hello\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_nothing_stays(share, tmp_path, number):
    # A shell's background jobs, and what they start, ignore SIGINT unless told otherwise.
    words = ["env", "--default-signal=INT,TERM", sys.executable, "-P", "-m", "vmsim.cli"]
    words += ["migrate", *REMOTE, "--hops", "1000", str(share)]
    folder = tmp_path / "temporary"
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            while not process.stderr.readline().startswith("migrate: hop 2"):
                assert process.poll() is None
            started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(number)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert os.listdir(folder) == []
    assert sorted(os.listdir(share)) == ["docs", "hello.txt", "link"]
    assert started
    assert not any(Path("/proc", pid).exists() for pid in started)
