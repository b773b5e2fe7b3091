"""The states of a machine, as a table.

A machine is at one place. What the states tell apart is where its guest may run:

* **Incoming**: it is being filled from a stream. The guest runs at the source, so nothing here may run before
  the source has given the go; a machine that is not started in the end is closed, and nobody has seen it run.
* **Running, paused**: the guest is here. Only a running machine migrates, and it stays *running* while it
  does: programs work on until the stop, and every failure before the go leaves it as it was.
* **In doubt**: the go was given and the destination has not said what became of it. The guest is stopped
  here and holds everything, since it may have to go on; and must not go on, since it may run there. Nobody in
  this program can know: ``settle`` takes the word of whoever looked.
* **Finished**: the guest runs elsewhere, or its state lies in a file. It never runs here again, whatever is
  called, which is what makes it safe that somebody still has the object.
* **Closed**: everything has been given back.

::

      INCOMING ──START──▶ RUNNING ◀──RESUME── PAUSED
                          │ ▲ │└────PAUSE────────▲
                    DOUBT │ │ └───────LEAVE──────┐
                          ▼ │ SETTLE             ▼
                        IN DOUBT ─────LEAVE──▶ FINISHED            CLOSE leads from all of them to CLOSED
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from vmsim.errors import StateError

INCOMING: Final = "incoming"
RUNNING: Final = "running"
PAUSED: Final = "paused"
IN_DOUBT: Final = "in doubt"
FINISHED: Final = "finished"
CLOSED: Final = "closed"


class MachineEvent(Enum):
    """What happens to a machine."""

    START = "its guest starts, or goes on after a migration"
    PAUSE = "the guest and the rings are stopped"
    RESUME = "they go on"
    DOUBT = "a migration ends without the destination's word"
    SETTLE = "somebody says that the destination does not run"
    LEAVE = "the guest is elsewhere"
    CLOSE = "everything is given back"


START, PAUSE, RESUME = MachineEvent.START, MachineEvent.PAUSE, MachineEvent.RESUME
DOUBT, SETTLE, LEAVE, CLOSE = MachineEvent.DOUBT, MachineEvent.SETTLE, MachineEvent.LEAVE, MachineEvent.CLOSE

TABLE: Final[dict[str, dict[MachineEvent, str]]] = {
    INCOMING: {START: RUNNING, CLOSE: CLOSED},
    RUNNING: {PAUSE: PAUSED, DOUBT: IN_DOUBT, LEAVE: FINISHED, CLOSE: CLOSED},
    PAUSED: {RESUME: RUNNING, CLOSE: CLOSED},
    IN_DOUBT: {SETTLE: RUNNING, LEAVE: FINISHED, CLOSE: CLOSED},
    FINISHED: {LEAVE: FINISHED, CLOSE: CLOSED},
    CLOSED: {CLOSE: CLOSED},
}
"""What is not here cannot happen. A machine leaves again if an interrupt came while it did."""


def after(state: str, event: MachineEvent) -> str:
    """The state that ``event`` leads to; StateError if it cannot happen in ``state``."""
    try:
        return TABLE[state][event]
    except KeyError:
        raise StateError(
            f"the machine is {state}: it cannot be that {event.value}",
            hint="a finished machine lives on as the one that migrate() returned",
        ) from None
