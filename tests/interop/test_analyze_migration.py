"""Streams against QEMU's own analyse-migration.py: real ones, and what we write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.migration_rig import Machine
from vmsim.host.files import FileWriter
from vmsim.migration.report import MigrationParameters
from vmsim.migration.source import OutgoingMigration
from vmsim.migration.vmio import VmWriter
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.virtio.state import VirtioQueueState, VirtioState
from vmsim.virtio.vmstate import virtio_save

pytestmark = pytest.mark.interop
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.bin"))


def peers() -> Path:
    if os.environ.get("VMSIM_PEERS"):
        return Path(os.environ["VMSIM_PEERS"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmsim" / "peers"


@pytest.fixture(scope="module")
def analyse():
    script = peers() / "analyze-migration.py"
    if not script.exists():
        pytest.skip(f"QEMU's analyser is not at {script}; tools/peers fetches it")

    def run(stream: Path, *, description: bool = False) -> dict:
        done = subprocess.run(
            [sys.executable, str(script), "-f", str(stream), "-d", "desc" if description else "state"],
            capture_output=True, text=True, timeout=60, cwd=stream.parent,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


class FsSection:
    """A section laid out like vhost-user-fs: virtio_save, then the back-end's state in a subsection."""

    idstr = "virtio-mmio@0000000010000000/vhost-user-fs"
    instance_id = 0
    version_id = 0

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def save(self, out: VmWriter) -> None:
        queues = [VirtioQueueState(128, 128, 0x1000, 0x2000, 0x3000, enabled=1) for _ in range(2)]
        state = VirtioState(
            status=15, guest_features=1 << 32, host_features=5 << 32, config=bytes(40), queues=queues
        )
        with out.opaque("virtio", "virtio"):
            virtio_save(out, state)
        with out.subsection("vhost-user-fs-backend", 0):
            out.chunks("back-end", [self.blob], type="virtio-fs back-end state")


def save(path: Path, **changes) -> Machine:
    machine = Machine()
    machine.memory.write(0x3000, b"\x5a" * 9000)
    machine.devices = [*changes.get("devices", [FsSection(b"STATE")]), *machine.devices]
    parameters = MigrationParameters(part_bytes=8192)
    OutgoingMigration(machine, FileWriter(path), ImmediateSchedule(VirtualClock()), parameters).run()
    return machine


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_analyser_works_on_real_streams(analyse, path, tmp_path):
    copy = tmp_path / "stream"
    copy.write_bytes(path.read_bytes())
    assert analyse(copy)
    assert analyse(copy, description=True)["devices"]


def test_our_stream_and_its_description(analyse, tmp_path):
    path = tmp_path / "stream"
    save(path)
    result = analyse(path)
    assert {key.split(" (")[0] for key in result} >= {"ram", "vmsim/machine", "bus@0/timer", "vmsim/guest"}
    (timer,) = [value for key, value in result.items() if key.startswith("bus@0/timer")]
    assert timer["value"] == "0x00000029"
    assert timer["timer/odd"]["name"] == "74 69 63 6b"
    (fs,) = [value for key, value in result.items() if "vhost-user-fs" in key]
    assert fs["vhost-user-fs-backend"]["back-end"] == "00 00 00 05 53 54 41 54 45 00 00 00 00"
    description = analyse(path, description=True)
    (row,) = [device for device in description["devices"] if device["vmsd_name"] == "vhost-user-fs"]
    assert row["fields"] == [{"name": "virtio", "type": "virtio", "size": 54540}]


@pytest.mark.parametrize("size", range(40))
def test_no_length_of_the_description_confuses_it(analyse, tmp_path, size):
    path = tmp_path / "stream"
    machine = Machine()
    machine.devices[1].idstr = "vmsim/" + "g" * (size + 30)
    OutgoingMigration(machine, FileWriter(path), ImmediateSchedule(VirtualClock())).run()
    if size % 8 == 0 or path.read_bytes()[-1:] == b" ":
        assert analyse(path)


def test_memory_can_be_written_to_files(analyse, tmp_path):
    """Option -x of the analyser reads every page: a check of the RAM records by somebody else."""
    path = tmp_path / "stream"
    machine = save(path)
    script = peers() / "analyze-migration.py"
    done = subprocess.run(
        [sys.executable, str(script), "-f", str(path), "-x"], capture_output=True, text=True, timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for region in machine.memory.regions:
        assert (tmp_path / region.name).read_bytes() == bytes(region.view)
