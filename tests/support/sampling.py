"""Long enumerations: a plain run takes a seeded part of each, ``--whole`` all of it.

The seed is the run's, so ``--randomly-seed=SEED`` takes the same part again. What a run left out stands in
its summary, and in what a failed test printed: "NAME: N of M members, seed S".
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class Run:
    """How this run samples, and what it has left out: {name: (taken, all)}."""

    whole = False
    seed = 0
    left_out: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - one per process


def sample(
    members: Iterable[T], at_least: int, name: str, *, kind: Callable[[T], Hashable] | None = None
) -> list[T]:
    """The members to test, in their order: with ``--whole`` all of them, else a seeded ``at_least`` of them.

    The first and the last are always among them, and one of each ``kind`` at least. ``name`` says which
    enumeration this is; it must be one of a kind, as what is drawn depends on it.
    """
    everything = list(members)
    count = len(everything)
    if Run.whole or count <= at_least:
        return everything
    order = list(range(count))
    random.Random(f"{Run.seed} {name}").shuffle(order)
    taken = {0, count - 1}
    if kind is not None:
        first = {kind(everything[at]): at for at in reversed(order)}
        taken.update(first.values())
    for at in order:
        if len(taken) >= at_least:
            break
        taken.add(at)
    _say(name, len(taken), count)
    return [everything[at] for at in sorted(taken)]


def in_pairs(positions: Sequence[int], one_in: int, name: str) -> list[int]:
    """Which cells of a table of three axes to test, by index: one in ``one_in``, with every pair of two axes.

    ``positions`` has for each cell the sum of its places on the axes. Cells whose sums leave the same
    remainder are a Latin square: of any two axes each pair is there, if the third one has ``one_in`` places.
    """
    if Run.whole or one_in == 1:
        return list(range(len(positions)))
    left = remainder(one_in, name)
    taken = [at for at, position in enumerate(positions) if position % one_in == left]
    _say(name, len(taken), len(positions))
    return taken


def remainder(one_in: int, name: str) -> int:
    """Of the positions of this enumeration those are taken that leave this when divided by ``one_in``."""
    return random.Random(f"{Run.seed} {name}").randrange(one_in)


def product(name: str, one_in: int, *axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """All rows of a table with these axes; in a plain run one in ``one_in``, with pairs, see ``in_pairs``."""
    rows = list(itertools.product(*(list(enumerate(axis)) for axis in axes)))
    taken = in_pairs([sum(at for at, _ in row) for row in rows], one_in, name)
    return [tuple(value for _, value in rows[at]) for at in taken]


def examples(count: int) -> int:
    """How many examples hypothesis tries: all with ``--whole``, else a third."""
    return count if Run.whole else max(10, count // 3)


def _say(name: str, taken: int, count: int) -> None:
    Run.left_out[name] = taken, count
    print(f"{name}: {taken} of {count} members, seed {Run.seed}")


def begin(config: pytest.Config) -> None:
    """Take over what the command line says, before any test module is read."""
    Run.whole = config.getoption("whole")
    seed = config.getoption("randomly_seed", 0)
    Run.seed = seed if isinstance(seed, int) else 0


def told(left_out: dict[str, Any]) -> list[str]:
    """Lines for the summary; what has the same words before a colon is one line."""
    sums: dict[str, tuple[int, int]] = {}
    for name, (taken, count) in sorted(left_out.items()):
        family = name.partition(":")[0]
        before = sums.get(family, (0, 0))
        sums[family] = before[0] + taken, before[1] + count
    lines = [f"{family}: {taken} of {count}" for family, (taken, count) in sums.items()]
    return [*lines, f"seed {Run.seed}; --whole takes all"] if lines else []
