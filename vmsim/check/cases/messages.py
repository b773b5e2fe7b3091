"""Messages: what every back-end has to answer, and how."""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.outcome import check, fail, same
from vmsim.check.rigs import BareRig, WireRig
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.virtio.constants import F_VERSION_1

CASES = Group("messages")
HEADER = "vhost-user 'Header'"
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
