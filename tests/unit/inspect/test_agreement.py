"""What our own loader refuses of a state, the lint calls an error: no bad state is said to be sound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio_fs.state import blob, extension
from devices.virtio_fs.state.records import (
    FILE_HANDLE,
    FULL_PATH,
    INVALID,
    PATH,
    ROOT,
    FileHandle,
    HandleRecord,
    InodeRecord,
    StateBlob,
)
from devices.virtio_fs.state.restore_plan import make_plan
from tests.unit.inspect.states import STATES, encoded, look, small, state_bytes
from vmsim.errors import StreamError

LARGE = (1 << 63, (1 << 64) - 1)
NAMES = st.sampled_from(
    [b"a", b"b", b"a/b", b"..", b".", b"", b"/etc", b"x\0y", b"n" * 255, b"n" * 256, b"p/" * 2100]
)
IDS = st.integers(0, 5) | st.sampled_from(LARGE)
HANDLE = FileHandle(65, 1, b"12345678")
INODES = st.builds(
    InodeRecord, IDS, st.integers(0, 4) | st.sampled_from(LARGE),
    st.sampled_from([ROOT, PATH, PATH, INVALID, FULL_PATH, FILE_HANDLE]), IDS, NAMES, st.just(HANDLE),
)  # fmt: skip
HANDLES = st.builds(HandleRecord, IDS, IDS, st.integers(0, 1 << 23) | st.sampled_from([0, 1, 2, 3, -1]))
MOUNTS = st.dictionaries(st.sampled_from([65, 66]), NAMES, max_size=2)
ROOTED = st.lists(INODES, max_size=4).map(lambda inodes: [InodeRecord(1, 6, ROOT), *inodes])
BLOBS = st.builds(
    StateBlob, inodes=ROOTED | st.lists(INODES, max_size=4), next_inode=IDS, next_handle=IDS,
    handles=st.lists(HANDLES, max_size=3), mount_paths=MOUNTS,
)  # fmt: skip


def refusal(data: bytes) -> str:
    """Why our loader refuses it; empty if it does not."""
    try:
        decoded, end = blob.decode(data)
        make_plan(decoded, extension.decode(data, end))
    except StreamError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(BLOBS)
def test_states_that_cannot_be(state):
    data = encoded(state)
    why = refusal(data)
    if why:
        assert look(data, "state").errors(), why


WRONG = st.one_of(
    st.tuples(st.just("inodes"), st.integers(0, 2), st.sampled_from(["id", "refcount", "parent"]), IDS),
    st.tuples(st.just("inodes"), st.integers(0, 2), st.just("name"), NAMES),
    st.tuples(st.just("inodes"), st.integers(0, 2), st.just("location"), st.sampled_from(range(3))),
    st.tuples(st.just("handles"), st.just(0), st.sampled_from(["id", "inode"]), IDS),
    st.tuples(st.just("handles"), st.just(0), st.just("flags"), st.integers(-1, 1 << 23)),
)  # fmt: skip
"""Records, index, field and what it becomes."""


@settings(max_examples=300, deadline=None)
@given(WRONG, st.sampled_from(["", "next_inode", "next_handle"]), IDS)
def test_a_sound_state_with_one_thing_wrong(wrong, number, value):
    state = small()
    records, index, name, becomes = wrong
    if number:
        setattr(state, number, value)
    else:
        setattr(getattr(state, records)[index], name, becomes)
    data = encoded(state)
    why = refusal(data)
    if why:
        assert look(data, "state").errors(), why


EDITS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(STATES), EDITS)
def test_states_with_wrong_bytes(path, edits):
    data = bytearray(state_bytes(path))
    for at, octet in edits:
        data[at % len(data)] = octet
    why = refusal(bytes(data))
    if why:
        assert look(bytes(data), "state").errors(), why
