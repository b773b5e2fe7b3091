"""External migration with a real QEMU: one ``vmsim serve --reconnect`` stays while QEMUs come and go.

QEMU itself always sends the back-end's state along, and its back-end finds that it has it. A stream without
the state, as a QEMU with ``migration=external`` writes it, is loaded all the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.interop.qemu_rig import VMSIM, start_backend
from tests.interop.qtest_rig import QtestVm
from tests.interop.qtest_world import FILE, TEXT, StateInStream
from vmsim.guest.calls.posix import GuestFs
from vmsim.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1

pytestmark = pytest.mark.interop
SPLIT = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX


class Stay:
    """A back-end that stays, and the QEMU that is on it now."""

    def __init__(self, peers: Any, folder: Path, features: int) -> None:
        self.peers = peers
        self.share = folder / "share"
        self.share.mkdir()
        (self.share / FILE).write_bytes(TEXT)
        self.stream = folder / "stream"
        self.guest = {"features": features}
        self.backend = start_backend(peers, VMSIM, self.share, "--reconnect", "--sandbox=none")
        self.vm: QtestVm | None = None

    def start(self, *, incoming: bool = False) -> QtestVm:
        return QtestVm(
            self.peers, self.backend.socket, incoming=incoming, device="packed=on", guest=self.guest
        )

    def hop(self, *, state: bool) -> GuestFs:
        """To a file; that QEMU ends; another one attaches to the back-end. The guest's facade there."""
        left = self.vm
        found = left.qemu.migrate(f"file:{self.stream}")
        assert found["status"] == "completed", (found, left.qemu.log, self.backend.said())
        if not state:
            parts = StateInStream(self.stream.read_bytes())
            self.stream.write_bytes(parts.before + parts.after)
        left.qemu.process.terminate()
        left.qemu.wait()
        self.vm = self.start(incoming=True)
        try:
            self.vm.qemu.incoming(f"file:{self.stream}")
            assert self.vm.qemu.arrived() == "running", (self.vm.qemu.log, self.backend.said())
            return self.vm.take_over(left)
        finally:
            left.close()

    def close(self) -> None:
        if self.vm is not None:
            self.vm.close()
        self.backend.stop()


@pytest.fixture
def stay(peers, tmp_path):
    made = []

    def make(features: int) -> Stay:
        made.append(Stay(peers, tmp_path, features))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("state", [False, True], ids=["external", "internal"])
@pytest.mark.parametrize("features", [SPLIT, SPLIT | F_RING_PACKED], ids=["split", "packed"])
def test_another_qemu_goes_on_with_the_session(stay, features, state):
    w = stay(features)
    w.vm = w.start()
    fs = w.vm.boot()
    fd = fs.open(f"/{FILE}", os.O_RDONLY)
    gone = fs.open("/gone", os.O_CREAT | os.O_RDWR)
    fs.write(gone, b"precious")
    if not state:
        fs.unlink("/gone")
    for hop in range(3):
        fs = w.hop(state=state)
        assert fs.read(fd, 2) == TEXT[2 * hop : 2 * hop + 2]
        assert fs.pread(gone, 8, 0) == b"precious"
        fs.close(fs.open(f"/new{hop}", os.O_CREAT | os.O_WRONLY, 0o644))
        assert w.backend.alive
    print(f"{w.backend.said().count('front-end gone')} front-ends gone")


def test_a_new_guest_begins_a_new_session(stay):
    """Whoever boots instead of migrating finds a device as new; what the last one had open is closed."""
    w = stay(SPLIT)
    counts = []
    for _ in range(2):
        w.vm = w.start()
        fs = w.vm.boot()
        fd = fs.open(f"/{FILE}", os.O_RDONLY)
        assert fs.read(fd, 5) == TEXT[:5]
        open_there = [os.path.realpath(each) for each in Path(f"/proc/{w.backend.pid}/fd").iterdir()]
        counts.append(open_there.count(str(w.share / FILE)))
        w.vm.close()
    assert counts[0] == counts[1] > 0
