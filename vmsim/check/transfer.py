"""A back-end's state through a pipe, piece by piece: SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from vmsim.check.device import RawDriver
from vmsim.check.frontend import Frontend, close_all
from vmsim.check.outcome import Failed, NotOffered, check, fail, same
from vmsim.check.rigs import Rig, RingRig
from vmsim.errors import HostError
from vmsim.host.services import HostServices
from vmsim.host.vhost_user.transport import PeerSilent
from vmsim.host.waits import wait_ready
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p

HOST: Final = HostServices()
SPEC: Final = "vhost-user 'Migrating back-end state'"
SAVE: Final = c.STATE_SAVE
LOAD: Final = c.STATE_LOAD
PIECE: Final = 1 << 16


class Refused(Exception):
    """The back-end did not take the transfer; the message says where."""


def begin(front: Frontend, direction: int, phase: int = 0) -> int:
    """SET_DEVICE_STATE_FD with one end of a pipe; our end. Refused if the answer is an error."""
    front.require(c.F_DEVICE_STATE)
    read_end, write_end = HOST.pipe()
    ours, theirs = (read_end, write_end) if direction == SAVE else (write_end, read_end)
    try:
        reply = front.ask("SET_DEVICE_STATE_FD", p.DeviceState(direction, phase), (theirs,))
    except BaseException:
        HOST.close(ours)
        raise
    finally:
        HOST.close(theirs)
    value = reply.payload.value
    if value & 0xFF:
        HOST.close(ours)
        if reply.fds:
            close_all(reply.fds)
            fail("no descriptor with an error", f"{value:#x} and a descriptor")
        raise Refused(f"SET_DEVICE_STATE_FD was answered with {value:#x}")
    if value & c.NO_FD:
        check(not reply.fds, "no descriptor with bit 8", "one came")
        HOST.adopt(ours)
        return ours
    HOST.close(ours)
    same(len(reply.fds), 1, "descriptors in a reply without bit 8")
    HOST.adopt(reply.fds[0])
    return reply.fds[0]


def finish(front: Frontend) -> None:
    """CHECK_DEVICE_STATE; Refused if it is not 0."""
    code = front.number("CHECK_DEVICE_STATE")
    if code:
        raise Refused(f"CHECK_DEVICE_STATE was answered with {code:#x}")


def save(front: Frontend, *, piece: int = PIECE, between: Callable[[], object] = lambda: None) -> bytes:
    """The back-end's state, read in pieces; ``between`` happens after each."""
    fd = begin(front, SAVE)
    data = bytearray()
    try:
        while True:
            if not wait_ready(fd, front.probe.timeout_s):
                raise PeerSilent("the back-end sends no state")
            found = HOST.read(fd, piece)
            if found is None:
                continue
            if not found:
                break
            data += found
            between()
    finally:
        HOST.close(fd)
    finish(front)
    return bytes(data)


def load(front: Frontend, state: bytes, *, piece: int = PIECE) -> None:
    """Have the back-end take a state, sent in pieces; Refused if it does not."""
    fd = begin(front, LOAD)
    rest = memoryview(state)
    try:
        while rest:
            if not wait_ready(fd, front.probe.timeout_s, writing=True):
                raise PeerSilent("the back-end takes no state")
            rest = rest[HOST.write(fd, rest[:piece]) or 0 :]
    except HostError as error:
        if error.errno != errno.EPIPE:
            raise
    finally:
        HOST.close(fd)
    finish(front)


def must_save(front: Frontend) -> bytes:
    """``save``, which must succeed."""
    try:
        return save(front)
    except Refused as error:
        raise Failed("the state saved", str(error)) from error


def must_load(front: Frontend, state: bytes, *, piece: int = PIECE) -> None:
    """``load``, which must succeed."""
    try:
        load(front, state, piece=piece)
    except Refused as error:
        raise Failed("the state loaded", str(error)) from error


def must_not_load(front: Frontend, state: bytes, what: str) -> None:
    """``load`` must be refused, and the back-end go on."""
    try:
        load(front, state)
    except Refused:
        front.barrier()
        return
    fail(f"{what} refused", "it was loaded")


def stop_all(device: RawDriver) -> None:
    """Stop every ring, as before a transfer."""
    for index in range(device.count):
        device.stop_ring(index)


def second(rig: Rig) -> Frontend:
    """A front-end on another instance that shares the same directory."""
    front = rig.front(rig.another())
    front.require(c.F_DEVICE_STATE)
    return front


def handed_over(rig: RingRig, device: RawDriver, *, log: bool = True) -> RawDriver:
    """Migrate by hand: the session of ``device`` goes on in another instance, on new rings.

    ``log``: dirty logging is switched on before, which is how a back-end learns of the migration.
    """
    rig.wire.require(c.F_DEVICE_STATE)
    if log:
        if not rig.wire.features & c.VHOST_F_LOG_ALL:
            raise NotOffered("LOG_ALL is not offered")
        device.set_features(c.VHOST_F_LOG_ALL)
    stop_all(device)
    state = must_save(device.front)
    front = second(rig)
    must_load(front, state)
    arrived = RawDriver(front)
    rig.on_close(arrived.close)
    arrived.start()
    arrived.session = device.session
    arrived.unique = device.unique
    return arrived
