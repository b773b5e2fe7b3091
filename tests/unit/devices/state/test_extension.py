from __future__ import annotations

import stat
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio_fs.state import extension as ext
from tests.support.costs import peak_bytes
from vmsim import limits
from vmsim.errors import StreamError, StreamTruncated
from vmsim.fuse.negotiated import NegotiatedState
from vmsim.limits import UNLINKED_CONTENT_MAX

BLOB = b"\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00"
FULL = ext.Extension(
    negotiated=NegotiatedState(True, 7, 41, 0x1_4844_F829, 131072, 1 << 20, 256, 65535, 49149, 1, 0, (5,)),
    info=ext.ModeInfo("file-handles"),
    handles=[ext.HandleExtra(0, 2, 0o2001)],
    locks=[ext.PosixLock(3, 77, 0, 9, 1, 1)],
    flocks=[ext.Flock(0, 2)],
    waiting=[12],
    anonymous=[
        ext.Anonymous(
            3, stat.S_IFREG | 0o600, 1000, 1000, 0, 1 << 40, -1, 5, [(b"user.a", b"b")],
            [(0, b"hi"), (4096, b"x")],
        ),
        ext.Anonymous(4, stat.S_IFLNK | 0o777, target=b"/a/b"),
    ],
    raw_names=[ext.RawName(5, 1, b"\xff\xfe")],
    losses=[ext.Loss(9, "a file of 70 MiB")],
)


def replaced(**changes) -> bytes:
    return ext.encode(msgspec.structs.replace(FULL, **changes))


def test_round_trip():
    assert ext.decode(BLOB + ext.encode(FULL), len(BLOB)) == FULL
    assert ext.decode(BLOB + ext.encode(ext.Extension()), len(BLOB)) == ext.Extension()


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x00" * 64, b"\x89", b"\x89PNG\r\n\x1a\n"])
def test_other_bytes_after_the_blob_are_none_of_ours(junk):
    assert ext.decode(BLOB + junk, len(BLOB)) is None


def test_every_cut_inside_is_truncated():
    section = ext.encode(FULL)
    for size in range(2, len(section)):
        with pytest.raises(StreamTruncated) as caught:
            ext.decode(BLOB + section[:size], len(BLOB))
        assert caught.value.field.startswith("extension")


def test_what_follows_the_section_is_refused():
    with pytest.raises(StreamError) as caught:
        ext.decode(ext.encode(FULL) + b"!", 0)
    assert caught.value.offset == len(ext.encode(FULL))


@pytest.mark.parametrize("version", [0, ext.VERSION + 1, 2**32 - 1])
def test_another_version_is_refused_with_a_hint(version):
    section = bytearray(ext.encode(FULL))
    section[8:12] = version.to_bytes(4, "little")
    with pytest.raises(StreamError) as caught:
        ext.decode(bytes(section), 0)
    assert caught.value.field == "extension.version"
    assert "without the extension" in caught.value.hint


@given(st.integers(0, len(ext.encode(FULL)) - ext.HEADER.size - 1), st.integers(1, 255))
def test_the_checksum_covers_every_byte(position, change):
    section = bytearray(ext.encode(FULL))
    section[ext.HEADER.size + position] ^= change
    with pytest.raises(StreamError) as caught:
        ext.decode(bytes(section), 0)
    assert caught.value.field == "extension.checksum"


@given(st.binary(max_size=200))
def test_hostile_payloads_with_a_right_checksum(payload):
    """A hostile writer can compute checksums, too: typed refusal or a checked value, nothing else."""
    section = ext.HEADER.pack(ext.MAGIC, ext.VERSION, zlib.crc32(payload), len(payload)) + payload
    try:
        value = ext.decode(section, 0)
    except StreamError as refusal:
        value = refusal
    assert isinstance(value, StreamError | ext.Extension)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"negotiated": NegotiatedState(True, "7")}, "extension"),
        ({"raw_names": [ext.RawName(5, 1, b"..")]}, "extension.raw_names.name"),
        ({"raw_names": [ext.RawName(5, 1, b"a/b")]}, "extension.raw_names.name"),
        ({"raw_names": [ext.RawName(5, 1, b"x" * 256)]}, "extension"),
        ({"locks": [ext.PosixLock(3, 7, 9, 8, 1, 1)]}, "extension.locks.start"),
        ({"locks": [ext.PosixLock(3, 7, 0, 8, 2, 1)]}, "extension"),
        ({"locks": [ext.PosixLock(3, 7, 0, 1 << 63, 1, 1)]}, "extension"),
        ({"flocks": [ext.Flock(0, 8)]}, "extension"),
        ({"handles": [ext.HandleExtra(0, 1 << 40, 0)]}, "extension"),
        (
            {"anonymous": [ext.Anonymous(3, stat.S_IFREG, size=4, extents=[(2, b"xyz")])]},
            "extension.anonymous.extents",
        ),
        (
            {"anonymous": [ext.Anonymous(3, stat.S_IFREG, size=9, extents=[(2, b"xyz"), (4, b"a")])]},
            "extension.anonymous.extents",
        ),
        (
            {"anonymous": [ext.Anonymous(3, stat.S_IFDIR, size=9, extents=[(2, b"xyz")])]},
            "extension.anonymous.mode",
        ),
        ({"anonymous": [ext.Anonymous(3, stat.S_IFREG, size=-1)]}, "extension"),
    ],
)
def test_values_without_sense_are_refused(changes, field):
    with pytest.raises(StreamError) as caught:
        ext.decode(replaced(**changes), 0)
    assert caught.value.field == field


def test_more_content_than_the_limit_is_refused():
    size = UNLINKED_CONTENT_MAX + 1
    section = replaced(anonymous=[ext.Anonymous(3, stat.S_IFREG, size=size, extents=[(0, bytes(size))])])
    with pytest.raises(StreamError) as caught:
        ext.decode(section, 0)
    assert "allowed" in caught.value.message


MANY = {
    "handles": (limits.STATE_HANDLES_MAX, ext.HandleExtra(0, 0, 0)),
    "locks": (limits.LOCK_RANGES_MAX, ext.PosixLock(3, 7, 0, 8, 1, 1)),
    "flocks": (limits.STATE_HANDLES_MAX, ext.Flock(0, 1)),
    "waiting": (limits.LOCK_WAITERS_MAX, 7),
    "anonymous": (limits.STATE_UNLINKED_MAX, ext.Anonymous(3, stat.S_IFREG)),
    "raw_names": (limits.STATE_INODES_MAX, ext.RawName(5, 1, b"x")),
    "losses": (limits.STATE_INODES_MAX, ext.Loss(5, "")),
    "stale": (limits.STATE_INODES_MAX, 5),
    "told": (limits.STATE_UNLINKED_MAX, ext.ToldOf(5, 1, 2, 3, 4)),
    "numbers": (limits.STATE_UNLINKED_MAX, 5),
}


def test_every_list_has_a_bound():
    lists = {name for name in ext.Extension.__struct_fields__ if type(getattr(FULL, name)) is list}
    assert lists == set(MANY)


@pytest.mark.parametrize("name", MANY)
def test_a_list_beyond_its_bound_is_refused_before_any_of_it_is_made(name):
    """Its length is looked at first: in memory it would be many times what it takes in the blob."""
    bound, element = MANY[name]
    head = msgspec.msgpack.encode({"handles": []})[:1] + msgspec.msgpack.encode(name)
    length = b"\xdd" + (bound + 1).to_bytes(4, "big")
    elements = msgspec.msgpack.encode(element) * (bound + 1 if bound <= 1 << 20 else 1)
    payload = head + length + elements
    section = ext.HEADER.pack(ext.MAGIC, ext.VERSION, zlib.crc32(payload), len(payload)) + payload

    def load():
        with pytest.raises(StreamError) as caught:
            ext.decode(section, 0)
        assert f"<= {bound}" in caught.value.message
        assert name in caught.value.message

    assert peak_bytes(load)[0] < 100_000
