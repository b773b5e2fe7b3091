"""Both ring formats pass the ring contract, with every feature combination and all kinds of sizes."""

from __future__ import annotations

import itertools

import pytest

from tests.contract.rings import CHECKS
from tests.support.ring_pair import RingPair
from tests.support.sampling import sample
from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_NOTIFICATION_DATA,
    F_RING_PACKED,
)

COMBOS = [
    indirect | event | order | data
    for indirect in (0, F_INDIRECT_DESC)
    for event in (0, F_EVENT_IDX)
    for order in (0, F_IN_ORDER)
    for data in (0, F_NOTIFICATION_DATA)
]
HEAVY = {"check_index_wrap", "check_dirty"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("features", "sizes"),
    [(0, (1, 2, 4, 8, 64)), (F_RING_PACKED, (1, 2, 3, 5, 7, 12, 64))],
    ids=["split", "packed"],
)
def test_contract(check, features, sizes, request):
    if check.__name__ in HEAVY:
        rows = [(size, combo) for size in sizes[-3:] for combo in (0, COMBOS[-1])]
    else:
        rows = list(itertools.product(sizes, COMBOS))
    for size, combo in sample(rows, 20, f"rings: {request.node.name}", kind=lambda row: row[0]):
        check(RingPair(features | combo, size))


@pytest.mark.parametrize(("features", "size"), [(0, 32768), (F_RING_PACKED, 32768), (F_RING_PACKED, 32767)])
def test_largest_rings(features, size):
    pair = RingPair(features | F_EVENT_IDX, size)
    for _ in range(size - 1):
        pair.driver.add([(0x200000, 1)], ())
    pair.driver.publish()
    assert pair.echo() == size - 1
    while pair.driver.reap() is not None:
        pass
    pair.driver.add([(0x200000, 1)] * size, ())
    pair.driver.publish()
    chain = pair.device.pop()
    assert chain.readable_bytes == size
    assert chain.count == size
    pair.device.push(chain, 0)
    assert pair.driver.reap() == (chain.head, 0)
