from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.virtio_fs.state import blob, records
from devices.virtio_fs.state.postcard import Reader
from devices.virtio_fs.state.records import FileHandle, HandleRecord, InodeRecord, NegotiatedOpts, StateBlob
from vmsim.errors import StreamError, StreamTruncated, UsageError

GOLDEN = Path(__file__).parents[3] / "golden" / "state"
NAMES = sorted(path.stem for path in GOLDEN.glob("virtiofsd-*.hex"))


def golden(name: str) -> bytes:
    text = (GOLDEN / f"{name}.hex").read_text()
    return bytes.fromhex("".join(line.split("#")[0] for line in text.splitlines()))


U64 = st.integers(0, 2**64 - 1) | st.integers(0, 300)
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=140).map(str.encode)
FH = st.builds(
    FileHandle, U64, st.integers(-(2**31), 2**31 - 1) | st.integers(0, 70), st.binary(max_size=128)
)
INODE = st.one_of(
    st.builds(InodeRecord, U64, U64, st.just(records.ROOT), file_handle=st.none() | FH),
    st.builds(InodeRecord, U64, U64, st.just(records.PATH), U64, NAME, st.none(), st.none() | FH),
    st.builds(InodeRecord, U64, U64, st.just(records.INVALID), file_handle=st.none() | FH),
    st.builds(InodeRecord, U64, U64, st.just(records.FULL_PATH), name=NAME, file_handle=st.none() | FH),
    st.builds(InodeRecord, U64, U64, st.just(records.FILE_HANDLE), handle=FH, file_handle=st.none() | FH),
)
HANDLE = st.builds(HandleRecord, U64, U64, st.integers(-(2**31), 2**31 - 1))
BLOB = st.builds(
    StateBlob, st.lists(INODE, max_size=8), U64, st.lists(HANDLE, max_size=4), U64,
    st.builds(NegotiatedOpts, st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    st.dictionaries(U64, NAME, max_size=3), st.just(records.V2),
)


@pytest.mark.parametrize("name", NAMES)
def test_golden_blobs_decode_and_encode_to_the_same_bytes(name):
    data = golden(name)
    state, end = blob.decode(data)
    assert end == len(data)
    assert blob.encode(state) == data


def test_the_worked_example_says_what_it_says():
    state, _ = blob.decode(golden("virtiofsd-find-paths"))
    assert state.inodes == [
        InodeRecord(1, 4, records.ROOT),
        InodeRecord(2, 2, records.PATH, 1, b"d"),
        InodeRecord(3, 2, records.PATH, 2, b"f.txt"),
        InodeRecord(4, 1, records.PATH, 1, b"g"),
    ]
    assert state.handles == [HandleRecord(0, 3, 2), HandleRecord(1, 2, 0x10000)]
    assert (state.next_inode, state.next_handle) == (5, 2)
    assert state.negotiated == NegotiatedOpts(False, True, False, True)


def test_the_file_handle_example_says_what_it_says():
    state, _ = blob.decode(golden("virtiofsd-file-handles"))
    assert state.mount_paths == {65: b"."}
    assert state.inodes[2].handle == FileHandle(65, 1, bytes.fromhex("cb0821000966a654"))


@given(BLOB)
def test_the_fast_encoder_and_decoder_agree_with_the_schema(state):
    slow = bytearray()
    records.SCHEMA.encode(slow, records.schema_value(state))
    fast = bytes(blob.encode(state))
    assert fast == slow
    assert blob.decode(fast) == (state, len(fast))
    reader = Reader(fast)
    assert records.SCHEMA.decode(reader, "") == records.schema_value(state)


@given(BLOB, st.data())
def test_a_changed_byte_is_read_as_the_schema_reads_it(state, data):
    """Accepted and refused alike: the hand-written loops are not more or less strict than the schema."""
    raw = bytearray(blob.encode(state))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(raw)
    try:
        expected = records.SCHEMA.decode(Reader(raw), "")
    except StreamError:
        with pytest.raises(StreamError):
            blob.decode(raw)
    else:
        assert records.schema_value(blob.decode(raw)[0]) == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_is_refused_as_truncated(name):
    data = golden(name)
    for size in range(len(data)):
        with pytest.raises(StreamTruncated) as caught:
            blob.decode(data[:size])
        assert caught.value.offset <= size
        assert caught.value.field


def test_v1_is_v2_without_mounts():
    data = golden("virtiofsd-find-paths")
    state, end = blob.decode(b"\x00" + data[1:-1])
    assert end == len(data) - 1
    assert state.version == records.V1
    assert state.mount_paths == {}
    assert blob.encode(state) == b"\x00" + data[1:-1]


def test_what_follows_the_blob_is_left_alone():
    data = golden("virtiofsd-find-paths")
    assert blob.decode(data + b"junk") == blob.decode(data)


def test_overlong_integers_are_accepted():
    data = golden("virtiofsd-find-paths")
    longer = data[:2] + b"\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00" + data[3:]
    assert blob.decode(longer)[0] == blob.decode(data)[0]
    assert blob.decode(b"\x81\x00" + data[1:])[0] == blob.decode(data)[0]


@pytest.mark.parametrize(
    ("data", "offset", "field"),
    [
        ("02", 0, "version"),
        ("01 01 01 04 05 00", 4, "inodes[0].location"),
        ("01 01 01 04 00 02", 5, "inodes[0].file_handle"),
        ("01 01 02 01 01 01 01 ff 00", 7, "inodes[0].location.Path.filename"),
        ("01 00 02 00 00 02 00 00 00 00", 5, "negotiated_opts.writeback"),
        ("01 00 02 01 00 01 01 04 00 00 00 00 00 00", 6, "handles[0].source"),
        ("01 00 02 00 00 00 00 00 00 01 01 01 ff", 12, "mount_paths[0].value"),
        ("01 01 02 01 04 41 02 81 01" + "00" * 129 + "00", 7, "inodes[0].location.FileHandle.handle.handle"),
    ],
)
def test_refusals_name_offset_and_field(data, offset, field):
    with pytest.raises(StreamError) as caught:
        blob.decode(bytes.fromhex(data))
    assert (caught.value.offset, caught.value.field) == (offset, field)


def test_a_huge_inode_count_is_refused_at_once():
    with pytest.raises(StreamTruncated) as caught:
        blob.decode(bytes.fromhex("01 ffffffffff7f 00"))
    assert (caught.value.offset, caught.value.field) == (1, "inodes")


def test_a_run_of_continuation_bytes_is_refused_quickly():
    with pytest.raises(StreamError) as caught:
        blob.decode(b"\x01\x01" + b"\xff" * 1_000_000)
    assert caught.value.field == "inodes[0].id"


@pytest.mark.parametrize(
    "record",
    [
        InodeRecord(2, 1, records.PATH, 1, b"\xff"),
        InodeRecord(2, 1, records.PATH, -1, b"a"),
        InodeRecord(1 << 64, 1, records.PATH, 1, b"a"),
        InodeRecord(2, 1, records.FILE_HANDLE),
    ],
)
def test_what_does_not_fit_is_not_written(record):
    with pytest.raises(UsageError):
        blob.encode(StateBlob([record]))
