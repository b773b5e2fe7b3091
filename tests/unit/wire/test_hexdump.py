"""Dumps say what every byte is."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from vmsim.wire.hexdump import annotate, hexdump, spans_of
from vmsim.wire.layout import U16, U32, U64, Layout


class Thing(NamedTuple):
    """A record for the tests."""

    kind: U16
    flags: U16
    size: U32
    name: Annotated[bytes, "12s"]
    address: U64


THING = Layout(Thing)
DATA = THING.pack(7, 0x300, 24, b"virtiofs", 0x4000_0000)


def test_every_field_has_a_line():
    lines = annotate(DATA, [(THING, "thing")]).splitlines()
    assert lines[0].split() == ["thing.kind", "0000", "07", "00", "7"]
    assert lines[1].split() == ["thing.flags", "0002", "00", "03", "768", "(0x300)"]
    assert "'virtiofs'" in lines[3]
    assert lines[4].endswith("1073741824 (0x40000000)")
    assert len(lines) == 5


def test_spans_cover_every_byte_once():
    spans = list(spans_of(THING, b"head" + DATA, 4))
    assert b"".join(span.data for span in spans) == DATA
    assert [span.offset for span in spans] == [4, 6, 8, 12, 24]


def test_what_is_cut_off_is_missing():
    lines = annotate(DATA[:9], [(THING, "")]).splitlines()
    assert lines[2].split() == ["Thing.size", "0004", "18", "00", "00", "00", "24"]
    assert lines[3].split()[-2:] == ["76", "missing"]
    assert lines[4].endswith("missing")


def test_the_rest_is_shown_too():
    text = annotate(DATA + b"hello\0world, this is more", [(THING, "thing")])
    assert "(rest)" in text
    assert "hello.world, thi" in text
    assert "s is more" in text


def test_binary_names_are_shown_as_bytes():
    text = annotate(THING.pack(1, 1, 1, bytes(range(200, 212)), 1), [(THING, "thing")])
    assert "c8 c9 ca" in text


def test_classic_dump():
    lines = hexdump(bytes(range(40)), base=0x1000).splitlines()
    assert [line[:8] for line in lines] == ["00001000", "00001010", "00001020"]
    assert lines[2].endswith(" !\"#$%&'")
    assert hexdump(b"") == ""
