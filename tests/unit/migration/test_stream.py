"""Framing, descriptions, and whole streams of real QEMU taken apart and put together again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.migration_rig import Machine
from tests.support.sampling import examples
from vmsim.errors import MigrationError, StreamError, StreamTruncated, UsageError
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.channel import ChannelBase
from vmsim.migration.destination import IncomingMigration
from vmsim.migration.document import Section, read_document, write_document
from vmsim.migration.errors import BadFooter, BadMagic, UnexpectedRecord, UnknownSection
from vmsim.migration.report import MigrationParameters
from vmsim.migration.source import OutgoingMigration
from vmsim.migration.stream import StreamReader, StreamWriter, encode_description
from vmsim.schedule.clock import VirtualClock
from vmsim.schedule.immediate import ImmediateSchedule

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("*.bin"))


class BytesChannel(ChannelBase):
    """A one-way channel into, and from, a buffer."""

    duplex = False

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.position = 0

    def write(self, data) -> None:
        self.data += data

    def read_some(self, limit: int) -> bytes:
        piece = bytes(self.data[self.position : self.position + limit])
        self.position += len(piece)
        return piece

    def close_write(self) -> None:
        pass

    def close(self) -> None:
        pass


def saved(machine: Machine | None = None, **parameters) -> bytes:
    channel = BytesChannel()
    OutgoingMigration(
        machine or small(), channel, ImmediateSchedule(VirtualClock()), MigrationParameters(**parameters)
    ).run()
    return bytes(channel.data)


def small() -> Machine:
    machine = Machine()
    machine.memory.write(0x1000 + 5 * 4096, b"five" * 1024)
    machine.memory.write(0x1000 + 6 * 4096, b"six!" * 1024)
    return machine


def load(data: bytes) -> Machine:
    return IncomingMigration(BytesChannel(data), Machine.built).run()


def refused(data: bytes) -> StreamError:
    """Loading must fail with a StreamError behind the MigrationError, and leave nothing running."""
    built = []

    def build(configuration: bytes) -> Machine:
        if configuration != b"two regions":
            raise StreamError("not my configuration")
        built.append(Machine.built(configuration))
        return built[-1]

    with pytest.raises(MigrationError) as caught:
        IncomingMigration(BytesChannel(data), build).run()
    assert caught.value.step
    assert caught.value.side == "destination"
    assert all(machine.discarded and not machine.running for machine in built)
    cause = caught.value.__cause__
    assert isinstance(cause, StreamError), repr(cause)
    return cause


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_streams_of_real_qemu_parse_completely_and_encode_identically(path):
    data = path.read_bytes()
    document = read_document(data)
    sections = [record for record in document.records if isinstance(record, Section)]
    described = {(row["name"], row["instance_id"]) for row in document.description["devices"]}
    assert described == {(s.head.idstr, s.head.instance_id) for s in sections if s.head.idstr != "ram"}
    channel = BytesChannel()
    write_document(document, StreamOutput(channel))
    assert channel.data == data


def test_fields_of_unknown_devices_can_be_looked_at():
    document = read_document((GOLDEN[-1].parent / "qemu10.0.2-q35-pci-split.bin").read_bytes())
    assert document.configuration.get("name").raw == b"pc-q35-10.0"
    state = document.device("globalstate")
    assert state.get("runstate").raw.rstrip(b"\0") == b"running"
    back_end = document.device("0000:00:01.0/vhost-user-fs").subsections
    assert [sub.vmsd_name for sub in back_end] == ["vhost-user-fs-backend"]


def test_our_own_stream_is_a_document_too():
    data = saved()
    document = read_document(data)
    assert document.device("bus@0/timer").get("value").raw == (41).to_bytes(4, "big")
    channel = BytesChannel()
    write_document(document, StreamOutput(channel))
    assert channel.data == data


def test_a_saved_stream_loads_in_another_machine():
    source = small()
    assert load(saved(source)).state() == source.state()
    assert source.finished


def test_a_machine_may_go_on_after_it_was_saved():
    source = small()
    data = saved(source, keep_running=True)
    assert source.untouched()
    assert load(data).state() == source.state()
    assert load(saved(source)).state() == source.state()


def test_saving_changes_nothing():
    source = small()
    assert saved(source, keep_running=True) == saved(source)


@pytest.mark.parametrize("size", range(600, 660))
def test_no_description_has_a_brace_among_its_length_bytes(size):
    text = {"devices": [], "pad": ""}
    text["pad"] = "x" * (size - len(json.dumps(text)))
    data = encode_description(text)
    assert b"{" not in data[:5].rpartition(b"\0")[2]
    assert int.from_bytes(data[1:5], "big") == len(data) - 5
    assert json.loads(data[5:]) == text


@pytest.mark.parametrize("low", [0x7B00, 0x7B01, 0x17B])
def test_longer_descriptions_avoid_the_brace_too(low):
    text = {"pad": ""}
    text["pad"] = "x" * (low - len(json.dumps(text)))
    data = encode_description(text)
    assert b"{" not in data[:5].rpartition(b"\0")[2]


def test_a_description_the_analyser_would_not_find_is_refused():
    with pytest.raises(UsageError):
        encode_description({"pad": "x" * (10 << 20)})


@pytest.mark.parametrize("name", ["", "x" * 128])
def test_names_that_the_analyser_cannot_read_are_refused(name):
    writer = StreamWriter(StreamOutput(BytesChannel()))
    with pytest.raises(UsageError), writer.full(name, 0, 1):
        pass


HEADER = b"QEVM\0\0\0\3\7\0\0\0\1x"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", StreamTruncated),
        (b"QEVN\0\0\0\3", BadMagic),
        (b"QEVM\0\0\0\2\7\0\0\0\1x", BadMagic),
        (b"QEVM\0\0\0\3\4\0\0\0\1x", UnexpectedRecord),
        (b"QEVM\0\0\0\3\7\xff\xff\xff\xffx", StreamError),
        (HEADER + b"\x42", UnexpectedRecord),
        (HEADER + b"\2\0\0\0\1", UnexpectedRecord),
        (HEADER + b"\x08\0\x63\0\0", UnexpectedRecord),
        (HEADER + b"\x08\0\x0b\0\1x", UnexpectedRecord),
        (HEADER + b"\x08\0\1\0\0", UnexpectedRecord),
        (HEADER + b"\0", UnknownSection),
        (HEADER + b"\4\0\0\0\0\3ram\0\0\0\0\0\0\0\4", UnknownSection),
    ],
)
def test_a_bad_beginning_is_refused(data, kind):
    assert isinstance(refused(data), kind)


def test_footers_are_checked():
    data = saved()
    at = data.index(b"\x7e\0\0\0\0")
    assert isinstance(refused(data[:at] + b"\x7e\0\0\0\5" + data[at + 5 :]), BadFooter)
    assert isinstance(refused(data[:at] + data[at + 5 :]), BadFooter)


def test_leftovers_are_errors():
    assert isinstance(refused(saved() + b"x"), UnexpectedRecord)


def test_sections_may_not_come_twice():
    data = saved()
    start = data.index(b"\4", data.index(b"timer") - 20)
    end = data.index(b"\x7e", start) + 5
    assert isinstance(refused(data[:end] + data[start:end] + data[end:]), UnexpectedRecord)


def test_memory_must_be_complete_before_devices():
    data = saved()
    at = data.index(b"\x08\0\x0b\0\0")  # before the last part of memory
    end = data.index(b"\x7e", at) + 5
    assert isinstance(refused(data[:at] + data[end:]), UnexpectedRecord)


@pytest.fixture(scope="module")
def stream() -> bytes:
    return saved(part_bytes=16 * 4096)


def test_a_stream_cut_anywhere_is_never_a_success(stream):
    page = stream.index(b"five" * 1024)
    ends = {*range(0, len(stream), 401), *range(page - 100, page + 50), *range(page + 8100, len(stream))}
    for end in ends:
        assert isinstance(refused(stream[:end]), StreamError), end


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_or_mean_something_else(stream, data):
    """Whatever is flipped, the result is a StreamError or a machine that loaded all of a valid stream."""
    changed = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, len(stream) - 1), st.sampled_from(interesting(stream))))
        changed[at] = data.draw(st.integers(0, 255))
    outcome(bytes(changed))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_moved_pieces_are_refused_or_mean_something_else(stream, data):
    points = interesting(stream)
    a, b, c = sorted(data.draw(st.lists(st.sampled_from(points), min_size=3, max_size=3)))
    kind = data.draw(st.sampled_from(["drop", "double", "swap"]))
    pieces = {"drop": stream[:a] + stream[b:], "double": stream[:b] + stream[a:]}
    outcome(pieces.get(kind, stream[:a] + stream[b:c] + stream[a:b] + stream[c:]))


def interesting(stream: bytes) -> list[int]:
    """Positions outside the contents of pages."""
    page = stream.index(b"five" * 1024)
    return [*range(page), *range(page + 4096, page + 4110), *range(page + 8200, len(stream))]


def outcome(data: bytes) -> None:
    def build(configuration: bytes) -> Machine:
        if configuration != b"two regions":
            raise StreamError("not my configuration")
        return Machine.built(configuration)

    try:
        machine = IncomingMigration(BytesChannel(data), build).run()
    except MigrationError as error:
        cause = error.__cause__
    else:
        cause = None
        assert machine.running
    assert cause is None or isinstance(cause, StreamError), repr(cause)
    try:
        read_document(data)
    except StreamError:
        pass


@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_changed_streams_of_qemu_are_documents_or_stream_errors(data):
    original = (GOLDEN[0].parent / "qemu10.0.2-microvm-mmio-split.bin").read_bytes()
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, len(original) - 1), st.integers(1, 12_000).map(lambda n: -n)))
        changed[at] = data.draw(st.integers(0, 255))
    try:
        document = read_document(bytes(changed))
    except StreamError:
        return
    channel = BytesChannel()
    write_document(document, StreamOutput(channel))
    assert channel.data == changed


@given(st.binary(max_size=300))
def test_any_bytes_after_a_header_are_records_or_stream_errors(data):
    reader = StreamReader(StreamInput(BytesChannel(HEADER + data)))
    reader.header()
    offset = 0
    try:
        while reader.next() is not None:
            pass
    except StreamError as error:
        offset = error.offset
    assert 0 <= offset <= len(HEADER) + len(data)


@pytest.mark.parametrize("filler", [b"\6", b"\0", b"{", b"\6\0\0\0\0"])
def test_a_long_tail_without_a_description_is_refused_at_once(filler):
    with pytest.raises(StreamError, match="no description"):
        read_document(HEADER + filler * (11 << 20) + b"x")
