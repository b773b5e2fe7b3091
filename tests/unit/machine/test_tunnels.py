"""A tunnel between two machines dies while the acknowledgement is on its way: never both, never neither."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from itertools import product

import pytest

from tests.support.machine_rig import make
from vmsim.errors import VmsimError
from vmsim.host.channels import SocketChannel
from vmsim.machine import Machine
from vmsim.migration.report import MigrationInDoubt

READY_BYTES = ACKNOWLEDGEMENT_BYTES = 8
JOIN_S = 60.0
CASES = [
    *product((0, 4, 8, 9, 15, 16), ("inproc",), ("upstream", "rfc2023"), ("end", "reset")),
    # The same channel as in one process: a few show that the back-ends follow.
    (0, "vhost-user", "upstream", "end"), (0, "vhost-user", "rfc2023", "reset"),
    (8, "vhost-user", "upstream", "reset"), (8, "vhost-user", "rfc2023", "end"),
    (15, "vhost-user", "upstream", "end"), (15, "vhost-user", "rfc2023", "reset"),
]  # fmt: skip


def tcp_pair():
    """Two connected sockets that can be reset, which those of a socketpair cannot."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def disconnect(connection):
    """connect(AF_UNSPEC), which Python's sockets cannot say: a reset for the other end."""
    ctypes.CDLL(None).connect(connection.fileno(), bytes(16), 16)


def tunnel(a, b, limit, ending):
    """Pass everything on from ``a`` to ``b``, and ``limit`` bytes back; then end both connections."""
    def over():
        for each in (a, b):
            try:
                if ending == "reset":
                    # An unspecified address: TCP breaks the connection at once, for whoever waits in it too.
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    disconnect(each)
                else:
                    each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def there():
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass

    def back():
        passed = 0
        try:
            while passed < limit and (data := b.recv(limit - passed)):
                a.sendall(data)
                passed += len(data)
            if READY_BYTES <= limit < READY_BYTES + ACKNOWLEDGEMENT_BYTES:
                b.recv(1)  # the rest of the acknowledgement is still in the tunnel
        except OSError:
            pass
        over()

    return [threading.Thread(target=each, daemon=True) for each in (there, back)]


@pytest.mark.parametrize(("limit", "transport", "dialect", "ending"), CASES)
def test_a_tunnel_that_dies(limit, transport, dialect, ending, tmp_path):
    share = str(tmp_path)
    vm = make(share, transport=transport, dialect=dialect)
    fs = vm.mount()
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    ours, near = tcp_pair()
    far, theirs = tcp_pair()
    box = []

    def receive():
        try:
            box.append(Machine.receive(SocketChannel(theirs), share, transport=transport))
        except VmsimError as error:
            box.append(error)

    threads = [threading.Thread(target=receive), *tunnel(near, far, limit, ending)]
    for thread in threads:
        thread.start()
    try:
        vm.send(SocketChannel(ours))
        said = "finished"
    except MigrationInDoubt:
        said = "doubt"
    except VmsimError:
        said = "intact"
    for each in (ours, near):
        each.close()
    threads[0].join(JOIN_S)
    assert box, f"the destination has not made up its mind within {JOIN_S:g} s"
    runs = isinstance(box[0], Machine)
    state = {"finished": "finished", "doubt": "in doubt", "intact": "running"}[said]
    assert vm.state == state
    assert (said, runs) not in [("intact", True), ("finished", False)]
    if limit >= READY_BYTES + ACKNOWLEDGEMENT_BYTES:
        assert (said, runs) == ("finished", True)
    if said == "doubt":
        vm.settle(destination_runs=runs)
    if runs:
        moved = box[0].mount()
        moved.pwrite(fd, b"there", 0)
        box[0].close()
    else:
        fs.pwrite(fd, b"here", 0)
    vm.close()
    for each in (far, theirs):
        each.close()
    assert (tmp_path / "f").read_bytes() == (b"there" if runs else b"here")
