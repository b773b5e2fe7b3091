"""Whatever a front-end sends, the server answers or ends the connection, and nothing leaks."""

import os
import select

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.leaks import Held
from tests.support.socket_rig import SocketRig
from tests.support.vhost_rig import BASIC, PACKED, EchoDevice
from tests.unit.vhost.test_backend_fuzz import steps
from vmsim.host.eventfd import EventFd
from vmsim.host.services import HostServices
from vmsim.host.shm import SharedMemory
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.channel import ChannelClient, ChannelServer
from vmsim.host.vhost_user.server import VhostUserServer
from vmsim.host.waits import FdWaits
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost.backend import IMPLEMENTED, BackendOptions, VhostBackend
from vmsim.vhost.dialects import DIALECTS
from vmsim.vhost.messages import HEADER, encode_request

MEANT = (1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 31, 32, 34, 37, 38, 41, 42, 43)


class Served:
    """A server, and the raw other end of its connection."""

    def __init__(self, dialect="upstream"):
        self.waits = FdWaits(patience_ns=1_000_000_000)
        schedule = ImmediateSchedule(descriptors=self.waits)
        options = BackendOptions(protocol_features=IMPLEMENTED, log_shared=True)
        self.backend = VhostBackend(EchoDevice(), HostServices(), schedule, DIALECTS[dialect], options)
        self.peer, theirs = UnixSocket.pair()
        self.server = VhostUserServer(self.backend, theirs, self.waits)
        self.log = []

    def send(self, data, fds=()):
        """Send, let the server work, and throw away what it answers; whether it still listens."""
        if self.server.ended:
            return False
        self.peer.send(data, fds)
        self.waits.settle()
        while (found := self.peer.receive(4096)) is not None and found[0]:
            for fd in found[1]:
                os.close(fd)
        return not self.server.ended

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.peer.close()
        self.waits.settle()
        assert self.server.ended
        assert self.backend.link is None
        assert not self.backend.memory.memory.regions


def lasting(check):
    """``check``, after which as many descriptors and mappings are open as before."""

    def test():
        before = Held()
        check()
        assert before.more() == []

    return test


raw = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda number, flags, body, size: HEADER.pack(number, flags, size or len(body)) + body,
        st.one_of(st.sampled_from(MEANT), st.integers(0, 2**32 - 1)),
        st.one_of(st.sampled_from([1, 9, 5, 13]), st.integers(0, 2**32 - 1)),
        st.one_of(st.binary(max_size=48), st.sampled_from([bytes(8), bytes(16), bytes(24), bytes(40)])),
        st.one_of(st.none(), st.none(), st.integers(0, 5000)),
    ),
)


@lasting
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(raw, st.integers(0, 3)), max_size=12))
def test_bytes(sequence):
    files = [os.open("/dev/null", os.O_RDWR), *os.pipe()]
    try:
        with Served() as served:
            served.send(HEADER.pack(16, 1, 8) + IMPLEMENTED.to_bytes(8, "little"))
            for data, count in sequence:
                if data and not served.send(data, tuple(files[:count])):
                    break
    finally:
        for fd in files:
            os.close(fd)


@pytest.mark.parametrize("dialect", ["upstream", "rfc2023"])
def test_messages(dialect):
    @lasting
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(steps(DIALECTS[dialect].messages), max_size=30))
    def check(sequence):
        ram = SharedMemory("r", 1 << 20)
        files = [ram.fd, os.open("/dev/null", os.O_RDWR)]
        try:
            with Served(dialect) as served:
                served.send(HEADER.pack(16, 1, 8) + IMPLEMENTED.to_bytes(8, "little"))
                for what, one, count in sequence:
                    if what == "message" and not served.send(encode_request(one), tuple(files[:count])):
                        break
        finally:
            os.close(files[1])
            ram.close()

    check()


def test_cut_at_every_byte():
    """A front-end that is gone in the middle of a message is gone, and the message did not happen."""
    data = HEADER.pack(16, 1, 8) + bytes([1]) + bytes(7)
    for size in range(len(data)):
        before = Held()
        with Served() as served:
            read_end, write_end = os.pipe()
            if size:
                served.send(data[:size], (read_end,))
            os.close(read_end)
            os.close(write_end)
            assert served.backend.protocol_features == 0
        assert before.more() == []


def test_a_message_of_many_pieces():
    with Served() as served:
        for byte in HEADER.pack(16, 1, 8) + (1).to_bytes(8, "little"):
            assert served.send(bytes([byte]))
        assert served.backend.protocol_features == 1


@pytest.mark.parametrize(
    ("data", "survives"),
    [
        (HEADER.pack(99, 9, 0), True),  # unknown, and somebody wants to know
        (HEADER.pack(99, 1, 0), False),
        (HEADER.pack(3, 9, 4) + bytes(4), True),  # SET_OWNER with a payload
        (HEADER.pack(3, 1, 4) + bytes(4), False),
        (HEADER.pack(1, 9, 4) + bytes(4), False),  # a reply could not be told from a refusal
        (HEADER.pack(3, 5, 0), False),  # a reply
        (HEADER.pack(3, 3, 0), False),  # version 3
    ],
)
def test_refusals(data, survives):
    with Served() as served:
        served.send(HEADER.pack(16, 1, 8) + (1 << 3).to_bytes(8, "little"))
        assert served.send(data) == survives
        if not survives:
            assert served.server.failure is not None
            assert served.server.failure.spec


def test_a_front_end_that_never_pauses_leaves_everybody_their_turn():
    owner = HEADER.pack(3, 1, 0)
    with Served() as served:
        turns, sent = [], []

        def one_more(_):
            sent.append(1)
            if not turns and len(sent) < 10_000:
                served.peer.send(owner)

        served.backend._handlers["SET_OWNER"] = one_more
        kick = EventFd()
        served.waits.add(kick.fd, select.POLLIN, lambda: turns.append(kick.drain()))
        kick.signal()
        served.send(owner)
        assert turns == [1]
        assert len(sent) < 1000
        served.waits.remove(kick.fd)
        kick.close()


def test_calls_without_end_leave_everybody_their_turn():
    turns, calls = [], []
    waits = FdWaits(patience_ns=1_000_000_000)
    channel = ChannelServer(waits, lambda ring: again(), calls.append)
    back_end = ChannelClient(os.dup(channel.peer_fd))

    def again():
        calls.append(1)
        if not turns and len(calls) < 10_000:
            back_end.tell("VRING_CALL", 0)

    kick = EventFd()
    waits.add(kick.fd, select.POLLIN, lambda: turns.append(kick.drain()))
    kick.signal()
    back_end.tell("VRING_CALL", 0)
    waits.settle()
    assert turns == [1]
    assert len(calls) < 1000
    channel.close()
    back_end.close()
    kick.close()


@pytest.mark.parametrize("features", [BASIC, PACKED], ids=["split", "packed"])
def test_a_driver_that_never_pauses_leaves_everybody_their_turn(features):
    """Else its machine could never be stopped: GET_VRING_BASE would not be answered."""
    with SocketRig(echo=EchoDevice(features)) as rig:
        rig.boot(features)
        turns, limit = [], 10_000

        def one_more(_):
            if not turns and len(rig.echo.served) < limit:
                rig.driver.reap()
                rig.driver.add(b"x")
                rig.driver.rings[1].publish()

        other = EventFd()
        rig.waits.add(other.fd, select.POLLIN, lambda: turns.append(other.drain() and len(rig.echo.served)))
        other.signal()
        rig.echo.during = one_more
        rig.driver.send(b"x")
        assert 1 < turns[0] < limit, "how many fit a turn is the machine's affair"
        served = len(rig.echo.served)
        while rig.driver.reap() is not None:
            pass
        assert rig.driver.rings[1].outstanding == 0
        assert served == turns[0] + 1  # what it had made available when it stopped
        rig.waits.remove(other.fd)
        other.close()
