"""Every message as bytes, and everything that is not a message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsim.vhost import payloads as p
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.messages import (
    BACKEND_MESSAGES,
    HEADER,
    MessageError,
    MessageSet,
    Reply,
    Request,
    Row,
    decode_header,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

SETS = {**{name: dialect.messages for name, dialect in DIALECTS.items()}, "back-end": BACKEND_MESSAGES}
ROWS = [(name, row) for name, messages in SETS.items() for row in messages.rows]
REGION = p.MemoryRegion(0x1000, 0x2000, 0x7000_0000_0000, 0x3000)
SAMPLES = {
    "Number": p.Number(0x1122334455667788),
    "VringState": p.VringState(3, 0xFFFF0001),
    "VringAddr": p.VringAddr(1, 1, 2, 3, 4, 5),
    "SlotRegion": p.SlotRegion(0, *REGION),
    "MemoryTable": p.MemoryTable((REGION, REGION._replace(guest_addr=0x9000))),
    "LogArea": p.LogArea(0x800, 0),
    "IotlbMessage": p.IotlbMessage(1, 2, 3, 4, 5),
    "ConfigSpace": p.ConfigSpace(4, 1, b"abc"),
    "VringArea": p.VringArea(1, 2, 3),
    "Inflight": p.Inflight(1, 2, 3, 4),
    "DeviceState": p.DeviceState(1, 0),
    "Uuid": p.Uuid(bytes(range(16))),
    "ShmemConfig": p.ShmemConfig(1, 0, bytes(2048)),
    "ShmemMap": p.ShmemMap(1, bytes(7), 2, 3, 4, 1),
    "StateChunk": p.StateChunk(4 << 20, 4 << 20),
    "Opaque": p.Opaque(b"whatever"),
}
SIZES = {
    "Number": 8, "VringState": 8, "VringAddr": 40, "SlotRegion": 40, "MemoryTable": 8 + 2 * 32, "LogArea": 16,
    "IotlbMessage": 32, "ConfigSpace": 15, "VringArea": 24, "Inflight": 24, "DeviceState": 8, "Uuid": 16,
    "ShmemConfig": 2056, "ShmemMap": 40, "StateChunk": 16, "Opaque": 8,
}


def fds(bounds):
    return tuple(range(100, 100 + bounds[0]))


@pytest.mark.parametrize(("messages", "row"), ROWS, ids=[f"{name}:{row.name}" for name, row in ROWS])
def test_round_trip(messages, row):
    payload = SAMPLES[row.request.name] if row.request else None
    request = Request(row, payload, fds(row.fds), need_reply=True)
    data = encode_request(request)
    header = decode_header(data)
    assert header == (row.id, 0x9, SIZES[row.request.name] if row.request else 0)
    assert decode_request(SETS[messages], header, data[12:], request.fds) == request

    codec = row.reply if row.answered else p.NUMBER
    reply = Reply(SAMPLES[codec.name] if codec else None, fds(row.reply_fds))
    data = encode_reply(row, reply)
    assert decode_reply(row, decode_header(data), data[12:], reply.fds) == reply


@pytest.mark.parametrize(("messages", "row"), ROWS, ids=[f"{name}:{row.name}" for name, row in ROWS])
def test_short_long_and_wrong_descriptors(messages, row):
    payload = SAMPLES[row.request.name] if row.request else None
    body = encode_request(Request(row, payload))[12:]
    if row.request is not p.OPAQUE:
        for bad in (body[:-1], body + b"x") if body else (b"x",):
            with pytest.raises(MessageError, match=row.name):
                decode_request(SETS[messages], HEADER.record(row.id, 1, len(bad)), bad, fds(row.fds))
    too_many = tuple(range(row.fds[1] + 1))
    with pytest.raises(MessageError, match="descriptors"):
        decode_request(SETS[messages], HEADER.record(row.id, 1, len(body)), body, too_many)


def test_replies_as_qemu_demands():
    row = SETS["upstream"]["CHECK_DEVICE_STATE"]
    good = encode_reply(row, Reply(p.Number(0)))
    with pytest.raises(MessageError, match="Flags 0x1 instead of 0x5"):
        decode_reply(row, decode_header(good)._replace(flags=1), good[12:], ())
    with pytest.raises(MessageError, match="unexpected message type, expected 43, received 42"):
        decode_reply(row, decode_header(good)._replace(request=42), good[12:], ())
    with pytest.raises(MessageError, match="bad message size, expected 8, received 0"):
        decode_reply(row, decode_header(good), b"", ())
    with pytest.raises(MessageError, match="1 descriptors"):
        decode_reply(row, decode_header(good), good[12:], (5,))


def test_set_log_base_is_answered_in_three_ways():
    row = SETS["upstream"]["SET_LOG_BASE"]
    header = HEADER.record(row.id, 5, 0)
    assert decode_reply(row, header, b"", ()).payload is None
    assert decode_reply(row, header, bytes(8), ()).payload == p.Number(0)
    assert decode_reply(row, header, bytes(16), ()).payload == p.LogArea(0, 0)


def test_ids_of_the_two_dialects_collide():
    names = [[messages.by_id[number].name for number in (41, 42, 43)] for messages in list(SETS.values())[:2]]
    assert names == [
        ["GET_SHARED_OBJECT", "SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"],
        ["FS_SET_STATE_FD", "FS_GET_STATE", "FS_SET_STATE"],
    ]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\1" * 11, "11 bytes"),
        (HEADER.pack(1, 2, 0), "version 2"),
        (HEADER.pack(1, 1, 0x1000), "announces 4096"),
    ],
)
def test_bad_headers(data, match):
    with pytest.raises(MessageError, match=match):
        decode_header(data)


def test_unknown_id_and_wrong_flags():
    messages = SETS["upstream"]
    with pytest.raises(MessageError, match="unknown message 200"):
        decode_request(messages, HEADER.record(200, 1, 0), b"", ())
    with pytest.raises(MessageError, match="flags 0x5"):
        decode_request(messages, HEADER.record(1, 5, 0), b"", ())


def test_tables_and_config_must_say_their_size():
    with pytest.raises(p.PayloadError, match="9 regions"):
        p.MEMORY_TABLE.decode(bytes([9, 0, 0, 0]) + bytes(4 + 32 * 9))
    with pytest.raises(p.PayloadError, match="expected 40"):
        p.MEMORY_TABLE.decode(bytes([1, 0, 0, 0]) + bytes(4))
    with pytest.raises(p.PayloadError, match="config space of 5 bytes"):
        p.CONFIG.decode(p.CONFIG.head.pack(0, 5, 0) + b"1234")


def test_one_id_one_row():
    with pytest.raises(ValueError, match="same id"):
        MessageSet([Row(1, "A"), Row(1, "B")])


@given(st.integers(0, 60), st.integers(0, 15), st.binary(max_size=300), st.integers(0, 10))
def test_any_bytes_are_a_message_or_refused(number, flags, body, count):
    header = HEADER.record(number, flags, len(body))
    for messages in SETS.values():
        try:
            request = decode_request(messages, header, body, tuple(range(count)))
        except MessageError:
            continue
        assert encode_request(request)[12:] == body or request.row.request is None
