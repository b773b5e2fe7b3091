"""The front-end's end against back-ends that answer wrongly, not at all, or are gone."""

import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.leaks import Held
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.transport import ConnectionLost, PeerSilent, VhostUserTransport
from vmsim.host.waits import FdWaits
from vmsim.vhost import payloads as p
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.messages import BACKEND_MESSAGES, HEADER, MessageError, Request, encode_request

MESSAGES = DIALECTS["upstream"].messages
ASK = Request(MESSAGES["GET_FEATURES"])
TRANSFER = Request(MESSAGES["SET_DEVICE_STATE_FD"], p.DeviceState(0, 0))


class Front:
    """A transport whose back-end is a bare socket; ``errors`` are the ring errors that it told."""

    def __init__(self, timeout_ns=50_000_000):
        ours, self.peer = UnixSocket.pair()
        self.waits = FdWaits()
        self.transport = VhostUserTransport(ours, MESSAGES, self.waits, timeout_ns=timeout_ns)
        self.calls, self.errors = [], []
        self.transport.on_call = self.calls.append
        self.transport.on_ring_error = lambda ring, why: self.errors.append((ring, why))

    def answer(self, data, fds=(), ask=ASK):
        """Ask, with the answer there already."""
        self.peer.send(data, fds)
        return self.ask(ask)

    def ask(self, ask=ASK):
        ends = os.pipe()
        try:
            request = Request(ask.row, ask.payload, ends[1:] if ask.row.fds[0] else (), ask.need_reply)
            return self.transport.request(request)
        finally:
            for fd in ends:
                os.close(fd)

    def fill(self):
        """Leave no room for another message."""
        while self.transport._connection.send(bytes(12)) is not None:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.transport.close()
        self.transport.close()
        self.peer.close()


@pytest.fixture(autouse=True)
def _nothing_leaks():
    before = Held()
    yield
    assert before.more() == []


def reply(row, flags=5, size=None, body=bytes(8)):
    return HEADER.pack(row, flags, len(body) if size is None else size) + body


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (reply(1, flags=1), "Flags 0x1 instead of 0x5"),
        (reply(1, flags=13), "instead of 0x5"),
        (reply(2), "expected 1, received 2"),
        (reply(1, body=bytes(4)), "expected 8, received 4"),
        (reply(1, body=b""), "expected 8, received 0"),
        (reply(1, size=5000), "announces 5000"),
        (reply(1, flags=6), "version 2"),
    ],
)
def test_wrong_replies_end_the_connection(data, why):
    with Front() as front:
        with pytest.raises((MessageError, ConnectionLost), match=why):
            front.answer(data)
        with pytest.raises(ConnectionLost):
            front.ask()


def test_descriptors_that_nobody_asked_for():
    with Front() as front, open(os.devnull) as file, pytest.raises(MessageError, match="1 descriptors"):
        front.answer(reply(1), (file.fileno(),))


def test_a_replacement_descriptor_is_the_callers():
    with Front() as front, open(os.devnull) as file:
        answer = front.answer(reply(42), (file.fileno(),), TRANSFER)
        assert len(answer.fds) == 1
        os.close(answer.fds[0])


def test_a_back_end_that_does_not_answer():
    with Front() as front:
        with pytest.raises(PeerSilent) as caught:
            front.ask()
        assert "GET_FEATURES: no answer within 0.05 s" in str(caught.value)
        assert caught.value.details["errno"] == errno.ETIMEDOUT
        with pytest.raises(ConnectionLost):
            front.ask()


def test_a_back_end_that_reads_nothing():
    with Front() as front:
        front.fill()
        with pytest.raises(PeerSilent, match="reads no messages"):
            front.ask(Request(MESSAGES["SET_OWNER"]))


def test_a_back_end_that_is_gone_is_told_at_once():
    with Front() as front:
        front.peer.close()
        front.waits.settle()
        assert front.errors == [(0, "the back-end closed the connection")]
        with pytest.raises(ConnectionLost):
            front.ask()
        front.transport.kick(0)


def test_gone_in_the_middle_of_an_answer():
    with Front(timeout_ns=5_000_000_000) as front:
        front.peer.send(reply(1)[:-1])
        front.peer.close()
        with pytest.raises(ConnectionLost, match="GET_FEATURES"):
            front.ask()
        assert front.errors == [], "whoever asked was told"


def test_a_message_that_nobody_asked_for():
    with Front() as front, open(os.devnull) as file:
        front.peer.send(reply(1), (file.fileno(),))
        front.waits.settle()
        assert "nobody asked for" in front.errors[0][1]


def test_calls_by_descriptor_and_on_the_channel():
    with Front() as front:
        fd = front.transport.notifier("SET_VRING_CALL", 1)
        assert front.transport.notifier("SET_VRING_CALL", 1) == fd
        os.eventfd_write(fd, 3)
        front.waits.settle()
        assert front.calls == [1]
        channel = UnixSocket.adopt(os.dup(front.transport.backend_channel()))
        channel.send(encode_request(Request(BACKEND_MESSAGES["VRING_CALL"], p.VringState(0, 0), (), True)))
        front.waits.settle()
        assert front.calls == [1, 0]
        assert channel.receive(100)[0] == reply(4)
        channel.send(encode_request(Request(BACKEND_MESSAGES["VRING_ERR"], p.VringState(1, 0))))
        front.waits.settle()
        assert front.errors == [(1, "the back-end reported an error")]
        channel.close()


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (HEADER.pack(99, 9, 0), reply(99, body=(1).to_bytes(8, "little"))),  # unknown: an error, no hang-up
        (HEADER.pack(2, 9, 0), reply(2, body=(1).to_bytes(8, "little"))),  # CONFIG_CHANGE: not our business
        (HEADER.pack(2, 1, 0), None),
        (HEADER.pack(4, 1, 3) + b"abc", b""),  # a bad size closes the channel
        (b"\xff" * 12, b""),
    ],
)
def test_the_back_ends_own_messages(data, answer):
    with Front() as front:
        channel = UnixSocket.adopt(os.dup(front.transport.backend_channel()))
        channel.send(data)
        front.waits.settle()
        found = channel.receive(100)
        assert (found[0] if found else None) == answer
        channel.close()
        front.waits.settle()
        assert front.errors == []


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=64))
def test_any_bytes_for_an_answer(data):
    with Front(timeout_ns=2_000_000) as front:
        if data:
            front.peer.send(data)
        with pytest.raises((MessageError, ConnectionLost, PeerSilent)):
            front.ask()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=8, max_size=64))
def test_a_good_answer_and_any_bytes_behind_it(data):
    with Front() as front:
        front.peer.send(HEADER.pack(1, 5, 8) + data)
        try:
            assert front.ask().payload.value == int.from_bytes(data[:8], "little")
        except ConnectionLost:
            assert len(data) > 8
        if len(data) > 8:
            with pytest.raises((MessageError, ConnectionLost, PeerSilent)):
                front.ask()
