"""A driver and a device on one queue, for the ring checks."""

from __future__ import annotations

from vmsim.memory import PAGE_SIZE, GuestMemory, Region
from vmsim.virtio.constants import F_IN_ORDER, F_VERSION_1
from vmsim.virtio.rings import RingConfig, make_device_ring, make_driver_ring, ring_areas

MEMORY_BYTES = 4 << 20
DATA = 0x200000  # buffers live from here on


def make_memory() -> GuestMemory:
    """4 MiB at guest address 0."""
    return GuestMemory([Region("ram", 0, MEMORY_BYTES, memoryview(bytearray(MEMORY_BYTES)))])


def make_config(features: int, size: int, policy: str = "strict", index: int = 0) -> RingConfig:
    """Three areas, page-aligned, one after the other, from address 0x10000 on."""
    position = 0x10000
    places = []
    for area in ring_areas(size, features):
        places.append(position)
        position += (area.size_bytes + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
    return RingConfig(size, *places, features | F_VERSION_1, policy, index)


class RingPair:
    """A driver and a device on one queue, and buffers of 256 bytes each to exchange."""

    def __init__(self, features: int, size: int) -> None:
        self.memory = make_memory()
        self.config = make_config(features, size, index=3)
        self.driver = make_driver_ring(self.config, self.memory)
        self.driver.initialise()
        self.device = make_device_ring(self.config, self.memory)
        self.serial = 0

    @property
    def in_order(self) -> bool:
        return bool(self.config.features & F_IN_ORDER)

    def offer(self, payload: bytes = b"?", *, readable: int = 1, writable: int = 1, indirect: bool = False):
        """Add one buffer of ``readable`` + ``writable`` elements; (id, writable elements)."""
        base = DATA + self.serial % 512 * 4096
        self.serial += 1
        outs = []
        for index in range(readable):
            gpa = base + 200 * index
            self.memory.write(gpa, payload)
            outs.append((gpa, len(payload)))
        ins = [(base + 2000 + 200 * index, 64) for index in range(writable)]
        table = (base + 3072, 1024) if indirect else None
        return self.driver.add(outs, ins, table), ins

    def echo(self) -> int:
        """The device answers everything there is: what it read, reversed. Returns how many."""
        done = 0
        while (chain := self.device.pop()) is not None:
            data = b"".join(bytes(view) for view in chain.readable)[::-1]
            self.device.push(chain, scatter(chain.writable, data))
            done += 1
        return done

    def fit(self, count: int) -> int:
        """``count`` elements, or as many as the ring can hold."""
        return min(count, self.config.size)


def scatter(views, data: bytes) -> int:
    """Write ``data`` into ``views``; how much of it fitted."""
    done = 0
    for view in views:
        part = data[done : done + len(view)]
        view[: len(part)] = part
        done += len(part)
    return done
