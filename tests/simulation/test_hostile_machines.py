"""Random malice in running machines, many seeds: rings, requests, registers, and a third party on the host.

Nothing untyped is raised, nothing outside the share is touched, the machine still migrates, and a reset
brings the device back. VMSIM_SEEDS chooses other seeds, as for the voyages.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.simulation.test_voyages import seeds
from tests.support.attacker import REGISTER, ROOM, Attacker, header, request
from tests.support.sampling import Run, sample
from tests.support.waiting import until
from vmsim.fuse import opcodes as op
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine

MEMORY = 4 << 20
FEW = 24
ENOUGH = 200 if Run.whole else 60
SECRET = b"what no guest may see"
INTERESTING = (
    0, 1, 2, 15, 16, 17, 63, 4095, 4096, MEMORY - 1, MEMORY, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1,
)  # fmt: skip


def few_seeds():
    """A part of the usual seeds, or all that were asked for."""
    return seeds() if "VMSIM_SEEDS" in os.environ else sample(range(FEW), 8, "random malice")


@pytest.fixture
def place(tmp_path):
    """A share beside which there is something that must not change: (share, check)."""
    share, outside = tmp_path / "share", tmp_path / "outside"
    for folder in (share / "d" / "e", outside / "e"):
        folder.mkdir(parents=True)
    (share / "f").write_bytes(b"content")
    for path in (outside / "f", outside / "e" / "f"):
        path.write_bytes(SECRET)
        os.utime(path, ns=(1, 1))
    before = snapshot(outside), sorted(os.listdir(tmp_path))

    def check():
        assert (snapshot(outside), sorted(os.listdir(tmp_path))) == before

    yield share, check
    check()


def snapshot(folder):
    """Every name, mode, time, owner and byte beneath a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        there = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (there.st_mode, there.st_mtime_ns, there.st_uid, there.st_nlink, data)
    return found


def make(share, numbers):
    guest = GuestConfig(indirect=numbers.choice((True, False)), slots=16)
    return Machine(
        share, memory=MEMORY, ring=numbers.choice(("split", "packed")), queues=2, queue_size=32,
        policy=numbers.choice(("strict", "lenient")), guest=guest,
        dialect=numbers.choice(("upstream", "rfc2023")),
    )  # fmt: skip


def value(numbers):
    """A number that may hurt."""
    if numbers.random() < 0.6:
        return numbers.choice(INTERESTING)
    return numbers.randrange(1 << numbers.choice((4, 12, 16, 22, 32, 64)))


def recovered(vm):
    """After a reset everything works, and goes on working elsewhere."""
    vm.kernel.recover()
    for pid in (1, 2):
        fs = vm.mount(pid)
        fd = fs.open(f"/works-{pid}", os.O_RDWR | os.O_CREAT)
        assert fs.pwrite(fd, b"text", 0) == 4
        moved = vm.migrate()
        vm.close()
        vm = moved
        assert fs.pread(fd, 10, 0)[:4] == b"text"
        fs.close(fd)
    return vm


def scribble_rings(attacker, numbers):
    """Random descriptors, random indices, random bytes anywhere in the queue's areas."""
    memory, state = attacker.memory, attacker.state
    for _ in range(numbers.randrange(1, 6)):
        area = numbers.choice((state.desc, state.desc, state.driver, state.driver, state.device))
        offset = numbers.randrange(0, 16 * state.size if area == state.desc else 6 + 2 * state.size)
        if numbers.random() < 0.5:
            memory.write(area + offset, numbers.randbytes(numbers.randrange(1, 40)))
        else:
            row = struct.pack("<QIHH", value(numbers) & (1 << 64) - 1, value(numbers) & 0xFFFFFFFF,
                              numbers.choice((0, 1, 2, 3, 4, 5, 7, 0x80, 0x8080, 0xFFFF)),
                              numbers.randrange(state.size + 2))  # fmt: skip
            memory.write(state.desc + 16 * numbers.randrange(state.size), row)
    if not attacker.packed and numbers.random() < 0.8:
        index = memory.load_u16(state.driver + 2)
        memory.store_u16(state.driver + 2, index + numbers.choice((1, 1, 2, state.size, 9999)) & 0xFFFF)
    attacker.notify()


def well_formed_chain(attacker, numbers):
    """A correct chain around any request."""
    data = hostile_request(numbers)
    room = numbers.choice((0, 7, 16, 17, 120, 4096, ROOM))
    found = attacker.send(data, room)
    if found is not None:
        assert found[0] <= room


def hostile_request(numbers):
    """A request that is nearly right."""
    row = numbers.choice(op.OPCODES)
    body = numbers.randbytes(row.args_size)
    if numbers.random() < 0.7:
        words = [value(numbers) & (1 << 64) - 1 for _ in range(row.args_size // 8 + 1)]
        body = b"".join(word.to_bytes(8, "little") for word in words)[: row.args_size]
    for _ in range(row.names):
        name = numbers.choice((b"f", b"d", b"new", b"..", b"../outside", b"/tmp/x", b"", b"n" * 256, b"a\0b"))
        body += name + numbers.choice((b"\0", b"\0", b"\0", b""))
    body += numbers.randbytes(numbers.choice((0, 0, 8, 300)))
    nodeid = numbers.choice((0, 1, 1, 2, 3, 999, (1 << 64) - 1))
    if numbers.random() < 0.2:
        return header(value(numbers) & 0xFFFFFFFF, row.number, nodeid) + body
    if row.number in (op.DESTROY, op.SETLKW) and numbers.random() < 0.9:
        return request(op.GETATTR, bytes(16))
    return request(row.number, body, nodeid, extensions=numbers.choice((0, 0, 0, 1, 65535)))


def scribble_registers(attacker, numbers):
    """Any value into any register, in any order."""
    for _ in range(numbers.randrange(1, 12)):
        name = numbers.choice([name for name in REGISTER if name not in ("QueueNotify", "Status")])
        attacker.write(name, value(numbers) & 0xFFFFFFFF)
        if numbers.random() < 0.3:
            attacker.write("Status", numbers.choice((0, 1, 3, 11, 15, 64, 128, 255)))
        if numbers.random() < 0.3:
            attacker.write("QueueNotify", value(numbers) & 0xFFFFFFFF)


ATTACKS = {"rings": scribble_rings, "requests": well_formed_chain, "registers": scribble_registers}


def campaign(share, seed, attack):
    numbers = random.Random(f"{seed}/{attack.__name__}")
    vm = make(share, numbers)
    try:
        for _ in range(numbers.randrange(1, 4)):
            attacker = Attacker(vm, queue=numbers.randrange(3))
            for _ in range(numbers.choice((3, 10, 40))):
                attack(attacker, numbers)
                if attacker.needs_reset or not vm.device.virtio.live or vm.kernel.state.broken:
                    break
                if attacker.ring.free < 4:
                    break
            if numbers.random() < 0.6:
                moved = vm.migrate()
                vm.close()
                vm = moved
            vm = recovered(vm)
    finally:
        vm.close()


@pytest.mark.sim
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("seed", few_seeds())
def test_random_malice(seed, attack, place):
    share, _ = place
    campaign(share, seed, ATTACKS[attack])


@pytest.mark.sim
@pytest.mark.parametrize("seed", range(3))
def test_a_third_party_swaps_directories_for_symlinks(seed, place, tmp_path):
    """While the guest works through the machine, and while that migrates."""
    share, check = place
    numbers = random.Random(seed)
    stop = threading.Event()
    swaps = 0

    def swap():
        nonlocal swaps
        where = [(share / "d", tmp_path / "outside"), (share / "d" / "e", tmp_path / "outside" / "e")]
        while not stop.is_set():
            name, target = where[swaps % 2]
            aside = Path(f"{name}.aside")
            try:
                os.rename(name, aside)
                os.symlink(target, name)
                time.sleep(0)
                os.unlink(name)
                os.rename(aside, name)
            except OSError:  # the guest got in between
                shutil.rmtree(aside, ignore_errors=True)
                name.mkdir(parents=True, exist_ok=True)
            swaps += 1

    third_party = threading.Thread(target=swap)
    vm = Machine(share, memory=MEMORY, guest=GuestConfig(dentries=numbers.choice((0, 64))))
    done = {"worked": 0, "failed": 0, "swapped": 0}

    def work_and_move():
        nonlocal vm
        for _ in range(50):
            done[one_step(vm.mount(), numbers)] += 1
        moved = vm.migrate(options={"migration_on_error": "guest-error"})
        vm.close()
        vm = moved
        done["swapped"] = swaps
        return min(swaps, done["worked"]) >= ENOUGH

    third_party.start()
    try:
        until(work_and_move, "the guest and the third party to get on", saw=lambda: done)
    finally:
        stop.set()
        third_party.join()
        vm.close()
    check()


def one_step(fs, numbers):
    """Something that would show or change what is outside if it got there."""
    folder = numbers.choice(("/d", "/d/e"))
    try:
        kind = numbers.randrange(6)
        if kind == 0:
            fd = fs.open(f"{folder}/f", os.O_RDWR | os.O_CREAT)
            try:
                assert SECRET not in fs.pread(fd, 100, 0)
                fs.pwrite(fd, b"the guest was here", 0)
            finally:
                fs.close(fd)
        elif kind == 1:
            fs.close(fs.open(f"{folder}/new{numbers.randrange(9)}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif kind == 2:
            fs.unlink(f"{folder}/{numbers.choice(('f', 'new1', 'new2'))}")
        elif kind == 3:
            fs.rename(f"{folder}/f", f"{folder}/g")
        elif kind == 4:
            fs.chmod(f"{folder}/f", 0o777)
            fs.utime(f"{folder}/f", (5, 5))
        else:
            fs.mkdir(f"{folder}/sub")
            fs.rmdir(f"{folder}/sub")
    except OSError:
        return "failed"
    return "worked"
