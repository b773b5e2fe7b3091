"""What a plain run takes of an enumeration: by the seed, never without the ends, each kind and each pair."""

from __future__ import annotations

import itertools

import pytest

from tests.support import sampling
from tests.support.sampling import Run, in_pairs, product, sample


@pytest.fixture(autouse=True)
def run(monkeypatch):
    """A run of its own: what is asked for here is in no summary."""
    monkeypatch.setattr(Run, "left_out", {})
    monkeypatch.setattr(Run, "whole", False)
    monkeypatch.setattr(Run, "seed", 1)
    return monkeypatch


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_has_its_ends_and_every_kind(run, seed):
    run.setattr(Run, "seed", seed)
    taken = sample(range(100), 12, "numbers", kind=lambda number: number // 10)
    assert taken == sorted(set(taken))
    assert taken[0] == 0
    assert taken[-1] == 99
    assert {number // 10 for number in taken} == set(range(10))
    assert 12 <= len(taken) < 20
    assert Run.left_out == {"numbers": (len(taken), 100)}


def test_the_seed_and_the_name_decide(run):
    first = sample(range(1000), 10, "a")
    assert sample(range(1000), 10, "a") == first
    assert sample(range(1000), 10, "b") != first
    run.setattr(Run, "seed", 2)
    assert sample(range(1000), 10, "a") != first


def test_all_of_what_is_small_or_asked_for_whole(run):
    assert sample(range(10), 10, "small") == list(range(10))
    run.setattr(Run, "whole", True)
    assert sample(range(1000), 10, "a") == list(range(1000))
    assert in_pairs(range(9), 3, "b") == list(range(9))
    assert len(product("c", 3, "ab", "cd")) == 4
    assert sampling.examples(300) == 300
    assert Run.left_out == {}


@pytest.mark.parametrize("seed", range(5))
def test_a_part_of_a_table_has_every_pair(run, seed):
    run.setattr(Run, "seed", seed)
    axes = (range(4), range(5), range(7))
    rows = product("table", 4, *axes)
    assert len(rows) == 35
    for one, two in itertools.combinations(range(3), 2):
        pairs = {(row[one], row[two]) for row in rows}
        assert pairs == set(itertools.product(axes[one], axes[two]))


def test_over_several_seeds_everything_is_taken(run):
    found = set()
    for seed in range(60):
        run.setattr(Run, "seed", seed)
        found |= set(product("table", 4, range(4), range(5)))
    assert found == set(itertools.product(range(4), range(5)))


def test_the_summary_adds_up_what_belongs_together():
    told = sampling.told({"a: one": (1, 10), "a: two": (2, 20), "b": (3, 30)})
    assert told == ["a: 3 of 30", "b: 3 of 30", "seed 1; --whole takes all"]
    assert sampling.told({}) == []
