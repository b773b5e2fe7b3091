"""vhost-user messages to the byte, written down from the specification's structures and not from our rows."""

import struct

import pytest

from vmsim.errors import PeerError
from vmsim.host.services import HostServices
from vmsim.vhost import constants as c
from vmsim.vhost import payloads as p
from vmsim.vhost.dialects import dialect_by_name
from vmsim.vhost.frontend import FrontendOptions, VhostFrontend
from vmsim.vhost.messages import (
    BACKEND_MESSAGES,
    HEADER,
    MessageError,
    Reply,
    Request,
    decode_header,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

UPSTREAM = dialect_by_name("upstream").messages
REGION = p.MemoryRegion(0x100000, 0x3F00000, 0x7FBF900FF000, 0x100000)
REGION_BYTES = struct.pack("=QQQQ", *REGION)


def q(*values):
    return struct.pack(f"={len(values)}Q", *values)


def i(*values):
    return struct.pack(f"={len(values)}I", *values)


NOTHING = (None, b"")
NUMBER = (p.Number(0x1122334455667788), q(0x1122334455667788))
STATE = (p.VringState(1, 0x80050004), i(1, 0x80050004))
INFLIGHT = (
    p.Inflight(0x2100, 0x1000, 2, 128), q(0x2100, 0x1000) + struct.pack("=HH", 2, 128) + bytes(4)
)  # fmt: skip
CONFIG = (p.ConfigSpace(36, 1, b"\2\0\0\0"), i(36, 4, 1) + b"\2\0\0\0")
# id, name, request (payload, bytes), reply (None: none of its own), descriptors with the request
TABLE = [
    (1, "GET_FEATURES", NOTHING, NUMBER, 0),
    (2, "SET_FEATURES", NUMBER, None, 0),
    (3, "SET_OWNER", NOTHING, None, 0),
    (4, "RESET_OWNER", NOTHING, None, 0),
    (5, "SET_MEM_TABLE", (p.MemoryTable((REGION, REGION)), i(2, 0) + REGION_BYTES * 2), None, 2),
    (6, "SET_LOG_BASE", (p.LogArea(0x800, 0), q(0x800, 0)), (p.LogArea(0x800, 0), q(0x800, 0)), 1),
    (7, "SET_LOG_FD", NOTHING, None, 1),
    (8, "SET_VRING_NUM", STATE, None, 0),
    (9, "SET_VRING_ADDR", (p.VringAddr(1, 1, 2, 3, 4, 5), i(1, 1) + q(2, 3, 4, 5)), None, 0),
    (10, "SET_VRING_BASE", STATE, None, 0),
    (11, "GET_VRING_BASE", (p.VringState(1, 0), i(1, 0)), STATE, 0),
    (12, "SET_VRING_KICK", (p.Number(1), q(1)), None, 1),
    (13, "SET_VRING_CALL", (p.Number(0x101), q(0x101)), None, 0),
    (14, "SET_VRING_ERR", (p.Number(0), q(0)), None, 1),
    (15, "GET_PROTOCOL_FEATURES", NOTHING, NUMBER, 0),
    (16, "SET_PROTOCOL_FEATURES", NUMBER, None, 0),
    (17, "GET_QUEUE_NUM", NOTHING, NUMBER, 0),
    (18, "SET_VRING_ENABLE", (p.VringState(1, 1), i(1, 1)), None, 0),
    (19, "SEND_RARP", NUMBER, None, 0),
    (20, "NET_SET_MTU", NUMBER, None, 0),
    (21, "SET_BACKEND_REQ_FD", NOTHING, None, 1),
    (22, "IOTLB_MSG", (p.IotlbMessage(1, 2, 3, 1, 2), q(1, 2, 3) + b"\1\2" + bytes(6)), NUMBER, 0),
    (23, "SET_VRING_ENDIAN", (p.VringState(1, 1), i(1, 1)), None, 0),
    (24, "GET_CONFIG", CONFIG, CONFIG, 0),
    (25, "SET_CONFIG", CONFIG, None, 0),
    (26, "CREATE_CRYPTO_SESSION", (p.Opaque(b"any"), b"any"), (p.Opaque(b"any"), b"any"), 0),
    (27, "CLOSE_CRYPTO_SESSION", NUMBER, None, 0),
    (28, "POSTCOPY_ADVISE", NOTHING, NOTHING, 0),
    (29, "POSTCOPY_LISTEN", NOTHING, None, 0),
    (30, "POSTCOPY_END", NOTHING, None, 0),
    (31, "GET_INFLIGHT_FD", INFLIGHT, INFLIGHT, 0),
    (32, "SET_INFLIGHT_FD", INFLIGHT, None, 1),
    (33, "GPU_SET_SOCKET", NOTHING, None, 1),
    (34, "RESET_DEVICE", NOTHING, None, 0),
    (35, "VRING_KICK", (p.VringState(1, 0), i(1, 0)), None, 0),
    (36, "GET_MAX_MEM_SLOTS", NOTHING, NUMBER, 0),
    (37, "ADD_MEM_REG", (p.SlotRegion(0, *REGION), q(0) + REGION_BYTES), None, 1),
    (38, "REM_MEM_REG", (p.SlotRegion(0, *REGION), q(0) + REGION_BYTES), None, 0),
    (39, "SET_STATUS", NUMBER, None, 0),
    (40, "GET_STATUS", NOTHING, NUMBER, 0),
    (41, "GET_SHARED_OBJECT", (p.Uuid(bytes(range(16))), bytes(range(16))), NOTHING, 0),
    (42, "SET_DEVICE_STATE_FD", (p.DeviceState(1, 0), i(1, 0)), NUMBER, 1),
    (43, "CHECK_DEVICE_STATE", NOTHING, NUMBER, 0),
    (44, "GET_SHMEM_CONFIG", NOTHING, (p.ShmemConfig(1, 0, bytes(2048)), i(1, 0) + bytes(2048)), 0),
]  # fmt: skip
BACKEND_TABLE = [
    (1, "IOTLB_MSG", (p.IotlbMessage(1, 2, 3, 1, 2), q(1, 2, 3) + b"\1\2" + bytes(6)), None, 0),
    (2, "CONFIG_CHANGE_MSG", NOTHING, None, 0),
    (3, "VRING_HOST_NOTIFIER_MSG", (p.VringArea(1, 2, 3), q(1, 2, 3)), None, 1),
    (4, "VRING_CALL", (p.VringState(1, 0), i(1, 0)), None, 0),
    (5, "VRING_ERR", (p.VringState(1, 0), i(1, 0)), None, 0),
    (6, "SHARED_OBJECT_ADD", (p.Uuid(bytes(16)), bytes(16)), None, 0),
    (7, "SHARED_OBJECT_REMOVE", (p.Uuid(bytes(16)), bytes(16)), None, 0),
    (8, "SHARED_OBJECT_LOOKUP", (p.Uuid(bytes(16)), bytes(16)), NUMBER, 0),
    (9, "SHMEM_MAP", (p.ShmemMap(1, bytes(7), 2, 3, 4, 1), b"\1" + bytes(7) + q(2, 3, 4, 1)), None, 1),
    (10, "SHMEM_UNMAP", (p.ShmemMap(1, bytes(7), 2, 3, 4, 1), b"\1" + bytes(7) + q(2, 3, 4, 1)), None, 0),
]
CASES = [(UPSTREAM, case) for case in TABLE] + [(BACKEND_MESSAGES, case) for case in BACKEND_TABLE]


@pytest.mark.parametrize(("messages", "case"), CASES, ids=[case[1] for _, case in CASES])
@pytest.mark.parametrize("need_reply", [False, True])
def test_request_and_reply(messages, case, need_reply):
    number, name, (payload, body), answer, count = case
    row = messages[name]
    fds = tuple(range(50, 50 + count))
    data = i(number, 0x9 if need_reply else 0x1, len(body)) + body
    request = Request(row, payload, fds, need_reply)
    assert encode_request(request) == data
    assert decode_request(messages, decode_header(data), data[12:], fds) == request

    assert row.answered == (answer is not None)
    payload, body = answer or (p.Number(5), q(5))
    reply = Reply(payload, (50,) * row.reply_fds[0])
    data = i(number, 0x5, len(body)) + body
    assert encode_reply(row, reply) == data
    assert decode_reply(row, decode_header(data), data[12:], reply.fds) == reply


def test_every_message_is_in_the_table():
    assert {row.id for row in UPSTREAM.rows} == {case[0] for case in TABLE}
    assert {row.id for row in BACKEND_MESSAGES.rows} == {case[0] for case in BACKEND_TABLE}


@pytest.mark.parametrize("size", [0, 16, 20, 25])
def test_an_inflight_payload_of_any_other_size(size):
    """24 bytes with the padding at its end; QEMU rejects all else."""
    row = UPSTREAM["GET_INFLIGHT_FD"]
    with pytest.raises(MessageError, match="expected 24"):
        decode_reply(row, HEADER.record(row.id, 5, size), bytes(size), (5,))


@pytest.mark.parametrize("body", [b"", i(0, 0, 0)], ids=["libvhost-user", "rust-vmm"])
def test_a_refused_get_config(body):
    """The back-end has a size of zero for it; which one, the implementations do not agree on."""
    row = UPSTREAM["GET_CONFIG"]
    assert decode_reply(row, HEADER.record(24, 5, len(body)), body, ()).payload.data == b""
    assert encode_reply(row, Reply(p.ConfigSpace(36, 0, b""))) == i(24, 5, 0)


class Peer:
    """A back-end that does as it is told: answers everything with the least that fits."""

    shares_process = False

    def __init__(self, protocol_features=0, code=0):
        self.features = protocol_features
        self.code = code
        self.kick = lambda ring: None
        self.sent = []

    def request(self, request):
        row = request.row
        self.sent.append((row.name, request.need_reply))
        answers = {
            "GET_FEATURES": 0x174000000, "GET_PROTOCOL_FEATURES": self.features, "GET_QUEUE_NUM": 2,
            "GET_MAX_MEM_SLOTS": 8,
        }  # fmt: skip
        if row.name in answers:
            return Reply(p.Number(answers[row.name]))
        if row.answered:
            return Reply(row.request and request.payload)
        return Reply(p.Number(self.code)) if request.need_reply else None

    def notifier(self, message, ring):
        return -1

    def backend_channel(self):
        return -1

    progress = reason = close = notifier


ACKNOWLEDGED = {
    "SET_MEM_TABLE": (p.MemoryTable(()), True), "ADD_MEM_REG": (p.SlotRegion(0, *REGION), True),
    "REM_MEM_REG": (p.SlotRegion(0, *REGION), True), "SET_BACKEND_REQ_FD": (None, True),
    "SET_CONFIG": (p.ConfigSpace(0, 0, b"x"), True), "NET_SET_MTU": (p.Number(1500), True),
    "SET_VRING_ENABLE": (p.VringState(0, 1), True), "SET_VRING_NUM": (p.VringState(0, 8), False),
    "SET_VRING_BASE": (p.VringState(0, 8), False), "SET_OWNER": (None, False), "RESET_DEVICE": (None, False),
    "SET_PROTOCOL_FEATURES": (p.Number(0), False), "SET_STATUS": (p.Number(0), False),
    "SET_INFLIGHT_FD": (p.Inflight(1, 0, 1, 1), False), "SET_VRING_KICK": (p.Number(0x100), False),
    "GET_FEATURES": (None, False), "GET_VRING_BASE": (p.VringState(0, 0), False),
    "POSTCOPY_LISTEN": (None, True), "POSTCOPY_END": (None, True),
}  # fmt: skip
LOGGED = [
    ("SET_FEATURES", p.Number(1 << 26), True), ("SET_FEATURES", p.Number(1 << 30), False),
    ("SET_VRING_ADDR", p.VringAddr(0, 1, 0, 0, 0, 0), True),
    ("SET_VRING_ADDR", p.VringAddr(0, 0, 0, 0, 0, 0), False),
]  # fmt: skip


def frontend(peer):
    options = FrontendOptions(protocol_features=-1)
    device = VhostFrontend(peer, HostServices(), dialect_by_name("upstream"), "fs0", 1, options)
    device.connect()
    peer.sent.clear()
    return device


@pytest.mark.parametrize(
    ("name", "payload", "wanted"),
    [(name, *values) for name, values in ACKNOWLEDGED.items()] + LOGGED,
)
def test_what_is_acknowledged(name, payload, wanted):
    """As QEMU: memory, enabling, configuration; features and addresses only when logging depends on them."""
    peer = Peer(1 << c.F_REPLY_ACK)
    frontend(peer).exchange(name, payload, (0,) if name == "ADD_MEM_REG" else ())
    assert peer.sent == [(name, wanted)]


@pytest.mark.parametrize(
    ("name", "payload", "wanted"), [*LOGGED, ("SET_VRING_ENABLE", p.VringState(0, 1), True)]
)
def test_barriers_without_acknowledgements(name, payload, wanted):
    peer = Peer()
    frontend(peer).exchange(name, payload)
    assert peer.sent == [(name, False), *([("GET_FEATURES", False)] if wanted else [])]


@pytest.mark.parametrize("code", [1, 22, 1 << 63])
def test_a_refusal_is_an_error_with_its_number(code):
    peer = Peer(1 << c.F_REPLY_ACK)
    device = frontend(peer)
    peer.code = code
    with pytest.raises(PeerError, match=f"refused it with {code}") as caught:
        device.exchange("SET_VRING_ENABLE", p.VringState(0, 1))
    assert caught.value.details["errno"] == 5
    assert caught.value.details["device"] == "fs0"
