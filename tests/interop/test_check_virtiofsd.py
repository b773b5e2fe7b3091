"""``vmsim check`` on virtiofsd 1.13.2, outcome by outcome, and on ``vmsim serve``, where everything passes.

``TABLE`` is what the real virtiofsd does: its defects D1 to D5, the hostile inputs that end it, and what
else was found. Whatever is not listed passes. Where this differs from older notes about it, this is what
happened.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import Any

import pytest

from tests.support.sampling import sample
from vmsim.check.cases import CASES

pytestmark = [pytest.mark.interop, pytest.mark.timeout(500)]

PANICS = (
    "lookup-without-nul", "lookup-interior-nul", "lookup-no-name", "write-offset-huge",
    "setxattr-name-bytes", "setxattr-size", "length-zero", "length-short", "length-larger", "header-cut",
    "getattr-nothing-writable", "read-nothing-writable", "room-too-small", "room-for-header-alone",
    "nothing-readable", "batch-forget-count", "extension-huge", "noise", "descriptor-loop",
    "address-outside-memory", "address-wraps", "length-crosses-end", "length-4-gib", "next-out-of-range",
    "head-out-of-range", "table-odd-size", "table-nested", "table-outside-memory", "table-empty",
    "table-huge", "table-next-out-of-range", "table-loop", "ring-of-noise",
)  # fmt: skip
"""Hostile cases in which a thread of virtiofsd panics (reference 6.3)."""
ESCAPES = (
    "lookup-slash", "mkdir-outside", "symlink-outside", "mknod-outside", "rename-outside", "link-outside",
    "unlink-outside",
)  # fmt: skip
"""Names with a slash lead out of the share when nothing but the sandbox holds them in (reference 6.1)."""
NO_PACKED = (
    "rings.packed", "rings.packed-indirect", "rings.packed-event-idx", "rings.packed-odd-size",
    "rings.packed-batch", "rings.base-packed", "rings.stop-and-continue-packed",
    "hostile.packed-outside-memory", "hostile.packed-length-4-gib", "hostile.packed-endless",
    "hostile.packed-id", "hostile.packed-table-odd-size", "hostile.packed-table-nested",
    "hostile.packed-table-outside-memory", "log.packed",
)  # fmt: skip
TABLE: dict[str, str] = {
    **{f"hostile.{name}": "crash" for name in PANICS},
    **{f"hostile.{name}": "fail" for name in ESCAPES},
    **dict.fromkeys(NO_PACKED, "not offered"),
    "messages.status": "not offered",
    "messages.inflight": "not offered",
    "rings.in-band": "not offered",
    "killed.reconnect": "not offered",
    "killed.inflight-recovered": "not offered",
    # Acknowledgements only after GET_FEATURES and GET_PROTOCOL_FEATURES (cloud-hypervisor #8313).
    "messages.ack-after-restore": "hang",
    "messages.protocol-features-not-offered": "fail",
    # It wants each message in one piece.
    "messages.byte-by-byte": "crash",
    # A stray descriptor with REM_MEM_REG ends the connection.
    "messages.slot-removed-with-descriptor": "crash",
    # Without EVENT_IDX the flag NO_INTERRUPT is not looked at.
    "rings.no-interrupts": "fail",
    # A queue that is not ready is an error to its thread, which then ends.
    "rings.kick-read-stop": "hang",
    # The ring's thread and, from then on, the whole device are gone without a word.
    "hostile.available-index-jumps": "hang",
    "hostile.available-index-goes-back": "hang",
    "hostile.forget-root": "fail",
    # The log's ring address is ignored; without LOG_ALL the log is still filled.
    "log.used-ring-address": "fail",
    "log.cancelled": "fail",
    # With the default find-paths and abort: neither unlinked files nor names that are not UTF-8.
    "migration.unlinked-open": "fail",
    "migration.odd-names": "fail",
    "migration.setxattr-size": "crash",  # D1
    "migration.supplementary-group": "fail",  # D2
    "migration.writeback-read": "fail",  # D3
    "migration.append-writeback": "fail",  # D4
    "migration.append": "fail",  # D4
    "migration.threads-drained": "fail",  # D5
}
AS_ROOT = {"migration.supplementary-group"}
"""Others cannot be asked for by an ordinary user."""


def virtiofsd_command(peers: Any) -> str:
    """How virtiofsd is started, with a place for what cases add."""
    return (
        f"{shlex.quote(peers.virtiofsd)} --sandbox=none --seccomp=none --socket-path={{socket}} "
        "--shared-dir={dir} {options}"
    )


def check(command: str, tmp_path: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run ``vmsim check`` with --json; its exit status and what it found."""
    environment = dict(os.environ)
    if environment.pop("PYTHONDONTWRITEBYTECODE", ""):
        environment.setdefault("PYTHONPYCACHEPREFIX", str(tmp_path / "compiled"))
    words = [sys.executable, "-P", "-m", "vmsim.cli", "check", "--json", "--start", command, *arguments]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def some(at_least: int, name: str) -> list[str]:
    """Arguments that name so many cases, with each outcome in each group."""
    chosen = sample(CASES, at_least, name, kind=lambda case: (case.group, TABLE.get(case.id)))
    return [word for case in chosen for word in ("--only", case.id)]


def test_virtiofsd(peers, tmp_path):
    only = some(60, "cases of check on virtiofsd")
    status, found = check(virtiofsd_command(peers), tmp_path, "--timeout", "5", *only)
    outcomes = {case["id"]: case["outcome"] for case in found["cases"]}
    assert set(outcomes) == set(only[1::2])
    wanted = {name: TABLE.get(name, "pass") for name in outcomes}
    if os.geteuid():
        wanted.update({name: "not offered" for name in AS_ROOT if name in outcomes})
    print(f"virtiofsd {peers.versions['virtiofsd']}: {found['counts']}")
    assert set(TABLE) <= {case.id for case in CASES}
    assert {name: (outcomes[name], wanted[name]) for name in wanted if outcomes[name] != wanted[name]} == {}
    assert status == 1


def test_the_defects_are_named_as_what_they_are(peers, tmp_path):
    names = ("setxattr-size", "writeback-read", "append-writeback", "supplementary-group")
    only = [word for name in names for word in ("--only", f"migration.{name}")]
    _, found = check(virtiofsd_command(peers), tmp_path, *only)
    came = {case["id"]: case.get("came", "") for case in found["cases"]}
    assert "panicked" in came["migration.setxattr-size"]
    assert "Bad file descriptor" in came["migration.writeback-read"]
    assert came["migration.append-writeback"] == "b'BBAACC'"
    if not os.geteuid():
        assert came["migration.supplementary-group"] == "13"


def test_options_may_be_the_users_own(peers, tmp_path):
    """Without a place for options cases go by what INIT agrees on."""
    command = virtiofsd_command(peers).replace("{options}", "")
    names = ["--only", "migration.writeback-read", "--only", "migration.setxattr-size"]
    _, found = check(command, tmp_path, *names)
    assert [case["outcome"] for case in found["cases"]] == ["not offered"] * 2
    _, found = check(f"{command} --writeback --xattr --posix-acl", tmp_path, *names)
    assert [case["outcome"] for case in found["cases"]] == ["crash", "fail"]


def test_vmsim_serve_passes_everything(tmp_path):
    command = shlex.join([sys.executable, "-P", "-m", "vmsim.cli", "serve"])
    command = f"{command} --socket-path={{socket}} --shared-dir={{dir}} {{options}}"
    only = some(30, "cases of check on vmsim serve")
    status, found = check(command, tmp_path, *only)
    assert {case["id"] for case in found["cases"]} == set(only[1::2])
    print(f"vmsim serve: {found['counts']}")
    bad = [case for case in found["cases"] if case["outcome"] not in ("pass", "not offered")]
    assert (status, bad) == (0, [])
    missing = {case["id"]: case["reason"] for case in found["cases"] if case["outcome"] == "not offered"}
    print(missing)
    privileged = {"fuse.chown", "fuse.credentials", *AS_ROOT} if os.geteuid() else set()
    assert set(missing) <= privileged
