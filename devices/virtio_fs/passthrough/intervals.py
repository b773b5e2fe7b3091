"""Many closed intervals with tags, and which of them overlap one: without looking at all of them.

They stand in order in buckets. Of each bucket the greatest end is known, and whether all of it has one tag,
so that a question looks into few of the buckets, whatever their number: an interval tree of two levels.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

BUCKET: Final = 128
"""Intervals of one bucket before it is cut in two."""

_MIXED: Final = None


class Interval(NamedTuple):
    """``start`` to ``end``, both inclusive; ``tag`` tells those of one owner (or sort) from the others."""

    start: int
    end: int
    tag: int


class _Bucket:
    """Some neighbours. ``greatest`` and ``tag`` are right unless ``changed``."""

    __slots__ = ("changed", "greatest", "items", "tag")

    def __init__(self, items: list[Interval]) -> None:
        self.items = items
        self.changed = True
        self.greatest = -1
        self.tag: int | None = _MIXED

    def look(self) -> None:
        """Find out again what is known of all."""
        self.greatest = max(item[1] for item in self.items)
        tags = {item[2] for item in self.items}
        self.tag = tags.pop() if len(tags) == 1 else _MIXED
        self.changed = False


class Intervals:
    """A set of intervals; one and the same comes at most once."""

    __slots__ = ("_buckets", "_firsts")

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._firsts: list[Interval] = []

    def __len__(self) -> int:
        return sum(len(bucket.items) for bucket in self._buckets)

    def __iter__(self) -> Iterator[Interval]:
        for bucket in self._buckets:
            yield from bucket.items

    def add(self, start: int, end: int, tag: int) -> None:
        """Take one in."""
        item = Interval(start, end, tag)
        if not self._buckets:
            self._buckets.append(_Bucket([item]))
            self._firsts.append(item)
            return
        at = max(bisect_right(self._firsts, item) - 1, 0)
        bucket = self._buckets[at]
        items = bucket.items
        items.insert(bisect_left(items, item), item)
        self._firsts[at] = items[0]
        if not bucket.changed:
            bucket.greatest = max(bucket.greatest, end)
            bucket.tag = tag if tag == bucket.tag else _MIXED
        if len(items) > BUCKET:
            right = _Bucket(items[BUCKET // 2 :])
            del items[BUCKET // 2 :]
            bucket.changed = True
            self._buckets.insert(at + 1, right)
            self._firsts.insert(at + 1, right.items[0])

    def remove(self, start: int, end: int, tag: int) -> None:
        """Take one out that is in; KeyError if it is not."""
        item = Interval(start, end, tag)
        at = bisect_right(self._firsts, item) - 1
        items = self._buckets[at].items if at >= 0 else []
        index = bisect_left(items, item)
        if index >= len(items) or items[index] != item:
            raise KeyError(item)
        del items[index]
        if items:
            self._buckets[at].changed = True
            self._firsts[at] = items[0]
        else:
            del self._buckets[at]
            del self._firsts[at]

    def overlapping(self, start: int, end: int, without: int | None = None) -> Iterator[Interval]:
        """Those that share a point with ``start`` to ``end``, in order; ``without``: none of this tag.

        The set must not change meanwhile.
        """
        for bucket in self._buckets:
            if bucket.items[0][0] > end:
                return
            if bucket.changed:
                bucket.look()
            if bucket.greatest < start or (without is not None and bucket.tag == without):
                continue
            for item in bucket.items:
                if item[0] > end:
                    return
                if item[1] >= start and item[2] != without:
                    yield item
