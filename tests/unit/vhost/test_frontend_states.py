"""A front-end: everything that may be asked of it in every state, beside the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.vhost_rig import BASIC, EchoDevice, Rig
from vmsim.errors import StateError, VmsimError
from vmsim.vhost.frontend import RingSetup, VhostFrontend
from vmsim.vhost.frontend_states import (
    CLOSE,
    CLOSED,
    CONNECT,
    MOVE_STATE,
    NEW,
    RESET,
    RING,
    RUNNING,
    START,
    STOP,
    TABLE,
    FrontendEvent,
    FrontendState,
    after,
)
from vmsim.virtio.constants import F_RING_RESET, F_VERSION_1

QUEUE_RESET = 0xC0


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(attach=False) as made:
        made.connect()
        yield made


def setup(rig: Rig, number: int = 1) -> RingSetup:
    base = rig.driver.base(number)
    rig.memory.write(base, bytes(0x3000))
    return RingSetup(number, 128, base, base + 0x1000, base + 0x2000, 0)


def reached(rig: Rig, state: FrontendState) -> VhostFrontend:
    """A front-end in a state."""
    frontend = VhostFrontend(rig.transport, rig.host, rig.dialect, "device", 2)
    frontend.transport.on_call = lambda ring: None
    if state is not NEW:
        frontend.connect()
    if state is RUNNING:
        frontend.start(F_VERSION_1, rig.memory, [setup(rig)])
    if state is CLOSED:
        frontend.close()
    assert frontend.state is state
    return frontend


ACTS = {
    CONNECT: lambda frontend, rig: frontend.connect(),
    START: lambda frontend, rig: frontend.start(F_VERSION_1, rig.memory, [setup(rig)]),
    RING: lambda frontend, rig: (frontend.stop_ring(1), frontend.start_ring(setup(rig))),
    STOP: lambda frontend, rig: frontend.stop_rings(),
    RESET: lambda frontend, rig: frontend.reset_device(),
    MOVE_STATE: lambda frontend, rig: list(frontend.save_backend_state()),
    CLOSE: lambda frontend, rig: frontend.close(),
}  # fmt: skip


@pytest.mark.parametrize("state", FrontendState, ids=lambda state: state.name)
@pytest.mark.parametrize("event", FrontendEvent, ids=lambda event: event.name)
def test_everything_in_every_state(rig, state, event):
    frontend = reached(rig, state)
    said = len(rig.transport.names)
    if event in TABLE[state]:
        ACTS[event](frontend, rig)
        assert frontend.state is TABLE[state][event] is after(state, event)
    else:
        with pytest.raises(VmsimError):
            ACTS[event](frontend, rig)
        assert frontend.state is state
        assert len(rig.transport.names) == said, "nothing is sent for what cannot be done"
    frontend.close()


def test_a_refusal_names_the_device_and_the_state(rig):
    with pytest.raises(StateError, match="device: cannot start the rings: the front-end is not connected"):
        reached(rig, NEW).start(0, rig.memory, [])


def test_a_device_whose_queues_have_all_been_reset_runs_on():
    with Rig(echo=EchoDevice(BASIC | F_RING_RESET)) as rig:
        rig.boot(F_VERSION_1 | F_RING_RESET)
        assert rig.driver.call(b"before") == b"erofeb"
        write = rig.device.registers.write
        for queue in rig.driver.queues:
            write(0x30, 4, queue)
            write(QUEUE_RESET, 4, 1)
        for queue in rig.driver.queues:
            rig.driver.rings[queue] = rig.driver.make(queue, F_VERSION_1 | F_RING_RESET)
            rig.driver.ready(queue)
        assert rig.driver.call(b"after") == b"retfa"
        rig.device.pause()
        rig.device.resume()
        assert rig.driver.call(b"again") == b"niaga"
