"""tools/bench works and says what it promises; how fast anything is, is not tested."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from tests.bench import peer_state, peers
from tests.bench.command import BENCHES
from tests.bench.contenders import INPROC, SERVED
from tests.bench.measure import Figure, Spread, interleave, quotient, speed
from tests.bench.memory_use import ROOT
from tests.bench.report import line

MODES = ("find-paths", "file-handles")
FIGURES = {
    "getattr": {"getattr.split", "getattr.packed"},
    "ring": {f"ring.{kind}.{buffers}" for kind in ("split", "packed") for buffers in ("same", "fresh")},
    "transfer": {f"transfer.{way}.{kind}" for way in ("read", "write") for kind in ("split", "packed")},
    "state": {f"state.{way}.{mode}" for way in ("save", "restore") for mode in MODES},
    "memory": {"memory.inodes.1000", "memory.inodes.2000", "memory.inodes.3000"},
    "migration": {"migration.rounds"},
    "peers": {peers.title(name, depth, place, subject) for place, name, depth, subject in peers.cases()},
    "peerstate": {
        peer_state.title(size, mode, way, subject)
        for size in peer_state.sizes(quick=True) for mode in MODES for way in peer_state.WAYS
        for subject in (INPROC, SERVED)
    },
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests" / "bench"), *arguments]
    return subprocess.run(command, text=True, capture_output=True, timeout=100)


@pytest.mark.parametrize("part", BENCHES)
def test_each_part_reports_its_figures(part, tmp_path):
    done = bench("--quick", "--json", "--only", part, "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["quick"] is True
    assert {figure["name"] for figure in report["figures"]} == FIGURES[part]
    for figure in report["figures"]:
        if figure["value"] is None:
            assert figure["skipped"]
            continue
        value = figure["value"]
        assert 0 < value["low"] <= value["median"] <= value["high"] < math.inf
        assert figure["met"] in ((None,) if figure["aim"] is None else (True, False))
    assert not list(tmp_path.iterdir()), "it leaves files behind"


def test_the_table_names_every_figure():
    done = bench("--quick", "--only", "ring")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in FIGURES["ring"])


def test_unknown_parts_are_refused():
    done = bench("--only", "nothing")
    assert done.returncode == 2
    assert "getattr" in done.stderr


def test_rounds_are_compared_one_by_one():
    times = {"a": [1.0, 2.0, 9.0], "b": [1.0, 1.0, 3.0]}
    assert quotient(times, "a", "b") == Spread(2.0, 1.0, 3.0)
    assert speed(times, "a", "b") == Spread(0.5, 1 / 3, 1.0)


def test_warm_up_does_not_count():
    calls = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 5
    assert [len(values) for values in times.values()] == [3, 3]


@pytest.mark.parametrize(
    ("more", "median", "met"),
    [(True, 2.0, True), (True, 1.0, False), (False, 1.0, True), (False, 2.0, False)],
)
def test_an_aim_has_a_direction(more, median, met):
    figure = Figure("f", Spread(median, median, median), "x", aim=1.5, more_is_better=more)
    assert figure.met is met
    assert ("MISSED" in line(figure)) is not met


def test_what_is_skipped_says_why():
    figure = Figure("f", None, "x", aim=1.0, skipped="no privilege")
    assert figure.met is None
    assert "no privilege" in line(figure)
