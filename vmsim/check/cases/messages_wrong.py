"""Messages that break the protocol: refused by an acknowledgement or the end of the connection."""

from __future__ import annotations

import struct

from vmsim.check.case import Group
from vmsim.check.frontend import MESSAGES, must_refuse
from vmsim.check.outcome import same
from vmsim.check.rigs import RingRig, WireRig
from vmsim.errors import HostError
from vmsim.host.eventfd import EventFd
from vmsim.host.vhost_user.transport import ConnectionLost
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.addresses import USER_BASE
from vmsim.vhost.messages import HEADER

CASES = Group("messages")
TYPES = "vhost-user 'Message types'"
FRAME = "vhost-user 'Header'"
RINGS = "vhost-user 'Ring states'"
UNKNOWN_ID = 1000
NUMBER = struct.Struct("=Q")
STATE = struct.Struct("=II")


def wrong(
    rig: WireRig, name: str | int, body: bytes = b"", fds: tuple[int, ...] = (), *, what: str,
    flags: int = c.VERSION | c.FLAG_NEED_REPLY, size: int | None = None, may_ignore: bool = False,
) -> str:  # fmt: skip
    """Send what must be refused; how it was: "error" or "closed" (or "ignored", if it may be)."""
    rig.instances[0].may_end = True
    number = MESSAGES[name].id if isinstance(name, str) else name
    how = rig.wire.refused(number, body, fds, flags=flags, size=size, what=what)
    if not may_ignore and rig.wire.has(c.F_REPLY_ACK):
        must_refuse(how, what)
    return how


@CASES.case("unknown-acked", TYPES)
def unknown_acked(rig: WireRig) -> None:
    """An unknown message with NEED_REPLY is refused."""
    wrong(rig, UNKNOWN_ID, what="message 1000")


@CASES.case("unknown", TYPES)
def unknown(rig: WireRig) -> None:
    """An unknown message without NEED_REPLY is ignored, or ends the connection in good order."""
    wrong(rig, UNKNOWN_ID, flags=c.VERSION, may_ignore=True, what="message 1000")


@CASES.case("id-zero", TYPES)
def id_zero(rig: WireRig) -> None:
    """Message 0 does not exist."""
    wrong(rig, 0, what="message 0")


@CASES.case("payload-short", TYPES)
def payload_short(rig: WireRig) -> None:
    """A payload shorter than its message's is refused."""
    wrong(rig, "SET_VRING_NUM", bytes(4), what="SET_VRING_NUM with 4 bytes")


@CASES.case("payload-long", TYPES)
def payload_long(rig: WireRig) -> None:
    """A payload longer than its message's is refused."""
    wrong(rig, "SET_VRING_NUM", STATE.pack(0, 8) + bytes(8), what="SET_VRING_NUM with 16 bytes")


@CASES.case("payload-where-none-belongs", TYPES)
def payload_where_none_belongs(rig: WireRig) -> None:
    """A payload after a message that has none is refused."""
    wrong(rig, "SET_OWNER", bytes(8), what="SET_OWNER with 8 bytes")


@CASES.case("payload-missing", TYPES)
def payload_missing(rig: WireRig) -> None:
    """SET_FEATURES without its number is refused."""
    wrong(rig, "SET_FEATURES", what="SET_FEATURES with 0 bytes")


@CASES.case("size-huge", FRAME)
def size_huge(rig: WireRig) -> None:
    """A header that announces 4 GiB ends the connection, and nothing is allocated for it."""
    wire = rig.wire
    rig.instances[0].may_end = True
    try:
        wire.raw(MESSAGES["SET_FEATURES"].id, size=0xFFFFFFFF, flags=c.VERSION | c.FLAG_NEED_REPLY)
        wire.probe.send(bytes(1 << 14))
        message = wire.raw_reply()
    except ConnectionLost:
        return
    if message.header.request != MESSAGES["SET_FEATURES"].id or not any(message.body):
        must_refuse("ignored", "a payload of 4 GiB")


@CASES.case("version", FRAME)
def version(rig: WireRig) -> None:
    """A message of another protocol version is refused."""
    for flags in (0, 2, 3):
        if wrong(rig, "GET_QUEUE_NUM", flags=flags, what=f"flags {flags}", may_ignore=True) == "closed":
            return


@CASES.case("reply-flag", FRAME)
def reply_flag(rig: WireRig) -> None:
    """A request that says it is a reply is refused, or ignored."""
    wrong(rig, "SET_OWNER", flags=c.VERSION | c.FLAG_REPLY, may_ignore=True, what="a reply as a request")


@CASES.case("stray-descriptor", TYPES)
def stray_descriptor(rig: WireRig) -> None:
    """A descriptor with a message that takes none is refused or closed, and the back-end lives."""
    event = EventFd()
    rig.on_close(event.close)
    rig.instances[0].may_end = True
    rig.wire.raw(MESSAGES["SET_OWNER"].id, fds=(event.fd,))
    try:
        rig.wire.barrier()
    except ConnectionLost:
        pass


@CASES.case("many-descriptors", TYPES)
def many_descriptors(rig: WireRig) -> None:
    """More descriptors than any message has are refused."""
    event = EventFd()
    rig.on_close(event.close)
    rig.instances[0].may_end = True
    try:
        wrong(rig, "SET_VRING_CALL", bytes(8), (event.fd,) * 64, what="64 descriptors")
    except HostError:
        pass  # our own system refused to send so many


@CASES.case("descriptor-missing", "vhost-user 'SET_VRING_KICK'")
def descriptor_missing(rig: WireRig) -> None:
    """SET_VRING_CALL that promises a descriptor and has none is refused."""
    wrong(rig, "SET_VRING_CALL", NUMBER.pack(0), what="a call descriptor that is missing")


@CASES.case("descriptor-denied", "vhost-user 'SET_VRING_KICK'")
def descriptor_denied(rig: WireRig) -> None:
    """SET_VRING_CALL that denies (bit 8) the descriptor that it has is refused, or the descriptor closed."""
    event = EventFd()
    rig.on_close(event.close)
    wrong(rig, "SET_VRING_CALL", NUMBER.pack(c.NO_FD), (event.fd,), may_ignore=True, what="both")
    rig.instances[0].may_end = True


@CASES.case("features-not-offered", "vhost-user 'SET_FEATURES'")
def features_not_offered(rig: WireRig) -> None:
    """SET_FEATURES with a bit that was not offered is refused."""
    bit = next(bit for bit in range(63, 0, -1) if not rig.wire.features >> bit & 1)
    wrong(rig, "SET_FEATURES", NUMBER.pack(1 << bit), what=f"feature bit {bit}")


@CASES.case("protocol-features-not-offered", "vhost-user 'SET_PROTOCOL_FEATURES'")
def protocol_features_not_offered(rig: WireRig) -> None:
    """SET_PROTOCOL_FEATURES with a known bit that was not offered is refused."""
    bits = [bit for bit in c.PROTOCOL_FEATURES if not rig.wire.protocol_offered >> bit & 1]
    word = rig.wire.protocol | 1 << bits[0]
    wrong(rig, "SET_PROTOCOL_FEATURES", NUMBER.pack(word), what=f"protocol feature bit {bits[0]}")


@CASES.case("feature-not-negotiated", TYPES)
def feature_not_negotiated(rig: WireRig) -> None:
    """A message whose protocol feature was not negotiated is refused."""
    for bit, name, body in ((c.F_STATUS, "SET_STATUS", bytes(8)), (c.F_NET_MTU, "NET_SET_MTU", bytes(8)),
                            (c.F_RARP, "SEND_RARP", bytes(8))):  # fmt: skip
        if not rig.wire.has(bit) and wrong(rig, name, body, what=name) == "closed":
            return


RING_MESSAGES = (
    ("SET_VRING_NUM", STATE.pack(200, 8)), ("SET_VRING_BASE", STATE.pack(200, 0)),
    ("SET_VRING_ENABLE", STATE.pack(200, 1)), ("SET_VRING_CALL", NUMBER.pack(200 | c.NO_FD)),
    ("SET_VRING_ADDR", p.VRING_ADDR.encode(p.VringAddr(200, 0, 0, 0, 0, 0))),
)  # fmt: skip


@CASES.case("ring-unknown", RINGS)
def ring_unknown(rig: WireRig) -> None:
    """Messages for a ring that does not exist are refused."""
    rig.wire.done("SET_FEATURES", p.Number(rig.wire.features & (1 << 32 | 1 << 30)))
    for name, body in RING_MESSAGES:
        if wrong(rig, name, body, what=f"{name} for ring 200") == "closed":
            return


@CASES.case("base-unknown", RINGS)
def base_unknown(rig: WireRig) -> None:
    """GET_VRING_BASE for a ring that does not exist ends the connection, or gives an answer, but no crash."""
    rig.instances[0].may_end = True
    try:
        rig.wire.raw(MESSAGES["GET_VRING_BASE"].id, STATE.pack(200, 0))
        rig.wire.raw_reply()
    except ConnectionLost:
        pass


def bad_num(rig: WireRig, num: int) -> None:
    """SET_VRING_NUM of that must be refused."""
    wrong(rig, "SET_VRING_NUM", STATE.pack(0, num), what=f"a ring of {num} entries")


@CASES.case("num-zero", "virtio 1.3 section 2.7")
def num_zero(rig: WireRig) -> None:
    """A ring without entries is refused."""
    bad_num(rig, 0)


@CASES.case("num-huge", "virtio 1.3 section 2.7")
def num_huge(rig: WireRig) -> None:
    """A ring of more than 32768 entries is refused."""
    bad_num(rig, 65536)


@CASES.case("enable-two", "vhost-user 'SET_VRING_ENABLE'")
def enable_two(rig: WireRig) -> None:
    """SET_VRING_ENABLE with a number other than 0 and 1 is refused."""
    rig.wire.done("SET_FEATURES", p.Number(rig.wire.features & (1 << 32 | 1 << 30)))
    wrong(rig, "SET_VRING_ENABLE", STATE.pack(0, 2), what="enabling with 2")


@CASES.case("address-outside", "vhost-user 'SET_VRING_ADDR'")
def address_outside(rig: RingRig) -> None:
    """Ring addresses outside the memory are refused, at the latest when the ring starts."""
    device = rig.idle_device()
    device.set_features()
    device.share_memory()
    rig.wire.done("SET_VRING_NUM", p.VringState(0, 64))
    far = USER_BASE + (1 << 40)
    wrong(rig, "SET_VRING_ADDR", p.VRING_ADDR.encode(p.VringAddr(0, 0, far, far, far, 0)),
          what="a ring outside memory")  # fmt: skip


@CASES.case("address-before-memory", "vhost-user 'SET_VRING_ADDR'")
def address_before_memory(rig: RingRig) -> None:
    """SET_VRING_ADDR before there is any memory is refused or kept for later, but no crash."""
    body = p.VRING_ADDR.encode(p.VringAddr(0, 0, USER_BASE, USER_BASE + 8192, USER_BASE + 4096, 0))
    wrong(rig, "SET_VRING_ADDR", body, may_ignore=True, what="addresses without memory")


@CASES.case("kick-undescribed", RINGS)
def kick_undescribed(rig: RingRig) -> None:
    """Starting a ring that was never described does not hurt the others."""
    rig.instances[0].may_end = True
    event = EventFd()
    rig.on_close(event.close)
    wire = rig.wire
    wire.done("SET_FEATURES", p.Number(wire.features & (1 << 32 | 1 << 30)))
    try:
        wire.raw(MESSAGES["SET_VRING_KICK"].id, NUMBER.pack(1), (event.fd,))
        wire.raw(MESSAGES["SET_VRING_ENABLE"].id, STATE.pack(1, 1))
        event.signal()
        wire.barrier()
    except ConnectionLost:
        return
    rig.instances[0].may_end = False


@CASES.case("hang-up-amid", FRAME)
def hang_up_amid(rig: WireRig) -> None:
    """A front-end that goes away in the middle of a message is no reason to panic."""
    rig.wire.probe.send(HEADER.pack(MESSAGES["SET_VRING_ADDR"].id, 1, 40) + bytes(13))
    rig.hang_up(rig.instances[0])
    process = rig.instances[0].process
    if process is not None:
        process.wait(1)


@CASES.case("noise", FRAME)
def noise(rig: WireRig) -> None:
    """Random messages: refused or carried out, but the back-end ends in good order if it ends."""
    rig.instances[0].may_end = True
    ids = [row.id for row in MESSAGES.rows]
    try:
        for _ in range(40):
            body = rig.random.randbytes(rig.random.choice((0, 4, 8, 8, 8, 12, 16, 40, 72)))
            rig.wire.raw(rig.random.choice(ids), body, flags=rig.random.choice((1, 9)))
    except ConnectionLost:
        return
    rig.hang_up(rig.instances[0])
    process = rig.instances[0].process
    if process is not None:
        process.wait(1)
        same(rig.panic(), "", "what it said of itself")
