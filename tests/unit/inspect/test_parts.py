"""Parts that the golden files do not have, and what is easily misread."""

from __future__ import annotations

from struct import pack

from devices.virtio_fs import parked
from tests.unit.inspect.states import GOLDEN, codes, encoded, look, small
from vmsim.virtio.ring_types import ParkedChain, RingState

Q35 = (GOLDEN / "qemu10.0.2-q35-pci-split.bin").read_bytes()
PAGE = 4096


def mapped(page_size: int = PAGE, version: int = 1, *, pages: int = 128, cut: int = 0) -> bytes:
    """A mapped-ram file of one block, whose first and third page are there."""
    name = b"configuration/capabilities"
    head = pack(">4sIBI", b"QEVM", 3, 7, 4) + b"none"
    head += pack(">BB", 5, len(name)) + name + pack(">II", 1, 1) + b"\x0amapped-ram"
    head += pack(">BI", 1, 2) + b"\x03ram" + pack(">II", 0, 4)
    head += pack(">Q", pages * PAGE | 4) + b"\x03mem" + pack(">Q", pages * PAGE)
    bitmap = (5).to_bytes(pages // 8, "little")
    head += pack(">IQQQ", version, page_size, len(head) + 28, 1 << 20) + bitmap
    memory = b"a" * PAGE + bytes(PAGE) + b"c" * PAGE + bytes((pages - 3) * PAGE)
    tail = pack(">QBI", 16, 0x7E, 2) + pack(">BIQBI", 3, 2, 16, 0x7E, 2) + b"\0"
    whole = head.ljust(1 << 20, b"\0") + memory + tail
    return whole[: len(whole) - cut]


def test_a_mapped_ram_file():
    data = mapped()
    capture = look(data)
    assert capture.kind == "QEMU mapped-ram file"
    assert capture.end == len(data)
    block = capture.ram.blocks["mem"]
    assert block.counts() == (2, 126)
    assert block.read(capture.source, 2 * PAGE, 3) == b"ccc"
    assert block.read(capture.source, PAGE, 3) == bytes(3)
    assert codes(capture) == {"no-description"}


def test_mapped_ram_headers_that_cannot_be():
    for data in (mapped(1), mapped(0), mapped(version=2), mapped(cut=4 * PAGE)):
        capture = look(data)
        assert "stream-ends" in codes(capture)
        (finding,) = [finding for finding in capture.findings if finding.code == "stream-ends"]
        assert finding.field == "ram/mem"
        assert 0 < finding.offset < 300


def test_less_or_equal_is_not_little_endian():
    """``int32 le`` in a description: the version of a PCI device, which a destination takes up to its own."""
    bridge = look(Q35).root.get("sections", "0000:00:00.0/mch", "parent_obj")
    assert bridge.get("version_id").value == 2


def test_all_of_the_run_state():
    state = look(Q35).root.get("sections", "globalstate")
    assert state.get("runstate").value == "running"
    assert {"size", "has_vm_was_suspended", "vm_was_suspended"} <= {child.key for child in state.children}


def test_parked_requests():
    rings = {1: RingState(9, 8, 1, 0, [ParkedChain(3, 2, [(4096, 88, False), (8192, 16, True)])], [(3, 5)])}
    state = encoded(small())
    data = state + parked.encode(rings)
    capture = look(data)
    assert codes(capture) == set()
    node = capture.state.get("parked_requests")
    assert (node.offset, node.size) == (len(state), len(data) - len(state))
    ring = node.get("ring 1")
    assert ring.get("next_avail").value == 9
    assert ring.get("completed").value == [[3, 5]]
    assert ring.get("head 3").value == [[4096, 88, False], [8192, 16, True]]
    damaged = data[:-30] + b"\xff" + data[-29:]
    assert "parked-rings" in codes(look(damaged))
