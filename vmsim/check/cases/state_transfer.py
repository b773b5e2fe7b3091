"""The back-end's state, saved and loaded: the right way, the wrong way, and in pieces."""

from __future__ import annotations

import os

from vmsim.check import transfer
from vmsim.check.case import PAIR, SHARE, Group
from vmsim.check.cases.common import populate
from vmsim.check.device import RawDriver
from vmsim.check.frontend import MESSAGES
from vmsim.check.outcome import check, fail, same
from vmsim.check.rigs import RingRig, WireRig
from vmsim.check.transfer import LOAD, SAVE, SPEC, Refused
from vmsim.fuse import opcodes as op
from vmsim.host.vhost_user.transport import ConnectionLost
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p

CASES = Group("state")
NEEDS = (SHARE, PAIR)
CONTENT = b"what was there before"


def session(rig: RingRig) -> tuple[RawDriver, int, int]:
    """A device with a file looked up and open: device, nodeid, handle."""
    rig.wire.require(c.F_DEVICE_STATE)
    (rig.share / "f").write_bytes(CONTENT)
    device = rig.device()
    nodeid = device.lookup(f"{rig.home}/f").nodeid
    return device, nodeid, device.ok(op.OPEN, nodeid, (os.O_RDWR, 0)).fh


def saved(rig: RingRig) -> tuple[bytes, int, int]:
    """Such a device's state, and what it was: state, nodeid, handle."""
    device, nodeid, fh = session(rig)
    transfer.stop_all(device)
    return transfer.must_save(rig.wire), nodeid, fh


def reads(device: RawDriver, nodeid: int, fh: int) -> None:
    """The file is what it was, through its old nodeid and handle."""
    same(device.ok(op.READ, nodeid, (fh, 0, 100, 0, 0, 0, 0), size=100), CONTENT, "what the old handle reads")
    same(device.getattr(nodeid).size, len(CONTENT), "the size by the old nodeid")


@CASES.case("save-and-load", SPEC, needs=NEEDS)
def save_and_load(rig: RingRig) -> None:
    """A state that was saved and loaded into another instance: old nodeids and handles are good there."""
    device, nodeid, fh = session(rig)
    arrived = transfer.handed_over(rig, device)
    reads(arrived, nodeid, fh)
    same(arrived.lookup(f"{rig.home}/f").nodeid, nodeid, "the nodeid, looked up again")


@CASES.case("save-without-log", SPEC, needs=NEEDS)
def save_without_log(rig: RingRig) -> None:
    """The same without dirty logging before, as for a snapshot."""
    device, nodeid, fh = session(rig)
    reads(transfer.handed_over(rig, device, log=False), nodeid, fh)


@CASES.case("goes-on", SPEC, needs=(SHARE,))
def goes_on(rig: RingRig) -> None:
    """After a save the source can go on as if nothing had been."""
    device, nodeid, fh = session(rig)
    bases = [device.stop_ring(index) for index in range(device.count)]
    transfer.must_save(rig.wire)
    for index, base in enumerate(bases):
        device.start_ring(index, base)
    reads(device, nodeid, fh)


@CASES.case("save-twice", SPEC, needs=NEEDS)
def save_twice(rig: RingRig) -> None:
    """A state may be saved twice, and the second is as good as the first."""
    _, nodeid, fh = saved(rig)
    state = transfer.must_save(rig.wire)
    front = transfer.second(rig)
    transfer.must_load(front, state)
    arrived = rig.driver(front).start()
    reads(arrived, nodeid, fh)


@CASES.case("save-without-driver", SPEC, needs=(PAIR,))
def save_without_driver(rig: WireRig) -> None:
    """A device that no driver ever used has a state, too, and it can be loaded."""
    rig.wire.require(c.F_DEVICE_STATE)
    transfer.must_load(transfer.second(rig), transfer.must_save(rig.wire))


@CASES.case("load-after-memory", SPEC, needs=NEEDS)
def load_after_memory(rig: RingRig) -> None:
    """A state may be loaded after the memory is known, before rings start."""
    state, nodeid, fh = saved(rig)
    arrived = rig.driver(transfer.second(rig))
    arrived.set_features()
    arrived.share_memory()
    transfer.must_load(arrived.front, state)
    for index in range(arrived.count):
        arrived.new_ring(index)
        arrived.start_ring(index)
        arrived.enable(index)
    reads(arrived, nodeid, fh)


@CASES.case("in-single-bytes", SPEC, needs=NEEDS)
def in_single_bytes(rig: RingRig) -> None:
    """A state that arrives byte by byte is the same state."""
    state, nodeid, fh = saved(rig)
    front = transfer.second(rig)
    transfer.must_load(front, state, piece=1)
    arrived = rig.driver(front).start()
    reads(arrived, nodeid, fh)


@CASES.case("large", SPEC, needs=NEEDS)
def large(rig: RingRig) -> None:
    """A state of many inodes with long names, more than 64 KiB, read slowly, and loaded in odd pieces."""
    rig.wire.require(c.F_DEVICE_STATE)
    device = rig.device()
    names = populate(rig.share, 1200)
    nodes = device.lookup_all(rig.home)
    same(len(nodes), len(names), "names that READDIRPLUS looked up")
    transfer.stop_all(device)
    state = transfer.save(rig.wire, piece=4001)
    check(len(state) > 65536, "more than 64 KiB of state", len(state))
    front = transfer.second(rig)
    transfer.must_load(front, state, piece=7919)
    arrived = rig.driver(front).start()
    for name in rig.random.sample(sorted(nodes), 50):
        ino = (rig.share / os.fsdecode(name)).stat().st_ino
        same(arrived.getattr(nodes[name]).ino, ino, f"the inode of {name!r}")


@CASES.case("refused-and-repeated", SPEC, needs=NEEDS)
def refused_and_repeated(rig: RingRig) -> None:
    """After a state that was refused the right one can be loaded."""
    state, nodeid, fh = saved(rig)
    front = transfer.second(rig)
    transfer.must_not_load(front, b"\xff" * 100, "nonsense")
    transfer.must_load(front, state)
    arrived = rig.driver(front).start()
    reads(arrived, nodeid, fh)


@CASES.case("empty", SPEC)
def empty(rig: WireRig) -> None:
    """A state of no bytes is refused."""
    rig.wire.require(c.F_DEVICE_STATE)
    transfer.must_not_load(rig.wire, b"", "an empty state")


@CASES.case("truncated", SPEC, needs=NEEDS)
def truncated(rig: RingRig) -> None:
    """A state that was cut somewhere is refused."""
    state, _, _ = saved(rig)
    front = transfer.second(rig)
    for length in (1, 2, len(state) // 3, len(state) - 1):
        transfer.must_not_load(front, state[:length], f"a state cut to {length} of {len(state)} bytes")


@CASES.case("corrupt", SPEC, needs=NEEDS)
def corrupt(rig: RingRig) -> None:
    """A state whose first byte is another, or that is nothing but noise, is refused."""
    state, _, _ = saved(rig)
    front = transfer.second(rig)
    transfer.must_not_load(front, b"\x7f" + state[1:], "a state of an unknown version")
    transfer.must_not_load(front, b"\xff" * 5000, "5000 times ff")
    transfer.must_not_load(front, rig.random.randbytes(9), "nine random bytes")


@CASES.case("mutilated", SPEC, needs=NEEDS)
def mutilated(rig: RingRig) -> None:
    """States with single bytes changed: loaded or refused, the back-end answers."""
    state = bytearray(saved(rig)[0])
    front = transfer.second(rig)
    for _ in range(30):
        at = rig.random.randrange(len(state))
        changed = bytes(state[:at]) + bytes([rig.random.randrange(256)]) + bytes(state[at + 1 :])
        try:
            transfer.load(front, changed)
        except Refused:
            pass
        front.barrier()


@CASES.case("trailing", SPEC, needs=NEEDS)
def trailing(rig: RingRig) -> None:
    """Something behind the state is refused or ignored, but answered."""
    state, _, _ = saved(rig)
    front = transfer.second(rig)
    try:
        transfer.load(front, state + b"something else")
    except Refused:
        pass
    front.barrier()


def bad_begin(rig: WireRig, direction: int, phase: int, what: str) -> None:
    """SET_DEVICE_STATE_FD of that must be refused."""
    rig.instances[0].may_end = True
    try:
        fd = transfer.begin(rig.wire, direction, phase)
    except (Refused, ConnectionLost):
        return
    transfer.HOST.close(fd)
    fail(f"{what} refused", "it was accepted")


@CASES.case("direction", "vhost-user 'SET_DEVICE_STATE_FD'")
def direction(rig: WireRig) -> None:
    """A direction that does not exist is refused."""
    bad_begin(rig, 2, 0, "direction 2")


@CASES.case("phase", "vhost-user 'SET_DEVICE_STATE_FD'")
def phase(rig: WireRig) -> None:
    """A phase other than 0 (stopped) is refused."""
    bad_begin(rig, SAVE, 1, "phase 1")


@CASES.case("no-descriptor", "vhost-user 'SET_DEVICE_STATE_FD'")
def no_descriptor(rig: WireRig) -> None:
    """SET_DEVICE_STATE_FD without a descriptor is refused."""
    rig.wire.require(c.F_DEVICE_STATE)
    rig.instances[0].may_end = True
    try:
        rig.wire.raw(MESSAGES["SET_DEVICE_STATE_FD"].id, p.DEVICE_STATE.encode(p.DeviceState(LOAD, 0)))
        value = int.from_bytes(rig.wire.raw_reply().body[:8], "little")
    except ConnectionLost:
        return
    check(value & 0xFF, "an error", value)


@CASES.case("check-without-transfer", "vhost-user 'CHECK_DEVICE_STATE'")
def check_without_transfer(rig: WireRig) -> None:
    """CHECK_DEVICE_STATE without a transfer is answered, with whatever."""
    rig.wire.require(c.F_DEVICE_STATE)
    rig.wire.number("CHECK_DEVICE_STATE")
    rig.wire.barrier()


@CASES.case("reader-goes-away", SPEC, needs=(SHARE,))
def reader_goes_away(rig: RingRig) -> None:
    """A front-end that closes the pipe before it has read: CHECK is answered, and another save works."""
    device, _, _ = session(rig)
    transfer.stop_all(device)
    transfer.HOST.close(transfer.begin(rig.wire, SAVE))
    try:
        transfer.finish(rig.wire)
    except Refused:
        pass
    check(len(transfer.must_save(rig.wire)) > 1, "a state")


@CASES.case("log-without-save", SPEC, needs=(SHARE,))
def log_without_save(rig: RingRig) -> None:
    """A migration that is given up after its beginning leaves no trace."""
    device, nodeid, fh = session(rig)
    for _ in range(3):
        device.set_features(c.VHOST_F_LOG_ALL & rig.wire.features)
        device.set_features()
    reads(device, nodeid, fh)
