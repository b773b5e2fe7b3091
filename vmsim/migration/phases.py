"""The phases of an outgoing migration, as a table.

What the phases tell apart is who may run the guest, and so what a failure means:

* **Setup to ready**: the guest is the source's. Programs work until *stop*. Whatever fails, on either side
  and at whatever byte, leads to *failed*, and the source goes on as if nothing had been. Nothing may be done
  in these phases that could not be undone.
* **Commit**: the go has been given, or is being given: from the first of its bytes on the destination may
  run. So this phase is entered *before* the go is written, and only the destination's own word leads out of
  it: it runs (*done*), it has given up (*failed*), or there is no such word (*doubt*). The end of the channel
  is not a word: a tunnel may have taken it along.
* **Doubt**: the guest is stopped here, with everything, until somebody who has looked says what became of the
  destination. A doubt is entered also where an interrupt comes between the go and the word.
* **Done, failed**: the end. What fails after *done* changes nothing any more.

Through a file or a command there is no other side that says *ready*: *commit* follows *device*.
"""

from __future__ import annotations

from typing import Final

from vmsim.errors import StateError

SETUP: Final = "setup"
PRECOPY: Final = "precopy"
STOP: Final = "stop"
DEVICE: Final = "device"
READY: Final = "ready"
COMMIT: Final = "commit"
DONE: Final = "done"
FAILED: Final = "failed"
DOUBT: Final = "doubt"

TABLE: Final[dict[str, frozenset[str]]] = {
    SETUP: frozenset({PRECOPY, FAILED}),
    PRECOPY: frozenset({STOP, FAILED}),
    STOP: frozenset({DEVICE, FAILED}),
    DEVICE: frozenset({READY, COMMIT, FAILED}),
    READY: frozenset({COMMIT, FAILED}),
    COMMIT: frozenset({DONE, FAILED, DOUBT}),
    DOUBT: frozenset({DONE, FAILED}),
    DONE: frozenset(),
    FAILED: frozenset(),
}
"""Which phases may follow each. What is not here cannot happen, and is a fault of ours if it does."""

TOO_LATE: Final = frozenset({COMMIT, DONE, FAILED, DOUBT})
"""For a cancellation."""


def follow(phase: str, then: str) -> str:
    """``then``; StateError if it cannot follow ``phase``."""
    if then not in TABLE[phase]:
        raise StateError(f"a migration in phase {phase} cannot come to {then}")
    return then
