"""Back-end states for tests: real ones, and what they become with one thing wrong."""

from __future__ import annotations

from pathlib import Path

from devices.virtio_fs.state import blob
from devices.virtio_fs.state.records import PATH, ROOT, HandleRecord, InodeRecord, StateBlob
from vmsim.inspect.capture import Capture
from vmsim.inspect.opening import read_capture
from vmsim.inspect.source import MemoryBytes

GOLDEN = Path(__file__).parents[2] / "golden"
STREAMS = sorted(GOLDEN.glob("qemu*.bin"))
STATES = sorted((GOLDEN / "state").glob("*.hex"))
WORKED = bytes.fromhex(
    "010401040000020201010164000302010205662e74787400040101010167000502000300040102008080080200010001 00"
)
"""The worked example of the reference: d/, d/f.txt and g, two handles."""


def state_bytes(path: Path) -> bytes:
    """The bytes of a golden state."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in path.read_text().splitlines()))


def look(data: bytes, kind: str = "auto") -> Capture:
    """What ``vmsim inspect`` says of these bytes."""
    return read_capture(MemoryBytes(data), "test", kind)


def codes(capture: Capture) -> set[str]:
    """Which kinds of findings there are."""
    return {finding.code for finding in capture.findings}


def small() -> StateBlob:
    """The root, a directory, a file in it and a handle on that."""
    return StateBlob(
        inodes=[InodeRecord(1, 3, ROOT), InodeRecord(2, 2, PATH, 1, b"d"), InodeRecord(3, 1, PATH, 2, b"f")],
        next_inode=4, handles=[HandleRecord(0, 3, 2)], next_handle=1,
    )  # fmt: skip


def encoded(state: StateBlob) -> bytes:
    """Its bytes."""
    return bytes(blob.encode(state))
