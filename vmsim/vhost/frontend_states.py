"""The states of a front-end, as a table.

What they tell apart is whose the rings are, and so which messages mean anything:

* **New**: nothing has been said. What the back-end offers is not known, so nothing but the negotiation makes
  sense, and it happens once: a back-end that has to be asked again is asked over a new connection.
* **Stopped**: the rings are the front-end's. Their positions are known (GET_VRING_BASE drained them), memory
  may be shared anew, the device reset, and its state saved or loaded: a state is that of one moment, and only
  here does nothing change meanwhile (vhost-user "Migrating back-end state").
* **Running**: the rings are the back-end's. A single one may stop and start (a queue reset, virtio 1.3
  section 2.6.1); when the driver has reset all of them the device runs on without any, and the next one that
  is enabled is started like the others. A stop that fails half way leads back here, with all rings brought
  back, a start that fails half way to *stopped*, with none of them left: never some of them.
* **Closed**: the connection is gone. What the device had lives on in its own state.

The dirty log may be on or off in *stopped* and in *running*; what is between the two, when the back-end has
not confirmed either, is :attr:`VhostFrontend.log_unsure`.

::

      NEW ──CONNECT──▶ STOPPED ──START──▶ RUNNING ◀─┐ RING
                       ▲ │  ▲ └─────◀─────────┘ └───┘
                       └─┘  └── STOP, RESET             CLOSE leads from all of them to CLOSED
               RESET, MOVE_STATE
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from vmsim.errors import StateError


class FrontendState(Enum):
    """Where a front-end stands."""

    NEW = "not connected"
    STOPPED = "stopped"
    RUNNING = "running"
    CLOSED = "closed"


class FrontendEvent(Enum):
    """What is asked of a front-end."""

    CONNECT = "negotiate"
    START = "start the rings"
    RING = "start or stop one ring"
    STOP = "stop the rings"
    RESET = "reset the device"
    MOVE_STATE = "transfer the back-end's state"
    CLOSE = "close"


NEW, STOPPED = FrontendState.NEW, FrontendState.STOPPED
RUNNING, CLOSED = FrontendState.RUNNING, FrontendState.CLOSED
CONNECT, START, RING = FrontendEvent.CONNECT, FrontendEvent.START, FrontendEvent.RING
STOP, RESET = FrontendEvent.STOP, FrontendEvent.RESET
MOVE_STATE, CLOSE = FrontendEvent.MOVE_STATE, FrontendEvent.CLOSE

TABLE: Final[dict[FrontendState, dict[FrontendEvent, FrontendState]]] = {
    NEW: {CONNECT: STOPPED, CLOSE: CLOSED},
    STOPPED: {START: RUNNING, RESET: STOPPED, MOVE_STATE: STOPPED, CLOSE: CLOSED},
    RUNNING: {RING: RUNNING, STOP: STOPPED, RESET: STOPPED, CLOSE: CLOSED},
    CLOSED: {CLOSE: CLOSED},
}
"""What is not here cannot be done."""


def after(state: FrontendState, event: FrontendEvent) -> FrontendState:
    """The state that ``event`` leads to; StateError if it cannot be done in ``state``."""
    try:
        return TABLE[state][event]
    except KeyError:
        raise StateError(f"cannot {event.value}: the front-end is {state.value}") from None
