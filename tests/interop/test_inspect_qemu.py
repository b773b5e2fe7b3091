"""``vmsim inspect`` on streams that a real QEMU wrote: field for field what QEMU's own analyser says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from tests.interop.qemu_rig import VIRTIOFSD, VMSIM, Qemu
from tests.interop.qtest_world import FILE, World
from vmsim.host.readable import ReadableFile
from vmsim.inspect.capture import MAPPED_RAM, STREAM, Capture
from vmsim.inspect.diff import diff
from vmsim.inspect.opening import read_capture
from vmsim.wire.tree import Node, Severity

pytestmark = pytest.mark.interop

DISK = ("-blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on")
MACHINES = {
    "microvm": ("-machine", "microvm", "-device", "virtio-rng-device", "-device", "virtio-serial-device"),
    "q35": (
        "-machine", "q35", *DISK, "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci",
        "-device", "virtio-serial-pci", "-device", "virtio-net-pci", "-device", "virtio-balloon-pci",
        "-device", "virtio-scsi-pci", "-device", "e1000", "-device", "qemu-xhci", "-device", "usb-tablet",
    ),
    "pc": ("-machine", "pc", "-device", "virtio-net-pci,disable-modern=on", "-vga", "std"),
}  # fmt: skip
VIRTIO = ("balloon", "blk", "net", "rng", "scsi", "serial")
COMMON = ("-accel", "tcg", "-m", "24M", "-S")
NUMBER = re.compile(r"0x([0-9a-f]+)(?: \((-?\d+)\))?")
SECTION = re.compile(r"(.*) \((\d+)\)")


def saved(peers: Any, machine: str, path: Path, *capabilities: str) -> Path:
    """A machine that never ran, saved by QEMU."""
    with Qemu(peers, *MACHINES[machine], *COMMON) as qemu:
        names = [{"capability": name, "state": True} for name in capabilities]
        qemu.qmp("migrate-set-capabilities", capabilities=names)
        found = qemu.migrate(f"file:{path}")
        assert found["status"] == "completed", (found, qemu.log)
    return path


@contextmanager
def opened(path: Path) -> Iterator[Capture]:
    with ReadableFile(path) as source:
        yield read_capture(source, path.name)


@pytest.fixture(scope="module")
def streams(peers, tmp_path_factory):
    """The stream of a machine, written once."""
    folder = tmp_path_factory.mktemp("streams")
    made: dict[str, Path] = {}

    def get(machine: str) -> Path:
        if machine not in made:
            made[machine] = saved(peers, machine, folder / machine)
        return made[machine]

    return get


@pytest.fixture(scope="module")
def analyse(peers):
    """What QEMU's analyser says: the sections by their number."""

    def run(path: Path) -> dict[int, dict[str, Any]]:
        command = [sys.executable, peers.analyze_migration, "-f", str(path), "-d", "state"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=path.parent)
        assert done.returncode == 0, done.stderr
        sections = {}
        for name, body in json.loads(done.stdout).items():
            match = SECTION.fullmatch(name)
            assert match, name
            sections[int(match[2])] = {"name": match[1], "body": body}
        return sections

    return run


class Comparison:
    """Compares the analyser's fields with ours; ``leaves`` counts the values that were compared."""

    def __init__(self, capture: Capture) -> None:
        self.source = capture.source
        self.leaves = 0

    def section(self, theirs: Any, node: Node) -> None:
        """A section, structure or subsection."""
        assert isinstance(theirs, dict), node.key
        for name, value in theirs.items():
            # The analyser gathers what has one name in a list; we number it.
            pattern = re.compile(re.escape(name) + r"(\[\d+\]|#\d+)?")
            ours = [child for child in node.children if pattern.fullmatch(child.key)]
            if len(ours) == 1:
                self.value(value, ours[0])
                continue
            assert isinstance(value, list), f"{node.key}: {name}"
            assert len(ours) == len(value), f"{node.key}: {name}"
            for one, other in zip(value, ours, strict=True):
                self.value(one, other)

    def value(self, theirs: Any, node: Node) -> None:
        """One field."""
        if isinstance(theirs, dict):
            self.section(theirs, node)
        elif isinstance(theirs, list) and isinstance(node.value, dict):
            self.plain("".join(text.removeprefix("0x") for text in theirs), node.value, node)
        elif isinstance(theirs, list):
            assert isinstance(node.value, list), node.key
            assert len(theirs) == len(node.value), node.key
            for one, other in zip(theirs, node.value, strict=True):
                self.plain(one, other, node)
        else:
            self.plain(theirs, node.value, node)

    def plain(self, theirs: Any, ours: Any, node: Node) -> None:
        """A number, truth value, or bytes."""
        self.leaves += 1
        if isinstance(theirs, bool):
            assert ours is theirs, node.key
        elif match := NUMBER.fullmatch(theirs):
            assert ours == (int(match[2]) if match[2] else int(match[1], 16)), node.key
        elif node.key == "runstate":
            assert ours == bytes.fromhex(theirs).rstrip(b"\0").decode()
        elif node.key == "virtio":
            assert self.source.read_at(node.offset, node.size) == bytes.fromhex(theirs)
        else:
            data = bytes.fromhex(theirs)
            if isinstance(ours, dict):
                digest = blake2b(data, digest_size=8).hexdigest()
                assert (ours["bytes"], ours["begin"], ours["hash"]) == (len(data), data[:16].hex(), digest)
            else:
                assert ours == data.hex(), node.key


def sections_of(capture: Capture) -> dict[int, Node]:
    """Our sections by their number."""
    nodes = capture.root.get("sections").children
    return {node.value["id"]: node for node in nodes if isinstance(node.value, dict)}


def agrees(capture: Capture, theirs: dict[int, dict[str, Any]]) -> int:
    """Every section of the analyser is ours, with the same fields; how many values were compared."""
    ours = sections_of(capture)
    assert ours.keys() == theirs.keys()
    comparison = Comparison(capture)
    for number, found in theirs.items():
        node, body = ours[number], found["body"]
        if found["name"] == "ram":
            sizes = {name: int(size, 16) for name, size in body["section sizes"].items()}
            blocks = node.get("blocks").children
            assert {block.key: block.get("size").value for block in blocks} == sizes
            continue
        assert node.key.partition("[")[0] == found["name"].partition("[")[0]
        backend = body.pop("vhost-user-fs-backend", None)
        if backend is not None:
            child = node.get("vhost-user-fs-backend")
            header = 2 + len(child.key) + 4
            data = capture.source.read_at(child.offset + header, child.size - header)
            assert data == bytes.fromhex(backend["back-end"])
        comparison.section(body, node)
    return comparison.leaves


def errors(capture: Capture) -> list[str]:
    return [f"{one.code}: {one.message}" for one in capture.findings if one.severity is Severity.ERROR]


@pytest.mark.parametrize("machine", MACHINES)
def test_fields_of_any_machine_are_those_of_the_analyser(streams, analyse, machine):
    path = streams(machine)
    with opened(path) as capture:
        assert (capture.kind, capture.end) == (STREAM, path.stat().st_size)
        assert errors(capture) == []
        leaves = agrees(capture, analyse(path))
        print(f"{machine}: {len(sections_of(capture))} sections, {leaves} values as in analyze-migration.py")
        assert leaves > 150


def test_virtio_devices_are_as_qemu_itself_says(peers, tmp_path):
    """Also those that we know nothing of: their status, queues and addresses."""
    path = tmp_path / "stream"
    with Qemu(peers, *MACHINES["q35"], *COMMON) as qemu:
        assert qemu.migrate(f"file:{path}")["status"] == "completed", qemu.log
        said = {}
        for device in qemu.qmp("x-query-virtio"):
            place = {"path": device["path"]}
            status = qemu.qmp("x-query-virtio-status", **place)
            numbers = range(status["num-vqs"])
            queues = [qemu.qmp("x-query-virtio-queue-status", queue=number, **place) for number in numbers]
            said[device["name"]] = (status, [queue["vring-num"] for queue in queues])
    names = {"virtio-console": "virtio-serial"}
    with opened(path) as capture:
        found = {device.idstr.rpartition("/")[2]: device for device in capture.devices}
        found = {names.get(name, name): device for name, device in found.items()}
        assert found.keys() == said.keys() == {f"virtio-{name}" for name in VIRTIO}
        for name, (status, queues) in said.items():
            device = found[name]
            assert device.complete, name
            assert (device.state.isr, device.state.broken) == (status["isr"], status["broken"])
            assert (device.state.status, device.state.guest_features) == (0, 0), "no driver was ever there"
            assert [queue.num for queue in device.state.queues] == queues, name
        assert found["virtio-blk"].node.get("transport", "function").value == "1af4:1001"


@pytest.mark.parametrize("machine", MACHINES)
def test_mapped_ram_says_the_same_of_the_same_machine(peers, streams, tmp_path, machine):
    path = saved(peers, machine, tmp_path / "mapped", "mapped-ram")
    with opened(path) as capture, opened(streams(machine)) as plain:
        assert (capture.kind, capture.end) == (MAPPED_RAM, path.stat().st_size)
        assert errors(capture) == []
        assert sections_of(capture).keys() == sections_of(plain).keys()
        assert {name: block.size for name, block in capture.ram.blocks.items()} == {
            name: block.size for name, block in plain.ram.blocks.items()
        }
        for name, block in capture.ram.blocks.items():
            assert block.mapped
            assert block.counts()[0] == plain.ram.blocks[name].counts()[0], "pages with contents"
        _, memory = diff(plain, capture)
        changed = {pages.block: pages.changed for pages in memory if pages.changed}
        assert not changed, "neither machine ever ran: their memory is the same"


def test_a_stream_without_description_is_read_to_its_end(peers, tmp_path):
    path = tmp_path / "piped"
    with Qemu(peers, *MACHINES["microvm"], *COMMON) as qemu:
        found = qemu.migrate(f"exec:cat > {path}")
        assert found["status"] == "completed", (found, qemu.log)
    data = path.read_bytes()
    bare = data[: data.rindex(b"\x06", 0, data.rindex(b'{"configuration"'))]
    assert bare.endswith(b"\0")
    path.write_bytes(bare)
    with opened(path) as capture:
        assert capture.end == len(bare)
        assert errors(capture) == []
        assert {finding.code for finding in capture.findings} >= {"no-description"}
        assert "undecoded" in {child.key for node in sections_of(capture).values() for child in node.children}


@pytest.mark.parametrize("kind", [VMSIM, VIRTIOFSD])
def test_a_device_with_its_back_end(peers, analyse, tmp_path, kind):
    """What QEMU saved of a guest with an open file is what the guest did."""
    world = World(peers, tmp_path)
    try:
        client = world.booted(kind)
        world.save(client.side)
        with opened(world.stream) as capture:
            assert errors(capture) == []
            agrees(capture, analyse(world.stream))
            (device,) = capture.devices
            state = device.node.get("vhost-user-fs-backend")
            paths = {node.value["path"]: node.value for node in state.get("inodes").children}
            assert paths.keys() == {"/", f"/{FILE}"}
            assert (paths["/"]["base"], paths["/"]["children"]) == (2, 1)
            (handle,) = state.get("handles").children
            assert (handle.value["path"], handle.value["names"]) == (f"/{FILE}", ["O_RDONLY"])
            queue = device.node.get("virtio", "queues", "1")
            assert queue.get("enabled").value is True
            assert queue.get("last_avail_idx").value > 0
    finally:
        world.close()
