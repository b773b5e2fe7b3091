"""Messages: what every back-end has to answer, and how."""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.device import LOOK_S
from vmsim.check.frontend import MESSAGES, PLAIN, close_all
from vmsim.check.outcome import check, fail, same
from vmsim.check.rigs import BareRig, RingRig, WireRig
from vmsim.fuse import opcodes as op
from vmsim.host.eventfd import EventFd
from vmsim.host.vhost_user.transport import PeerSilent
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.messages import HEADER as HEADER_LAYOUT
from vmsim.virtio.constants import F_VERSION_1

CASES = Group("messages")
HEADER = "vhost-user 'Header'"
PIECE_S = 1.0
ACK = "vhost-user 'REPLY_ACK'"
FEATURES = "vhost-user 'Feature negotiation'"


@CASES.case("get-features", FEATURES)
def get_features(rig: BareRig) -> None:
    """GET_FEATURES is answered: VERSION_1, and bit 30 for protocol features."""
    word = rig.wire.number("GET_FEATURES")
    check(word & F_VERSION_1, "VERSION_1 (bit 32) offered", word)
    check(word & c.VHOST_USER_F_PROTOCOL_FEATURES, "PROTOCOL_FEATURES (bit 30) offered", word)
    same(rig.wire.number("GET_FEATURES"), word, "asked again, the features")


@CASES.case("get-protocol-features", FEATURES)
def get_protocol_features(rig: BareRig) -> None:
    """GET_PROTOCOL_FEATURES is answered, before any SET_FEATURES."""
    rig.wire.number("GET_FEATURES")
    word = rig.wire.number("GET_PROTOCOL_FEATURES")
    inband = word >> c.F_INBAND_NOTIFICATIONS & 1
    if inband and not (word >> c.F_BACKEND_REQ & 1 and word >> c.F_REPLY_ACK & 1):
        fail("INBAND_NOTIFICATIONS only with BACKEND_REQ and REPLY_ACK", f"{word:#x} is offered")


@CASES.case("reply-ack", ACK)
def reply_ack(rig: WireRig) -> None:
    """NEED_REPLY is acknowledged with 0 once REPLY_ACK was negotiated."""
    same(rig.wire.acked("SET_VRING_NUM", p.VringState(0, 8)), 0, "SET_VRING_NUM acknowledged with")


@CASES.case("no-ack-unasked", ACK)
def no_ack_unasked(rig: WireRig) -> None:
    """Without NEED_REPLY there is no acknowledgement."""
    rig.wire.send("SET_VRING_NUM", p.VringState(0, 8))
    rig.wire.barrier()


@CASES.case("ack-once", ACK)
def ack_once(rig: WireRig) -> None:
    """NEED_REPLY on a message that has a reply of its own changes nothing."""
    reply = rig.wire.ask("GET_QUEUE_NUM" if rig.wire.has(c.F_MQ) else "GET_FEATURES", need_reply=True)
    check(reply.payload.value > 1, "the number asked for", reply.payload.value)
    rig.wire.barrier()


@CASES.case("ack-set-up", ACK)
def ack_set_up(rig: RingRig) -> None:
    """Every message of the usual set-up is acknowledged with 0 when asked for."""
    rig.wire.require(c.F_REPLY_ACK)
    device = rig.idle_device()
    device.start()


@CASES.case("ack-not-negotiated", ACK)
def ack_not_negotiated(rig: BareRig) -> None:
    """Whoever did not negotiate REPLY_ACK gets no acknowledgements, whatever the flag says."""
    rig.wire.negotiate(PLAIN & ~(1 << c.F_REPLY_ACK))
    rig.wire.send("SET_VRING_NUM", p.VringState(0, 8), need_reply=True)
    rig.wire.barrier()


@CASES.case("ack-after-restore", ACK)
def ack_after_restore(rig: BareRig) -> None:
    """A front-end that sets known protocol features without asking for them first gets acknowledgements."""
    wire = rig.wire
    wire.send("SET_PROTOCOL_FEATURES", p.Number(1 << c.F_REPLY_ACK))
    wire.protocol = 1 << c.F_REPLY_ACK
    wire.send("SET_OWNER")
    same(wire.acked("SET_VRING_NUM", p.VringState(0, 8)), 0, "SET_VRING_NUM acknowledged with")


@CASES.case("features-keep", FEATURES)
def features_keep(rig: WireRig) -> None:
    """SET_FEATURES may be sent again, and does not change what is offered."""
    wire = rig.wire
    word = F_VERSION_1 | c.VHOST_USER_F_PROTOCOL_FEATURES
    for _ in range(2):
        wire.done("SET_FEATURES", p.Number(word & wire.features))
        same(wire.number("GET_FEATURES"), wire.features, "the features offered afterwards")


@CASES.case("queue-num", "vhost-user 'Multiple queue support'")
def queue_num(rig: WireRig) -> None:
    """GET_QUEUE_NUM says that there are at least two queues: hiprio and one for requests."""
    rig.wire.require(c.F_MQ)
    number = rig.wire.number("GET_QUEUE_NUM")
    check(2 <= number <= 1024, "2 to 1024 queues", number)


@CASES.case("reset-owner", "vhost-user 'RESET_OWNER'")
def reset_owner(rig: WireRig) -> None:
    """RESET_OWNER, which is deprecated, is taken without a word."""
    rig.wire.send("RESET_OWNER")
    rig.wire.barrier()


@CASES.case("byte-by-byte", HEADER)
def byte_by_byte(rig: WireRig) -> None:
    """A message that arrives in pieces is the same message; descriptors come with its first byte."""
    wire = rig.wire
    event = EventFd()
    rig.on_close(event.close)
    need = c.VERSION | (c.FLAG_NEED_REPLY if wire.has(c.F_REPLY_ACK) else 0)
    data = HEADER_LAYOUT.pack(MESSAGES["SET_VRING_CALL"].id, need, 8) + bytes(8)
    patient = True
    for at in range(len(data)):
        wire.probe.send(data[at : at + 1], (event.fd,) if not at else ())
        # Whoever reads a piece gets just that one; whoever waits for more is not waited for.
        patient = patient and wire.probe.taken(PIECE_S)
    if wire.has(c.F_REPLY_ACK):
        same(wire.reply("SET_VRING_CALL").payload.value, 0, "SET_VRING_CALL acknowledged with")
    wire.barrier()


@CASES.case("pipelined", HEADER)
def pipelined(rig: WireRig) -> None:
    """Several messages in one piece are answered one by one, in order."""
    wire = rig.wire
    ask = HEADER_LAYOUT.pack(MESSAGES["GET_FEATURES"].id, 1, 0)
    base = HEADER_LAYOUT.pack(MESSAGES["GET_VRING_BASE"].id, 1, 8) + bytes(8)
    wire.probe.send(ask + base + ask * 8)
    for name in ("GET_FEATURES", "GET_VRING_BASE", *["GET_FEATURES"] * 8):
        wire.reply(name)


@CASES.case("base-kept", "vhost-user 'Ring states'")
def base_kept(rig: WireRig) -> None:
    """GET_VRING_BASE of a ring that never ran gives what SET_VRING_BASE said."""
    for index in range(rig.wire.queues()):
        rig.wire.done("SET_VRING_NUM", p.VringState(index, 8))
        rig.wire.done("SET_VRING_BASE", p.VringState(index, 5 + index))
        state = rig.wire.ask("GET_VRING_BASE", p.VringState(index, 0)).payload
        same((state.ring, state.num), (index, 5 + index), "ring and base")


@CASES.case("no-descriptor", "vhost-user 'SET_VRING_KICK'")
def no_descriptor(rig: WireRig) -> None:
    """Call and error descriptors may be left out (bit 8), set, replaced and left out again."""
    event = EventFd()
    rig.on_close(event.close)
    for name in ("SET_VRING_CALL", "SET_VRING_ERR"):
        for fds in ((), (event.fd,), (event.fd,), ()):
            rig.wire.done(name, p.Number(0 if fds else c.NO_FD), fds)
    rig.wire.barrier()


@CASES.case("backend-channel", "vhost-user 'SET_BACKEND_REQ_FD'")
def backend_channel(rig: WireRig) -> None:
    """A channel for the back-end's own messages is taken, and may be replaced."""
    rig.wire.require(c.F_BACKEND_REQ)
    for _ in range(2):
        rig.backend_channel(rig.wire)
    rig.wire.barrier()


@CASES.case("config", "vhost-user 'GET_CONFIG'; virtio 1.3 section 5.11.4", options=("--tag=checked",))
def config(rig: WireRig) -> None:
    """GET_CONFIG gives a tag and the number of request queues, whole or in part."""
    rig.wire.require(c.F_CONFIG)
    whole = rig.wire.ask("GET_CONFIG", p.ConfigSpace(0, 0, bytes(40))).payload
    same(len(whole.data), 40, "bytes of configuration space")
    tag, queues = whole.data[:36].rstrip(b"\0"), int.from_bytes(whole.data[36:40], "little")
    check(tag and b"\n" not in tag, "a tag", tag)
    same(queues, rig.wire.queues() - 1, "request queues")
    part = rig.wire.ask("GET_CONFIG", p.ConfigSpace(36, 0, bytes(4))).payload
    same(part.data, whole.data[36:], "the last four bytes alone")


@CASES.case("status", "vhost-user 'SET_STATUS'; virtio 1.3 section 2.1")
def status(rig: WireRig) -> None:
    """GET_STATUS gives what SET_STATUS set; 0 resets it."""
    rig.wire.require(c.F_STATUS)
    for value in (1, 3, 0):
        rig.wire.done("SET_STATUS", p.Number(value))
        same(rig.wire.number("GET_STATUS"), value, "the status")


@CASES.case("reset-device", "vhost-user 'RESET_DEVICE'")
def reset_device(rig: RingRig) -> None:
    """After RESET_DEVICE rings are set up afresh, and a new session begins."""
    rig.wire.require(c.F_RESET_DEVICE)
    device = rig.device()
    device.getattr()
    device.recover()
    device.getattr()


@CASES.case("reset-forgets", "vhost-user 'RESET_DEVICE'; virtio 1.3 section 2.1.1")
def reset_forgets(rig: RingRig) -> None:
    """RESET_DEVICE stops the rings and takes them back to their beginning."""
    rig.wire.require(c.F_RESET_DEVICE)
    device = rig.device()
    device.getattr()
    rig.wire.done("RESET_DEVICE")
    device.post([device.request(op.GETATTR, 1, (0, 0, 0))], [120])
    rig.wire.barrier()
    try:
        device.used(timeout_s=LOOK_S)
    except PeerSilent:
        return
    fail("no ring works after RESET_DEVICE", "a request was answered")


@CASES.case("inflight", "vhost-user 'Inflight I/O tracking'")
def inflight(rig: RingRig) -> None:
    """GET_INFLIGHT_FD gives a buffer large enough, which SET_INFLIGHT_FD brings back; requests go on."""
    rig.wire.require(c.F_INFLIGHT_SHMFD)
    device = rig.idle_device()
    asked = p.Inflight(0, 0, device.count, device.size)
    reply = rig.wire.ask("GET_INFLIGHT_FD", asked)
    try:
        need = device.count * (16 + 16 * device.size)
        check(reply.payload.mmap_size >= need, f"at least {need} bytes", reply.payload.mmap_size)
        rig.wire.send("SET_INFLIGHT_FD", reply.payload, reply.fds)
    finally:
        close_all(reply.fds)
    device.start().init()
    device.getattr()
