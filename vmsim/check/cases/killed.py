"""One side is killed, stopped or replaced: nothing panics, nothing is lost that was promised."""

from __future__ import annotations

import os
import signal

from vmsim.check import transfer
from vmsim.check.case import PAIR, SHARE, START, Group
from vmsim.check.cases.rings import REPLY_BYTES
from vmsim.check.device import REQUESTS, RawDriver
from vmsim.check.frontend import close_all
from vmsim.check.outcome import NotOffered, check, same
from vmsim.check.rigs import BareRig, GuestRig, RingRig, WireRig
from vmsim.errors import HostError
from vmsim.fuse import opcodes as op
from vmsim.host.processes import BackendProcess
from vmsim.host.vhost_user.transport import ConnectionLost
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p

CASES = Group("killed")
SPEC = "vhost-user 'Backend program conventions'"
RECONNECT = "vhost-user 'Reconnection'"
ENDS_S = 3.0


def process_of(rig: WireRig | GuestRig) -> BackendProcess:
    """The process of the first instance."""
    process = rig.instances[0].process
    assert process is not None
    return process


def leave(rig: WireRig) -> bool:
    """Hang up, and wait a little for the process to end; whether it has. It must not have panicked."""
    rig.hang_up(rig.instances[0])
    return process_of(rig).wait(0.5)


@CASES.case("front-end-goes", SPEC, needs=(START,))
def front_end_goes(rig: RingRig) -> None:
    """The front-end goes away between two requests: the process ends in good order, or stays."""
    rig.device().getattr()
    leave(rig)


@CASES.case("front-end-goes-amid-requests", SPEC, needs=(START, SHARE))
def front_end_goes_amid_requests(rig: RingRig) -> None:
    """The front-end goes away with many requests in flight, and its memory with it."""
    device = rig.device()
    for _ in range(30):
        device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES], kick=False)
    device.kick()
    leave(rig)


@CASES.case("front-end-goes-amid-save", SPEC, needs=(START, SHARE))
def front_end_goes_amid_save(rig: RingRig) -> None:
    """The front-end goes away while the back-end saves its state."""
    device = rig.device()
    transfer.stop_all(device)
    fd = transfer.begin(rig.wire, transfer.SAVE)
    rig.on_close(lambda: transfer.HOST.close(fd))
    leave(rig)


@CASES.case("front-end-goes-amid-load", SPEC, needs=(START, SHARE))
def front_end_goes_amid_load(rig: RingRig) -> None:
    """The front-end goes away before the state that it sends is complete."""
    fd = transfer.begin(rig.wire, transfer.LOAD)
    transfer.HOST.write(fd, b"\x01")
    rig.hang_up(rig.instances[0])
    transfer.HOST.close(fd)
    process_of(rig).wait(0.5)


@CASES.case("front-end-says-nothing", SPEC, needs=(START,))
def front_end_says_nothing(rig: BareRig) -> None:
    """A front-end that connects and goes away without a word."""
    leave(rig)


@CASES.case("reconnect", RECONNECT, needs=(START, SHARE), options=("--reconnect",))
def reconnect(rig: RingRig) -> None:
    """A back-end that stays serves the next front-end."""
    rig.device().getattr()
    if leave(rig):
        raise NotOffered("it ends with its connection")
    try:
        front = rig.front(rig.instances[0])
    except (HostError, ConnectionLost) as error:
        raise NotOffered(f"it stays, but takes no other connection: {error}") from error
    rig.instances[0].may_end = False
    device = rig.driver(front)
    device.start().init()
    device.getattr()
    rig.instances[0].may_end = True


@CASES.case("terminated", SPEC, needs=(START,))
def terminated(rig: RingRig) -> None:
    """SIGTERM ends it soon, with a session open."""
    rig.device().getattr()
    process = process_of(rig)
    rig.instances[0].may_end = True
    process.send_signal(signal.SIGTERM)
    check(process.wait(ENDS_S), f"the end within {ENDS_S:g} s", "it goes on")
    rig.ended_by(signal.SIGTERM)


@CASES.case("stopped", SPEC, needs=(START,))
def stopped(rig: RingRig) -> None:
    """A process that was stopped (SIGSTOP) and continued answers everything, once."""
    device = rig.device()
    process = process_of(rig)
    process.send_signal(signal.SIGSTOP)
    posted = [device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES]) for _ in range(20)]
    process.send_signal(signal.SIGCONT)
    found = sorted(device.used()[0] for _ in posted)
    same(found, sorted(each.id for each in posted), "buffers used")


@CASES.case("back-end-killed", SPEC, needs=(START, SHARE))
def back_end_killed(rig: GuestRig) -> None:
    """What was written and synced is there for the next instance."""
    fs = rig.boot()
    fd = fs.open("f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"synced")
    fs.fsync(fd)
    rig.instances[0].may_end = True
    process_of(rig).kill()
    rig.ended_by(signal.SIGKILL)
    device = rig.driver(rig.front(rig.another()))
    device.start().init()
    nodeid = device.lookup("/f").nodeid
    fh = device.ok(op.OPEN, nodeid, (os.O_RDONLY, 0)).fh
    same(device.ok(op.READ, nodeid, (fh, 0, 10, 0, 0, 0, 0), size=10), b"synced", "what is read")


@CASES.case("ring-outlives-back-end", SPEC, needs=(START, PAIR))
def ring_outlives_back_end(rig: RingRig) -> None:
    """A ring left behind by a killed back-end is gone on with by the next, from its used index."""
    device = rig.device()
    for _ in range(5):
        device.getattr()
    rig.instances[0].may_end = True
    process_of(rig).kill()
    rig.ended_by(signal.SIGKILL)
    taken_over(rig, device)
    device.start_ring(REQUESTS, device.memory.load_u16(device.config(REQUESTS).device + 2))
    device.enable(REQUESTS)
    device.init()
    device.getattr()


def taken_over(rig: RingRig, device: RawDriver) -> None:
    """Connect the rings and the memory of ``device`` to another instance; no ring runs yet."""
    device.front = rig.front(rig.another())
    device.set_features()
    device.share_memory()


@CASES.case("inflight-recovered", "vhost-user 'Inflight I/O tracking'", needs=(START, PAIR))
def inflight_recovered(rig: RingRig) -> None:
    """Requests in flight when the back-end is killed are carried out by the next, each used once."""
    rig.wire.require(c.F_INFLIGHT_SHMFD)
    device = rig.idle_device()
    asked = p.Inflight(0, 0, device.count, device.size)
    reply = rig.wire.ask("GET_INFLIGHT_FD", asked)
    rig.on_close(lambda: close_all(reply.fds))
    rig.wire.send("SET_INFLIGHT_FD", reply.payload, reply.fds)
    device.start().init()
    posted = [
        device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [REPLY_BYTES], kick=False) for _ in range(30)
    ]
    device.kick()
    rig.instances[0].may_end = True
    process_of(rig).kill()
    rig.ended_by(signal.SIGKILL)
    taken_over(rig, device)
    device.front.send("SET_INFLIGHT_FD", reply.payload, reply.fds)
    device.start_ring(REQUESTS, device.memory.load_u16(device.config(REQUESTS).device + 2))
    device.enable(REQUESTS)
    device.kick()
    found = sorted(device.used()[0] for _ in posted)
    same(found, sorted(each.id for each in posted), "buffers used")
