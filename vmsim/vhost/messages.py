"""One row per vhost-user message, and the messages as bytes.

A row says what a message carries, what answers it, which protocol feature it needs and how many descriptors
come with it. Everything that reads, writes, checks or prints messages goes by the rows.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vmsim.errors import PeerError
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.wire.layout import U32, Layout

SPEC = "vhost-user 'Message types'"


class MessageError(PeerError):
    """A message that breaks the protocol; ``details`` name the message and the device."""


class Ack(enum.Enum):
    """When our front-end asks for an acknowledgement (NEED_REPLY) of a message without its own reply."""

    NEVER = "never"
    NEGOTIATED = "whenever REPLY_ACK was negotiated"
    LOG = "if it switches dirty logging on, and REPLY_ACK was negotiated"
    ALWAYS = "always"


class Row(NamedTuple):
    """One message. ``request``/``reply`` are payload layouts (None: no payload / no reply of its own).

    ``fds`` is the allowed range of descriptors with the request, ``reply_fds`` with the reply; ``feature`` is
    the protocol feature bit that must have been negotiated (-1: none).
    """

    id: int
    name: str
    request: p.Codec | None = None
    reply: p.Codec | None = None
    fds: tuple[int, int] = (0, 0)
    reply_fds: tuple[int, int] = (0, 0)
    feature: int = -1
    ack: Ack = Ack.NEVER
    empty_reply: bool = False
    """It is answered, by a message without payload."""

    @property
    def answered(self) -> bool:
        """Whether the message always has a reply of its own."""
        return self.reply is not None or self.empty_reply


U64, STATE = p.NUMBER, p.VRING_STATE
ONE = (1, 1)
MAYBE = (0, 1)
SLOTS = c.F_CONFIGURE_MEM_SLOTS

FRONTEND_ROWS = (
    Row(1, "GET_FEATURES", reply=U64),
    Row(2, "SET_FEATURES", U64, ack=Ack.LOG),
    Row(3, "SET_OWNER"),
    Row(4, "RESET_OWNER"),
    Row(5, "SET_MEM_TABLE", p.MEMORY_TABLE, fds=(0, 8), ack=Ack.NEGOTIATED),
    Row(6, "SET_LOG_BASE", p.LOG_AREA, p.LOG_REPLY, fds=MAYBE),
    Row(7, "SET_LOG_FD", fds=ONE),
    Row(8, "SET_VRING_NUM", STATE),
    Row(9, "SET_VRING_ADDR", p.VRING_ADDR, ack=Ack.LOG),
    Row(10, "SET_VRING_BASE", STATE),
    Row(11, "GET_VRING_BASE", STATE, STATE),
    Row(12, "SET_VRING_KICK", U64, fds=MAYBE),
    Row(13, "SET_VRING_CALL", U64, fds=MAYBE),
    Row(14, "SET_VRING_ERR", U64, fds=MAYBE),
    Row(15, "GET_PROTOCOL_FEATURES", reply=U64),
    Row(16, "SET_PROTOCOL_FEATURES", U64),
    Row(17, "GET_QUEUE_NUM", reply=U64, feature=c.F_MQ),
    Row(18, "SET_VRING_ENABLE", STATE, ack=Ack.NEGOTIATED),
    Row(19, "SEND_RARP", U64, feature=c.F_RARP),
    Row(20, "NET_SET_MTU", U64, feature=c.F_NET_MTU, ack=Ack.NEGOTIATED),
    Row(21, "SET_BACKEND_REQ_FD", fds=ONE, feature=c.F_BACKEND_REQ, ack=Ack.NEGOTIATED),
    Row(22, "IOTLB_MSG", p.IOTLB, U64),
    Row(23, "SET_VRING_ENDIAN", STATE, feature=c.F_CROSS_ENDIAN),
    Row(24, "GET_CONFIG", p.CONFIG, p.CONFIG_REPLY, feature=c.F_CONFIG),
    Row(25, "SET_CONFIG", p.CONFIG, feature=c.F_CONFIG, ack=Ack.NEGOTIATED),
    Row(26, "CREATE_CRYPTO_SESSION", p.OPAQUE, p.OPAQUE, feature=c.F_CRYPTO_SESSION),
    Row(27, "CLOSE_CRYPTO_SESSION", U64, feature=c.F_CRYPTO_SESSION),
    Row(28, "POSTCOPY_ADVISE", reply_fds=ONE, feature=c.F_PAGEFAULT, empty_reply=True),
    Row(29, "POSTCOPY_LISTEN", feature=c.F_PAGEFAULT, ack=Ack.ALWAYS),
    Row(30, "POSTCOPY_END", feature=c.F_PAGEFAULT, ack=Ack.ALWAYS),
    Row(31, "GET_INFLIGHT_FD", p.INFLIGHT, p.INFLIGHT, reply_fds=ONE, feature=c.F_INFLIGHT_SHMFD),
    Row(32, "SET_INFLIGHT_FD", p.INFLIGHT, fds=ONE, feature=c.F_INFLIGHT_SHMFD),
    Row(33, "GPU_SET_SOCKET", fds=ONE),
    Row(34, "RESET_DEVICE", feature=c.F_RESET_DEVICE),
    Row(35, "VRING_KICK", STATE, feature=c.F_INBAND_NOTIFICATIONS),
    Row(36, "GET_MAX_MEM_SLOTS", reply=U64, feature=SLOTS),
    Row(37, "ADD_MEM_REG", p.SLOT_REGION, fds=ONE, feature=SLOTS, ack=Ack.NEGOTIATED),
    Row(38, "REM_MEM_REG", p.SLOT_REGION, fds=MAYBE, feature=SLOTS, ack=Ack.NEGOTIATED),
    Row(39, "SET_STATUS", U64, feature=c.F_STATUS),
    Row(40, "GET_STATUS", reply=U64, feature=c.F_STATUS),
    Row(44, "GET_SHMEM_CONFIG", reply=p.SHMEM_CONFIG, feature=c.F_SHMEM),
)
"""Front-end requests that mean the same in every state-transfer dialect; 41 to 43 belong to the dialects."""

GET_SHARED_OBJECT = Row(
    41, "GET_SHARED_OBJECT", p.UUID, reply_fds=MAYBE, feature=c.F_SHARED_OBJECT, empty_reply=True
)

BACKEND_ROWS = (
    Row(1, "IOTLB_MSG", p.IOTLB),
    Row(2, "CONFIG_CHANGE_MSG", feature=c.F_CONFIG),
    Row(3, "VRING_HOST_NOTIFIER_MSG", p.VRING_AREA, fds=MAYBE, feature=c.F_HOST_NOTIFIER),
    Row(4, "VRING_CALL", STATE, feature=c.F_INBAND_NOTIFICATIONS),
    Row(5, "VRING_ERR", STATE, feature=c.F_INBAND_NOTIFICATIONS),
    Row(6, "SHARED_OBJECT_ADD", p.UUID, feature=c.F_SHARED_OBJECT),
    Row(7, "SHARED_OBJECT_REMOVE", p.UUID, feature=c.F_SHARED_OBJECT),
    Row(8, "SHARED_OBJECT_LOOKUP", p.UUID, U64, fds=MAYBE, feature=c.F_SHARED_OBJECT),
    Row(9, "SHMEM_MAP", p.SHMEM_MAP, fds=ONE, feature=c.F_SHMEM),
    Row(10, "SHMEM_UNMAP", p.SHMEM_MAP, feature=c.F_SHMEM),
)
"""Back-end requests, on the channel that SET_BACKEND_REQ_FD opened."""


class MessageSet:
    """The messages that one side accepts: by id and by name."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self.by_id: Mapping[int, Row] = {row.id: row for row in self.rows}
        self.by_name: Mapping[str, Row] = {row.name: row for row in self.rows}
        if len(self.by_id) != len(self.rows):
            raise ValueError("two messages have the same id")

    def __getitem__(self, name: str) -> Row:
        return self.by_name[name]


BACKEND_MESSAGES = MessageSet(BACKEND_ROWS)


@dataclass(slots=True)
class Request:
    """A message to the peer; ``fds`` are lent, ``need_reply`` asks for an acknowledgement."""

    row: Row
    payload: Any = None
    fds: tuple[int, ...] = ()
    need_reply: bool = False


@dataclass(slots=True)
class Reply:
    """An answer; an acknowledgement is a ``Number``, 0 meaning success."""

    payload: Any = None
    fds: tuple[int, ...] = ()


class Header(NamedTuple):
    """The twelve bytes before every payload."""

    request: U32
    flags: U32
    size: U32


HEADER = Layout(Header, "=")


def encode_request(request: Request) -> bytes:
    """The bytes of a request, header first; its descriptors go with the first byte."""
    row = request.row
    body = row.request.encode(request.payload) if row.request is not None else b""
    flags = c.VERSION | (c.FLAG_NEED_REPLY if request.need_reply else 0)
    return HEADER.pack(row.id, flags, len(body)) + body


def encode_reply(row: Row, reply: Reply) -> bytes:
    """The bytes of a reply to ``row``."""
    if row.reply is None:
        body = b"" if reply.payload is None else p.NUMBER.encode(reply.payload)
    else:
        body = row.reply.encode(reply.payload)
    return HEADER.pack(row.id, c.REPLY_FLAGS, len(body)) + body


def decode_header(data: bytes) -> Header:
    """The header at the start of ``data``; MessageError if it is short, of another version or oversize."""
    if len(data) < c.HEADER_BYTES:
        raise MessageError(f"message header of {len(data)} bytes, {c.HEADER_BYTES} are needed", spec=SPEC)
    header = HEADER.unpack(data)
    if header.flags & c.FLAG_VERSION_MASK != c.VERSION:
        raise MessageError(f"message {header.request} has protocol version {header.flags & 3}", spec=SPEC)
    if header.size > c.PAYLOAD_MAX:
        raise MessageError(f"message {header.request} announces {header.size} bytes of payload", spec=SPEC)
    return header


def decode_request(messages: MessageSet, header: Header, body: bytes, fds: tuple[int, ...]) -> Request:
    """The request; MessageError for an unknown id, wrong flags, a wrong size or number of descriptors."""
    row = messages.by_id.get(header.request)
    if row is None:
        raise MessageError(f"unknown message {header.request}", spec=SPEC, request=header.request)
    if header.flags & ~c.FLAG_NEED_REPLY != c.VERSION:
        raise MessageError(f"{row.name}: request with flags {header.flags:#x}", spec=SPEC, request=row.name)
    payload = _payload(row, row.request, body)
    request = Request(row, payload, fds, bool(header.flags & c.FLAG_NEED_REPLY))
    check_fds(row, len(fds))
    return request


def decode_reply(row: Row, header: Header, body: bytes, fds: tuple[int, ...]) -> Reply:
    """The reply to ``row``, checked as QEMU checks it; MessageError if it is not that."""
    if header.flags != c.REPLY_FLAGS:
        raise MessageError(
            f"{row.name}: Flags {header.flags:#x} instead of {c.REPLY_FLAGS:#x}", spec=SPEC, request=row.name
        )
    if header.request != row.id:
        raise MessageError(
            f"Received unexpected message type, expected {row.id}, received {header.request}",
            spec=SPEC, request=row.name,
        )
    low, high = row.reply_fds
    if not low <= len(fds) <= high:
        raise MessageError(f"{row.name}: reply with {len(fds)} descriptors", spec=SPEC, request=row.name)
    codec = row.reply if row.answered else p.NUMBER
    return Reply(_payload(row, codec, body), fds)


def check_fds(row: Row, count: int) -> None:
    """MessageError unless a request ``row`` may come with ``count`` descriptors."""
    low, high = row.fds
    if not low <= count <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise MessageError(f"{row.name}: {count} descriptors, expected {wanted}", spec=SPEC, request=row.name)


def _payload(row: Row, codec: p.Codec | None, body: bytes) -> Any:
    if codec is None:
        if body:
            raise MessageError(
                f"{row.name}: Received bad message size, expected 0, received {len(body)}",
                spec=SPEC, request=row.name,
            )
        return None
    try:
        return codec.decode(body)
    except p.PayloadError as error:
        raise MessageError(f"{row.name}: {error.message}", spec=SPEC, request=row.name) from error
