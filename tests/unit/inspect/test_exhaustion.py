"""Files made to exhaust whoever looks at them: what is kept, and what is read for it, stays within bounds."""

from __future__ import annotations

from struct import pack

import pytest

import devices.virtio_fs.inspection as fs
from devices.virtio_fs.state.records import PATH, ROOT, InodeRecord, StateBlob
from tests.unit.inspect.states import codes, encoded, look
from vmsim.inspect.bodies import DEVICES_MAX
from vmsim.inspect.capture import SAME_MAX, Capture
from vmsim.inspect.opening import read_capture
from vmsim.inspect.source import MemoryBytes
from vmsim.inspect.stream import SECTIONS_MAX

HEADER = pack(">4sI", b"QEVM", 3)
END = b"\0"
FS = b"virtio-mmio@0/vhost-user-fs"
BAD_VIRTIO = bytes(20) + b"\0\0\x40\0"
"""Its configuration space would have 16 KiB."""
GIB = 1 << 30


class Counting(MemoryBytes):
    """Counts the bytes that were read."""

    total = 0

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        data = super().read_at(offset, size_bytes)
        self.total += len(data)
        return data


def full(number: int, name: bytes, body: bytes, *, footer: bool = True) -> bytes:
    """One section."""
    head = pack(">BIB", 4, number, len(name)) + name + pack(">II", 0, 0)
    return head + body + (pack(">BI", 0x7E, number) if footer else b"")


def ram(records: bytes) -> bytes:
    """The RAM section of one block of 16 MiB."""
    size = 16 << 20
    blocks = pack(">Q", size | 4) + b"\x03mem" + pack(">Q", size)
    return pack(">BI", 1, 2) + b"\x03ram" + pack(">II", 0, 4) + blocks + records + pack(">QBI", 16, 0x7E, 2)


def part() -> bytes:
    return pack(">BIQBI", 2, 2, 16, 0x7E, 2)


def filled() -> bytes:
    first = pack(">Q", 2) + b"\x03mem\1"
    return first + (pack(">Q", 2 | 0x20) + b"\1") * 100_000


FILES = {
    "commands": pack(">BHH", 8, 11, 0) * 100_000,
    "unknown commands": pack(">BHH", 8, 99, 0) * 100_000,
    "sections that nobody knows": full(1, b"x", b"a" * 10) * 30_000,
    "devices without footers": full(1, FS, BAD_VIRTIO, footer=False) * 20_000,
    "devices with footers": full(1, FS, BAD_VIRTIO) * 20_000,
    "pages that are not zero": ram(filled()),
    "rounds": ram(b"") + part() * 50_000,
    "subsections": full(1, FS, bytes(28) + b"\5\x0avirtio/xyz\0\0\0\1" * 50_000),
    "chunks of one byte": full(
        1, FS, BAD_VIRTIO + b"\5\x15vhost-user-fs-backend\0\0\0\0" + b"\0\0\0\1a" * 100_000 + bytes(4)
    ),
}


def checked(data: bytes) -> Capture:
    """What was kept of it is bounded, and so is what was read."""
    source = Counting(data)
    capture = read_capture(source, "hostile")
    kinds = codes(capture)
    assert len(capture.findings) <= (SAME_MAX + 1) * len(kinds)
    assert sum(1 for _ in capture.root.walk()) < 3 * SECTIONS_MAX
    assert len(capture.devices) <= DEVICES_MAX
    assert source.total < 3 * GIB
    return capture


@pytest.mark.parametrize("name", FILES)
def test_bounded(name):
    assert checked(HEADER + FILES[name] + END).findings


def test_what_is_not_kept_is_counted():
    capture = checked(HEADER + full(1, b"x", b"a" * 10) * 1000 + END)
    found = [finding for finding in capture.findings if finding.code == "section-twice"]
    assert len(found) == SAME_MAX + 1
    assert f"{1000 - 1 - SAME_MAX} more" in "".join(finding.message for finding in found)


def test_bytes_of_many_chunks_have_their_places():
    inodes = [InodeRecord(1, 3, ROOT), InodeRecord(2, 1, PATH, 1, b"name")]
    state = encoded(StateBlob(inodes=inodes, next_inode=3))
    body = b"".join(b"\0\0\0\1" + state[index : index + 1] for index in range(len(state))) + bytes(4)
    data = HEADER + full(1, FS, BAD_VIRTIO + b"\5\x15vhost-user-fs-backend\0\0\0\0" + body) + END
    node = look(data).devices[0].node.get("vhost-user-fs-backend", "inodes", "2")
    at = state.index(b"\2\1\1\1\4name")
    assert node.value["path"] == "/name"
    assert node.offset == data.index(b"\0\0\0\0\0\0\0\1\1") + 8 + 5 * at


def test_a_state_of_too_many_inodes_is_looked_at_in_part(monkeypatch):
    monkeypatch.setattr(fs, "INODES_MAX", 3)
    inodes = [InodeRecord(1, 12, ROOT), *(InodeRecord(n, 1, PATH, 1, b"f%d" % n) for n in range(2, 12))]
    capture = look(encoded(StateBlob(inodes=inodes, next_inode=12)))
    assert codes(capture) == {"state-large"}
    assert capture.errors() == 0
    assert len(capture.state.get("inodes").children) == 3


@pytest.mark.parametrize("text", [
    b'{"configuration":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"page_size":' + b"9" * 5000 + b',"devices":[]}',
    b'{"page_size":4096,"devices":[{"name":"x","instance_id":0,"fields":[{"name":"a","type":"buffer","size":'
    + b"9" * 4000 + b',"array_len":' + b"9" * 4000 + b"}]}]}",
    b'{"page_size":4096,"devices":[{"name":"x","instance_id":0,"fields":[{"name":"a","type":"struct",'
    b'"size":1,"array_len":99999999999,"struct":{"fields":[]}}]}]}',
])  # fmt: skip
def test_descriptions(text):
    capture = checked(HEADER + full(1, b"x", b"a" * 10) + END + pack(">BI", 6, len(text)) + text)
    assert capture.findings
