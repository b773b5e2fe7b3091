"""Real streams, damaged streams, and streams that say little."""

from __future__ import annotations

import pytest

from tests.unit.inspect.states import GOLDEN, STREAMS, codes, encoded, look, small
from vmsim.migration.document import read_document

FS = "virtio-mmio@00000000feb02e00/vhost-user-fs"
MMIO = GOLDEN / "qemu10.0.2-microvm-mmio-split.bin"
PCI = GOLDEN / "qemu10.0.2-q35-pci-split.bin"
HEAD = b"\x05\x15vhost-user-fs-backend\0\0\0\0"


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_real_streams_are_sound_and_read_to_the_end(path):
    capture = look(path.read_bytes())
    assert capture.findings == []
    assert capture.end == path.stat().st_size
    names = [node.key for node in capture.root.get("sections").children]
    document = read_document(path.read_bytes())
    heads = {record.head.idstr for record in document.records if hasattr(record, "head")}
    assert {name.partition("[")[0] for name in names if name != "SWITCHOVER_START"} == heads


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_every_number_is_what_the_document_has(path):
    """The lossless reader of the stream package is the judge: same fields, same bytes."""
    document = read_document(path.read_bytes())
    data = path.read_bytes()
    capture = look(data)
    fields = document.device("timer")
    for value in fields.values:
        node = capture.root.get("sections", "timer", value.name)
        assert data[node.offset : node.offset + node.size] == value.raw
        number = int.from_bytes(value.raw, "big", signed=True)
        expected = value.raw.hex() if value.type.endswith("buffer") else number
        assert node.value == expected


def test_virtio_state_and_back_end():
    capture = look(MMIO.read_bytes())
    virtio = capture.root.get("sections", FS, "virtio")
    assert virtio.get("features").value["names"] == ["VERSION_1"]
    assert "DRIVER_OK" in virtio.get("status").text
    assert virtio.get("queues", "1", "last_avail_idx").value == 4
    assert virtio.get("queues", "1", "desc").value == 0x1100000
    inode = capture.root.get("sections", FS, "vhost-user-fs-backend", "inodes", "2")
    assert inode.value["path"] == "/hello.txt"
    assert MMIO.read_bytes()[inode.offset : inode.offset + inode.size].endswith(b"hello.txt\0")
    (block,) = capture.root.get("sections", "ram", "blocks").children[:1]
    assert block.get("pages").value + block.get("zero_pages").value == 16384


def test_pci_registers():
    capture = look(PCI.read_bytes())
    transport = capture.root.get("sections", "0000:00:01.0/vhost-user-fs", "virtio", "transport")
    assert transport.get("function").value == "1af4:105a"
    assert transport.get("msix").value == 3


def damaged(old: bytes, new: bytes) -> bytes:
    data = MMIO.read_bytes()
    assert data.count(old) == 1
    return data.replace(old, new)


def test_a_missing_subsection():
    data = MMIO.read_bytes()
    at = data.index(HEAD)
    capture = look(data[:at] + data[at + 68 :])
    assert {"no-backend-state"} <= codes(capture)
    assert capture.root.find("sections", "globalstate", "runstate").value == "running"


def test_a_cut_chunk():
    data = damaged(HEAD + b"\0\0\0\x21", HEAD + b"\0\1\0\x21")
    assert {"state-truncated"} <= codes(look(data))


def test_a_bad_footer():
    data = MMIO.read_bytes()
    at = data.index(HEAD) + 68
    assert data[at : at + 5] == b"\x7e\0\0\0\x0f"
    capture = look(data[: at + 4] + b"\x55" + data[at + 5 :])
    (finding,) = [finding for finding in capture.findings if finding.code == "bad-footer"]
    assert finding.offset == at


def test_impossible_features():
    node = look(MMIO.read_bytes()).root.get("sections", FS, "virtio", "features")
    data = bytearray(MMIO.read_bytes())
    data[node.offset + 3] |= 0x08  # IN_ORDER, which a device may have
    assert "impossible-features" not in codes(look(bytes(data)))
    data[node.offset] |= 0x40
    assert "impossible-features" in codes(look(bytes(data)))


def test_an_index_far_ahead_of_guest_memory():
    node = look(MMIO.read_bytes()).root.get("sections", FS, "virtio", "queues", "1", "last_avail_idx")
    data = bytearray(MMIO.read_bytes())
    data[node.offset : node.offset + 2] = (4000).to_bytes(2, "big")
    found = [finding for finding in look(bytes(data)).findings if finding.code == "ring-delta"]
    assert len(found) == 2  # avail behind it, used far behind it


def test_a_queue_that_cannot_be():
    capture = look(MMIO.read_bytes())
    node = capture.root.get("sections", FS, "virtio", "queues", "0")
    data = bytearray(MMIO.read_bytes())
    data[node.offset : node.offset + 4] = (100).to_bytes(4, "big")
    assert "bad-field" in codes(look(bytes(data)))  # the register says 128
    registers = capture.root.get("sections", FS, "virtio", "subsections", "virtio_mmio/state").offset + 31
    assert data[registers : registers + 2] == b"\0\x80"
    data[registers : registers + 2] = (100).to_bytes(2, "big")
    assert codes(look(bytes(data))) == {"queue-size"}


def test_without_description():
    data = MMIO.read_bytes()
    end = look(data).root.get("description").offset
    capture = look(data[:end])
    assert codes(capture) == {"no-description"}
    assert capture.root.get("sections", "timer", "undecoded").size == 24
    inode = capture.root.get("sections", FS, "vhost-user-fs-backend", "inodes", "2")
    assert inode.value["path"] == "/hello.txt"


def test_trailing_bytes_after_the_description():
    assert codes(look(MMIO.read_bytes() + b"more")) == {"trailing-bytes"}


def test_a_cut_stream_says_where():
    data = MMIO.read_bytes()[:100_000]
    (finding,) = [finding for finding in look(data).findings if finding.code == "stream-ends"]
    assert 0 < finding.offset <= 100_000


def test_the_rfc_layout():
    """Version 1 of the section: the state in the main section, with a be64 length."""
    data = MMIO.read_bytes()
    end = look(data).root.get("description").offset
    at = data.index(HEAD)
    blob = encoded(small())
    name = data.index(b"/vhost-user-fs\0\0\0\0\0\0\0\0")
    version = name + len(b"/vhost-user-fs") + 4
    body = data[:version] + b"\0\0\0\1" + data[version + 4 : at]
    capture = look(body + len(blob).to_bytes(8, "big") + blob + data[at + 68 : end])
    assert codes(capture) == {"no-description"}
    assert capture.root.get("sections", FS, "back-end", "inodes", "3").value["path"] == "/d/f"
