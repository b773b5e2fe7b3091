from __future__ import annotations

import pytest

from vmsim.errors import StreamTruncated
from vmsim.migration.byteio import StreamInput, StreamOutput
from vmsim.migration.errors import (
    BadField,
    FieldTooLarge,
    UnexpectedRecord,
    UnknownSubsection,
    VersionTooNew,
)
from vmsim.migration.vmstate import VmReader, VmState, VmWriter, array, buffer, number, struct


class Bytes:
    """A source that gives ``step`` bytes at a time, and a sink."""

    def __init__(self, data: bytes = b"", step: int = 1 << 20) -> None:
        self.data = bytearray(data)
        self.step = step

    def write(self, data) -> None:
        self.data += data

    def read_some(self, limit: int) -> bytes:
        piece = bytes(self.data[: min(limit, self.step)])
        del self.data[: len(piece)]
        return piece


class Thing:
    def __init__(self, **values) -> None:
        self.__dict__.update(values)


INNER = VmState("inner", fields=(number("low", "u8"), number("high", "be16")))
THING = VmState(
    "thing", version=3, minimum_version=2,
    fields=(
        number("count", "be64"),
        number("late", "be32", since=3, check=lambda value: "too large" if value > 100 else None),
        number("flag", "bool"),
        number("signed", "i32"),
        array("words", "be16", 3),
        buffer("mac", 6),
        struct("inner", INNER),
    ),
    subsections=(
        VmState("thing/error", fields=(number("code", "u8"),), needed=lambda thing: thing.code != 0),
        VmState(
            "thing/more", version=2, fields=(number("extra", "be16"),),
            subsections=(VmState("thing/more/deep", fields=(number("deep", "u8"),)),),
        ),
    ),
)


def thing(**changes) -> Thing:
    values = {
        "count": 1 << 40, "late": 7, "flag": True, "signed": -2, "words": (1, 2, 3), "mac": b"abcdef",
        "inner": Thing(low=1, high=2), "code": 0, "extra": 9, "deep": 4,
    }
    return Thing(**(values | changes))


def empty() -> Thing:
    return Thing(inner=Thing(), code=0, late=55)


def encode(value: Thing) -> tuple[bytes, dict]:
    sink = Bytes()
    output = StreamOutput(sink)
    writer = VmWriter(output)
    THING.save(writer, value)
    output.flush()
    return bytes(sink.data), writer.description


def decode(data: bytes, version: int = 3, step: int = 1 << 20) -> Thing:
    value = empty()
    source = StreamInput(Bytes(data, step))
    THING.load(VmReader(source, "thing"), value, version)
    assert source.offset == len(data)
    return value


def plain(value: Thing) -> dict:
    return {**value.__dict__, "inner": value.inner.__dict__}


@pytest.mark.parametrize("step", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("code", [0, 200])
def test_what_is_saved_is_loaded_however_it_arrives(code, step):
    value = thing(code=code)
    assert plain(decode(encode(value)[0], step=step)) == plain(value)


def test_the_bytes_are_those_of_the_rows():
    data, _ = encode(thing())
    assert data.startswith((1 << 40).to_bytes(8, "big") + b"\0\0\0\7" + b"\1" + b"\xff\xff\xff\xfe")
    assert data.endswith(
        b"\x05\x0athing/more\0\0\0\2\0\x09" + b"\x05\x0fthing/more/deep\0\0\0\1\x04"
    )


def test_the_description_says_what_was_written():
    _, description = encode(thing(code=1))
    fields = {row["name"]: (row["type"], row["size"], row.get("array_len")) for row in description["fields"]}
    assert fields == {
        "count": ("uint64", 8, None), "late": ("uint32", 4, None), "flag": ("bool", 1, None),
        "signed": ("int32", 4, None), "words": ("uint16", 2, 3), "mac": ("buffer", 6, None),
        "inner": ("struct", 3, None),
    }
    (inner,) = [row for row in description["fields"] if row["name"] == "inner"]
    assert [row["name"] for row in inner["struct"]["fields"]] == ["low", "high"]
    assert [sub["vmsd_name"] for sub in description["subsections"]] == ["thing/error", "thing/more"]
    assert description["subsections"][1]["subsections"][0]["vmsd_name"] == "thing/more/deep"


def test_an_older_version_lacks_the_newer_fields():
    data, _ = encode(thing())
    loaded = decode(data[:8] + data[12:], version=2)
    assert loaded.late == 55
    assert loaded.count == 1 << 40


@pytest.mark.parametrize("version", [1, 4])
def test_versions_outside_the_range_are_refused(version):
    with pytest.raises(VersionTooNew):
        decode(encode(thing())[0], version)


def test_a_checked_field_is_refused_by_name_and_place():
    with pytest.raises(BadField, match="too large") as caught:
        decode(encode(thing(late=101))[0])
    assert caught.value.field == "thing:late"
    assert caught.value.offset == 12


def test_a_flag_is_0_or_1():
    data = bytearray(encode(thing())[0])
    data[12] = 2
    with pytest.raises(BadField, match="truth"):
        decode(bytes(data))


def test_unknown_doubled_and_newer_subsections():
    data, _ = encode(thing(code=1))
    with pytest.raises(UnknownSubsection):
        decode(data.replace(b"thing/error", b"thing/erron"))
    error = data[data.index(b"\x05\x0bthing/error") : data.index(b"\x05\x0athing/more")]
    with pytest.raises(UnexpectedRecord, match="twice"):
        decode(data.replace(error, error * 2))
    with pytest.raises(VersionTooNew):
        decode(data.replace(b"thing/more\0\0\0\2", b"thing/more\0\0\0\3"))


def test_a_required_subsection_must_be_there():
    outer = VmState("a", subsections=(VmState("a/b", fields=(number("x", "u8"),), required=True),))
    with pytest.raises(UnknownSubsection, match="'a/b' is missing"):
        outer.load(VmReader(StreamInput(Bytes(b""))), Thing(x=0), 1)


def test_a_subsection_of_the_parent_is_left_to_the_parent():
    source = StreamInput(Bytes(b"\x05\x05outer\0\0\0\1"))
    reader = VmReader(source)
    assert reader.next_subsection("inner") is None
    assert source.offset == 0
    assert reader.next_subsection("out") == ("outer", 1)


def test_every_cut_is_noticed():
    data, _ = encode(thing(code=1))
    for end in range(len(data)):
        source = StreamInput(Bytes(data[:end]))
        with pytest.raises(StreamTruncated):
            load_and_look_on(source)


def load_and_look_on(source: StreamInput) -> None:
    THING.load(VmReader(source), empty(), 3)
    source.read(1, "what follows")


def test_subsection_names_must_nest():
    with pytest.raises(ValueError, match="must begin"):
        VmState("a", subsections=(VmState("b/c"),))


def chunked(*pieces: bytes) -> bytes:
    sink = Bytes()
    output = StreamOutput(sink)
    VmWriter(output).chunks("state", pieces, type="opaque state")
    output.flush()
    return bytes(sink.data)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_chunks_carry_any_size(size):
    blob = bytes(range(251)) * (size // 251 + 1)
    blob = blob[:size]
    data = chunked(blob)
    pieces = list(VmReader(StreamInput(Bytes(data))).chunks("state", 1 << 30))
    assert b"".join(pieces) == blob
    assert data.endswith(b"\0\0\0\0")


def test_a_chunk_list_ends_only_at_its_terminator():
    data = chunked(b"hello", b"", b"world")
    assert data == b"\0\0\0\5hello\0\0\0\5world\0\0\0\0"
    for end in range(len(data)):
        with pytest.raises(StreamTruncated):
            list(VmReader(StreamInput(Bytes(data[:end]))).chunks("state", 100))


def test_a_huge_length_is_refused_before_anything_is_read():
    class Endless:
        taken = 0

        def read_some(self, limit: int) -> bytes:
            self.taken += 16
            return b"\xff" * 16

    source = Endless()
    with pytest.raises(FieldTooLarge):
        list(VmReader(StreamInput(source)).chunks("state", 1 << 30))
    assert source.taken == 16


def test_a_length_within_the_bound_takes_no_more_memory_than_arrives():
    data = b"\x3f\xff\xff\xff" + b"x" * 100
    pieces = VmReader(StreamInput(Bytes(data))).chunks("state", 1 << 30)
    with pytest.raises(StreamTruncated):
        list(pieces)


def test_an_opaque_field_hides_its_subsections():
    sink = Bytes()
    writer = VmWriter(StreamOutput(sink))
    with writer.opaque("virtio", "virtio"):
        writer.u8("status", 1)
        with writer.subsection("virtio/x", 1):
            writer.be16("y", 2)
    assert writer.description == {"fields": [{"name": "virtio", "type": "virtio", "size": 1 + 14 + 2}]}
