from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmsim.errors import StreamTruncated
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.errors import BadField, UnknownSubsection, VersionTooNew
from vmsim.migration.vmio import VmReader, VmWriter
from vmsim.virtio.state import VirtioQueueState, VirtioState
from vmsim.virtio.vmstate import MMIO, SUBSECTIONS, virtio_load, virtio_save
from vmsim.virtio.vmstate_pci import PciTransport, msix_vectors

GOLDEN = Path(__file__).parents[2] / "golden"


class Bytes:
    """A sink and a source over plain bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def read_some(self, limit: int) -> bytes:
        piece = bytes(self.data[:limit])
        del self.data[:limit]
        return piece


def encode(state: VirtioState, transport=MMIO) -> bytes:
    sink = Bytes()
    output = StreamOutput(sink)
    virtio_save(VmWriter(output), state, transport)
    output.flush()
    return bytes(sink.data)


def decode(data: bytes, transport=MMIO) -> VirtioState:
    source = StreamInput(Bytes(data))
    state = virtio_load(VmReader(source, "test"), transport)
    assert source.offset == len(data), "not everything was read"
    return state


def golden_virtio(name: str) -> bytes:
    """The bytes of the ``virtio`` field, found by the section's name and the description's size."""
    stream = (GOLDEN / name).read_bytes()
    description = json.loads(stream[stream.find(b"{", stream.rfind(b"\0")) :])
    (device,) = [d for d in description["devices"] if d["vmsd_name"] == "vhost-user-fs"]
    (field,) = device["fields"]
    assert (field["name"], field["type"]) == ("virtio", "virtio")
    idstr = device["name"].encode()
    start = stream.index(bytes([len(idstr)]) + idstr) + 1 + len(idstr) + 8
    return stream[start : start + field["size"]]


@pytest.mark.parametrize(
    ("name", "size", "packed"),
    [
        ("qemu10.0.2-microvm-mmio-split.bin", 44270, False),
        ("qemu10.0.2-microvm-mmio-packed-offered.bin", 54540, True),
    ],
)
def test_the_mmio_section_of_real_qemu_decodes_and_encodes_identically(name, size, packed):
    data = golden_virtio(name)
    assert len(data) == size
    state = decode(data)
    assert state.status == 0x0F
    assert state.started
    assert not state.broken
    assert [q.num for q in state.queues] == [128, 128]
    assert all(q.enabled == 1 and q.desc and q.avail and q.used for q in state.queues)
    assert bool(state.host_features >> 34 & 1) is packed
    assert len(state.config) == 40
    assert encode(state) == data


def test_the_pci_section_of_real_qemu_decodes_and_encodes_identically():
    data = golden_virtio("qemu10.0.2-q35-pci-split.bin")
    assert len(data) == 45619
    pci = PciTransport()
    state = decode(data, pci)
    assert msix_vectors(pci.config) == 3
    assert state.status == 0x0F
    assert len(state.queues) == len(pci.queue_vectors) == 2
    assert encode(state, pci) == data


def full_state() -> VirtioState:
    queues = [
        VirtioQueueState(64, 128, 0x1000, 0x2000, 0x3000, 7, 0, 5, 1, 2, 1),
        VirtioQueueState(128, 128, 0x11000, 0x12000, 0x13000, 0x7FFF, 1, 0, 0, 0, 1),
    ]
    return VirtioState(
        status=0x0F, isr=1, queue_sel=1, guest_features=0x5_1000_0000, host_features=0x5_3000_0000,
        config=b"tag".ljust(40, b"\0"), queues=queues, host_features_sel=1, guest_features_sel=1,
        guest_page_shift=12, broken=True, started=True, disabled=True, device_endian=1,
    )


def test_every_subsection_round_trips():
    state = full_state()
    assert all(row.needed(state) for row in SUBSECTIONS), "the test state must need every subsection"
    data = encode(state)
    loaded = decode(data)
    assert loaded.host_features == state.guest_features
    loaded.host_features = state.host_features
    assert loaded == state


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"broken": False}, b"virtio/broken"),
        ({"started": False}, b"virtio/started"),
        ({"disabled": False}, b"virtio/disabled"),
        ({"device_endian": None}, b"virtio/device_endian"),
        ({"host_features": 0x1_0000_0000}, b"virtio/packed_virtqueues"),
        ({"host_features": 0}, b"virtio/64bit_features"),
    ],
)
def test_a_subsection_appears_only_when_needed(change, name):
    state = full_state()
    assert name in encode(state)
    for attribute, value in change.items():
        setattr(state, attribute, value)
    assert name not in encode(state)


def test_ring_sizes_travel_only_when_they_differ_from_the_default():
    state = full_state()
    assert b"virtio/ringsize" in encode(state)
    state.queues[0].num_default = 64
    assert b"virtio/ringsize" not in encode(state)


def test_registers_written_before_the_queue_is_enabled_survive():
    state = full_state()
    state.status = 3
    state.queues[0] = VirtioQueueState(num=32, num_default=128, desc=0x5000, avail=0x6000, used=0)
    state.queues[1] = VirtioQueueState(num=128, num_default=128)
    loaded = decode(encode(state))
    assert (loaded.queues[0].num, loaded.queues[0].desc, loaded.queues[0].avail) == (32, 0x5000, 0x6000)
    assert loaded.queues[1].num == 128
    assert not loaded.queues[1].desc


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (14, b"\xff\xff", "queue_sel"),
        (20, b"\xff\xff\xff\xff", "config_len"),
        (64, b"\x00\x00\x04\x01", "queues"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(offset, value, field):
    data = bytearray(encode(full_state()))
    data[offset : offset + len(value)] = value
    with pytest.raises(BadField) as caught:
        decode(bytes(data))
    assert caught.value.field == f"test:{field}"
    assert caught.value.offset > 0


def test_an_index_without_a_ring_is_refused():
    state = full_state()
    state.queues[0].desc = 0
    with pytest.raises(BadField, match="VQ 0 address 0x0 inconsistent with Host index 0x7"):
        decode(encode(state))


def test_registers_that_contradict_a_ring_in_use_are_refused():
    data = encode(full_state())
    at = data.index(b"virtio_mmio/state") + len(b"virtio_mmio/state") + 4 + 8
    with pytest.raises(BadField, match="disagree"):
        decode(data[:at] + b"\x00\x20" + data[at + 2 :])


def test_unknown_and_newer_subsections_are_refused():
    data = encode(full_state())
    with pytest.raises(UnknownSubsection):
        decode(data.replace(b"virtio/started", b"virtio/startex"))
    at = data.index(b"virtio/started") + len(b"virtio/started")
    with pytest.raises(VersionTooNew):
        decode(data[:at] + b"\0\0\0\2" + data[at + 4 :])


def test_a_cut_section_never_loads_as_a_whole():
    data = encode(full_state())
    headers = {data.index(row.name.encode()) - 2 for row in SUBSECTIONS}
    interesting = {*range(200), *range(200, len(data), 1009)}
    interesting |= {start + delta for start in headers for delta in range(24)}
    for end in interesting - {len(data)}:
        with pytest.raises(StreamTruncated):
            load_and_look_on(data[:end])


def load_and_look_on(data: bytes) -> None:
    """A cut between two subsections leaves a valid shorter section; what must follow is a footer."""
    source = StreamInput(Bytes(data))
    virtio_load(VmReader(source, "test"))
    source.read(5, "footer")
