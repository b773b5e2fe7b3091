"""Driver and device in two processes on one shared mapping: nothing lost, doubled or torn."""

from __future__ import annotations

import mmap
import os
import struct
import sys
import traceback

import pytest

from tests.support.ring_pair import DATA, make_config
from vmsim.memory import GuestMemory, Region
from vmsim.virtio.constants import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED
from vmsim.virtio.rings import make_device_ring, make_driver_ring

CHAINS = 30_000
WINDOW = 64  # requests in flight
MEMORY_BYTES = 4 << 20
REQUEST = struct.Struct("<QQ")


def attach(fd):
    buffer = mmap.mmap(fd, MEMORY_BYTES)
    return GuestMemory([Region("ram", 0, MEMORY_BYTES, memoryview(buffer))])


def serve(fd, config, kick, call):
    """The device: waits on a pipe when it has nothing to do; answers serial with serial * 3 + 1."""
    ring = make_device_ring(config, attach(fd), fence=lambda: os.write(call, b""))
    done = 0
    while done < CHAINS:
        chain = ring.pop()
        if chain is None:
            if not ring.arm_kicks():
                if not os.read(kick, 4096):
                    return
                ring.suppress_kicks()
            continue
        serial, check = REQUEST.unpack(b"".join(chain.readable))
        if serial != done or check != serial ^ 0xFFFFFFFFFFFFFFFF:
            raise AssertionError(f"request {done}: got {serial:#x} {check:#x}")
        answer = REQUEST.pack(serial * 3 + 1, serial)
        chain.writable[0][:4] = answer[:4]
        chain.writable[1][:12] = answer[4:]
        ring.push(chain, 16)
        done += 1
        if ring.needs_call():
            os.write(call, b"!")


def drive(memory, config, kick, call):
    ring = make_driver_ring(config, memory, fence=lambda: os.write(kick, b""))
    ring.initialise()
    yield
    free = list(range(WINDOW))
    pending = {}
    sent = received = 0
    while received < CHAINS:
        added = 0
        while sent < CHAINS and free and ring.free >= 4:
            place = free.pop()
            base = DATA + 4096 * place
            memory.write(base, REQUEST.pack(sent, sent ^ 0xFFFFFFFFFFFFFFFF))
            memory.write(base + 1024, bytes(64))
            table = (base + 2048, 256) if config.features & F_INDIRECT_DESC and sent % 2 else None
            buffer_id = ring.add([(base, 5), (base + 5, 11)], [(base + 1024, 4), (base + 1040, 12)], table)
            assert buffer_id not in pending
            pending[buffer_id] = (sent, place)
            sent += 1
            added += 1
            if added % 7 == 0:
                ring.publish()
        ring.publish()
        if ring.needs_kick():
            os.write(kick, b"!")
        seen = 0
        while (used := ring.reap()) is not None:
            serial, place = pending.pop(used[0])
            base = DATA + 4096 * place
            assert used[1] == 16
            answer = memory.read(base + 1024, 4) + memory.read(base + 1040, 12)
            assert REQUEST.unpack(answer) == (serial * 3 + 1, serial)
            free.append(place)
            received += 1
            seen += 1
        if not seen and received < CHAINS and not ring.arm_interrupts():
            assert os.read(call, 4096), "the device went away"
    assert not pending


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (0, 64),
        (F_EVENT_IDX | F_INDIRECT_DESC, 16),
        (F_IN_ORDER | F_EVENT_IDX, 64),
        (F_RING_PACKED, 64),
        (F_RING_PACKED | F_EVENT_IDX | F_INDIRECT_DESC, 13),
        (F_RING_PACKED | F_EVENT_IDX | F_IN_ORDER, 37),
    ],
)
def test_two_processes(features, size):
    fd = os.memfd_create("ram")
    os.ftruncate(fd, MEMORY_BYTES)
    config = make_config(features, size)
    kick_out, kick_in = os.pipe()
    call_out, call_in = os.pipe()
    driver = drive(attach(fd), config, kick_in, call_out)
    next(driver)  # the driver sets the queue up before the device is told of it
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(kick_in)
            serve(fd, config, kick_out, call_in)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    os.close(kick_out)
    os.close(call_in)
    try:
        with pytest.raises(StopIteration):
            next(driver)
    finally:
        for each in (kick_in, call_out, fd):
            os.close(each)
        status = os.waitpid(child, 0)[1]
    assert status == 0
