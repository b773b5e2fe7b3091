"""A malicious driver in a running machine: all that kills or wedges virtiofsd 1.13.2, and the classes behind.

What is wrong in a request gets an errno, what is wrong in a ring makes the device need a reset (virtio 1.3
section 2.1.2) and raises a configuration interrupt. The server lives on, the machine can migrate as it is,
and a reset brings the device back.
"""

from __future__ import annotations

import errno
import gc
import os
import struct

import pytest

from tests.support.attacker import INDIRECT, NEXT, WRITE, Attacker, header, request
from tests.support.leaks import Held
from vmsim.fuse import opcodes as op
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine
from vmsim.virtio.constants import ISR_CONFIG_CHANGE

RINGS = ["split", "packed"]
MEMORY = 4 << 20
OUTSIDE = 1 << 40
MINUS_1 = (1 << 64) - 1
ALL = 0xFFFFFFFF


@pytest.fixture(params=RINGS)
def victim(request, tmp_path):
    """A machine with an attacker in its guest; the share has a file that must survive."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "f").write_bytes(b"content")
    guest = GuestConfig(indirect=False)
    vm = Machine(share, memory=MEMORY, ring=request.param, queues=2, policy="strict", guest=guest)
    yield Attacker(vm)
    vm.close()


def moves(vm):
    """It also works elsewhere."""
    with vm.migrate() as moved:
        return works(moved)


def works(vm):
    """The device does what it should, from both processes' queues and hiprio."""
    for pid in (1, 2):
        fs = vm.mount(pid)
        fd = fs.open("/f", os.O_RDONLY)
        assert fs.pread(fd, 100, 0) == b"content"
        fs.close(fd)
        fs.drop_caches()
    return True


def write_body(offset, data=b"12345678", fh=0):
    return struct.pack("<QQIIQII", fh, offset, len(data), 0, 0, 0, 0) + data


KILLERS = {
    "LOOKUP without NUL": (request(op.LOOKUP, b"name"), errno.EINVAL),
    "LOOKUP with interior NUL": (request(op.LOOKUP, b"na\0me\0"), errno.EINVAL),
    "WRITE at 2**64 - 1": (request(op.WRITE, write_body(MINUS_1)), errno.EINVAL),
    "WRITE at 2**63": (request(op.WRITE, write_body(1 << 63)), errno.EINVAL),
    "SETXATTR of a name that is no UTF-8": (
        request(op.SETXATTR, struct.pack("<II", 1, 0) + b"user.\xff\xfe\0v"), (0, errno.EOPNOTSUPP),
    ),
    "SETXATTR whose size is not that of the data": (
        request(op.SETXATTR, struct.pack("<II", 100, 0) + b"user.x\0v"), errno.EINVAL,
    ),
    "a length of 0": (header(0, op.GETATTR) + bytes(16), errno.EINVAL),
    "a length of 20": (header(20, op.GETATTR) + bytes(16), errno.EINVAL),
    "a length beyond the data": (header(4000, op.GETATTR) + bytes(16), errno.EINVAL),
    "a length of 2 MiB": (header(2 << 20, op.GETATTR) + bytes(16), (errno.EINVAL, errno.ENOMEM)),
    "CREATE with an extension of huge size": (
        request(
            op.CREATE, struct.pack("<IIII", 2, 0o600, 0, 0) + b"new\0" + struct.pack("<II", 0xFFFFFFF8, 32),
            extensions=1,
        ), errno.EINVAL,
    ),
    "a name with a slash": (request(op.LOOKUP, b"../../etc\0"), errno.EINVAL),
    "an absolute name": (request(op.MKDIR, struct.pack("<II", 0o755, 0) + b"/tmp/esc\0"), errno.EINVAL),
    "SYMLINK with an absolute new name": (request(op.SYMLINK, b"/tmp/esc\0target\0"), errno.EINVAL),
    "a name of 300 bytes": (request(op.LOOKUP, b"n" * 300 + b"\0"), errno.ENAMETOOLONG),
    "an unknown opcode": (request(9999, bytes(64)), errno.ENOSYS),
    "an unknown node": (request(op.GETATTR, bytes(16), nodeid=12345), errno.EBADF),
    "READDIR of 2 MiB": (
        request(op.READDIR, struct.pack("<QQIIQII", 0, 0, 2 << 20, 0, 0, 0, 0)), (errno.ENOMEM, errno.EBADF),
    ),
    "only half a header": (header(40, op.GETATTR)[:20], (errno.EINVAL, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", KILLERS)
def test_a_hostile_request_gets_an_errno(name, victim, tmp_path):
    data, expected = KILLERS[name]
    before = sorted(os.listdir(tmp_path / "share"))
    allowed = expected if isinstance(expected, tuple) else (expected,)
    assert victim.refusal(data) in allowed
    assert not victim.needs_reset
    assert sorted(os.listdir(tmp_path / "share")) == before
    assert works(victim.machine)


@pytest.mark.parametrize("opcode", [op.READ, op.GETATTR, op.LOOKUP, op.STATFS, op.OPEN])
@pytest.mark.parametrize("room", [0, 1, 15, 16, 20])
def test_no_room_for_the_reply(opcode, room, victim):
    """Nothing writable, or too little: nothing or an errno is written, never beyond the descriptors."""
    body = b"f\0" if opcode == op.LOOKUP else bytes(40)
    guard = b"\xa5" * 64
    victim.memory.write(victim.writable + room, guard)
    found = victim.send(request(opcode, body), room)
    assert found is not None
    written, reply = found
    if room < 16:
        assert written == 0
    else:
        assert written == 16
        assert struct.unpack("<IiQ", reply)[1] < 0
    assert victim.memory.read(victim.writable + room, 64) == guard
    assert works(victim.machine)


def test_forgetting_more_than_there_is(victim):
    """FORGET of the root's 2**64 - 1, and a BATCH_FORGET that has fewer entries than it says."""
    hiprio = Attacker(victim.machine, queue=0)
    for data in (
        request(op.FORGET, struct.pack("<Q", MINUS_1)),
        request(op.FORGET, struct.pack("<Q", MINUS_1), nodeid=777),
        request(op.BATCH_FORGET, struct.pack("<IIQQ", 1000, 0, 1, 1), nodeid=0),
        request(op.BATCH_FORGET, struct.pack("<II", ALL, 0), nodeid=0),
    ):
        for attacker in (hiprio, victim):
            assert attacker.refusal(data, 0) is None
    assert not victim.needs_reset
    assert works(victim.machine)


def test_requests_that_only_fit_hiprio_and_the_reverse(victim):
    hiprio = Attacker(victim.machine, queue=0)
    assert hiprio.refusal(request(op.GETATTR, bytes(16))) in (0, errno.EINVAL, errno.ENOSYS)
    assert victim.refusal(request(op.INTERRUPT, struct.pack("<Q", 5)), 0) is None
    assert works(victim.machine)


def test_destroy_and_init_again(victim):
    """After DESTROY everything is EBADF until the next INIT; a guest may do that to itself."""
    assert victim.refusal(request(op.DESTROY), 16) in (0, None)
    assert victim.refusal(request(op.GETATTR, bytes(16))) == errno.EBADF
    victim.kernel.recover()
    assert works(victim.machine)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_ACCMODE, ALL, os.O_TRUNC | os.O_EXCL])
@pytest.mark.parametrize("opcode", [op.OPENDIR, op.OPEN, op.CREATE])
def test_whatever_was_opened_is_open_after_a_migration(opcode, flags, victim, tmp_path):
    """Flags that make no sense are refused at once, not when the machine is to be restored."""
    body = struct.pack("<II", flags, 0)
    if opcode == op.CREATE:
        body = struct.pack("<IIII", flags, 0o600, 0, 0) + b"new\0"
    nodeid = 1
    if opcode == op.OPEN:
        _, reply = victim.send(request(op.LOOKUP, b"f\0"))
        (nodeid,) = struct.unpack_from("<Q", reply, 16)
    answer = victim.refusal(request(opcode, body, nodeid))
    assert answer in (0, errno.EINVAL)
    held = victim.machine.backend.facts()["handles"]
    assert held == (answer == 0)
    vm = victim.machine.migrate()
    assert vm.backend.facts()["handles"] == held
    vm.kernel.recover()
    vm.close()


# What is wrong with a ring, in both formats: descriptors (gpa, bytes, flags, next)


def loop(a):
    """The last descriptor leads to the first; a packed list just does not end."""
    size = a.state.size
    return [(a.readable, 16, NEXT, (at + 1) % 4) for at in range(size if a.packed else 4)]


def nested(a):
    table = a.table((a.readable, 40, INDIRECT, 0), (a.writable, 40, WRITE, 0))
    return [(table, 32, INDIRECT, 0)]


BROKEN = {
    "a loop": loop,
    "an address outside memory": lambda a: [(OUTSIDE, 64, 0, 0)],
    "a writable address outside memory": lambda a: [(a.readable, 64, NEXT, 1), (OUTSIDE, 64, WRITE, 0)],
    "a length that crosses the end of memory": lambda a: [(MEMORY - 64, 128, 0, 0)],
    "a length of 2**32 - 1": lambda a: [(a.readable, ALL, 0, 0)],
    "an address whose end wraps": lambda a: [(MINUS_1 - 8, 64, 0, 0)],
    "a table whose length is no multiple of 16": lambda a: [(a.table(), 40, INDIRECT, 0)],
    "an empty table": lambda a: [(a.table(), 0, INDIRECT, 0)],
    "a table outside memory": lambda a: [(OUTSIDE, 64, INDIRECT, 0)],
    "a table that crosses the end of memory": lambda a: [(MEMORY - 32, 64, INDIRECT, 0)],
    "a table and a next": lambda a: [(a.table((a.readable, 40, 0, 0)), 16, INDIRECT | NEXT, 1), (0, 0, 0, 0)],
    "readable after writable": lambda a: [(a.writable, 64, WRITE | NEXT, 1), (a.readable, 64, 0, 0)],
    "a descriptor without bytes": lambda a: [(a.readable, 0, 0, 0)],
}
BROKEN_SPLIT = {
    "a nested table": (nested, {}),  # in a packed ring's table all flags but WRITE are ignored (2.8.7)
    "a next that is out of range": (lambda a: [(a.readable, 64, NEXT, 40_000)], {}),
    "a head that is out of range": (lambda a: [], {"head": 60_000}),
    "an index that jumps": (lambda a: [], {"count": 50_000}),
    "a next in the table that is out of range": (
        lambda a: [(a.table((a.readable, 40, NEXT, 9)), 16, INDIRECT, 0)], {},
    ),
}  # fmt: skip


def attack(victim, name):
    if name in BROKEN:
        victim.post(*BROKEN[name](victim))
    else:
        descriptors, options = BROKEN_SPLIT[name]
        victim.post(*descriptors(victim), **options)


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_SPLIT])
class TestBrokenRings:
    @pytest.fixture(autouse=True)
    def applies(self, name, victim):
        if name in BROKEN_SPLIT and victim.packed:
            pytest.skip("packed rings have nothing of the kind")

    def test_the_device_needs_a_reset_and_says_so(self, name, victim, tmp_path):
        fs = victim.machine.mount()
        fd = fs.open("/f", os.O_RDWR)
        other = Machine(tmp_path / "share", memory="2M")
        attack(victim, name)
        assert victim.needs_reset
        assert victim.interrupts
        assert victim.interrupts[-1] & ISR_CONFIG_CHANGE
        assert victim.machine.device.virtio.reset_reason
        for pid in (1, 2):
            with pytest.raises(OSError, match="Input/output") as caught:
                victim.machine.mount(pid).stat("/f")
            assert caught.value.errno == errno.EIO
        assert victim.machine.backend.facts()["handles"] == 1  # the server is there, and holds what it held
        other.mount().stat("/f")
        other.close()
        victim.kernel.recover()
        assert not victim.needs_reset
        assert works(victim.machine)
        with pytest.raises(OSError, match="Stale"):
            fs.read(fd, 10)
        assert moves(victim.machine)

    def test_it_migrates_as_it_is(self, name, victim):
        attack(victim, name)
        vm = victim.machine
        for _ in range(2):
            old, vm = vm, vm.migrate()
            old.close()
            assert Attacker(vm).needs_reset
            with pytest.raises(OSError, match="Input/output"):
                vm.mount().stat("/f")
        vm.kernel.recover()
        assert works(vm)
        vm.close()

    def test_found_only_after_the_migration(self, name, victim):
        """The ring is broken, and nobody told the device: the destination finds out."""
        victim.notify = lambda: None
        attack(victim, name)
        assert not victim.needs_reset
        vm = victim.machine.migrate()
        later = Attacker(vm)
        later.notify()
        assert later.needs_reset
        vm.kernel.recover()
        assert works(vm)
        vm.close()


@pytest.mark.parametrize("register", ["QueueReady", "QueueReset"])
def test_a_queue_that_is_taken_away_is_let_alone(register, victim):
    """Also from a device that needs a reset: the driver may use that memory for something else at once."""
    vm = victim.machine
    works(vm)
    attack(victim, "an address outside memory")
    assert vm.backend.vhost.rings[2].started
    victim.write("QueueSel", 2)
    victim.write(register, 0 if register == "QueueReady" else 1)
    assert not vm.backend.vhost.rings[2].started
    with vm.migrate() as moved:
        assert Attacker(moved).needs_reset
        moved.kernel.recover()
        assert works(moved)


@pytest.mark.parametrize("ring", RINGS)
def test_a_broken_ring_keeps_nothing_of_the_hosts(ring, tmp_path):
    """Not even until the garbage collector comes: a guest could break its rings faster than that."""
    gc.collect()
    before = Held()
    gc.disable()
    try:
        for _ in range(3):
            with Machine(tmp_path, memory=MEMORY, ring=ring) as vm:
                attack(Attacker(vm), "an address outside memory")
                vm.kernel.recover()
                attack(Attacker(vm), "a loop")
        assert before.more() == []
    finally:
        gc.enable()


def test_lenient_machines_take_what_peers_take(tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    for ring in RINGS:
        with Machine(tmp_path, memory=MEMORY, ring=ring, policy="lenient", queues=2) as vm:
            attacker = Attacker(vm)
            attacker.memory.write(attacker.readable, request(op.GETATTR, bytes(16)))
            attacker.post((attacker.writable, 200, WRITE | NEXT, 1), (attacker.readable, 56, 0, 0))
            assert not attacker.needs_reset
            length, error, unique = struct.unpack("<IiQ", attacker.memory.read(attacker.writable, 16))
            assert (length, error, unique) == (16 + 104, 0, 7)


def test_the_used_ring_is_the_devices_alone(victim):
    """A guest that scribbles over its own used ring fools only itself."""
    state = victim.state
    victim.memory.write(state.device, b"\xff" * 64)
    fs = victim.machine.mount()
    try:
        fs.stat("/f")
    except OSError as error:
        code = error.errno
    else:
        code = errno.EIO
    assert code == errno.EIO
    victim.kernel.recover()
    assert works(victim.machine)


def test_a_guest_that_spoils_its_used_ring_cannot_keep_its_machine_from_moving(victim):
    """Nor does it wait for ever afterwards: the device needs a reset, or goes on, and the guest is told."""
    vm = victim.machine
    works(vm)
    for index in range(3):
        vm.memory.store_u16(vm.kernel.state.queues[index].device + 2, 0x8C00)
    with vm.migrate() as moved:
        try:
            moved.mount().stat("/f")
        except OSError as error:
            code = error.errno
        else:
            code = 0
        assert code == (0 if victim.packed else errno.EIO)
        moved.kernel.recover()
        assert works(moved)


def test_requests_in_guest_memory_that_change_while_they_are_worked_on(victim):
    """Readable and writable parts may be the same memory: the reply overwrites the request, and no more."""
    data = request(op.GETATTR, bytes(16))
    victim.memory.write(victim.readable, data)
    victim.post((victim.readable, len(data), NEXT, 1), (victim.readable, 200, WRITE, 0))
    assert not victim.needs_reset
    assert struct.unpack("<IiQ", victim.memory.read(victim.readable, 16)) == (120, 0, 7)


def test_the_reply_may_not_land_in_the_ring_unnoticed(victim):
    """Writable descriptors that are the ring itself: the guest's fault, the device's reset at most."""
    state = victim.state
    data = request(op.READDIRPLUS, struct.pack("<QQIIQII", 0, 0, 4096, 0, 0, 0, 0))
    victim.memory.write(victim.readable, data)
    for place in (state.desc, state.driver, state.device):
        victim.post((victim.readable, len(data), NEXT, 1), (place, 128, WRITE, 0))
    victim.notify()
    victim.kernel.recover()
    assert works(victim.machine)
