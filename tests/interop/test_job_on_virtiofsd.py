"""The main job on the real virtiofsd: what it offers holds in a migration, and what it does not is said."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine_rig import HANDLES_ALLOWED
from tests.support.remote_rig import nothing_left
from vmsim.cli import run

pytestmark = pytest.mark.interop

QUICK = ("--transport", "vhost-user", "--inodes", "20", "--memory", "8M", "--json")
LOCKS = [
    f"{kind} locks are the guest's own: the back-end takes no part in them" for kind in ("POSIX", "flock")
]
needs_handles = pytest.mark.skipif(
    not HANDLES_ALLOWED, reason="opening by file handle needs CAP_DAC_READ_SEARCH"
)


@pytest.fixture
def migrate(peers, tmp_path, capsys):
    """Run ``vmsim migrate`` on virtiofsd; the exit status and the facts."""
    share = tmp_path / "share"
    (share / "docs").mkdir(parents=True)
    (share / "docs" / "one").write_text("1" * 5000)
    place = "--socket-path={socket} --shared-dir={dir} {options}"
    command = f"{peers.virtiofsd} --sandbox=none --seccomp=none {place}"
    if os.geteuid() == 0:
        command += " --modcaps=+dac_read_search"

    def call(*options: str) -> tuple[int, dict[str, Any]]:
        status = run(["migrate", *QUICK, "--backend", command, *options, str(share)])
        facts = json.loads(capsys.readouterr().out)
        print(facts.get("discrepancies"), file=sys.stderr)  # whole, if the test fails
        return status, facts

    with nothing_left(tmp_path / "temporary"):
        yield call
    assert sorted(path.name for path in Path(share).rglob("*")) == ["docs", "one"]


@pytest.mark.parametrize("extra", [(), ("--migration-verify-handles",), ("--migration-confirm-paths",)])
def test_with_paths_all_that_has_a_name_moves(migrate, extra):
    status, facts = migrate("--keep-names", "--hops", "2", *extra)
    assert (status, facts["discrepancies"]) == (0, [])
    assert facts["left_out"] == ["nothing was unlinked or removed: --keep-names", *LOCKS]
    for hop in facts["hops"]:
        assert hop["moved"]["handles"] > 6
        assert hop["moved"]["waiting"] == 1, "for a lock of the guest's own"


def test_with_paths_unlinked_files_are_refused_and_the_reason_is_virtiofsds(migrate):
    status, facts = migrate()
    assert status == 1
    assert "Migration source has lost inode" in facts["error"]["message"]
    assert facts["error"]["details"]["side"] == "destination"


@needs_handles
def test_with_file_handles_unlinked_files_move_as_well(migrate):
    status, facts = migrate("--migration-mode", "file-handles", "--hops", "2")
    assert (status, facts["discrepancies"]) == (0, [])
    assert facts["left_out"] == LOCKS
    assert facts["workload"]["unlinked"] >= 1


def test_reading_only_with_the_rings_that_it_has(migrate):
    status, facts = migrate("--read-only", "--hops", "2", "--ring", "packed")
    assert (status, facts["discrepancies"]) == (0, [])
    assert facts["left_out"] == ["the rings are split: the back-end does not offer packed ones"]


def test_saved_by_it_and_restored_by_us(migrate, tmp_path, capsys):
    saved = tmp_path / "file"
    _, facts = migrate("--keep-names", "--save", str(saved))
    assert facts["saved"] == str(saved)
    assert run(["restore", "--json", str(saved), "--share", facts["share"]]) == 0
    assert json.loads(capsys.readouterr().out)["discrepancies"] == []


@pytest.mark.parametrize(("option", "why"), [
    (("--queues", "4"), "queues"),
    (("--dialect", "rfc2023"), "--dialect"),
    (("--migration", "external"), "--reconnect"),
])  # fmt: skip
def test_what_it_does_not_offer_is_said(migrate, option, why):
    status, facts = migrate("--keep-names", *option)
    assert status == 1
    error = facts["error"]
    assert why in error["message"] + error.get("hint", "")
