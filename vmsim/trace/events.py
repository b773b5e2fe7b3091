"""Every event that a run can show: one class per kind, its fields the facts.

The kind is the tag of the class; subscribers choose by glob (``virtio.ring.*``). To add a kind add a class
here and emit it from a wrapper at a seam (:mod:`vmsim.wrappers.traced`) or from whoever composes the machine.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="kind"):
    """Base of all events."""


class FuseRequest(Event, frozen=True, tag="fuse.request"):
    """The back-end took a FUSE request from a ring; ``opcode`` is its name, ``size_bytes`` all of it."""

    ring: int
    unique: int
    opcode: str
    nodeid: int
    size_bytes: int


class FuseReply(Event, frozen=True, tag="fuse.reply"):
    """Its answer; ``error`` is a positive errno or 0, ``deferred`` that it came later."""

    ring: int
    unique: int
    opcode: str
    error: int
    size_bytes: int
    deferred: bool = False


class FuseForget(Event, frozen=True, tag="fuse.no-reply"):
    """A request was carried out that has no reply."""

    ring: int
    unique: int
    opcode: str


class RingPop(Event, frozen=True, tag="virtio.ring.pop"):
    """A device took a chain; ``head`` is the split head or the packed buffer id."""

    ring: int
    head: int
    readable_bytes: int
    writable_bytes: int


class RingPush(Event, frozen=True, tag="virtio.ring.push"):
    """A device returned a chain."""

    ring: int
    head: int
    written_bytes: int


class RingNotify(Event, frozen=True, tag="virtio.ring.notify"):
    """The driver told the device that buffers are available (a kick)."""

    ring: int


class RingCall(Event, frozen=True, tag="virtio.ring.call"):
    """The device told the driver that buffers were used."""

    ring: int


class RingViolated(Event, frozen=True, tag="virtio.ring.violation"):
    """A ring was given up: what was wrong, and which section says so."""

    ring: int
    message: str
    spec: str = ""


class VhostRequest(Event, frozen=True, tag="vhost.request"):
    """The front-end sent a message; ``number`` counts the messages of this connection from 1."""

    number: int
    name: str
    payload: str
    fds: int
    need_reply: bool


class VhostReply(Event, frozen=True, tag="vhost.reply"):
    """Its answer, or the error that came instead."""

    number: int
    name: str
    payload: str
    fds: int
    error: str = ""


class MigrationPhase(Event, frozen=True, tag="migration.phase"):
    """One side of a migration entered a phase."""

    side: str
    phase: str


class MigrationRound(Event, frozen=True, tag="migration.round"):
    """A pre-copy round ended: what it sent, and what has been dirtied since."""

    number: int
    sent_bytes: int
    dirty_bytes: int


class MigrationCommit(Event, frozen=True, tag="migration.commit"):
    """The one point after which the source never runs again."""

    downtime_ns: int = 0


class MigrationFailed(Event, frozen=True, tag="migration.failed"):
    """A migration ended before commit."""

    side: str
    step: str
    message: str


class ChannelWrite(Event, frozen=True, tag="migration.write"):
    """Bytes went into a migration channel; ``offset`` counts this direction from 0."""

    offset: int
    size_bytes: int


class ChannelRead(Event, frozen=True, tag="migration.read"):
    """Bytes came out of a migration channel."""

    offset: int
    size_bytes: int


class HostCall(Event, frozen=True, tag="host.call"):
    """The passthrough server made a system call; ``error`` is a positive errno or 0."""

    name: str
    arguments: str
    error: int


class SimSpawn(Event, frozen=True, tag="sim.spawn"):
    """An activity was started."""

    name: str


class SimTurn(Event, frozen=True, tag="sim.turn"):
    """A schedule let somebody run: who, what for, and out of how many that could."""

    name: str
    what: str
    choices: int


class SimEnd(Event, frozen=True, tag="sim.end"):
    """An activity ended; ``error`` is what it raised."""

    name: str
    error: str = ""


class SimFault(Event, frozen=True, tag="sim.fault"):
    """A fault was injected."""

    seam: str
    operation: str
    number: int
    fault: str


EVENTS: Final[tuple[type[Event], ...]] = tuple(Event.__subclasses__())
"""Every kind of event."""


def kind_of(event: type[Event]) -> str:
    """The kind that a class stands for, such as ``fuse.request``."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


KINDS: Final[dict[str, type[Event]]] = {kind_of(event): event for event in EVENTS}
"""Every kind with its class."""
