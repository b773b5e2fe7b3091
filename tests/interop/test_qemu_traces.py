"""What a real QEMU says to our back-end, compared with its logs; lives without accidents."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devices.virtio_fs.state import blob as state_blob
from tests.interop.qemu_rig import VIRTIOFSD, VMSIM
from tests.interop.qtest_world import FILE, StateInStream, World, like_virtiofsd
from tests.interop.vhost_mitm import TO_BACKEND, TO_FRONTEND, Mitm
from tests.support.waiting import until
from vmsim.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1

pytestmark = [
    pytest.mark.interop,
    # Children start while somebody is in the middle, in a thread of his own; they only ask to end with us.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
KINDS = [VMSIM, VIRTIOFSD]
GOLDEN = Path(__file__).parents[1] / "golden"
LINE = re.compile(r"[\d.]+ (FE>BE|BE>FE) (\w+) +flags=(\w+) size=(\d+) fds=(\d+) payload=(\w*)")
PLAIN = F_VERSION_1
"""The features of the driver in the golden logs."""
ADDRESSES = {"ADD_MEM_REG", "SET_VRING_ADDR"}
"""Their payloads are places in memory, which every run chooses anew; index and flags stay."""
OURS = {"GET_MAX_MEM_SLOTS"}
"""Replies that are our own business: how many slots we have."""


@pytest.fixture
def world(peers, tmp_path):
    made = World(peers, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def kind(request):
    """The back-end that is tested."""
    return request.param


def golden(name: str) -> list[tuple[Any, ...]]:
    found = []
    for line in (GOLDEN / name).read_text().splitlines():
        match = LINE.fullmatch(line)
        if match:
            towards, message, flags, size, fds, payload = match.groups()
            body = bytes.fromhex(payload)
            assert len(body) == int(size)
            found.append(plain(towards, message, int(flags, 16), body, int(fds)))
    return found


def plain(towards: str, name: str, flags: int, body: bytes, fds: int) -> tuple[Any, ...]:
    """What must be the same in every run."""
    kept = body.hex()
    if name in ADDRESSES and towards == TO_BACKEND:
        kept = f"{len(body)} bytes, {body[:8].hex()}"
    elif name == "SET_LOG_BASE":
        kept = f"{len(body)} bytes" if towards == TO_BACKEND else "any"
    elif name in OURS and towards == TO_FRONTEND:
        kept = "ours"
    elif name == "SET_VRING_BASE" or name == "GET_VRING_BASE":
        kept = body[:4].hex()  # how far a ring is depends on how many requests there were
    return towards, name, flags, kept, fds


def as_seen(mitm: Mitm, expected: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The messages, once as many have passed as are expected: QEMU does not wait for all of them."""
    wait_for(mitm, len(expected))
    return [plain(each.towards, each.name, each.flags, each.body, len(each.fds)) for each in mitm.trace]


def wait_for(mitm: Mitm, count: int) -> None:
    with contextlib.suppress(AssertionError):  # what is missing is told by who compares
        until(lambda: len(mitm.trace) >= count, "messages", limit_s=5)


def test_the_messages_are_those_that_virtiofsd_got(world):
    """One life as in the golden logs: boot, work, migrate to a file; load, work, stop."""
    guest = {"features": PLAIN, "queue_size": 128}
    client = world.booted(VMSIM, like_virtiofsd, guest=guest)
    world.save(client.side)
    expected = golden("vhost-user-source.log")
    assert as_seen(client.side.mitm, expected) == expected
    there = world.side(VMSIM, like_virtiofsd, incoming=True)
    assert world.load(there) == "running"
    client.moved(there)
    there.qemu.qmp("stop")
    and_there = golden("vhost-user-destination.log")
    assert as_seen(there.mitm, and_there) == and_there
    print(f"source: {len(expected)} messages, destination: {len(and_there)}, as with virtiofsd")


SETUP = ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK"]
STOP = [*["SET_VRING_ENABLE"] * 2, *["GET_VRING_BASE"] * 2, *["SET_VRING_CALL"] * 2]
CONT = [
    *["SET_VRING_CALL"] * 2,
    "SET_FEATURES",
    *SETUP * 2,
    *["SET_VRING_ENABLE"] * 2,
    *["SET_VRING_CALL"] * 2,
]


def test_stop_and_cont(world, kind):
    """Memory is not sent again, the device is not reset, and the session stays."""
    client = world.booted(kind, like_virtiofsd)
    mitm = client.side.mitm
    booted = golden("vhost-user-source.log").index(("FE>BE", "SET_LOG_BASE", 1, "16 bytes", 1))
    wait_for(mitm, booted)
    expected = mitm.names()
    for _ in range(3):
        client.side.qemu.qmp("stop")
        client.goes_on()
        expected += STOP + CONT
        wait_for(mitm, len(mitm.trace) - len(mitm.names()) + len(expected))
        assert mitm.names() == expected
    print(f"{kind}: {', '.join(STOP)} | {', '.join(CONT)}")


def test_a_machine_without_a_driver_moves_too(world, kind):
    side = world.side(kind)
    state = StateInStream(world.save(side))
    found, end = state_blob.decode(state.blob)
    assert (state.blob[:10].hex(), found.inodes, found.handles) == ("01000200000000000000", [], [])
    print(f"{kind}: {len(state.blob)} bytes, {len(state.blob) - end} of them behind virtiofsd's")
    there = world.side(kind, incoming=True)
    assert world.load(there) == "running"
    assert there.vm.boot().listdir("/") == [FILE]


@pytest.mark.parametrize("features", [
    F_VERSION_1, F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX,
    F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_RING_PACKED,
], ids=hex)  # fmt: skip
def test_all_kinds_of_rings_move_back_and_forth(world, features):
    client = world.booted(VMSIM, device="packed=on", guest={"features": features})
    for _ in range(2):
        stream = world.save(client.side)
        there = world.side(VMSIM, incoming=True, device="packed=on")
        assert world.load(there, stream) == "running", there.qemu.log
        client.moved(there)


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_machines_move_between_all_back_ends(world, here, there):
    client = world.booted(here, device="queue_reset=off")
    for kind in (there, here):
        stream = world.save(client.side)
        side = world.side(kind, incoming=True, device="queue_reset=off")
        assert world.load(side, stream) == "running", side.qemu.log
        client.moved(side)


def test_qemus_analyser_reads_the_streams(world, peers, kind):
    client = world.booted(kind)
    state = StateInStream(world.save(client.side))
    done = subprocess.run(
        [sys.executable, peers.analyze_migration, "-f", str(world.stream), "-d", "state"],
        capture_output=True, text=True, timeout=60, cwd=world.stream.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sections = json.loads(done.stdout)
    device = next(value for key, value in sections.items() if "/vhost-user-fs" in key)
    raw = bytes.fromhex(device["vhost-user-fs-backend"]["back-end"].replace(" ", ""))
    assert raw == b"".join(len(chunk).to_bytes(4) + chunk for chunk in state.chunks) + bytes(4)
    print(f"{kind}: {len(sections)} sections; {len(raw)} bytes in the field back-end, as in the stream")
