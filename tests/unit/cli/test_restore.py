"""``vmsim migrate --save`` and ``vmsim restore``: in another process, at another place."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec
import pytest

from vmsim.errors import StreamError
from vmsim.workload import job
from vmsim.workload.checks import Discrepancy
from vmsim.workload.continued import Note


@pytest.fixture
def saved(vmsim, share, tmp_path):
    """A saved machine's file, with its files in the share."""

    def save(*options):
        file = tmp_path / "saved.vm"
        ended = vmsim("migrate", "--json", "--inodes", 20, "--save", file, *options, share)
        assert ended.facts["saved"] == str(file)
        return file

    return save


@pytest.mark.parametrize("options", [
    (), ("--dialect", "rfc2023", "--ring", "packed", "--queues", "2", "--hops", "2"), ("--read-only",),
    ("--migration-verify-handles",),
], ids=" ".join)  # fmt: skip
def test_in_another_process_from_another_directory_at_another_place(saved, share, tmp_path, options):
    file = saved(*options)
    moved = tmp_path / "elsewhere"
    share.rename(moved)
    command = [sys.executable, "-m", "vmsim.cli", "restore", str(file), "--share", str(moved), "--json"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["ok"], facts["discrepancies"], done.stderr) == (0, True, [], "")
    assert sorted(os.listdir(moved)) == ["docs", "hello.txt", "link"]


def test_the_report_is_for_people_too(vmsim, saved, share):
    ended = vmsim("restore", saved(), "--share", share)
    assert ended.status == 0
    assert "verdict: everything held" in ended.out
    assert "restored: 2 rings" in ended.out
    assert "verify" in ended.err


def test_keep_leaves_the_guests_files(vmsim, saved, share):
    assert vmsim("restore", saved(), "--share", share, "--keep").status == 0
    assert len(list(share.glob("vmsim-scratch-*"))) == 1


def test_what_was_changed_meanwhile_is_found_and_kept(vmsim, saved, share):
    file = saved()
    scratch = next(share.glob("vmsim-scratch-*"))
    (scratch / "mass0" / "7").write_text("something else")
    ended = vmsim("restore", file, "--share", share)
    assert ended.status == 1
    assert "differs: " in ended.out
    assert "mass0/7" in ended.out
    assert str(share) in ended.out.splitlines()[-1]
    assert scratch.exists()


def test_what_was_removed_meanwhile_is_refused_or_told(vmsim, saved, share):
    file = saved()
    scratch = next(share.glob("vmsim-scratch-*"))
    (scratch / "mass0" / "7").unlink()
    refused = vmsim("restore", file, "--share", share, "--json")
    assert refused.status == 1
    assert refused.facts["error"]["details"]["side"] == "destination"
    assert "No such file" in refused.facts["error"]["message"]
    told = vmsim("restore", file, "--share", share, "--migration-on-error", "guest-error", "--json")
    assert told.status == 1
    assert any("lost" in note for note in told.facts["notes"])
    assert scratch.exists()


def test_a_saved_machine_leaves_only_what_it_needs(saved, share):
    saved()
    assert len(list(share.glob("vmsim-scratch-*"))) == 1
    assert not list(share.glob("*.lock"))


def test_nothing_is_saved_when_something_did_not_hold(vmsim, share, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "check", lambda work, machine: [Discrepancy("a", "b", "c")])
    ended = vmsim("migrate", "--inodes", 5, "--save", tmp_path / "x", share)
    assert ended.status == 1
    assert not (tmp_path / "x").exists()
    assert not list(share.glob("vmsim-scratch-*"))


def test_what_is_no_saved_machine(vmsim, share, tmp_path):
    (tmp_path / "junk").write_bytes(os.urandom(5000))
    for name in ("junk", "missing", ""):
        ended = vmsim("restore", tmp_path / name, "--share", share)
        assert ended.status == 1
        assert ended.out == ""
        assert "hint:" in ended.err
    assert vmsim("restore", tmp_path / "junk").status == 2
    assert vmsim("restore", tmp_path / "junk", "--share", tmp_path / "nowhere").status == 2


def test_a_cut_file_is_refused(vmsim, saved, share, tmp_path):
    data = saved().read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: len(data) * 2 // 3])
    ended = vmsim("restore", cut, "--share", share, "--json")
    assert (ended.status, ended.facts["ok"]) == (1, False)


def test_a_machine_of_the_shell_has_no_workload(vmsim, share, tmp_path):
    assert vmsim("shell", share, "-c", f"save {tmp_path}/s").status == 0
    ended = vmsim("restore", tmp_path / "s", "--share", share)
    assert ended.status == 2
    assert "migrate --save" in ended.err


@pytest.mark.parametrize("scratch", [
    "/", "/docs", "/..", "/vmsim-scratch-12345678/..", "vmsim-scratch-12345678", "/vmsim-scratch-x",
])  # fmt: skip
def test_a_file_cannot_have_other_folders_removed(scratch):
    note = msgspec.msgpack.encode(Note("workload", b"", scratch))
    with pytest.raises(StreamError, match="scratch"):
        Note.decode(note)


def test_a_damaged_note_is_refused():
    for data in (b"", b"\x01", msgspec.msgpack.encode({"kind": 3})):
        with pytest.raises(StreamError):
            Note.decode(data)


def test_a_file_serves_several_copies_of_the_directory(vmsim, saved, share, tmp_path):
    file = saved()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(share), str(copy)], check=True)
    for place in (share, copy):
        assert vmsim("restore", file, "--share", place).status == 0
