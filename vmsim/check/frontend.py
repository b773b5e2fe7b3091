"""A front-end that sends one message at a time, right or wrong, and looks closely at what comes back."""

from __future__ import annotations

import os
from typing import Any, Final

from vmsim.check.outcome import NotOffered, fail, same
from vmsim.errors import PeerError
from vmsim.host.vhost_user.probe import Probe
from vmsim.host.vhost_user.transport import ConnectionLost
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.framing import RawMessage
from vmsim.vhost.messages import HEADER, Reply, Request, decode_reply, encode_request

MESSAGES: Final = DIALECTS["upstream"].messages
ALL_FEATURES: Final = (1 << 64) - 1
PLAIN: Final = ALL_FEATURES & ~(1 << c.F_INBAND_NOTIFICATIONS)
"""Protocol features that a case negotiates unless it says otherwise."""


class Frontend:
    """One connection. ``features`` is what the back-end offers, ``protocol`` what was negotiated."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.features = 0
        self.protocol_offered = 0
        self.protocol = 0

    # -- messages

    def send(
        self, name: str, payload: Any = None, fds: tuple[int, ...] = (), *, need_reply: bool = False
    ) -> None:
        """Send a message and wait for nothing."""
        self.probe.send(encode_request(Request(MESSAGES[name], payload, fds, need_reply)), fds)

    def ask(
        self, name: str, payload: Any = None, fds: tuple[int, ...] = (), *, need_reply: bool = False
    ) -> Reply:
        """Send a message and take its reply, which must be one as QEMU demands them (flags 0x5, id, size)."""
        self.send(name, payload, fds, need_reply=need_reply)
        return self.reply(name)

    def reply(self, name: str) -> Reply:
        """The reply to ``name``, checked."""
        message = self.probe.receive()
        try:
            return decode_reply(MESSAGES[name], message.header, message.body, message.fds)
        except PeerError as error:
            close_all(message.fds)
            fail(f"a reply to {name} with flags 0x5, its id and the right size", error.message)

    def number(self, name: str) -> int:
        """The number that a message without payload is answered with."""
        return int(self.ask(name).payload.value)

    def acked(self, name: str, payload: Any = None, fds: tuple[int, ...] = ()) -> int:
        """Send a message with NEED_REPLY; the number of its acknowledgement."""
        self.require(c.F_REPLY_ACK)
        return int(self.ask(name, payload, fds, need_reply=True).payload.value)

    def done(self, name: str, payload: Any = None, fds: tuple[int, ...] = ()) -> None:
        """Send a message that must succeed; with REPLY_ACK that is looked at."""
        if not self.has(c.F_REPLY_ACK) or MESSAGES[name].answered:
            self.send(name, payload, fds)
            return
        code = self.acked(name, payload, fds)
        same(code, 0, f"{name} acknowledged with")

    def raw(self, request: int, body: bytes = b"", fds: tuple[int, ...] = (), *, flags: int = 1,
            size: int | None = None) -> None:  # fmt: skip
        """Send a header of one's own making and what follows it."""
        self.probe.send(HEADER.pack(request, flags, len(body) if size is None else size) + body, fds)

    def raw_reply(self) -> RawMessage:
        """The next message, whatever it is; its descriptors are closed."""
        message = self.probe.receive()
        close_all(message.fds)
        return message

    def barrier(self) -> None:
        """A round trip: everything sent before has been processed, and was not answered."""
        self.send("GET_FEATURES")
        message = self.raw_reply()
        if message.header.request != MESSAGES["GET_FEATURES"].id:
            fail(
                "no reply to what asked for none",
                f"message {message.header.request} with {len(message.body)} bytes came before GET_FEATURES'",
            )

    def refused(self, request: int, body: bytes = b"", fds: tuple[int, ...] = (), *, flags: int = 1,
                size: int | None = None, what: str = "the message") -> str:  # fmt: skip
        """Send what must not be accepted: an acknowledgement other than 0, or the end of the connection.

        Which of both it was: "error" or "closed"; "ignored" if a round trip afterwards works as if nothing
        had been. A positive acknowledgement fails the case.
        """
        try:
            self.raw(request, body, fds, flags=flags, size=size)
            self.send("GET_FEATURES")
            message = self.raw_reply()
            if message.header.request == MESSAGES["GET_FEATURES"].id and request != message.header.request:
                return "ignored"
            code = int.from_bytes(message.body[:8], "little")
            if flags & c.FLAG_NEED_REPLY and len(message.body) == 8 and not code:
                fail(f"{what} refused", "it was acknowledged with 0, success")
            self.raw_reply()
            return "error"
        except ConnectionLost:
            return "closed"

    # -- negotiation

    def has(self, feature: int) -> bool:
        """Whether a protocol feature was negotiated."""
        return bool(self.protocol >> feature & 1)

    def require(self, *features: int) -> None:
        """NotOffered unless these protocol features were negotiated."""
        for feature in features:
            if not self.has(feature):
                raise NotOffered(f"protocol feature {c.PROTOCOL_FEATURES[feature]} is not offered")

    def negotiate(self, protocol: int = PLAIN) -> None:
        """The beginning of every session: features, those of ``protocol`` that are offered, owner."""
        self.features = self.number("GET_FEATURES")
        if self.features & c.VHOST_USER_F_PROTOCOL_FEATURES:
            self.protocol_offered = self.number("GET_PROTOCOL_FEATURES")
            known = sum(1 << bit for bit in c.PROTOCOL_FEATURES)
            self.protocol = self.protocol_offered & protocol & known
            self.send("SET_PROTOCOL_FEATURES", p.Number(self.protocol))
        self.send("SET_OWNER")
        self.barrier()

    def queues(self) -> int:
        """How many queues there are."""
        return self.number("GET_QUEUE_NUM") if self.has(c.F_MQ) else 1


def close_all(fds: tuple[int, ...]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)


def must_refuse(how: str, what: str) -> None:
    """Fail if ``refused`` found that nothing happened although an acknowledgement was asked for."""
    if how == "ignored":
        fail(f"{what} refused: an error acknowledged, or the connection closed", "no answer at all")
