"""A back-end's ring: every input in every state, beside the table that says what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.vhost_rig import BASIC, EchoDevice
from vmsim.errors import StateError
from vmsim.memory import GuestMemory, Region
from vmsim.schedule import Schedule
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost.backend_ring import BackendRing
from vmsim.vhost.messages import MessageError
from vmsim.vhost.payloads import VringAddr
from vmsim.vhost.ring_states import ON, SERVED, TABLE, RingEvent, RingState, after
from vmsim.virtio.rings import DriverRing, RingConfig, make_driver_ring

SIZE = 8
DESC, DRIVER, DEVICE = 0x0, 0x1000, 0x2000
REQUEST, ROOM = 0x4000, 0x5000
ADDR = VringAddr(0, 0, DESC, DEVICE, DRIVER, 0)
REFUSED = "refused"


class Ring:
    """A ring with an echoing device behind it, and its driver."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.schedule: Schedule = ImmediateSchedule()
        self.device = EchoDevice()
        self.ring = BackendRing(0, self.device, self.schedule, "strict")
        self.ring.set_memory(memory, BASIC, None)
        self.ring.set_num(SIZE)
        self.ring.set_addr(ADDR)
        self.driver: DriverRing = make_driver_ring(RingConfig(SIZE, DESC, DRIVER, DEVICE, BASIC), memory)

    def send(self) -> None:
        self.memory.write(REQUEST, b"hello")
        self.driver.add([(REQUEST, 5)], [(ROOM, 5)])
        self.driver.publish()
        self.ring.kicked()

    def break_it(self) -> None:
        """The driver makes more available than the ring has entries."""
        self.memory.write(DRIVER + 2, (0x7FFF).to_bytes(2, "little"))
        self.ring.kicked()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory([Region("mem", 0, 0x8000, memoryview(bytearray(0x8000)))])
    yield guest
    guest.close()


def stopped(made: Ring) -> None:
    """As it was made."""


def kickable(made: Ring) -> None:
    made.ring.expect_kicks()


def unstartable(made: Ring) -> None:
    made.ring.addr = None
    kickable(made)
    made.ring.kicked()
    made.ring.addr = ADDR


def started(made: Ring) -> None:
    kickable(made)
    made.ring.kicked()


def working(made: Ring) -> None:
    made.ring.set_enabled(True)
    started(made)


def broken(made: Ring) -> None:
    working(made)
    made.break_it()


REACH: dict[RingState, Callable[[Ring], None]] = {
    RingState.STOPPED: stopped, RingState.KICKABLE: kickable, RingState.UNSTARTABLE: unstartable,
    RingState.STARTED: started, RingState.WORKING: working, RingState.BROKEN: broken,
}  # fmt: skip

INPUTS: dict[str, Callable[[Ring], object]] = {
    "SET_VRING_NUM": lambda made: made.ring.set_num(SIZE),
    "SET_VRING_BASE": lambda made: made.ring.set_base(0),
    "SET_VRING_ADDR, the same": lambda made: made.ring.set_addr(ADDR),
    "SET_VRING_ADDR, another": lambda made: made.ring.set_addr(ADDR._replace(desc=0x3000)),
    "SET_INFLIGHT_FD": lambda made: made.ring.set_inflight(None),
    "SET_VRING_KICK": lambda made: made.ring.expect_kicks(),
    "SET_VRING_ENABLE 1": lambda made: made.ring.set_enabled(True),
    "SET_VRING_ENABLE 0": lambda made: made.ring.set_enabled(False),
    "a kick": lambda made: made.ring.kicked(),
    "memory anew": lambda made: made.ring.set_memory(made.memory, BASIC, None),
    "GET_VRING_BASE": lambda made: made.ring.stop(),
    "RESET_DEVICE": lambda made: made.ring.reset(),
}  # fmt: skip
ONLY_STOPPED = {"SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR, another", "SET_INFLIGHT_FD"}


def expected(state: RingState, name: str) -> RingState | str:
    """By the specification."""
    if name in ONLY_STOPPED and state in ON:
        return REFUSED
    if name in ("GET_VRING_BASE", "RESET_DEVICE"):
        return RingState.STOPPED
    changes = {
        (RingState.STOPPED, "SET_VRING_KICK"): RingState.KICKABLE,
        (RingState.KICKABLE, "a kick"): RingState.STARTED,
        (RingState.STARTED, "SET_VRING_ENABLE 1"): RingState.WORKING,
    }
    return changes.get((state, name), state)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("state", RingState, ids=lambda state: state.name)
def test_every_input_in_every_state(memory: GuestMemory, state: RingState, name: str) -> None:
    made = Ring(memory)
    REACH[state](made)
    assert made.ring.state is state
    wanted = expected(state, name)
    if wanted is REFUSED:
        with pytest.raises(MessageError, match="is started"):
            INPUTS[name](made)
        wanted = state
    else:
        INPUTS[name](made)
    assert made.ring.state is wanted
    ring = made.ring
    assert (ring.live is not None) == (ring.enabled and wanted in SERVED)
    assert bool(ring.broken) == (wanted in (RingState.BROKEN, RingState.UNSTARTABLE))
    # Whatever happened: once it is stopped and set up anew, it serves.
    ring.stop()
    made.driver = make_driver_ring(RingConfig(SIZE, DESC, DRIVER, DEVICE, BASIC), memory)
    memory.write(DRIVER, bytes(0x10))
    memory.write(DEVICE, bytes(0x10))
    ring.set_base(0)
    ring.set_addr(ADDR)
    ring.expect_kicks()
    ring.set_enabled(True)
    made.send()
    assert memory.read(ROOM, 5) == b"olleh"


@pytest.mark.parametrize("event", RingEvent, ids=lambda event: event.name)
@pytest.mark.parametrize("state", RingState, ids=lambda state: state.name)
def test_what_is_not_in_the_table_is_an_error(state: RingState, event: RingEvent) -> None:
    if event in TABLE[state]:
        assert after(state, event) in RingState
    else:
        with pytest.raises(StateError, match="cannot be"):
            after(state, event)


def test_disabling_serves_what_is_there_and_enabling_what_came_meanwhile(memory: GuestMemory) -> None:
    made = Ring(memory)
    working(made)
    made.ring.set_enabled(False)
    made.send()
    assert made.device.served == []
    made.ring.set_enabled(True)
    assert made.device.served == [(0, b"hello")]
