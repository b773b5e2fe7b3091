from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio_fs.state import postcard as pc
from vmsim.errors import StreamError, StreamTruncated, UsageError


def encoded(codec, value) -> bytes:
    out = bytearray()
    codec.encode(out, value)
    return bytes(out)


def decoded(codec, data: bytes):
    reader = pc.Reader(data)
    value = codec.decode(reader, "value")
    assert reader.position == len(data)
    return value


PAIR = pc.Record(tuple, (("first", pc.U32), ("second", pc.TEXT)))
CODECS = [
    (pc.U64, st.integers(0, 2**64 - 1)),
    (pc.Unsigned(16), st.integers(0, 2**16 - 1)),
    (pc.I32, st.integers(-(2**31), 2**31 - 1)),
    (pc.Signed(64), st.integers(-(2**63), 2**63 - 1)),
    (pc.BOOL, st.booleans()),
    (pc.Bytes(20), st.binary(max_size=20)),
    (pc.TEXT, st.text(st.characters(exclude_categories=["Cs"])).map(str.encode)),
    (pc.Option(pc.U64), st.none() | st.integers(0, 2**64 - 1)),
    (pc.Vector(pc.U64, 100), st.lists(st.integers(0, 2**64 - 1), max_size=100)),
    (pc.Map(pc.U64, pc.U32, 100), st.dictionaries(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))),
    (pc.Variant((("A", pc.UNIT), ("B", PAIR))), st.just((0, ())) | st.just((1, (7, b"x")))),
]


@pytest.mark.parametrize(("codec", "values"), CODECS)
@given(data=st.data())
def test_round_trip(codec, values, data):
    value = data.draw(values)
    assert decoded(codec, encoded(codec, value)) == value


@pytest.mark.parametrize(("codec", "values"), CODECS)
@given(data=st.data(), junk=st.binary(max_size=40))
def test_junk_is_read_or_refused(codec, values, data, junk):
    """Whatever the bytes, a codec answers with a value or a StreamError that says where."""
    refusal = None
    try:
        codec.decode(pc.Reader(junk), "value")
    except StreamError as error:
        refusal = error
    if refusal is not None:
        assert 0 <= refusal.offset <= len(junk)
        assert refusal.field.startswith("value")


@pytest.mark.parametrize(("codec", "values"), CODECS)
@given(data=st.data())
def test_every_cut_is_truncated(codec, values, data):
    whole = encoded(codec, data.draw(values))
    for size in range(len(whole)):
        with pytest.raises(StreamTruncated):
            codec.decode(pc.Reader(whole[:size]), "value")


@pytest.mark.parametrize(
    ("codec", "data", "value"),
    [
        (pc.U64, "ffffffffffffffffff01", 2**64 - 1),
        (pc.U64, "80808080808080808000", 0),  # overlong within ten bytes
        (pc.U32, "ffffffff0f", 2**32 - 1),
        (pc.U32, "8100", 1),
        (pc.Unsigned(16), "ffff03", 2**16 - 1),
        (pc.I32, "04", 2),
        (pc.I32, "808008", 0x10000),
        (pc.I32, "01", -1),
        (pc.I32, "ffffffff0f", -(2**31)),
    ],
)
def test_integers_that_are_accepted(codec, data, value):
    assert decoded(codec, bytes.fromhex(data)) == value


@pytest.mark.parametrize(
    ("codec", "data", "offset"),
    [
        (pc.U64, "ffffffffffffffffff02", 0),  # the tenth byte's value does not fit
        (pc.U64, "8080808080808080808000", 0),  # eleven bytes
        (pc.U32, "ffffffff10", 0),
        (pc.U32, "808080808000", 0),
        (pc.Unsigned(16), "ffff04", 0),
        (pc.BOOL, "02", 0),
        (pc.Option(pc.U64), "02", 0),
        (pc.TEXT, "02c328", 1),
        (pc.TEXT, "03eda080", 1),  # a surrogate is no UTF-8
        (pc.Bytes(2), "03616263", 0),
        (pc.Variant((("A", pc.UNIT),)), "01", 0),
        (pc.Vector(pc.UNIT, 5), "06", 0),
    ],
)
def test_values_that_are_refused(codec, data, offset):
    with pytest.raises(StreamError) as caught:
        codec.decode(pc.Reader(bytes.fromhex(data)), "value")
    assert not isinstance(caught.value, StreamTruncated)
    assert (caught.value.offset, caught.value.field) == (offset, "value")


def test_a_huge_count_costs_nothing():
    with pytest.raises(StreamTruncated) as caught:
        pc.Vector(pc.U64, 1 << 62).decode(pc.Reader(bytes.fromhex("ffffffffffffffff7f00")), "list")
    assert (caught.value.offset, caught.value.field) == (0, "list")


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (pc.U64, -1), (pc.U64, 1 << 64), (pc.U32, 1 << 32), (pc.I32, 1 << 31), (pc.TEXT, b"\xff"),
        (pc.Bytes(1), b"ab"),
    ],
)
def test_values_that_cannot_be_written(codec, value):
    with pytest.raises(UsageError):
        codec.encode(bytearray(), value)


def test_a_repeated_key_keeps_its_last_value():
    assert decoded(pc.Map(pc.U64, pc.U64, 9), bytes.fromhex("0201020103")) == {1: 3}


def test_errors_name_the_path_of_the_field():
    vector = pc.Vector(PAIR, 9)
    with pytest.raises(StreamError) as caught:
        vector.decode(pc.Reader(bytes.fromhex("0201016102ff")), "pairs")
    assert caught.value.field == "pairs[1].second"
    assert caught.value.offset == 6
