"""Tracing and faults at the seams: everything passes unchanged, shown and, on request, broken."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from vmsim.errors import PeerError, StreamTruncated, UsageError
from vmsim.memory import GuestMemory, Region
from vmsim.migration.channel import ChannelBase
from vmsim.migration.errors import ChannelError
from vmsim.migration.report import Progress
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.trace import Tracer
from vmsim.trace.events import HostCall, VhostRequest, kind_of
from vmsim.vhost.messages import FRONTEND_ROWS, Reply, Request
from vmsim.vhost.payloads import Number
from vmsim.virtio.chain import build_chain
from vmsim.wrappers.faults import Fault, FaultPlan, FaultyChannel, FaultyHostFs, FaultyTransport, Step
from vmsim.wrappers.traced import TracedChannel, TracedDevice, TracedHostFs, TracedProgress, TracedTransport

ROWS = {row.name: row for row in FRONTEND_ROWS}
GET_FEATURES, SET_OWNER = Request(ROWS["GET_FEATURES"]), Request(ROWS["SET_OWNER"], need_reply=True)


class Peer:
    """A transport to a peer that answers GET_FEATURES and calls back on every kick."""

    shares_process = True

    def __init__(self):
        self.trail = []
        self.on_call = self.on_ring_error = lambda *facts: None

    def request(self, request):
        self.trail.append(request.row.name)
        return Reply(Number(0x30)) if request.row.answered else None

    def kick(self, ring):
        self.trail.append(f"kick {ring}")
        self.on_call(ring)
        self.on_ring_error(ring, "bad ring")

    def notifier(self, message, ring):
        return -1

    def backend_channel(self):
        return -1

    def reason(self):
        return "", ""

    def progress(self, fd, *, writing):
        self.trail.append("progress")

    def close(self):
        self.trail.append("close")


class Pipe(ChannelBase):
    """A channel that keeps what was written and gives out what it was given."""

    def __init__(self, data=b""):
        self.data, self.written, self.closed = data, b"", False

    def write(self, data):
        self.written += data

    def read_some(self, size):
        head, self.data = self.data[:size], self.data[size:]
        return head

    def close_write(self):
        self.written += b"|"

    def close(self):
        self.closed = True


class Host:
    """Some calls of a host file system."""

    privileged = True

    def __init__(self):
        self.trail = []

    def fstat(self, fd):
        self.trail.append(fd)
        return (fd,)

    def preadv(self, fd, views, offset=0):
        if fd < 0:
            raise OSError(errno.EBADF, "bad")
        return sum(map(len, views))

    def close(self, fd):
        self.trail.append(("close", fd))


class Device:
    """A device that answers every chain; opcode 33 (SETLKW) later."""

    virtio_features, queue_count, hiprio_count = 0, 2, 1
    config_space = b""

    def __init__(self):
        self.later = []

    def handle(self, ring, chain, complete):
        opcode, unique = struct.unpack_from("<IQ", b"".join(chain.readable), 4)
        if opcode == 2:
            return 0
        chain.writable[0][:16] = struct.pack("<IiQ", 16, -errno.ENOENT if opcode == 1 else 0, unique)
        if opcode == 33:
            self.later.append(lambda: complete(chain, 16))
            return None
        return 16

    def nothing(self, *arguments):
        return None

    set_features = parked = keep_parked = resume_parked = nothing
    log_started = log_stopped = save_state = load_state = reset = nothing


def chain_of(opcode, unique, split=40):
    header = struct.pack("<IIQQIIIHH", 40, opcode, unique, 1, 0, 0, 0, 0, 0)
    memory = GuestMemory([Region("ram", 0, 4096, memoryview(bytearray(4096)))])
    memory.write(0, header[:split])
    memory.write(1024, header[split:])
    return build_chain(memory, 3, 3, [(0, split, False), (1024, 40 - split, False), (2048, 32, True)])


def kinds(history):
    return [kind_of(type(entry.event)) for entry in history]


class TestTraced:
    def test_transport(self):
        tracer, peer = Tracer(), Peer()
        history = tracer.record()
        transport, called = TracedTransport(peer, tracer.source("vm1")), []
        transport.on_call = called.append
        transport.on_ring_error = lambda ring, message: called.append(message)
        assert transport.request(GET_FEATURES).payload.value == 0x30
        assert transport.request(SET_OWNER) is None
        transport.kick(1)
        transport.progress(0, writing=False)
        assert peer.trail == ["GET_FEATURES", "SET_OWNER", "kick 1", "progress"]
        assert called == [1, "bad ring"]
        assert kinds(history) == [
            "vhost.request", "vhost.reply", "vhost.request", "virtio.ring.notify", "virtio.ring.call",
            "virtio.ring.violation",
        ]
        assert history[2].event == VhostRequest(2, "SET_OWNER", "", 0, need_reply=True)

    def test_transport_error_is_shown_and_raised(self):
        tracer = Tracer()
        history = tracer.record("vhost.reply")
        plan = FaultPlan([Fault("transport", "GET_FEATURES", 1, "fail")])
        transport = TracedTransport(FaultyTransport(Peer(), plan), tracer.source("vm1"))
        with pytest.raises(PeerError):
            transport.request(GET_FEATURES)
        assert "Input/output error" in history[0].event.error

    @pytest.mark.parametrize("split", [0, 7, 40])
    def test_device(self, split):
        tracer, inner, completed = Tracer(), Device(), []
        history = tracer.record()
        device = TracedDevice(inner, tracer.source("vm1"))
        complete = lambda chain, written: completed.append(written)  # noqa: E731
        assert device.handle(1, chain_of(1, 4, split), complete) == 16
        assert device.handle(0, chain_of(2, 6, split), complete) == 0
        assert device.handle(1, chain_of(33, 8, split), complete) is None
        inner.later[0]()
        assert completed == [16]
        fuse = [entry.event for entry in history if kind_of(type(entry.event)).startswith("fuse")]
        shown = [(type(event).__name__, event.opcode, event.unique) for event in fuse]
        assert shown == [
            ("FuseRequest", "LOOKUP", 4), ("FuseReply", "LOOKUP", 4), ("FuseRequest", "FORGET", 6),
            ("FuseForget", "FORGET", 6), ("FuseRequest", "SETLKW", 8), ("FuseReply", "SETLKW", 8),
        ]
        assert fuse[1].error == errno.ENOENT
        assert (fuse[1].deferred, fuse[5].deferred) == (False, True)
        assert kinds(history).count("virtio.ring.push") == 3

    def test_channel(self):
        tracer = Tracer()
        history = tracer.record()
        channel = TracedChannel(Pipe(b"abcdef"), tracer.source("vm1"))
        channel.write(b"12")
        channel.write(b"345")
        assert channel.read(4) == b"abcd"
        assert channel.duplex
        assert [(entry.event.offset, entry.event.size_bytes) for entry in history] == [(0, 2), (2, 3), (0, 4)]

    def test_progress(self):
        tracer = Tracer()
        history = tracer.record()
        tell = TracedProgress(tracer.source("vm1"))
        for facts in (("ram", 0, 5, 9), ("ram", 0, 9, 5), ("ram", 1, 14, 0), ("device", 1, 20, 0)):
            tell(Progress(*facts))
        assert kinds(history) == ["migration.phase", "migration.round", "migration.round", "migration.phase"]
        assert history[2].event.number == 1

    def test_host(self):
        tracer = Tracer()
        history = tracer.record()
        host = TracedHostFs(Host(), tracer.source("vm1"))
        assert host.privileged
        assert host.fstat(5) == (5,)
        assert host.fstat(6) == (6,)
        with pytest.raises(OSError):
            host.preadv(-1, [memoryview(b"abc")], offset=3)
        assert [entry.event for entry in history] == [
            HostCall("fstat", "5", 0), HostCall("fstat", "6", 0),
            HostCall("preadv", "-1, <3 bytes>, offset=3", errno.EBADF),
        ]


def messages(transport):
    transport.request(GET_FEATURES)
    transport.kick(0)
    transport.request(SET_OWNER)


class TestFaults:
    def test_counting_enumerates_every_step(self):
        plan = FaultPlan()
        messages(FaultyTransport(Peer(), plan))
        FaultyHostFs(Host(), plan).fstat(3)
        assert plan.steps == [
            Step("transport", "GET_FEATURES", 1), Step("transport", "kick", 2),
            Step("transport", "SET_OWNER", 3), Step("host", "fstat", 1),
        ]
        assert plan.injected == []

    @pytest.mark.parametrize(("kind", "arrived"), [("fail", 1), ("lose", 2), ("cut", 1)])
    def test_transport(self, kind, arrived):
        peer = Peer()
        plan = FaultPlan([Fault("transport", "SET_OWNER", 1, kind)])
        transport = FaultyTransport(peer, plan)
        with pytest.raises(PeerError, match="SET_OWNER") as caught:
            messages(transport)
        assert caught.value.details["request"] == "SET_OWNER"
        assert len(peer.trail) == arrived + 1
        assert [str(step) for step, _ in plan.injected] == ["transport 3 (SET_OWNER)"]
        if kind == "cut":
            for act in (
                lambda: transport.request(GET_FEATURES), lambda: transport.progress(0, writing=False)
            ):
                with pytest.raises(PeerError, match="gone"):
                    act()
            transport.kick(0)
            assert len(peer.trail) == arrived + 1
        else:
            assert transport.request(GET_FEATURES) is not None
            transport.progress(0, writing=False)

    def test_a_lost_reply_leaks_no_descriptor(self):
        read_end, write_end = os.pipe()

        class Giver(Peer):
            def request(self, request):
                return Reply(Number(0), (read_end,))

        plan = FaultPlan([Fault("transport", "*", 1, "lose")])
        with pytest.raises(PeerError):
            FaultyTransport(Giver(), plan).request(GET_FEATURES)
        with pytest.raises(OSError):
            os.fstat(read_end)
        os.close(write_end)

    def test_callbacks_pass_through(self):
        peer, called = Peer(), []
        transport = FaultyTransport(peer, FaultPlan())
        transport.on_call = called.append
        transport.on_ring_error = lambda ring, message: called.append(message)
        transport.kick(4)
        assert called == [4, "bad ring"]
        assert transport.on_call is peer.on_call
        assert transport.on_ring_error is peer.on_ring_error

    @pytest.mark.parametrize(("kind", "left"), [("fail", b""), ("lose", b"12345678"), ("cut", b"1234")])
    def test_channel_write(self, kind, left):
        pipe = Pipe()
        channel = FaultyChannel(pipe, FaultPlan([Fault("channel", "write", 1, kind, errno.ENOSPC)]))
        with pytest.raises(ChannelError) as caught:
            channel.write(b"12345678")
        assert caught.value.details["errno"] == (errno.EPIPE if kind == "cut" else errno.ENOSPC)
        assert pipe.written == left
        assert pipe.closed is (kind == "cut")
        if kind == "cut":
            with pytest.raises(ChannelError):
                channel.write(b"9")
            with pytest.raises(StreamTruncated):
                channel.read(1)
        assert pipe.written == left

    @pytest.mark.parametrize(
        ("kind", "error"), [("fail", ChannelError), ("lose", ChannelError), ("cut", StreamTruncated)]
    )
    def test_channel_read(self, kind, error):
        channel = FaultyChannel(Pipe(b"abcd"), FaultPlan([Fault("channel", "read", 2, kind)]))
        assert channel.read(2) == b"ab"
        with pytest.raises(error):
            channel.read(2)

    def test_channel_finish(self):
        pipe = Pipe()
        channel = FaultyChannel(pipe, FaultPlan([Fault("channel", "finish", 1, "fail", errno.ENOSPC)]))
        with pytest.raises(ChannelError):
            channel.finish()
        assert pipe.written == b""
        channel.finish()
        assert pipe.written == b"|"

    def test_host(self):
        inner = Host()
        plan = FaultPlan([Fault("host", "fstat", 2, "fail", errno.EIO), Fault("host", "fstat", 3, "lose")])
        host = FaultyHostFs(inner, plan)
        host.fstat(1)
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                host.fstat(2)
            assert caught.value.errno == errno.EIO
        assert inner.trail == [1, 2]
        host.close(2)
        assert inner.trail[-1] == ("close", 2)
        assert host.preadv(0, [memoryview(b"xy")]) == 2

    def test_delay_lets_time_pass(self):
        schedule = ImmediateSchedule(VirtualClock())
        plan = FaultPlan([Fault("host", "*", 1, "delay", delay_ns=5000)], schedule=schedule)
        assert FaultyHostFs(Host(), plan).fstat(1) == (1,)
        assert schedule.now_ns() == 5000
        assert len(plan.injected) == 1

    def test_a_kind_that_does_not_exist(self):
        with pytest.raises(UsageError, match="no fault 'explode'") as caught:
            FaultPlan([Fault("host", "*", 1, "explode")])
        assert "lose" in caught.value.hint

    def test_a_step_of_one_run_fails_in_the_next(self):
        plan = FaultPlan()
        messages(FaultyTransport(Peer(), plan))
        for step in plan.steps:
            again = FaultPlan([Fault.at(step, "fail")])
            if step.operation == "kick":
                messages(FaultyTransport(Peer(), again))
            else:
                with pytest.raises(PeerError):
                    messages(FaultyTransport(Peer(), again))
            assert [hit for hit, _ in again.injected] == [step]

    def test_faults_are_events(self):
        tracer = Tracer()
        history = tracer.record("sim.fault")
        plan = FaultPlan([Fault("host", "*", 1, "fail")], trace=tracer.source("sim"))
        with pytest.raises(OSError):
            FaultyHostFs(Host(), plan).fstat(1)
        assert [(entry.event.operation, entry.event.fault) for entry in history] == [("fstat", "fail")]
