"""The states of a back-end's ring, as a table.

Two bits are the specification's (vhost-user "Ring states"): a ring is stopped or started, and disabled or
enabled. They are independent: SET_VRING_ENABLE may come before the ring is started and is remembered while it
is stopped, so ``enabled`` is not in this table. What is in it is what "stopped" and "started" have to tell
apart:

* **Stopped, or waiting for the first kick.** No message starts a ring: the first kick does. A front-end sets
  up rings that its driver may never use, and the addresses of such a ring mean nothing; so nothing of it is
  looked at before there is a kick. From SET_VRING_KICK on that can happen at any moment without another
  message, which is why a device counts as suspended only when no ring is KICKABLE either.
* **Started, or working.** A ring that starts may have a past: requests that were parked when it stopped here,
  or that a back-end which died left in the in-flight region. They come first, and once, but not while it is
  disabled: until it is enabled it stays STARTED, and what the driver has made available stays where it is.
* **Broken, before and after the start.** A driver that breaks its ring gets no more service from it, and only
  who stops the ring (GET_VRING_BASE, or a reset) can start it anew: going on at an index that cannot be
  right would serve garbage. A ring that could not even be started was never on, so the front-end may still
  correct its size and addresses, as it may for each stopped ring.

Stopping is possible in every state and idempotent: a front-end that gives up half way through a set-up sends
GET_VRING_BASE for all its rings.

::

                 NOTIFIER            START             TAKE_UP
      STOPPED ─────────────▶ KICKABLE ─────▶ STARTED ───────────▶ WORKING
         ▲                      │ FAIL          └───── FAIL ─────────┤
         │ STOP                 ▼                                    ▼
         └───────────────── UNSTARTABLE       STOP leads here      BROKEN        from all of them
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from vmsim.errors import StateError


class RingState(Enum):
    """Where a ring stands."""

    STOPPED = "stopped"
    KICKABLE = "waiting for its first kick"
    UNSTARTABLE = "not to be started as it is"
    STARTED = "started"
    WORKING = "working"
    BROKEN = "broken"


class RingEvent(Enum):
    """What happens to a ring."""

    NOTIFIER = "SET_VRING_KICK"
    START = "the first kick"
    TAKE_UP = "its past is taken up"
    FAIL = "the driver or the front-end broke it"
    STOP = "GET_VRING_BASE or a reset"


STOPPED, KICKABLE, UNSTARTABLE = RingState.STOPPED, RingState.KICKABLE, RingState.UNSTARTABLE
STARTED, WORKING, BROKEN = RingState.STARTED, RingState.WORKING, RingState.BROKEN
NOTIFIER, START, TAKE_UP = RingEvent.NOTIFIER, RingEvent.START, RingEvent.TAKE_UP
FAIL, STOP = RingEvent.FAIL, RingEvent.STOP

TABLE: Final[dict[RingState, dict[RingEvent, RingState]]] = {
    STOPPED: {NOTIFIER: KICKABLE, STOP: STOPPED},
    KICKABLE: {NOTIFIER: KICKABLE, START: STARTED, FAIL: UNSTARTABLE, STOP: STOPPED},
    UNSTARTABLE: {NOTIFIER: UNSTARTABLE, FAIL: UNSTARTABLE, STOP: STOPPED},
    STARTED: {NOTIFIER: STARTED, TAKE_UP: WORKING, FAIL: BROKEN, STOP: STOPPED},
    WORKING: {NOTIFIER: WORKING, FAIL: BROKEN, STOP: STOPPED},
    BROKEN: {NOTIFIER: BROKEN, FAIL: BROKEN, STOP: STOPPED},
}
"""What is not here cannot happen, and is a fault of ours if it does."""

ON: Final = frozenset({STARTED, WORKING, BROKEN})
"""Started, in the specification's sense: size, base and in-flight region may not change."""
SERVED: Final = frozenset({STARTED, WORKING})
"""The driver's requests are taken, if the ring is enabled."""


def after(state: RingState, event: RingEvent) -> RingState:
    """The state that ``event`` leads to; StateError if it cannot happen in ``state``."""
    try:
        return TABLE[state][event]
    except KeyError:
        raise StateError(f"{event.value}: cannot be, the ring is {state.value}") from None
