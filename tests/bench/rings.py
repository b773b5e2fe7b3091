"""One cycle of a ring: a chain of four descriptors is offered, taken, returned and reaped.

``same`` buffers: each buffer id keeps its addresses, as with message slots. ``fresh`` buffers: addresses
change all the time, as with payload.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.measure import Figure, Plan, clock, interleave, micros, quiet, quotient
from vmsim.memory import PAGE_SIZE, GuestMemory, Region
from vmsim.virtio.constants import F_RING_PACKED, F_VERSION_1
from vmsim.virtio.rings import (
    DeviceRing,
    DriverRing,
    RingConfig,
    make_device_ring,
    make_driver_ring,
    ring_areas,
)

MEMORY_BYTES = 16 << 20
BUFFERS = 8 << 20
SIZE = 256
BATCH = 32
Element = tuple[int, int]


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Both kinds of ring, same and fresh buffers."""
    path = folder / "file"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    try:
        for kind in ("split", "packed"):
            for buffers, count in (("same", 1), ("fresh", 509)):
                driver, device = pair(kind)
                chains = [chain(number) for number in range(count)]
                cases = {"host": lambda: os.fstat(fd), "cycle": cycle(driver, device, chains)}
                times = interleave(cases, plan.pick(60, 3), plan.pick(2000, 50))
                detail = {"cycle us": micros(times, "cycle"), **steps(plan, driver, device, chains)}
                yield Figure(
                    f"ring.{kind}.{buffers}", quotient(times, "cycle", "host"), "x os.fstat", detail=detail,
                )  # fmt: skip
    finally:
        os.close(fd)


def pair(kind: str) -> tuple[DriverRing, DeviceRing]:
    """Both ends of one queue in memory of its own."""
    memory = GuestMemory([Region("ram", 0, MEMORY_BYTES, memoryview(bytearray(MEMORY_BYTES)))])
    features = F_VERSION_1 | (F_RING_PACKED if kind == "packed" else 0)
    places = []
    position = PAGE_SIZE
    for area in ring_areas(SIZE, features):
        places.append(position)
        position += (area.size_bytes + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
    config = RingConfig(SIZE, *places, features)
    driver = make_driver_ring(config, memory)
    driver.initialise()
    return driver, make_device_ring(config, memory)


def chain(number: int) -> tuple[list[Element], list[Element]]:
    """Header and arguments, header and arguments: GETATTR as Linux lays it out."""
    base = BUFFERS + number * 8192
    return [(base, 40), (base + 64, 16)], [(base + 1024, 16), (base + 1088, 104)]


def cycle(
    driver: DriverRing, device: DeviceRing, chains: list[tuple[list[Element], list[Element]]]
) -> Callable[[], None]:
    """One chain all the way; the next call takes the next of ``chains``."""
    at = 0
    count = len(chains)

    def once() -> None:
        nonlocal at
        driver.add(*chains[at])
        at = (at + 1) % count
        driver.publish()
        driver.needs_kick()
        taken = device.pop()
        assert taken is not None
        device.push(taken, 120)
        device.needs_call()
        driver.reap()

    return once


def steps(
    plan: Plan, driver: DriverRing, device: DeviceRing, chains: list[tuple[list[Element], list[Element]]]
) -> dict[str, float]:
    """Microseconds of each step, smallest of several batches."""
    names = ("post", "pop", "push", "reap")
    best = dict.fromkeys(names, float("inf"))
    with quiet():
        for turn in range(plan.pick(200, 3)):
            part = [chains[(turn * BATCH + number) % len(chains)] for number in range(BATCH)]
            marks = [clock()]
            for readable, writable in part:
                driver.add(readable, writable)
                driver.publish()
            marks.append(clock())
            taken = [device.pop() for _ in part]
            marks.append(clock())
            for each in taken:
                assert each is not None
                device.push(each, 120)
            marks.append(clock())
            for _ in part:
                driver.reap()
            marks.append(clock())
            for name, begin, end in zip(names, marks, marks[1:], strict=False):
                best[name] = min(best[name], (end - begin) / BATCH * 1e6)
    return {f"{name} us": value for name, value in best.items()}
