"""Streams of whole machines, read by QEMU's own analyze-migration.py; what it sees compared with ours."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from devices.virtio_fs import parked
from devices.virtio_fs.state import blob, extension
from tests.support.machine_rig import ALL_KINDS, Kind, Life, make
from vmsim.machine.config import MachineConfig
from vmsim.migration.byteio import StreamInput
from vmsim.migration.vmio import VmReader
from vmsim.vhost.dialects import DIALECTS
from vmsim.virtio.vmstate import virtio_load

pytestmark = pytest.mark.interop
DEVICE = "virtio-mmio@00000000feb00000/vhost-user-fs"
FIELD = "back-end"
SUBSECTION = "vhost-user-fs-backend"


class Pieces:
    """A channel that gives one string."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read_some(self, limit):
        return self._file.read(limit)


def analyse(peers, path, what: str) -> dict:
    done = subprocess.run(
        [sys.executable, peers.analyze_migration, "-f", str(path), "-d", what], capture_output=True,
        text=True, timeout=60, cwd=path.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_name(dump: dict) -> dict:
    """Sections without the number that the analyser puts behind their names."""
    return {key.rpartition(" (")[0]: value for key, value in dump.items()}


def raw(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def saved(tmp_path, kind: Kind, **changes):
    share = tmp_path / "share"
    share.mkdir()
    vm = make(share, kind, **changes)
    life = Life(vm)
    vm.programs["note"] = b"\0{\x7b"
    path = tmp_path / "stream"
    stats = vm.save(path)
    return vm, life, path, stats


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind.seed is None], ids=str)
@pytest.mark.parametrize("migration", ["internal", "external"])
def test_state_and_description(peers, tmp_path, kind, migration):
    vm, life, path, stats = saved(tmp_path, kind, migration=migration, queues=3)
    with vm:
        sections = by_name(analyse(peers, path, "state"))
        description = analyse(peers, path, "desc")
        assert set(sections) == {"ram", "vmsim/machine", "vmsim/guest", "vmsim/programs", DEVICE}
        assert sections["ram"]["section sizes"] == {"mem": f"0x{2 << 20:016x}"}

        configuration = MachineConfig.decode(raw(sections["vmsim/machine"]["configuration"]))
        assert configuration == vm.config

        device = sections[DEVICE]
        virtio = raw(device["virtio"])
        check_virtio(vm, virtio)
        rows = {row["name"]: row for row in description["devices"]}
        row = rows[DEVICE]
        assert row["vmsd_name"] == "vhost-user-fs"
        assert row["fields"][0] == {"name": "virtio", "type": "virtio", "size": len(virtio)}
        check_backend(vm, life, kind, migration, device, row)
        assert description["page_size"] == 4096
        for name, fields in rows.items():
            assert sum(field["size"] for field in fields["fields"]) < stats.section_bytes[name]
        life.finish(vm)


def check_virtio(vm, data: bytes) -> None:
    """QEMU's bytes are read by our own reader, and are what the device says."""
    state = virtio_load(VmReader(StreamInput(Pieces(data)), DEVICE))
    virtio = vm.device.virtio
    assert state.status == virtio.status
    assert state.guest_features == virtio.features_accepted
    assert state.config[:5] == b"vmsim"
    for ours, theirs in zip(virtio.queues, state.queues, strict=True):
        assert (theirs.num, theirs.desc, theirs.avail, theirs.used) == (
            ours.size, ours.desc, ours.driver, ours.device
        )  # fmt: skip


def check_backend(vm, life, kind: Kind, migration: str, device: dict, row: dict) -> None:
    """The back-end's state is where its dialect puts it, and nowhere with external migration."""
    subsections = row.get("subsections", [])
    if migration == "external":
        assert row["version"] == 0
        assert not subsections
        assert set(device) == {"virtio"}
        return
    if kind.dialect == "upstream":
        assert row["version"] == 0
        framed = raw(device[SUBSECTION][FIELD])
        assert subsections == [
            {
                "vmsd_name": SUBSECTION, "version": 0,
                "fields": [{"name": FIELD, "type": "virtio-fs back-end state", "size": len(framed)}],
            }
        ]  # fmt: skip
    else:
        assert row["version"] == 1
        assert not subsections
        framed = raw(device[FIELD])
        assert row["fields"][1] == {"name": FIELD, "type": "virtio-fs back-end state", "size": len(framed)}
    source = StreamInput(Pieces(framed))
    state = DIALECTS[kind.dialect].read_state(source.read)
    assert source.at_end()
    state, rings = parked.split(state, vm.backend.served.queue_count)
    assert sum(len(ring.in_flight) for ring in rings.values()) == 1, "the request that waits for a lock"
    decoded, end = blob.decode(state)
    fs = vm.backend.served.fs
    assert {inode.id for inode in decoded.inodes} >= {inode.id for inode in fs.inodes.items()}
    assert {handle.id for handle in decoded.handles} == {handle.id for handle in fs.handles.items()}
    assert extension.decode(state, end) is not None


def test_a_machine_with_much_memory_in_two_regions(peers, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    path = tmp_path / "stream"
    with make(share, memory=[(0, 1 << 20), (1 << 32, 1 << 20)]) as vm:
        vm.memory.write(0x8_0000, b"\x5a" * 4096)
        vm.save(path)
        sections = by_name(analyse(peers, path, "state"))
        assert sections["ram"]["section sizes"] == {"mem": "0x0000000000100000", "mem1": "0x0000000000100000"}
        done = subprocess.run(
            [sys.executable, peers.analyze_migration, "-f", str(path), "-x"], capture_output=True, timeout=60,
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        vm.pause()
        for region in vm.memory.regions:
            theirs = (tmp_path / region.name).read_bytes()
            assert len(theirs) == region.size_bytes
            assert theirs[0x8_0000:][:4096] == bytes(region.view[0x8_0000:][:4096])
        vm.resume()
