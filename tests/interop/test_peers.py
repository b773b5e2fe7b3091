"""The peers that tools/peers fetched really start, and are what the references describe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.interop
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def output(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_versions(peers):
    assert peers.versions["qemu"].startswith("10.")
    assert peers.versions["virtiofsd"] == "1.13.2"
    assert "1.13.2" in output(peers.virtiofsd, "--version")


def test_qemu_has_the_devices_that_are_compared_with(peers):
    devices = output(peers.qemu, "-device", "help")
    assert "vhost-user-fs-pci" in devices
    assert "vhost-user-fs-device" in devices
    assert "microvm" in output(peers.qemu, "-machine", "help")
    assert "tcg" in output(peers.qemu, "-accel", "help")


def test_kernel_and_busybox(peers):
    assert b"HdrS" in Path(peers.kernel).read_bytes()[:1024]
    built_in = Path(peers.modules, "modules.builtin").read_text()
    for module in ("fuse", "virtiofs"):
        assert f"/{module}.ko\n" in built_in or list(Path(peers.modules).rglob(f"{module}.ko*")), module
    assert "BusyBox" in output(peers.busybox)


@pytest.mark.parametrize("kind", ["state", "desc"])
@pytest.mark.parametrize("stream", sorted(GOLDEN.glob("*.bin")), ids=lambda path: path.stem)
def test_the_analyser_reads_the_golden_streams(peers, stream, kind):
    assert output(sys.executable, peers.analyze_migration, "-f", str(stream), "-d", kind).startswith("{")
