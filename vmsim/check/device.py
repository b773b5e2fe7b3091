"""Guest memory, rings and FUSE requests made by hand, on a raw front-end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from vmsim.check.frontend import Frontend
from vmsim.check.outcome import NotOffered, check, fail
from vmsim.errors import PeerError
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.init_flags import INIT_EXT, LINUX_6_12_OFFER
from vmsim.fuse.client import Answer, decode, decode_direntplus, encode, reply_room
from vmsim.host.eventfd import EventFd
from vmsim.host.shm import SharedMemory
from vmsim.host.vhost_user.transport import ConnectionLost, PeerSilent
from vmsim.memory import GuestMemory, Region
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.addresses import message_region, vring_addr
from vmsim.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1
from vmsim.virtio.driver_ring import DESC
from vmsim.virtio.ring_types import RingConfig
from vmsim.virtio.rings import DriverRing, make_driver_ring

MEMORY_BYTES: Final = 8 << 20
RINGS: Final = 0x10000
RING_STRIDE: Final = 0x10000
DATA: Final = 0x100000
HIPRIO: Final = 0
REQUESTS: Final = 1
ROOT: Final = 1
USUAL: Final = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
POLL_S: Final = 0.001
RAW: Final = 32
"""Descriptors from here on are written by hand."""
AFTERMATH_S: Final = 0.15
LOOK_S: Final = 0.05
"""How long something that must not happen is given to happen."""


class Posted(NamedTuple):
    """A chain: its id in the ring and its writable elements."""

    id: int
    writable: list[tuple[int, int]]


class GivenUp(Exception):
    """The back-end reported an error of the ring."""


class RawDriver:
    """A driver's view of the back-end: memory, its rings (split unless ``features`` say otherwise), requests.

    ``features`` are virtio bits that the driver wants; those not offered are left out.
    """

    def __init__(
        self, front: Frontend, *, features: int = USUAL, size: int = 64,
        regions: Sequence[tuple[int, int]] = (), count: int = 0,
    ) -> None:  # fmt: skip
        self.front = front
        self.size = size
        self.features = features & front.features
        self.session: Any = None
        """What INIT was answered with."""
        if features & F_RING_PACKED and not self.features & F_RING_PACKED:
            raise NotOffered("packed rings are not offered")
        self._memfds = [
            (gpa, SharedMemory(f"check{gpa:x}", length)) for gpa, length in regions or [(0, MEMORY_BYTES)]
        ]
        self.memory = GuestMemory(
            [Region(m.name, gpa, m.size_bytes, m.view, m.fd) for gpa, m in self._memfds]
        )
        self.count = count or min(front.queues(), 2)
        self.rings: list[DriverRing] = []
        self.kicks = [EventFd() for _ in range(self.count)]
        self.calls = [EventFd() for _ in range(self.count)]
        self.errors = [EventFd() for _ in range(self.count)]
        self.unique = 2
        self._data = DATA

    # -- set-up

    def start(self, *, enable: bool = True) -> RawDriver:
        """Features, memory, and all rings."""
        self.set_features()
        self.share_memory()
        for index in range(self.count):
            self.new_ring(index)
            self.start_ring(index)
            if enable:
                self.enable(index)
        self.front.barrier()
        return self

    def set_features(self, extra: int = 0) -> None:
        """SET_FEATURES with what the driver accepted and ``extra`` vhost bits."""
        protocol = c.VHOST_USER_F_PROTOCOL_FEATURES & self.front.features
        self.front.done("SET_FEATURES", p.Number(self.features | protocol | extra))

    def share_memory(self) -> None:
        """All regions, by slots or as a table, whatever was negotiated."""
        regions = [(message_region(region), region.fd) for region in self.memory.regions]
        if self.front.has(c.F_CONFIGURE_MEM_SLOTS):
            for region, fd in regions:
                self.front.done("ADD_MEM_REG", p.SlotRegion(0, *region), (fd,))
        else:
            table = p.MemoryTable(tuple(region for region, _ in regions))
            self.front.done("SET_MEM_TABLE", table, tuple(fd for _, fd in regions))

    def config(self, index: int) -> RingConfig:
        """Where ring ``index`` lies."""
        base = RINGS + index * RING_STRIDE
        return RingConfig(self.size, base, base + 0x4000, base + 0x8000, self.features, index=index)

    def new_ring(self, index: int) -> DriverRing:
        """The driver's side of a ring, empty."""
        ring = make_driver_ring(self.config(index), self.memory)
        ring.initialise()
        if index < len(self.rings):
            self.rings[index] = ring
        else:
            self.rings.append(ring)
        return ring

    def start_ring(self, index: int, base: int | None = None) -> None:
        """Describe a ring to the back-end, with its descriptors; ``base`` is where it starts."""
        front, notifier = self.front, p.Number(index)
        packed = self.features & F_RING_PACKED
        front.done("SET_VRING_CALL", notifier, (self.calls[index].fd,))
        front.done("SET_VRING_ERR", notifier, (self.errors[index].fd,))
        front.done("SET_VRING_NUM", p.VringState(index, self.size))
        if base is None:
            base = 0x8000_8000 if packed else 0
        front.done("SET_VRING_BASE", p.VringState(index, base))
        front.done("SET_VRING_ADDR", self.addr(index))
        front.done("SET_VRING_KICK", notifier, (self.kicks[index].fd,))

    def addr(self, index: int, *, log: bool = False) -> p.VringAddr:
        """The ring's addresses as the message has them."""
        config = self.config(index)
        return vring_addr(self.memory, index, config.desc, config.driver, config.device, log=log)

    def enable(self, index: int, on: int = 1) -> None:
        """SET_VRING_ENABLE, where there is such a thing."""
        if self.front.features & c.VHOST_USER_F_PROTOCOL_FEATURES:
            self.front.done("SET_VRING_ENABLE", p.VringState(index, on))

    def stop_ring(self, index: int) -> int:
        """GET_VRING_BASE: the ring stops, drained; its base word."""
        state = self.front.ask("GET_VRING_BASE", p.VringState(index, 0)).payload
        check(state.ring == index, f"GET_VRING_BASE answered for ring {index}", f"it is for {state.ring}")
        return int(state.num)

    def recover(self) -> None:
        """Begin again as a driver does whose device needs a reset: all rings, and a new session."""
        for index in range(self.count):
            self.stop_ring(index)
        if self.front.has(c.F_RESET_DEVICE):
            self.front.done("RESET_DEVICE")
        self.set_features()
        for index in range(self.count):
            self.errors[index].drain()
            self.new_ring(index)
            self.start_ring(index)
            self.enable(index)
        self.front.barrier()
        self.init()

    # -- chains

    def place(self, data: bytes | int, align: int = 16) -> tuple[int, int]:
        """Put ``data`` (or that many zeros) somewhere into memory: (gpa, bytes)."""
        content = bytes(data) if isinstance(data, int) else data
        at = (self._data + align - 1) // align * align
        if at + len(content) > MEMORY_BYTES:
            at = DATA
        self._data = at + len(content)
        self.memory.write(at, content)
        return at, len(content)

    def post(
        self, readable: Sequence[bytes], writable: Sequence[int], *, ring: int = REQUESTS, kick: bool = True,
        indirect: bool = False,
    ) -> Posted:  # fmt: skip
        """Make one chain available."""
        outs = [self.place(data) for data in readable]
        ins = [self.place(size) for size in writable]
        table = self.place(16 * (len(outs) + len(ins))) if indirect else None
        posted = Posted(self.rings[ring].add(outs, ins, table), ins)
        self.rings[ring].publish()
        if kick:
            self.kick(ring)
        return posted

    def kick(self, ring: int = REQUESTS) -> None:
        """Kick, whether it was asked for or not."""
        self.kicks[ring].signal()

    def used(self, ring: int = REQUESTS, timeout_s: float | None = None) -> tuple[int, int]:
        """The next used buffer: (id, bytes written).

        GivenUp if the back-end reports an error of the ring instead; PeerSilent if nothing happens.
        """
        driver, call, error = self.rings[ring], self.calls[ring], self.errors[ring]
        limit_s = self.front.probe.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        while True:
            driver.arm_interrupts()
            found = driver.reap()
            if found is not None:
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerSilent(f"ring {ring}: nothing used within {limit_s:g} s")
            ready = self.front.probe.wait((call.fd, error.fd, self.front.probe.fd), left)
            if call.fd in ready:
                call.drain()
            elif error.fd in ready:
                error.drain()
                raise GivenUp(f"ring {ring}")
            elif self.front.probe.fd in ready:
                if self.front.probe.lost:
                    raise ConnectionLost("the back-end closed the connection")
                fail("no message that nobody asked for", "one came")

    def poll_used_index(self, ring: int, wanted: int) -> None:
        """Wait until a split ring's used index in memory is ``wanted``, without being called."""
        at, wanted = self.config(ring).device + 2, wanted & 0xFFFF
        self.poll(lambda: self.memory.load_u16(at) == wanted, f"ring {ring}: used index not {wanted}")

    def poll(self, ready: Callable[[], bool], trouble: str) -> None:
        """Wait for what nobody tells of; PeerSilent, with ``trouble``, if it does not come."""
        deadline = time.monotonic() + self.front.probe.timeout_s
        while not ready():
            if time.monotonic() > deadline:
                raise PeerSilent(trouble)
            self.front.probe.wait((), POLL_S)

    def written(self, posted: Posted, length: int) -> bytes:
        """The first ``length`` bytes of a chain's writable part."""
        data = b"".join(self.memory.read(gpa, size) for gpa, size in posted.writable)
        check(length <= len(data), f"at most {len(data)} bytes written", f"{length} are claimed")
        return data[:length]

    def exchange(
        self, readable: Sequence[bytes], writable: Sequence[int], *, ring: int = REQUESTS,
        indirect: bool = False,
    ) -> bytes:  # fmt: skip
        """Post a chain and wait for it: what was written."""
        posted = self.post(readable, writable, ring=ring, indirect=indirect)
        found, length = self.used(ring)
        check(found == posted.id, f"buffer {posted.id} used", f"it was {found}")
        return self.written(posted, length)

    def raw_chain(
        self, descriptors: Sequence[tuple[int, int, int, int]], *, head: int = RAW, ahead: int = 1
    ) -> None:
        """Write (address, length, flags, next) into the descriptor table from RAW on, and kick.

        Split: the available index moves by ``ahead`` with ``head`` in its first entry. Packed: the last
        number is the buffer id; AVAIL and USED are set for the ring's present position. What becomes of the
        ring nobody knows; ``aftermath`` looks.
        """
        ring = self.rings[REQUESTS]
        config, memory = self.config(REQUESTS), self.memory
        if self.features & F_RING_PACKED:
            position = ring.save()
            at, wrap = position.next_avail, position.avail_wrap
            marks = 1 << 7 if wrap else 1 << 15
            for offset in reversed(range(len(descriptors))):
                address, length, flags, number = descriptors[offset]
                slot = config.desc + 16 * (at + offset)
                memory.write(slot, DESC.pack(address, length, number, flags | marks))
        else:
            for offset, row in enumerate(descriptors):
                memory.write(config.desc + 16 * (RAW + offset), DESC.pack(*row))
            index = memory.load_u16(config.driver + 2)
            memory.store_u16(config.driver + 4 + 2 * (index % self.size), head)
            memory.store_u16(config.driver + 2, (index + ahead) & 0xFFFF)
        self.kick()

    def aftermath(self) -> None:
        """After something that broke a ring: give the back-end time to notice, and set everything up anew.

        It may have answered, given the ring up, or done nothing at all; a new session must work.
        """
        front = self.front
        front.barrier()
        front.probe.wait((self.errors[REQUESTS].fd, self.calls[REQUESTS].fd, front.probe.fd), AFTERMATH_S)
        front.barrier()
        self.recover()
        self.getattr()

    # -- FUSE

    def request(self, opcode: int, nodeid: int, args: Sequence[Any] = (), names: Sequence[bytes] = (),
                data: bytes = b"", **more: Any) -> bytes:  # fmt: skip
        """A request's bytes, with the next unique number, as root."""
        self.unique += 2
        return encode(opcode, self.unique, nodeid, 0, 0, 1, args, names, data, **more)

    def fuse(self, opcode: int, nodeid: int = ROOT, args: Sequence[Any] = (), names: Sequence[bytes] = (),
             data: bytes = b"", *, size: int = 0, size_query: bool = False,
             **more: Any) -> Answer:  # fmt: skip
        """Send a request; its reply, decoded and checked."""
        request = self.request(opcode, nodeid, args, names, data, **more)
        room = reply_room(opcode, size)
        ring = HIPRIO if op.BY_NUMBER[opcode].hiprio else REQUESTS
        reply = self.exchange([request], [room] if room else [], ring=ring)
        return self.decoded(opcode, reply, size_query=size_query)

    def decoded(self, opcode: int, reply: bytes, *, unique: int = 0, size_query: bool = False) -> Answer:
        """A reply, by default to the last request."""
        try:
            return decode(opcode, reply, unique or self.unique, size_query=size_query)
        except PeerError as error:
            fail(f"a well-formed reply to {op.BY_NUMBER[opcode].name}", error.message)

    def fuse_as(self, uid: int, gid: int, opcode: int, nodeid: int, args: Sequence[Any] = (),
                names: Sequence[bytes] = (), **more: Any) -> Answer:  # fmt: skip
        """Send a request of another user."""
        self.unique += 2
        request = encode(opcode, self.unique, nodeid, uid, gid, 1, args, names, **more)
        return self.decoded(opcode, self.exchange([request], [reply_room(opcode)]))

    def ok(self, opcode: int, nodeid: int = ROOT, args: Sequence[Any] = (), names: Sequence[bytes] = (),
           data: bytes = b"", **more: Any) -> Any:  # fmt: skip
        """Send a request that must succeed; the body of its reply."""
        answer = self.fuse(opcode, nodeid, args, names, data, **more)
        if answer.error:
            fail(f"{op.BY_NUMBER[opcode].name} succeeds", f"{os.strerror(answer.error)} ({answer.error})")
        return answer.body

    def init(self, *, offer: int = LINUX_6_12_OFFER, minor: int = 41) -> Any:
        """FUSE_INIT: begin a session."""
        args = (7, minor, 128 << 10, offer & 0xFFFFFFFF, offer >> 32, b"")
        self.session = self.ok(op.INIT, 0, args)
        return self.session

    @property
    def flags(self) -> int:
        """INIT flags of the session, flags2 in the upper half."""
        flags: int = self.session.flags
        return flags | self.session.flags2 << 32 if flags & INIT_EXT else flags

    def getattr(self, nodeid: int = ROOT) -> Any:
        """GETATTR of a node (the root unless told otherwise); its attr_out."""
        return self.ok(op.GETATTR, nodeid, (0, 0, 0))

    def lookup(self, path: str) -> Any:
        """LOOKUP of each component; the last entry_out."""
        nodeid, entry = ROOT, None
        for name in path.strip("/").split("/"):
            entry = self.ok(op.LOOKUP, nodeid, (), (os.fsencode(name),))
            nodeid = entry.nodeid
        return entry

    def lookup_all(self, path: str) -> dict[bytes, int]:
        """The nodeids of all entries of a directory, by READDIRPLUS (or by LOOKUP without it)."""
        home = self.lookup(path).nodeid if path != "/" else ROOT
        fh = self.ok(op.OPENDIR, home, (0, 0)).fh
        found: dict[bytes, int] = {}
        offset, room = 0, 60_000
        while True:
            body = self.ok(op.READDIRPLUS, home, (fh, offset, room, 0, 0, 0, 0), size=room)
            entries = list(decode_direntplus(body))
            if not entries:
                self.ok(op.RELEASEDIR, home, (fh, 0, 0, 0))
                return found
            for entry, dirent, name in entries:
                offset = dirent.off
                if name not in (b".", b".."):
                    found[name] = entry.nodeid

    def close(self) -> None:
        """Unmap and close everything."""
        for event in (*self.kicks, *self.calls, *self.errors):
            event.close()
        self.rings.clear()
        self.memory.close()
        for _, memfd in self._memfds:
            memfd.close()


Device = RawDriver
"""Its name in scripts that were written before it had this one."""
