"""What ``vmsim serve`` offers beside virtiofsd, as it is offered on the wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.test_serve import ended
from vmsim.check.device import RawDriver
from vmsim.check.frontend import Frontend
from vmsim.cli.compatibility import COMPATIBLE, table
from vmsim.fuse.abi.init_flags import FLOCK_LOCKS, POSIX_LOCKS
from vmsim.host.processes import BackendProcess
from vmsim.host.vhost_user.probe import Probe
from vmsim.virtio.constants import F_IN_ORDER, F_NOTIFICATION_DATA, F_RING_PACKED, F_RING_RESET

README = Path(__file__).resolve().parents[3] / "devices" / "virtio_fs" / "README.md"
LOCKS = POSIX_LOCKS | FLOCK_LOCKS


@pytest.mark.parametrize(("options", "virtio", "fuse"), [
    ((), F_RING_PACKED | F_IN_ORDER | F_NOTIFICATION_DATA, LOCKS),
    (("--ring-reset",), F_RING_RESET | F_RING_PACKED | F_IN_ORDER | F_NOTIFICATION_DATA, LOCKS),
    (("--no-packed", "--no-locks"), F_IN_ORDER | F_NOTIFICATION_DATA, 0),
    (("--compatible-with", "virtiofsd"), 0, 0),
])  # fmt: skip
def test_what_is_offered_beside_virtiofsd(tmp_path, options, virtio, fuse):
    with BackendProcess(str(tmp_path), options=["--sandbox=none", *options]) as process:
        front = Frontend(Probe(process.connect(), 30.0))
        front.negotiate()
        device = RawDriver(front).start()
        device.init()
        ours = sum(row.virtio for row in COMPATIBLE["virtiofsd"])
        assert front.features & ours == virtio
        assert device.session.flags & LOCKS == fuse
        device.close()
        front.probe.close()


def test_a_contradiction_is_refused(tmp_path):
    words = ("--shared-dir", tmp_path, "--compatible-with", "virtiofsd", "--ring-reset")
    status, said = ended("--socket-path", tmp_path / "socket", *words)
    assert status == 2
    assert "--ring-reset offers what virtiofsd lacks" in said


def test_the_table_in_the_readme_is_this_one():
    assert table("virtiofsd") in README.read_text()
