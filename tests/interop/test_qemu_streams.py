"""Streams that QEMU wrote, altered, and loaded by QEMU: what becomes of the back-end's state in them.

Whatever does not come whole is refused; where we differ from virtiofsd the row says so, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from devices.virtio_fs.state import blob as state_blob
from tests.interop.qemu_rig import VIRTIOFSD, VMSIM
from tests.interop.qtest_world import FILE, TEXT, Client, Side, StateInStream, World
from tests.interop.vhost_mitm import TO_FRONTEND
from tests.support.sampling import sample
from vmsim.virtio.constants import F_VERSION_1

pytestmark = [
    pytest.mark.interop,
    # Children start while somebody is in the middle, in a thread of his own; they only ask to end with us.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
KINDS = [VMSIM, VIRTIOFSD]
OTHER_NAME = FILE.encode().replace(b"h", b"j")


class Saved(NamedTuple):
    """A machine that was saved by QEMU: its guest waits, whatever becomes of the stream."""

    world: World
    client: Client
    stream: bytes
    kind: str


@pytest.fixture(scope="module")
def machines(peers, tmp_path_factory):
    """One per back-end, saved when it is first asked for."""
    made: dict[str, Saved] = {}

    def get(kind: str) -> Saved:
        if kind not in made:
            world = World(peers, tmp_path_factory.mktemp(kind))
            client = world.booted(kind)
            made[kind] = Saved(world, client, world.save(client.side), kind)
        return made[kind]

    yield get
    for saved in made.values():
        saved.world.close()


@pytest.fixture(params=KINDS)
def saved(request, machines):
    return machines(request.param)


@pytest.fixture
def arrive(saved):
    """Loads a stream into a new QEMU on a new back-end; that side, and what became of it."""
    sides = []

    def load(stream: bytes, **changes) -> tuple[Side, str]:
        side = saved.world.side(saved.kind, incoming=True, **changes)
        sides.append(side)
        return side, saved.world.load(side, stream)

    yield load
    for side in sides:
        saved.world.end(side)


def checked(side: Side) -> int | None:
    """What the back-end said of the state: 0 for success; None if it was not asked."""
    for message in side.mitm.trace:
        if (message.towards, message.name) == (TO_FRONTEND, "CHECK_DEVICE_STATE"):
            return int.from_bytes(message.body, "little")
    return None


class Row(NamedTuple):
    """An altered stream; whether the back-end took the state (None: was not asked), and what QEMU says."""

    alter: Callable[[StateInStream], bytes]
    taken: bool | None
    says: str
    why: str = ""


def with_blob(change: Callable[[bytes], bytes]) -> Callable[[StateInStream], bytes]:
    def alter(state: StateInStream) -> bytes:
        state.chunks = [change(state.blob)]
        return bytes(state)

    return alter


def cut(after: Callable[[StateInStream], int]) -> Callable[[StateInStream], bytes]:
    """The stream ends that many bytes after the length of the first chunk."""
    return lambda state: bytes(state)[: state.start + 4 + after(state)]


def split(state: StateInStream, at: int) -> StateInStream:
    state.chunks = [state.blob[:at], state.blob[at:]]
    return state


def huge(state: StateInStream) -> bytes:
    whole = bytearray(bytes(state))
    whole[state.start : state.start + 4] = (0xFFFFFFF0).to_bytes(4)
    return bytes(whole)


def renamed(state: StateInStream) -> bytes:
    state.name = state.name[:-1] + b"s"
    return bytes(state)


def newer(state: StateInStream) -> bytes:
    state.version = 1
    return bytes(state)


NOT_PROCESSED = "Back-end failed to process its internal state"
NOT_READ = "Failed to read state"
ENDED = "load of migration failed: Input/output error"
REFUSED = {
    "cut inside a chunk": Row(cut(lambda state: len(state.blob) // 2), None, NOT_READ),
    "cut after the state": Row(
        cut(lambda state: len(state.blob)), True, ENDED, "the state is whole; QEMU gives up by itself"
    ),
    "cut in the terminator": Row(cut(lambda state: len(state.blob) + 2), True, ENDED, "the same"),
    "cut after the first of two chunks": Row(
        lambda state: cut(lambda state: len(state.chunks[0]))(split(state, len(state.blob) // 2)), False,
        NOT_PROCESSED, "QEMU takes that for the end of the state: it is the back-end that must notice",
    ),
    "a length of 4 GiB": Row(huge, None, NOT_READ),
    "another version byte": Row(with_blob(lambda blob: b"\x7f" + blob[1:]), False, NOT_PROCESSED),
    "a file of another name": Row(
        with_blob(lambda blob: blob.replace(FILE.encode(), OTHER_NAME)), False, NOT_PROCESSED
    ),
    "no state": Row(with_blob(lambda blob: b""), False, NOT_PROCESSED),
    "a subsection of another name": Row(renamed, None, "No such file or directory"),
    "a newer subsection": Row(newer, None, "too new"),
}  # fmt: skip


@pytest.mark.parametrize("row", sample(REFUSED, 5, "streams that QEMU refuses"))
def test_refused(saved, arrive, row):
    alter, taken, says, why = REFUSED[row]
    stream = alter(StateInStream(saved.stream))
    assert stream != saved.stream
    side, status = arrive(stream)
    assert status == "gone", side.mitm.names()
    assert side.qemu.wait() == 1
    assert says in side.qemu.log
    answer = checked(side)
    assert (answer if answer is None else not answer) == taken, side.backend.said()
    print(f"{row}, {saved.kind}: CHECK {answer}, QEMU: {side.qemu.log.splitlines()[0]}; {why}")


def goes_on(saved: Saved, side: Side) -> None:
    """The guest runs there, with the file that it has open."""
    fs = side.vm.take_over(saved.client.side.vm)
    assert fs.read(saved.client.fd, 100) == TEXT[5:]


def test_the_stream_as_it_is_and_in_other_chunks(saved, arrive):
    state = StateInStream(saved.stream)
    assert bytes(state) == saved.stream
    print(f"{saved.kind}: {len(state.blob)} bytes of state")
    for stream in (saved.stream, bytes(split(state, 7))):
        side, status = arrive(stream)
        assert (status, checked(side)) == ("running", 0), side.qemu.log
        goes_on(saved, side)


def test_bytes_behind_the_state(saved, arrive):
    """virtiofsd ignores whatever follows. We look for our extension there, and say what is not one."""
    side, status = arrive(with_blob(lambda blob: blob + b"\0\1\2\3")(StateInStream(saved.stream)))
    if saved.kind == VIRTIOFSD:
        assert (status, checked(side)) == ("running", 0)
        goes_on(saved, side)
    else:
        assert (status, side.qemu.wait()) == ("gone", 1)
        assert NOT_PROCESSED in side.qemu.log
    print(f"{saved.kind}: {status}; {side.backend.said().splitlines()[-1]}")


def test_a_stream_without_the_state_is_a_guest_without_its_session(saved, arrive):
    """QEMU accepts that, and tells nobody. The guest's files are as good as closed, whatever the back-end."""
    state = StateInStream(saved.stream)
    side, status = arrive(state.before + state.after)
    assert status == "running"
    assert "SET_DEVICE_STATE_FD" not in side.mitm.names()
    fs = side.vm.take_over(saved.client.side.vm)
    with pytest.raises(OSError) as error:
        fs.read(saved.client.fd, 100)
    print(f"{saved.kind}: {error.value}")


@pytest.mark.parametrize("changes", [
    {"tag": "another"}, {"device": "queue-size=256"},
], ids=str)  # fmt: skip
def test_accepted_although_the_device_differs(saved, arrive, changes):
    side, status = arrive(saved.stream, **changes)
    assert (status, checked(side)) == ("running", 0), side.qemu.log
    goes_on(saved, side)


def test_a_feature_of_the_guests_driver_that_is_missing_there(saved, arrive):
    """QEMU looks at that before it asks the back-end for anything."""
    side, status = arrive(saved.stream, device="event_idx=off")
    assert (status, checked(side), side.qemu.wait()) == ("gone", None, 1)
    assert "unsupported. Allowed features" in side.qemu.log


def test_a_missing_feature_that_the_guests_driver_did_not_take(saved):
    world = saved.world
    client = world.booted(saved.kind, guest={"features": F_VERSION_1})
    stream = world.save(client.side)
    there = world.side(saved.kind, incoming=True, device="event_idx=off")
    assert world.load(there, stream) == "running", there.qemu.log
    client.moved(there)
    world.end(there)


def test_the_state_is_what_the_guest_knows(saved):
    """What QEMU's stream holds of the back-end, decoded by us."""
    found, _ = state_blob.decode(StateInStream(saved.stream).blob)
    names = [record.name for record in found.inodes if record.name]
    assert FILE.encode() in names
    assert len(found.handles) == 1
    print(f"{saved.kind}: {len(found.inodes)} inodes, {len(found.handles)} handle, names {names}")
