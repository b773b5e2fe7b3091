"""Intervals against a list that is looked through from end to end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio_fs.passthrough import intervals
from devices.virtio_fs.passthrough.intervals import Interval, Intervals
from tests.support.costs import work

steps = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12), st.integers(0, 2)), max_size=80)


@given(steps, st.integers(0, 70), st.integers(0, 20), st.sampled_from([None, 0, 1, 2]))
def test_against_a_list(chosen, start, length, without):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "BUCKET", 4)  # so that a few are in many buckets
        several, model = Intervals(), set()
        for begin, size, tag in chosen:
            item = Interval(begin, begin + size, tag)
            if item in model:
                model.remove(item)
                several.remove(*item)
            else:
                model.add(item)
                several.add(*item)
            assert list(several) == sorted(model)
        end = start + length
        found = list(several.overlapping(start, end, without))
        assert found == sorted(i for i in model if i[0] <= end and i[1] >= start and i[2] != without)


def test_what_is_not_in_cannot_go():
    several = Intervals()
    several.add(1, 5, 0)
    for other in ((1, 5, 1), (0, 5, 0), (7, 7, 0)):
        with pytest.raises(KeyError):
            several.remove(*other)
    assert list(several) == [(1, 5, 0)]


@pytest.mark.parametrize("pattern", ["apart", "long ones first", "one owner"])
def test_a_question_looks_into_few_buckets(pattern):
    """Twice as many intervals: fewer than twice as many steps, also where most of them are no answer."""

    def cost(count):
        several = Intervals()
        for at in range(count):
            end = 3 * at if pattern == "apart" else 3 * at + (10**6 if at < 2 else 1)
            several.add(3 * at, end, 7 if pattern == "one owner" else at)
        assert len(list(several.overlapping(3 * count + 2, 3 * count + 2, 7))) <= 2
        return work(lambda: list(several.overlapping(3 * count, 3 * count + 1, 7)))

    assert cost(16000) < 2.2 * cost(8000)
    assert cost(16000) < 16000 / 8
