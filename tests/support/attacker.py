"""A malicious driver: writes what it likes into a running machine's rings, registers and requests."""

from __future__ import annotations

import struct

from vmsim.guest.driver.alloc import PageAllocator
from vmsim.memory import PAGE_SIZE
from vmsim.virtio.constants import F_RING_PACKED
from vmsim.virtio.mmio import REGISTERS

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
NEEDS_RESET = 64
REGISTER = {row.name: row.offset for row in REGISTERS}
SPLIT_DESC = struct.Struct("<QIHH")
PACKED_DESC = struct.Struct("<QIHH")
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ROOM = 8 * PAGE_SIZE


def header(length, opcode, nodeid=1, unique=7, extensions=0):
    """A fuse_in_header that says what it likes."""
    return IN_HEADER.pack(length, opcode, unique, nodeid, 0, 0, 1, extensions, 0)


def request(opcode, body=b"", nodeid=1, extensions=0):
    """A request of true length."""
    return header(IN_HEADER.size + len(body), opcode, nodeid, extensions=extensions) + body


class Attacker:
    """Sits in the guest of ``machine`` and goes past its kernel, on one of its queues.

    The kernel must be idle. ``memory`` of the attacker is taken from the kernel's allocator.
    """

    def __init__(self, machine, queue=1):
        self.machine = machine
        self.kernel = machine.kernel
        self.memory = machine.memory
        self.index = queue
        self.packed = bool(self.kernel.state.features & F_RING_PACKED)
        place = PageAllocator(self.kernel.state.allocator).allocate(2 * ROOM)
        assert place is not None
        self.readable, self.writable = place, place + ROOM
        self.interrupts = []
        machine.device.virtio.on_interrupt = self._interrupt

    def _interrupt(self):
        self.interrupts.append(self.machine.device.virtio.isr)
        self.kernel.interrupt()

    @property
    def state(self):
        """Where the queue lies."""
        return self.kernel.state.queues[self.index]

    @property
    def ring(self):
        """The kernel's own ring."""
        return self.kernel.queues[self.index].ring

    @property
    def needs_reset(self):
        """Whether the device gave up."""
        return bool(self.machine.device.registers.read(REGISTER["Status"], 4) & NEEDS_RESET)

    def notify(self, index=None):
        """Ring the doorbell."""
        self.write("QueueNotify", self.index if index is None else index)
        self.machine.schedule.settle()

    def write(self, register, value):
        """Write to a register of the device."""
        self.machine.device.registers.write(REGISTER[register], 4, value)

    # Requests

    def send(self, data, room=4096):
        """Whether it was answered: (bytes used, reply) of a well-formed chain with any content."""
        memory = self.memory
        for at in range(0, len(data), ROOM):
            memory.write(self.readable, data[at : at + ROOM])
        memory.write(self.writable, bytes(min(room, ROOM)))
        ring = self.ring
        readable = [(self.readable, len(data))] if data else []
        head = ring.add(readable, [(self.writable, room)] if room else [])
        ring.publish()
        self.notify()
        used = ring.reap()
        if used is None:
            return None
        assert used[0] == head
        return used[1], memory.read(self.writable, min(used[1], ROOM))

    def refusal(self, data, room=4096):
        """The errno that a request gets; 0 for success, None for no reply at all."""
        found = self.send(data, room)
        assert found is not None, "the device keeps the request"
        written, reply = found
        if written == 0:
            return None
        length, error, _ = OUT_HEADER.unpack_from(reply)
        assert length == written
        return -error

    # Rings

    def post(self, *descriptors, head=None, count=1):
        """Make raw descriptors (gpa, bytes, flags, next; next counts from the first) available, and kick.

        ``head`` overrides what the available ring says, ``count`` how far its index moves.
        """
        if self.packed:
            self._post_packed(descriptors)
        else:
            self._post_split(descriptors, head, count)
        self.notify()

    def _post_split(self, descriptors, head, count):
        state, memory = self.state, self.memory
        first = state.size // 2
        for at, (gpa, size, flags, following) in enumerate(descriptors):
            entry = SPLIT_DESC.pack(gpa, size, flags, (first + following) & 0xFFFF)
            memory.write(state.desc + 16 * (first + at), entry)
        index = memory.load_u16(state.driver + 2)
        memory.store_u16(state.driver + 4 + 2 * (index % state.size), first if head is None else head)
        memory.store_u16(state.driver + 2, (index + count) & 0xFFFF)

    def _post_packed(self, descriptors):
        state, memory, position = self.state, self.memory, self.ring.save()
        slot, wrap = position.next_avail, position.avail_wrap
        for gpa, size, flags, _ in descriptors:
            bits = AVAIL if wrap else USED
            memory.write(state.desc + 16 * slot, PACKED_DESC.pack(gpa, size, 0, flags | bits))
            slot += 1
            if slot == state.size:
                slot, wrap = 0, wrap ^ 1

    def table(self, *descriptors, at=0):
        """An indirect table in the attacker's memory; its address. ``next`` is the index in the table."""
        gpa = self.readable + PAGE_SIZE + at
        layout = PACKED_DESC if self.packed else SPLIT_DESC
        rows = []
        for address, size, flags, following in descriptors:
            rows.append(layout.pack(address, size, 0, flags) if self.packed else
                        layout.pack(address, size, flags, following))
        self.memory.write(gpa, b"".join(rows))
        return gpa
