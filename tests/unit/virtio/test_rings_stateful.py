"""A driver, a device and a model of what must come out: any order of steps, all formats and features."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.ring_pair import DATA, make_config, make_memory
from tests.support.sampling import examples
from vmsim.virtio.constants import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_NOTIFICATION_DATA,
    F_RING_PACKED,
)
from vmsim.virtio.rings import QueueFull, make_device_ring, make_driver_ring

FEATURES = [F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_NOTIFICATION_DATA]
SLICE = 4096


class Rings(RuleBasedStateMachine):
    """The model: what was added, published, popped and pushed, in order; each buffer has its own page."""

    @initialize(
        packed=st.booleans(),
        chosen=st.sets(st.sampled_from(FEATURES)),
        shift=st.integers(0, 5),
        odd=st.integers(1, 40),
        start=st.integers(0, 0xFFFF),
    )
    def set_up(self, packed, chosen, shift, odd, start):
        features = sum(chosen) | (F_RING_PACKED if packed else 0)
        size = odd if packed else 1 << shift
        self.memory = make_memory()
        self.config = make_config(features, size)
        self.driver = make_driver_ring(self.config, self.memory)
        self.device = make_device_ring(self.config, self.memory)
        self.in_order = F_IN_ORDER in chosen
        self.indirect = F_INDIRECT_DESC in chosen
        self.size = size
        self.pages = deque(range(400))
        self.added = []  # (id, page, text, writable bytes, slots)
        self.published = deque()
        self.popped = []  # (record, chain)
        self.returned = deque()  # (record, written): pushed, not yet seen by the driver
        self.waiting = {}  # IN_ORDER: pushed before their turn
        self.device_waits = self.driver_waits = False
        self.kick_due = self.call_due = False
        if not packed:  # as if it had worked for long
            driver_state, device_state = self.driver.save(), self.device.save()
            for state in (driver_state, device_state):
                state.next_avail = state.next_used = start
            driver_state.kicked = start
            self.memory.store_u16(self.config.driver + 2, start)
            self.memory.store_u16(self.config.device + 2, start)
            self.driver = make_driver_ring(self.config, self.memory, state=driver_state)
            self.device = make_device_ring(self.config, self.memory, state=device_state)
            self.device.needs_call()

    @rule(readable=st.integers(0, 4), writable=st.integers(0, 4), table=st.booleans(), close=st.booleans())
    def add(self, readable, writable, table, close):
        count = readable + writable
        table = table and self.indirect
        if not 0 < count <= self.size or not self.pages:
            return
        page = self.pages[0]
        base = DATA + page * SLICE
        step = 16 if close else 100
        text = bytes((page + n) % 251 for n in range(16 * readable))
        outs = [(base + step * n, 16) for n in range(readable)]
        ins = [(base + 1000 + step * n, 16) for n in range(writable)]
        for n, (gpa, length) in enumerate(outs):
            self.memory.write(gpa, text[16 * n : 16 * n + length])
        slots = 1 if table else count
        if slots > self.driver.free:
            before = self.driver.free
            try:
                self.driver.add(outs, ins, (base + 3000, 512) if table else None)
            except QueueFull:
                assert self.driver.free == before
                return
            raise AssertionError("QueueFull was not raised")
        buffer_id = self.driver.add(outs, ins, (base + 3000, 512) if table else None)
        self.pages.popleft()
        self.added.append((buffer_id, page, text, 16 * writable, slots))

    @precondition(lambda self: self.added)
    @rule()
    def publish(self):
        self.driver.publish()
        self.published.extend(self.added)
        self.added.clear()
        kick = self.driver.needs_kick()
        if self.device_waits:
            assert kick, "the device waits for a notification that did not come"
            self.device_waits = False

    @rule()
    def pop(self):
        chain = self.device.pop()
        if not self.published:
            assert chain is None
            return
        record = self.published.popleft()
        buffer_id, _, text, capacity, slots = record
        assert (chain.head, chain.count) == (buffer_id, slots)
        assert b"".join(chain.readable) == text
        assert chain.writable_bytes == capacity
        self.popped.append((record, chain))

    @precondition(lambda self: self.popped)
    @rule(pick=st.integers(0, 1000), part=st.integers(0, 16), full=st.booleans())
    def push(self, pick, part, full):
        todo = [item for item in self.popped if item[0][0] not in self.waiting]
        if not todo:
            return
        record, chain = todo[pick % len(todo)]
        written = record[3] if full else record[3] * part // 16
        data = bytes((record[1] * 7 + n) % 253 for n in range(written))
        done = 0
        for view in chain.writable:
            piece = data[done : done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
        self.device.push(chain, written)
        fresh = []
        if not self.in_order:
            self.popped.remove((record, chain))
            fresh.append((record, written))
        else:
            self.waiting[record[0]] = written
            while self.popped and self.popped[0][0][0] in self.waiting:
                first = self.popped.pop(0)[0]
                fresh.append((first, self.waiting.pop(first[0])))
        self.returned.extend(fresh)
        call = self.device.needs_call()
        if self.driver_waits and fresh:
            assert call, "the driver waits for a notification that did not come"
            self.driver_waits = False

    @rule()
    def reap(self):
        result = self.driver.reap()
        if not self.returned:
            assert result is None
            return
        record, written = self.returned.popleft()
        assert result == (record[0], written)
        base = DATA + record[1] * SLICE
        expected = bytes((record[1] * 7 + n) % 253 for n in range(written))
        writable = record[3] // 16
        tight = b"".join(self.memory.read(base + 1000 + 16 * n, 16) for n in range(writable))
        loose = b"".join(self.memory.read(base + 1000 + 100 * n, 16) for n in range(writable))
        assert expected in (tight[:written], loose[:written])
        self.memory.write(base, bytes(SLICE))
        self.pages.append(record[1])

    @rule()
    def device_goes_to_sleep(self):
        assert self.device.arm_kicks() == bool(self.published)
        self.device_waits = not self.published

    @rule()
    def driver_goes_to_sleep(self):
        assert self.driver.arm_interrupts() == bool(self.returned)
        self.driver_waits = not self.returned

    @rule()
    def device_polls(self):
        self.device.suppress_kicks()
        self.device_waits = False

    @rule()
    def driver_polls(self):
        self.driver.suppress_interrupts()
        self.driver_waits = False

    @rule()
    def move_the_device(self):
        state = self.device.save()
        self.device = make_device_ring(self.config, self.memory, state=state)
        assert self.device.save() == state
        chains = {chain.head: chain for chain in self.device.in_flight}
        self.popped = [(record, chains[record[0]]) for record, _ in self.popped]
        assert len(chains) == len(self.popped)

    @precondition(lambda self: not self.added)
    @rule()
    def move_the_driver(self):
        state = self.driver.save()
        self.driver = make_driver_ring(self.config, self.memory, state=state)
        assert self.driver.save() == state

    @invariant()
    def slots_add_up(self):
        if hasattr(self, "driver"):
            alive = self.added + list(self.published) + [item[0] for item in (*self.popped, *self.returned)]
            assert self.driver.free == self.size - sum(record[4] for record in alive)
            assert self.driver.outstanding == len(alive)
            assert len(self.device.in_flight) == len(self.popped)


TestRings = Rings.TestCase
TestRings.settings = settings(max_examples=examples(150), stateful_step_count=60, deadline=None)
