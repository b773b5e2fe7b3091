"""The states of a request that the server has taken, as a table.

Nearly every request is answered by the call that handed it in, and nobody looks at its state. The others are
told apart by who can end them:

* **Waiting**: the method has said DEFERRED and answers later, by ``done``. It holds whatever it waits with,
  so an INTERRUPT, or giving the request up, must go through the file system (``FileSystem.interrupt``).
* **Put off**: the method raised TryAgain, after having undone everything. Nobody holds anything: an INTERRUPT
  ends the request here, and giving it up is forgetting it.
* **Apart**: it is being served beside the loop, in a call that may sleep in the host. Nothing reaches it: it
  can be neither interrupted nor given up, because it may have had its effect already. An INTERRUPT is
  remembered and ends it only if it comes back without having had one (TRY_AGAIN). Only the end of the session
  does not wait for it: then its result, when it comes, is nobody's.
* **Finished**: it has its answer, or is given up and never gets one. A file system may call ``done`` once too
  often, which changes nothing; its answer after the request was given up must not be written into memory
  that is the driver's again.

::

                    DEFER
      RUNNING ───────────────▶ WAITING        ANSWER and GIVE_UP lead from all of them to FINISHED, but
       ▲ │  │ TRY_AGAIN                       nobody may give up what is RUNNING, and what is APART only
       │ │  └───────▶ PUT_OFF ◀┐              together with its session
       │ │    RETRY     │      │ TRY_AGAIN
       └─┼──────────────┘      │
         └── MOVE ─────▶ APART ┘
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from vmsim.errors import StateError


class RequestState(Enum):
    """Where a request stands."""

    RUNNING = "being served"
    WAITING = "waiting for the file system"
    PUT_OFF = "to be served anew"
    APART = "being served beside the loop"
    FINISHED = "answered, or given up"


class RequestEvent(Enum):
    """What happens to a request."""

    DEFER = "the method answers later"
    TRY_AGAIN = "the method has done nothing and is to be called again"
    RETRY = "it is called again"
    MOVE = "it is served beside the loop from now on"
    ANSWER = "it has a result"
    GIVE_UP = "nobody wants an answer any more"


RUNNING, WAITING, PUT_OFF = RequestState.RUNNING, RequestState.WAITING, RequestState.PUT_OFF
APART, FINISHED = RequestState.APART, RequestState.FINISHED
DEFER, TRY_AGAIN, RETRY = RequestEvent.DEFER, RequestEvent.TRY_AGAIN, RequestEvent.RETRY
MOVE, ANSWER, GIVE_UP = RequestEvent.MOVE, RequestEvent.ANSWER, RequestEvent.GIVE_UP

TABLE: Final[dict[RequestState, dict[RequestEvent, RequestState]]] = {
    RUNNING: {DEFER: WAITING, TRY_AGAIN: PUT_OFF, MOVE: APART, ANSWER: FINISHED},
    WAITING: {ANSWER: FINISHED, GIVE_UP: FINISHED},
    PUT_OFF: {RETRY: RUNNING, ANSWER: FINISHED, GIVE_UP: FINISHED},
    APART: {TRY_AGAIN: PUT_OFF, ANSWER: FINISHED, GIVE_UP: FINISHED},
    FINISHED: {ANSWER: FINISHED},
}
"""What is not here cannot happen, and is a fault of ours if it does."""


def after(state: RequestState, event: RequestEvent) -> RequestState:
    """The state that ``event`` leads to; StateError if it cannot happen in ``state``."""
    try:
        return TABLE[state][event]
    except KeyError:
        raise StateError(f"{event.value}: cannot be, the request is {state.value}") from None
