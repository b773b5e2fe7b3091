"""Our guest on three back-ends: ours in this process, ``vmsim serve`` and virtiofsd behind their sockets.

Every round times the same operations on each of them; reported is the quotient to virtiofsd of the same
round. The time is that of the clock on the wall, since two processes share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

from tests.bench.contenders import (
    INPROC,
    MISSING,
    NAMES,
    SERVED,
    THEIRS,
    contenders,
    places,
    virtiofsd,
)
from tests.bench.measure import Figure, Plan, Times, interleave, quotient
from tests.bench.operations import DEPTH_MAX, Guest, Maker, Operations, prepare

INPROC_AIM: Final = 1.0
DEPTHS: Final = (1, DEPTH_MAX)
HOLDS_BACK: Final = {
    (INPROC, 1): "nobody is woken; all of it is Python, the guest's about as much as the back-end's",
    (INPROC, DEPTH_MAX): "served one by one in the guest's own thread: depth gains nothing here, and "
    "virtiofsd needs to be woken only once for many",
    (SERVED, 1): "being woken and waking cost both the same; the rest is Python against Rust",
    (SERVED, DEPTH_MAX): "one wake-up for many requests; what is left is Python against Rust",
}
LISTING_NOTE: Final = (
    "for each entry a statx, where virtiofsd has openat, statx and close; a name_to_handle_at more for "
    "inodes without a descriptor of their own, and Python"
)


class Row(NamedTuple):
    """One operation: how to make it, ``calls`` per round, and how long ``serve`` may take (virtiofsd: 1)."""

    make: Callable[[Operations], Maker]
    calls: int
    aim: float


ROWS: Final = {
    "getattr": Row(lambda o: o.getattr, 400, 2.0),
    "lookup": Row(lambda o: o.lookup, 400, 2.0),
    "open+release": Row(lambda o: o.open_release, 200, 2.0),
    "create+unlink": Row(lambda o: o.create_unlink, 100, 2.0),
    "read.4k": Row(lambda o: o.read_4k, 400, 2.0),
    "write.4k": Row(lambda o: o.write_4k, 400, 2.0),
    "read.1m": Row(lambda o: o.read_1m, 32, 1.0),
    "write.1m": Row(lambda o: o.write_1m, 32, 1.0),
    "readdirplus": Row(lambda o: o.readdirplus, 2, 2.0),
}


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Every operation, one and DEPTH_MAX requests in flight, with the CPUs shared out in each way."""
    if not virtiofsd():
        for place, name, depth, subject in cases():
            yield Figure(title(name, depth, place, subject), None, "x virtiofsd", skipped=MISSING)
        return
    prepare(folder, plan.pick(10_000, 300))
    with contenders(folder) as subjects:
        operations = {name: Operations(Guest(each)) for name, each in subjects.items()}
        for place in places():
            for each in subjects.values():
                each.settle(place)
            for name in ROWS:
                for depth in DEPTHS:
                    yield from measure(plan, operations, name, depth, place)


def cases() -> Iterator[tuple[str, str, int, str]]:
    """Place, operation, depth and subject of every figure."""
    for place in places():
        for name in ROWS:
            for depth in DEPTHS:
                for subject in (INPROC, SERVED):
                    yield place, name, depth, subject


def title(name: str, depth: int, place: str, subject: str) -> str:
    """The name of a figure."""
    return f"peers.{place}.{name}.{depth}.{subject}"


def measure(
    plan: Plan, all_operations: dict[str, Operations], name: str, depth: int, place: str
) -> Iterator[Figure]:
    """One operation at one depth."""
    row = ROWS[name]
    listing = name == "readdirplus"
    count = max(depth if depth > 1 and not listing else 1, plan.pick(row.calls, 2))
    makers = {subject: row.make(each) for subject, each in all_operations.items()}

    def work(subject: str) -> Callable[[], object]:
        guest, make = all_operations[subject].guest, makers[subject]
        return lambda: guest.run(make, count, depth)

    works = {subject: work(subject) for subject in NAMES}
    times = interleave(works, plan.pick(5 if listing else 15, 2), clock=perf_counter)
    for values in times.values():
        values[:] = [each / count for each in values]
    for subject in (INPROC, SERVED):
        aim = INPROC_AIM if subject == INPROC else row.aim
        note = LISTING_NOTE if listing else HOLDS_BACK[subject, depth]
        yield figure(title(name, depth, place, subject), times, subject, aim, note)


def figure(name: str, times: Times, subject: str, aim: float, note: str) -> Figure:
    """``subject`` against virtiofsd, best times beside."""
    detail = {f"{each} us": min(times[each]) * 1e6 for each in (subject, THEIRS)}
    return Figure(name, quotient(times, subject, THEIRS), "x virtiofsd", aim, detail=detail, note=note)
