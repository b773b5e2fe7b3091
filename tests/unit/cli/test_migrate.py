"""``vmsim migrate``: what every option does, what is told, and that nothing stays behind."""

from __future__ import annotations

import itertools
import os
import random

import pytest

from tests.support.sampling import sample
from vmsim.errors import MigrationError
from vmsim.machine import Seams
from vmsim.migration.downtime import PARTS
from vmsim.workload import job as job_module
from vmsim.workload.choices import MachineChoice
from vmsim.workload.job import TURN_NS, Job, JobOptions
from vmsim.workload.record import WorkloadError
from vmsim.workload.report import JobReport
from vmsim.workload.writer import Workload
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyChannel

QUICK = ("--inodes", "5")


def test_it_works_on_a_directory_and_leaves_it_as_it_was(vmsim, share):
    before = sorted(os.listdir(share))
    ended = vmsim("migrate", *QUICK, share)
    assert ended.status == 0
    assert "verdict: everything held" in ended.out
    assert "1 waited for" in ended.out
    for word in ("RAM", "vrings", "inodes", "handles", "locks", "state", "rounds", "downtime", "stages"):
        assert word in ended.out, word
    assert [line.split(":")[0] for line in ended.err.splitlines()] == ["boot", "work", "migrate", "verify"]
    assert sorted(os.listdir(share)) == before


def test_without_a_directory_one_is_made_and_removed(vmsim, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = vmsim("migrate", *QUICK, "--json")
    assert ended.facts["ok"] is True
    assert ended.facts["share"].startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object_and_nothing_else(vmsim, share):
    ended = vmsim("migrate", "--json", "--hops", 2, *QUICK, share)
    facts = ended.facts
    assert ended.status == 0
    assert ended.err == ""
    assert facts["ok"] is True
    assert facts["discrepancies"] == []
    assert [stage["name"] for stage in facts["stages"]] == ["boot", "work", "migrate", "migrate", "verify"]
    assert all(stage["seconds"] > 0 for stage in facts["stages"])
    for hop in facts["hops"]:
        assert hop["moved"]["waiting"] == 1
        assert hop["requests_in_flight"] >= 1
        assert hop["moved"]["handles"] > 6
        assert hop["steps"] > 0
        assert hop["downtime_ns"] < hop["total_ns"]
    for kind in ("unlinked", "renamed", "locks", "hard_links", "directories", "symlinks"):
        assert facts["workload"][kind] >= 1, kind


COMBINATIONS = sample(itertools.product(
    ("upstream", "rfc2023"), ("split", "packed"), ("internal", "external"), ("find-paths", "file-handles"),
), 8, "kinds of machines")  # fmt: skip


@pytest.mark.parametrize(("dialect", "ring", "migration", "mode"), COMBINATIONS)
def test_dialects_rings_kinds_and_modes(vmsim, share, dialect, ring, migration, mode):
    if mode == "file-handles" and os.geteuid() != 0:
        pytest.skip("opening by file handle needs CAP_DAC_READ_SEARCH")
    ended = vmsim(
        "migrate", "--json", *QUICK, "--hops", 2, "--dialect", dialect, "--ring", ring,
        "--migration", migration, "--migration-mode", mode, share,
    )  # fmt: skip
    assert (ended.status, ended.facts["discrepancies"]) == (0, [])
    assert ended.facts["machine"]["ring"] == ring


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_external_leaves_the_back_ends_state_out(vmsim, share, ring):
    sizes = []
    for kind in ("external", "internal"):
        facts = vmsim("migrate", "--json", *QUICK, "--ring", ring, "--migration", kind, share).facts
        sections = facts["hops"][0]["section_bytes"]
        sizes.append(sum(size for name, size in sections.items() if name.endswith("-fs")))
    assert sizes[0] + 5000 < sizes[1]


@pytest.mark.parametrize("options", [
    ("--migration-verify-handles",), ("--migration-confirm-paths",), ("--migration-on-error", "guest-error"),
    ("--queues", "4"), ("--memory", "1G"), ("--memory", "4G"), ("--seed", "-7"), ("--hops", "6"),
    ("--inodes", "0"), ("--inodes", "1500"), ("--migration-verify-handles", "--migration-confirm-paths"),
], ids=" ".join)  # fmt: skip
def test_other_options(vmsim, share, options):
    ended = vmsim("migrate", "--json", *QUICK, *options, share)
    assert (ended.status, ended.facts["ok"], ended.err) == (0, True, "")
    assert not [name for name in os.listdir(share) if "scratch" in name]


def test_queues_and_memory_are_what_was_asked_for(vmsim, share):
    facts = vmsim("migrate", "--json", *QUICK, "--queues", 3, "--memory", "96M", share).facts
    assert facts["hops"][0]["moved"]["rings"] == 4
    assert facts["hops"][0]["ram_bytes"] == 96 << 20


def test_inodes_are_all_known_to_the_back_end(vmsim, share):
    facts = vmsim("migrate", "--json", "--inodes", 300, share).facts
    assert facts["hops"][0]["moved"]["inodes"] > 300


def told(facts):
    """What the seed decides: all but times, places, and how many bytes the host's numbers of inodes take."""
    hosts = ("total_ns", "downtime_ns", "stream_bytes", "section_bytes")
    hops = [{name: fact for name, fact in hop.items() if name not in hosts} for hop in facts["hops"]]
    return hops, facts["workload"], facts["discrepancies"]


def test_a_seed_fixes_the_guest_and_every_interleaving(vmsim, share):
    first, again, other = (
        told(vmsim("migrate", "--json", *QUICK, "--hops", 2, "--seed", seed, share).facts)
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def listing(folder):
    """Everything below a folder: types, modes, times, contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[path] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


def test_reading_only_changes_nothing(vmsim, share):
    before = listing(share)
    ended = vmsim("migrate", "--json", "--read-only", "--hops", 2, share)
    assert (ended.status, ended.facts["discrepancies"]) == (0, [])
    assert ended.facts["workload"]["handles"] == 2
    assert listing(share) == before


def test_reading_only_in_an_empty_directory(vmsim, tmp_path):
    assert vmsim("migrate", "--read-only", tmp_path).status == 0


def test_names_that_are_no_text(vmsim, share):
    for name in (b"\xff\xfe", b"a\nb", b"\x1b[31mred", b"-rf"):
        with open(os.path.join(os.fsencode(share), name), "w") as file:
            file.write("x" * 10)
    assert vmsim("migrate", "--read-only", share).status == 0
    assert vmsim("migrate", *QUICK, share).status == 0


def test_none_is_blocked_and_says_what_to_change(vmsim, share):
    ended = vmsim("migrate", "--json", "--migration", "none", *QUICK, share)
    assert ended.status == 1
    error = ended.facts["error"]
    assert error["type"] == "MigrationBlocked"
    assert "--migration internal" in error["hint"]
    assert error["details"]["side"] == "source"
    assert ended.facts["ok"] is False
    assert [stage["name"] for stage in ended.facts["stages"]] == ["boot", "work", "migrate"]
    assert not [name for name in os.listdir(share) if "scratch" in name]


def test_trace_goes_to_standard_error(vmsim, share):
    ended = vmsim("migrate", "--json", *QUICK, "--trace", "migration.phase,migration.commit", share)
    assert ended.facts["ok"] is True
    assert "migration.commit" in ended.err
    assert "fuse." not in ended.err


class Silent:
    def warn(self, what):
        pass

    def stage(self, name, what):
        pass

    def progress(self, done, what):
        pass


def test_a_failure_names_step_and_side_and_leaves_nothing(share):
    job = Job(JobOptions(MachineChoice(), str(share), inodes=5), Silent())
    plan = FaultPlan([Fault("channel", "write", 3, "fail")])
    job.seams = lambda where: Seams(
        channel=lambda inner, side: FaultyChannel(inner, plan) if side == "source" else inner
    )
    with pytest.raises(MigrationError) as caught:
        job.run()
    assert caught.value.side == "source"
    assert caught.value.step
    assert [stage["name"] for stage in job.so_far()["stages"]] == ["boot", "work", "migrate"]
    assert sorted(os.listdir(share)) == ["docs", "hello.txt", "link"]


def test_what_a_third_party_changes_is_told_in_words(share, monkeypatch):
    original = job_module.check

    def meddled(work, machine):
        scratch = next(share.glob("vmsim-scratch-????????"))
        victim = scratch / "mass0" / "0"
        victim.write_text("changed")
        (scratch / "new").touch()
        return original(work, machine)

    monkeypatch.setattr(job_module, "check", meddled)
    report = Job(JobOptions(MachineChoice(), str(share), inodes=5), Silent()).run()
    assert isinstance(report, JobReport)
    assert report.ok is False
    assert any("mass0/0" in line and "7 bytes, b'changed' at 0" in line for line in report.discrepancies)
    assert any("names with 'new'" in line for line in report.discrepancies)
    assert sorted(os.listdir(share)) == ["docs", "hello.txt", "link"]


def test_an_answer_that_is_wrong_ends_with_a_verdict(vmsim, share, monkeypatch):
    original = Workload.step

    def broken(self, fs):
        if self.state.steps == 30:
            raise WorkloadError("read from 7 answered nonsense", step=30)
        return original(self, fs)

    monkeypatch.setattr(Workload, "step", broken)
    ended = vmsim("migrate", *QUICK, "--seed", 11, share)
    assert ended.status == 1
    assert "operation 30: read from 7 answered nonsense" in ended.out
    assert "did not hold" in ended.out
    assert "--seed 11" in ended.out


MISUSES = [
    (("--memory", "6M", "--inodes", "20000"), "it needs --memory 11M"),
    (("--memory", "200G"), "at most --memory 64G"),
    (("--memory", "12parsecs"), "such as 64M"),
    (("--backend", "virtiofsd {socket}"), "use --transport vhost-user"),
    (("--transport", "vhost-user", "--backend", "virtiofsd"), "write {socket}"),
    (("--migration-mode", "file-handles", "--migration-verify-handles"), "find-paths"),
    (("--save", "/nowhere/at/all"), "choose another place"),
    (("--save", "/"), "name the file"),
    (("--save", "x", "--migration", "external"), "--migration internal"),
    (("--save", "x", "--migration-mode", "file-handles"), "find-paths"),
    (("--trace", "no.such.event"), "events are"),
    (("--hops", "0"), "--help"),
    (("--no-such-option",), "--help"),
]


@pytest.mark.parametrize(("options", "hint"), MISUSES, ids=lambda value: " ".join(value)[:30])
def test_misuse_is_one_line_a_hint_and_status_2(vmsim, share, tmp_path, monkeypatch, options, hint):
    monkeypatch.chdir(tmp_path)
    ended = vmsim("migrate", *options, share)
    assert (ended.status, ended.out) == (2, "")
    told = [line for line in ended.err.splitlines() if not line.startswith("boot")]
    assert len(told) == 2
    assert hint in ended.err
    facts = vmsim("migrate", "--json", *options, share).facts
    assert facts["ok"] is False
    assert hint in facts["error"].get("hint", "") + facts["error"]["message"]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_not_a_directory(vmsim, tmp_path, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.touch()
    ended = vmsim("migrate", place)
    assert ended.status == 2
    assert str(place) in ended.err
    assert vmsim("shell", place, "-c", "ls").status == 2


def test_a_seed_given_at_random_holds_too(vmsim, share):
    seed = random.Random("any").randrange(1 << 31)
    assert vmsim("migrate", "--json", *QUICK, "--seed", seed, share).facts["ok"] is True


@pytest.mark.unprivileged
def test_unprivileged_refusals_are_clear(vmsim, share, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may do all this")
    ended = vmsim("migrate", *QUICK, "--migration-mode", "file-handles", share)
    assert ended.status == 2
    assert "CAP_DAC_READ_SEARCH" in ended.err
    share.chmod(0o555)
    ended = vmsim("migrate", *QUICK, share)
    assert ended.status == 2
    assert "--read-only" in ended.err
    share.chmod(0o111)
    assert "read" in vmsim("migrate", "--read-only", share).err
    share.chmod(0o755)
    assert vmsim("migrate", *QUICK, share).status == 0


def test_how_long_nobody_ran_is_told_part_by_part(vmsim, share):
    facts = vmsim("migrate", "--json", *QUICK, "--hops", 2, share).facts
    assert len(facts["downtimes"]) == 2
    for hop, downtime in zip(facts["hops"], facts["downtimes"], strict=True):
        assert sum(downtime["measured"].values()) == hop["downtime_ns"]
        assert set(downtime["measured"]) == set(downtime["expected"]) == set(PARTS)
        assert downtime["measured"]["load_ns"] > 0
        assert downtime["measured"]["device_ns"] > 0
        assert downtime["limit_ns"] == 300_000_000


def test_a_limit_that_cannot_be_kept_is_said_before_the_guest_stops(vmsim, share):
    ended = vmsim("migrate", "--inodes", 100, "--downtime-limit", "1us", share)
    assert ended.status == 0
    (line,) = [each for each in ended.err.splitlines() if each.startswith("warning: the downtime limit")]
    assert "limit of 0.001 ms cannot be kept" in line
    assert "(136 inodes, 2 locks)" in line
    assert line.removeprefix("warning: ") in ended.out


def test_or_the_migration_is_refused(vmsim, share):
    before = sorted(os.listdir(share))
    ended = vmsim("migrate", "--inodes", 100, "--downtime-limit", "1us", "--over-limit", "refuse", share)
    assert ended.status == 1
    assert "cannot be kept" in ended.err
    assert "hint: allow a downtime of" in ended.err
    assert sorted(os.listdir(share)) == before


def test_a_migration_that_takes_too_long_is_cancelled(vmsim, share):
    ended = vmsim("migrate", *QUICK, "--cancel-after", "1ns", share)
    assert ended.status == 1
    assert "the migration was cancelled: it was not done after" in ended.err


@pytest.mark.parametrize("limit", ["300", "fast", "-1s", ""])
def test_a_time_has_a_unit(limit, vmsim, share):
    ended = vmsim("migrate", "--downtime-limit", limit, share)
    assert ended.status == 2
    assert "is not a duration" in ended.err


@pytest.mark.parametrize("transport", ["inproc", "vhost-user"])
@pytest.mark.parametrize(
    ("bandwidth", "bytes_a_second"), [("1M", 1 << 20), ("10M", 10 << 20), ("100M", 100 << 20)]
)
def test_the_guest_gets_no_more_done_at_a_bandwidth_than_it_would_in_real_time(
    bandwidth, bytes_a_second, transport, vmsim, share
):  # fmt: skip
    limits = ("--bandwidth", bandwidth, "--downtime-limit", "2s", "--transport", transport)
    facts = vmsim("migrate", "--json", *QUICK, *limits, share).facts
    (hop,) = facts["hops"]
    assert facts["ok"]
    assert facts["downtimes"][0]["warnings"] == []
    if transport == "inproc":  # the start of a process takes real time, in which the guest works on
        turns = hop["stream_bytes"] * 1_000_000_000 / bytes_a_second / TURN_NS
        assert hop["steps"] < turns + 200, "and those of starting and stopping"


def test_bandwidth_and_rounds_bound_the_migration(vmsim, share):
    arguments = ("--bandwidth", "100M", "--max-rounds", 2, "--downtime-limit", "1us", "--inodes", 50)
    facts = vmsim("migrate", "--json", *arguments, share).facts
    assert len(facts["hops"][0]["rounds"]) == 2
