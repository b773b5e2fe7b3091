"""``vmsim serve`` and front-ends that harm it: it goes on for the next one, keeps nothing, and says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.waiting import until
from vmsim.check.device import RawDriver
from vmsim.check.frontend import Frontend
from vmsim.errors import HostError, PeerError
from vmsim.fuse import opcodes as op
from vmsim.host.sockets import UnixSocket
from vmsim.host.vhost_user.probe import Probe
from vmsim.vhost import payloads as p

COMMAND = [sys.executable, "-P", "-m", "vmsim.cli", "serve", "--reconnect", "--socket-path"]
TIMEOUT_S = 30.0


class Served:
    """A process that serves a folder, and what it says."""

    def __init__(self, folder, *options, stderr=None):
        self.socket, self.log = str(folder / "socket"), folder / "log"
        share = folder / "share"
        share.mkdir()
        with open(self.log, "wb") as log:
            command = [*COMMAND, self.socket, "--shared-dir", str(share), *options]
            self.process = subprocess.Popen(command, stderr=log if stderr is None else stderr)
        self.front = until(
            self._try, "a connection", saw=self.log.read_text, alive=lambda: self.process.poll() is None
        )

    def _try(self):
        try:
            return self.connect()
        except HostError:
            return None

    def connect(self):
        """Another front-end."""
        return Frontend(Probe(UnixSocket.connect(self.socket), TIMEOUT_S))

    def boot(self, front=None):
        """A guest with a session."""
        front = front or self.connect()
        front.negotiate()
        device = RawDriver(front).start()
        device.init()
        return device

    def leave(self, device):
        """Hang up."""
        device.front.probe.close()
        device.close()

    def holds(self, what):
        """How many descriptors and mappings of that name the process has."""
        folder = f"/proc/{self.process.pid}"
        with open(f"{folder}/maps") as maps:
            count = sum(what in line for line in maps)
        for fd in os.listdir(f"{folder}/fd"):
            count += what in os.readlink(f"{folder}/fd/{fd}")
        return count

    def end(self):
        """Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def served(tmp_path):
    """Without a sandbox: its descriptors can be looked at."""
    served = Served(tmp_path, "--sandbox", "none")
    yield served
    served.front.probe.close()
    assert served.end() == 128 + signal.SIGTERM
    assert "Traceback" not in served.log.read_text()
    assert "bug" not in served.log.read_text()


def test_a_front_end_that_has_gone_leaves_no_memory_behind(served):
    """A guest's memory is many gigabytes, and somebody else may wait for them."""
    device = served.boot(served.front)
    assert served.holds("memfd:check")
    device.ok(op.GETATTR, 1, (0, 0, 0))
    served.leave(device)
    next_one = served.connect()
    next_one.barrier()
    assert served.holds("memfd:check") == 0
    next_one.probe.close()


def test_nor_does_one_whose_requests_were_recorded(served):
    device = served.boot(served.front)
    reply = device.front.ask("GET_INFLIGHT_FD", p.Inflight(0, 0, 2, device.size))
    area = reply.payload._replace(num_queues=2, queue_size=device.size)
    for ring in range(2):
        device.stop_ring(ring)
    device.front.done("SET_INFLIGHT_FD", area, reply.fds)
    os.close(reply.fds[0])
    for ring in range(2):
        device.new_ring(ring)
        device.start_ring(ring, 0)
        device.enable(ring)
    device.ok(op.GETATTR, 1, (0, 0, 0))
    assert served.holds("memfd:vhost-inflight")
    served.leave(device)
    next_one = served.connect()
    next_one.barrier()
    assert served.holds("memfd:") == 0
    next_one.probe.close()


def test_nobody_has_to_read_what_it_says(tmp_path):
    read_end, write_end = os.pipe()
    served = Served(tmp_path, "--sandbox", "none", stderr=write_end)
    os.close(write_end)
    os.close(read_end)
    try:
        served.front.probe.send(b"\xff" * 12)  # something to be told
        with pytest.raises(PeerError):
            served.front.probe.receive()
        served.front.probe.close()
        served.leave(served.boot())
        assert served.process.poll() is None
    finally:
        served.end()


def test_memory_that_is_taken_back_ends_it_with_a_word(tmp_path):
    """Nothing can be done about that here: so at least it says who did it."""
    served = Served(tmp_path)
    device = served.boot(served.front)
    os.ftruncate(device.memory.regions[0].fd, 0)
    device.kick()
    try:
        assert served.process.wait(TIMEOUT_S) == 128 + signal.SIGBUS
    finally:
        served.end()
        served.front.probe.close()
    assert "SIGBUS" in served.log.read_text()
    assert "memory" in served.log.read_text()
    device.close()
