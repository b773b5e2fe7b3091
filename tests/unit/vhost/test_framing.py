"""Messages out of a byte stream: however it is cut, and whatever it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsim.vhost.framing import MessageBuffer
from vmsim.vhost.messages import HEADER, MessageError

MESSAGES = [(1, b""), (18, bytes(8)), (42, b"12345678"), (26, bytes(2048))]
STREAM = b"".join(HEADER.pack(number, 1, len(body)) + body for number, body in MESSAGES)


def buffer():
    closed = []
    return MessageBuffer(closed.append), closed


@given(st.lists(st.integers(1, 100)))
def test_any_cut_gives_the_same_messages(cuts):
    collector, closed = buffer()
    rest, found = STREAM, []
    while rest:
        size = min(collector.needed, cuts.pop() if cuts else 1 << 20)
        message = collector.feed(rest[:size])
        rest = rest[size:]
        if message is not None:
            found.append((message.header.request, message.body))
            assert collector.empty
    assert found == MESSAGES
    assert closed == []


def test_descriptors_belong_to_the_message_whose_first_byte_brought_them():
    collector, closed = buffer()
    assert collector.feed(STREAM[:5], [7, 8]) is None
    message = collector.feed(STREAM[5:12])
    assert message.fds == (7, 8)
    assert collector.feed(STREAM[12:24]) is None
    assert collector.feed(STREAM[24:32]).fds == ()
    assert closed == []


def test_late_descriptors_are_refused_and_all_are_closed():
    collector, closed = buffer()
    collector.feed(STREAM[:4], [7])
    with pytest.raises(MessageError, match="after the first byte"):
        collector.feed(STREAM[4:12], [9])
    assert sorted(closed) == [7, 9]


def test_too_many_descriptors():
    collector, closed = buffer()
    with pytest.raises(MessageError, match="33 descriptors"):
        collector.feed(STREAM[:12], list(range(33)))
    assert sorted(closed) == list(range(33))


@pytest.mark.parametrize("facts", [(1, 2, 0), (1, 1, 4085), (1, 1, 1 << 31)])
def test_bad_headers(facts):
    header = HEADER.pack(*facts)
    collector, closed = buffer()
    with pytest.raises(MessageError):
        collector.feed(header, [5])
    assert closed == [5]
    assert collector.empty


@given(st.binary(max_size=200))
def test_any_bytes(data):
    collector, closed = buffer()
    while data:
        size = collector.needed
        assert size > 0
        try:
            collector.feed(data[:size])
        except MessageError:
            break
        data = data[size:]
    collector.discard()
    assert collector.empty
    assert closed == []
