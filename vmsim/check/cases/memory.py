"""Messages about guest memory: slots and tables, right and wrong."""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.cases.messages_wrong import wrong
from vmsim.check.device import USUAL, RawDriver
from vmsim.check.frontend import PLAIN
from vmsim.check.outcome import check, same
from vmsim.check.rigs import BareRig, RingRig, WireRig
from vmsim.fuse import opcodes as op
from vmsim.host.shm import SharedMemory
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.addresses import USER_BASE

CASES = Group("messages")
SLOTS = "vhost-user 'ADD_MEM_REG'"
TABLE = "vhost-user 'SET_MEM_TABLE'"
MIB = 1 << 20


def slot(gpa: int = 0, size: int = MIB, user: int = USER_BASE, offset: int = 0) -> p.SlotRegion:
    """A region as ADD_MEM_REG has it."""
    return p.SlotRegion(0, gpa, size, user, offset)


def ram(rig: WireRig, size: int = MIB) -> int:
    """A memfd of ``size`` bytes that the rig closes."""
    memory = SharedMemory("check", size)
    rig.on_close(memory.close)
    return memory.fd


def bad_slot(rig: WireRig, region: p.SlotRegion, *fds: int, what: str) -> None:
    """ADD_MEM_REG of that must be refused."""
    rig.wire.require(c.F_CONFIGURE_MEM_SLOTS)
    wrong(rig, "ADD_MEM_REG", p.SLOT_REGION.encode(region), fds, what=what)


@CASES.case("slots-number", SLOTS)
def slots_number(rig: WireRig) -> None:
    """GET_MAX_MEM_SLOTS says at least 8, and always the same."""
    rig.wire.require(c.F_CONFIGURE_MEM_SLOTS)
    number = rig.wire.number("GET_MAX_MEM_SLOTS")
    check(number >= 8, "at least 8 slots", number)
    same(rig.wire.number("GET_MAX_MEM_SLOTS"), number, "asked again, the slots")


@CASES.case("slots", SLOTS)
def slots(rig: WireRig) -> None:
    """Slots are added, removed and added again."""
    wire = rig.wire
    wire.require(c.F_CONFIGURE_MEM_SLOTS)
    fd = ram(rig, 4 * MIB)
    regions = [slot(n * MIB, MIB, USER_BASE + n * MIB, n * MIB) for n in range(4)]
    for _ in range(2):
        for region in regions:
            wire.done("ADD_MEM_REG", region, (fd,))
        wire.done("REM_MEM_REG", regions[0])
        for region in regions[1:]:
            wire.done("REM_MEM_REG", region._replace(mmap_offset=0))
    wire.barrier()


@CASES.case("slot-removed-with-descriptor", "vhost-user 'REM_MEM_REG'")
def slot_removed_with_descriptor(rig: WireRig) -> None:
    """REM_MEM_REG with a descriptor, as some front-ends send it, is carried out all the same."""
    rig.wire.require(c.F_CONFIGURE_MEM_SLOTS)
    fd = ram(rig)
    for _ in range(2):
        rig.wire.done("ADD_MEM_REG", slot(), (fd,))
        rig.wire.done("REM_MEM_REG", slot(), (fd,))


@CASES.case("slots-while-running", SLOTS)
def slots_while_running(rig: RingRig) -> None:
    """Memory is plugged while rings run, used at once, and taken away again."""
    device = rig.device()
    rig.wire.require(c.F_CONFIGURE_MEM_SLOTS)
    more = slot(1 << 30, MIB, USER_BASE + (1 << 30))
    for _ in range(3):
        rig.wire.done("ADD_MEM_REG", more, (ram(rig),))
        device.getattr()
        rig.wire.done("REM_MEM_REG", more)
        device.getattr()


@CASES.case("two-regions", SLOTS)
def two_regions(rig: RingRig) -> None:
    """A chain with buffers in different regions, and with a hole between those, is carried out."""
    device: RawDriver = rig.idle_device(regions=[(0, 8 * MIB), (1 << 30, MIB)])
    device.start().init()
    request = device.request(op.GETATTR, 1, (0, 0, 0))
    device.memory.write(1 << 30, request)
    outs, ins = [((1 << 30), len(request))], [device.place(16), ((1 << 30) + 4096, 104)]
    number = device.rings[1].add(outs, ins)
    device.rings[1].publish()
    device.kick()
    same(device.used(), (number, 120), "used buffer")
    reply = device.memory.read(*ins[0]) + device.memory.read(*ins[1])
    same(device.decoded(op.GETATTR, reply).error, 0, "GETATTR's error")


@CASES.case("table", TABLE)
def table(rig: BareRig) -> None:
    """Without slots SET_MEM_TABLE brings the memory; a whole session works with it."""
    rig.wire.negotiate(PLAIN & ~(1 << c.F_CONFIGURE_MEM_SLOTS))
    device = rig.driver(rig.wire, features=USUAL)
    device.start().init()
    device.getattr()


@CASES.case("table-replaced", TABLE)
def table_replaced(rig: BareRig) -> None:
    """Tables of one and of eight regions replace each other."""
    wire = rig.wire
    wire.negotiate(PLAIN & ~(1 << c.F_CONFIGURE_MEM_SLOTS))
    fd = ram(rig, 8 * MIB)
    for count in (1, 8, 1):
        regions = tuple(slot(n * MIB, MIB, USER_BASE + n * MIB, n * MIB).region for n in range(count))
        wire.done("SET_MEM_TABLE", p.MemoryTable(regions), (fd,) * count)
    wire.barrier()


@CASES.case("table-descriptors", TABLE)
def table_descriptors(rig: WireRig) -> None:
    """SET_MEM_TABLE with fewer descriptors than regions is refused."""
    regions = tuple(slot(n * MIB, MIB, USER_BASE + n * MIB, n * MIB).region for n in range(2))
    body = p.MEMORY_TABLE.encode(p.MemoryTable(regions))
    wrong(rig, "SET_MEM_TABLE", body, (ram(rig, 2 * MIB),), what="a table of two regions with one descriptor")


@CASES.case("table-size", TABLE)
def table_size(rig: WireRig) -> None:
    """SET_MEM_TABLE that announces more regions than it has bytes is refused."""
    body = (3).to_bytes(8, "little") + bytes(32)
    wrong(rig, "SET_MEM_TABLE", body, (ram(rig),), what="a table of three regions in 40 bytes")


@CASES.case("table-overlap", TABLE)
def table_overlap(rig: WireRig) -> None:
    """SET_MEM_TABLE with overlapping regions is refused."""
    regions = (slot().region, slot(4096, MIB, USER_BASE + MIB).region)
    fd = ram(rig)
    body = p.MEMORY_TABLE.encode(p.MemoryTable(regions))
    wrong(rig, "SET_MEM_TABLE", body, (fd, fd), what="a table with overlapping regions")


@CASES.case("slot-empty", SLOTS)
def slot_empty(rig: WireRig) -> None:
    """A region of no bytes is refused."""
    bad_slot(rig, slot(size=0), ram(rig), what="a region of 0 bytes")


@CASES.case("slot-too-long", SLOTS)
def slot_too_long(rig: WireRig) -> None:
    """A region longer than its file is refused: touching its end would kill the back-end."""
    bad_slot(rig, slot(size=16 * MIB), ram(rig), what="a region of 16 MiB in a file of 1 MiB")


@CASES.case("slot-wraps", SLOTS)
def slot_wraps(rig: WireRig) -> None:
    """A region that passes the end of the address space is refused."""
    bad_slot(rig, slot(gpa=(1 << 64) - 4096), ram(rig), what="a region that wraps")


@CASES.case("slot-overlaps", SLOTS)
def slot_overlaps(rig: WireRig) -> None:
    """A second region on the addresses of the first is refused."""
    rig.wire.require(c.F_CONFIGURE_MEM_SLOTS)
    fd = ram(rig)
    rig.wire.done("ADD_MEM_REG", slot(), (fd,))
    bad_slot(rig, slot(4096, MIB, USER_BASE + (1 << 30)), fd, what="an overlapping region")


@CASES.case("slot-without-descriptor", SLOTS)
def slot_without_descriptor(rig: WireRig) -> None:
    """ADD_MEM_REG without a descriptor is refused."""
    bad_slot(rig, slot(), what="a region without a descriptor")


@CASES.case("slot-two-descriptors", SLOTS)
def slot_two_descriptors(rig: WireRig) -> None:
    """ADD_MEM_REG with two descriptors is refused."""
    fd = ram(rig)
    bad_slot(rig, slot(), fd, fd, what="a region with two descriptors")


@CASES.case("slot-no-memory", SLOTS)
def slot_no_memory(rig: WireRig) -> None:
    """ADD_MEM_REG with a descriptor that cannot be mapped is refused."""
    bad_slot(rig, slot(), rig.wire.probe.fd, what="a socket as memory")


@CASES.case("slot-unknown", "vhost-user 'REM_MEM_REG'")
def slot_unknown(rig: WireRig) -> None:
    """REM_MEM_REG of what was never added is refused."""
    rig.wire.require(c.F_CONFIGURE_MEM_SLOTS)
    wrong(rig, "REM_MEM_REG", p.SLOT_REGION.encode(slot()), what="an unknown region")
