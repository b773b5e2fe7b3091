"""What changed between two captures, and what does not fit."""

from __future__ import annotations

import pytest

from devices.virtio_fs.state.records import PATH, HandleRecord, InodeRecord
from tests.unit.inspect.states import GOLDEN, codes, encoded, look, small
from vmsim.inspect.diff import diff
from vmsim.inspect.lint import compare

FS = "virtio-mmio@00000000feb02e00/vhost-user-fs"
STREAM = (GOLDEN / "qemu10.0.2-microvm-mmio-split.bin").read_bytes()
PACKED = (GOLDEN / "qemu10.0.2-microvm-mmio-packed-offered.bin").read_bytes()
HEAD = b"\x05\x15vhost-user-fs-backend\0\0\0\0"


@pytest.mark.parametrize("data", [STREAM, encoded(small())])
def test_a_capture_does_not_differ_from_itself(data):
    changes, memory = diff(look(data), look(data))
    assert changes == []
    assert not any(pages.differs for pages in memory)


def test_inodes_handles_and_options():
    other = small()
    other.inodes[2].name = b"renamed"
    other.inodes[1].refcount = 5
    other.inodes.append(InodeRecord(9, 1, PATH, 1, b"new"))
    other.inodes[0].refcount += 1
    other.handles = [HandleRecord(4, 9, 0)]
    changes, _ = diff(look(encoded(small())), look(encoded(other)))
    found = {(change.kind, change.path[1:]) for change in changes}
    assert {
        ("changed", ("inodes", "3")), ("changed", ("inodes", "2")), ("added", ("inodes", "9")),
        ("removed", ("handles", "0")), ("added", ("handles", "4")),
    } <= found  # fmt: skip
    (renamed,) = [change for change in changes if change.path[-2:] == ("inodes", "3")]
    assert (renamed.old["path"], renamed.new["path"]) == ("/d/f", "/d/renamed")
    (counted,) = [change for change in changes if change.path[-2:] == ("inodes", "2")]
    assert (counted.old, counted.new) == ({"refcount": 2, "lookups": 1}, {"refcount": 5, "lookups": 4})


def test_rings_subsections_and_memory_of_real_streams():
    changes, memory = diff(look(STREAM), look(PACKED))
    paths = {change.path[1:]: change for change in changes}
    moved = paths[FS, "virtio", "queues", "1", "last_avail_idx"]
    assert (moved.old, moved.new) == (4, 3)
    assert "moved by -1" in moved.text
    assert paths[FS, "virtio", "subsections", "virtio/packed_virtqueues"].kind == "added"
    (pages,) = [pages for pages in memory if pages.block == "mem"]
    assert pages.changed == sum(size for _, size in pages.ranges) // 4096 > 0


def test_one_page_of_memory():
    capture = look(STREAM)
    block = capture.ram.blocks["mem"]
    page = 0x1100000 // 4096
    place = block.place(page, capture.source)
    changed = STREAM[:place] + b"\x5a" + STREAM[place + 1 :]
    _, memory = diff(capture, look(changed))
    differing = [(pages.block, pages.ranges) for pages in memory if pages.differs]
    assert differing == [("mem", [(0x1100000, 4096)])]


def test_a_state_and_a_stream_that_has_one():
    at = STREAM.index(HEAD) + len(HEAD)
    assert STREAM[at : at + 4] == b"\0\0\0\x21"
    changes, _ = diff(look(STREAM), look(STREAM[at + 4 : at + 4 + 0x21]))
    assert {change.path for change in changes} == {("kind",)}


def with_tag(data: bytes, tag: bytes) -> bytes:
    node = look(data).root.get("sections", FS, "virtio", "config")
    return data[: node.offset] + tag.ljust(36, b"\0") + b"\1\0\0\0" + data[node.offset + 40 :]


def test_what_does_not_fit_the_destination():
    capture = look(with_tag(STREAM, b"one"))
    compare(capture, look(with_tag(STREAM, b"one")))
    assert codes(capture) == set()
    compare(capture, look(with_tag(STREAM, b"two")))
    assert codes(capture) == {"tag"}
    other = look((GOLDEN / "qemu10.0.2-q35-pci-split.bin").read_bytes())
    compare(capture, other)
    assert codes(capture) >= {"tag", "machine-type", "device-missing"}


def test_a_device_elsewhere_is_compared_all_the_same():
    """Its tag counts, wherever it is plugged in; of several nobody can tell which one is meant."""
    place = FS.encode()
    moved = with_tag(STREAM, b"two").replace(place, place.replace(b"02e00", b"02c00"))
    capture = look(with_tag(STREAM, b"one"))
    compare(capture, look(moved))
    assert codes(capture) == {"device-missing", "tag"}
    missing = next(finding for finding in capture.findings if finding.code == "device-missing")
    assert "feb02c00" in missing.message


def test_a_machine_without_the_device():
    capture = look(STREAM)
    compare(capture, look(STREAM.replace(b"vhost-user-fs", b"vhost-user-xx")))
    assert "device-missing" in codes(capture)


def test_a_state_alone_has_no_device_to_miss():
    capture = look(STREAM)
    compare(capture, look(encoded(small())))
    assert codes(capture) == set()
