"""What can go wrong between a real QEMU and a back-end, message by message: ours, and virtiofsd.

No guest system runs: our own guest drives the device through qtest. Each row is the same for both back-ends
unless it says otherwise.
"""

from __future__ import annotations

import os

import pytest

from tests.interop.qemu_rig import VIRTIOFSD, VMSIM, QmpError
from tests.interop.qtest_world import World, number, reply, without
from tests.interop.vhost_mitm import CLOSE, TO_BACKEND, Message
from tests.support.waiting import until
from vmsim.errors import StallError

pytestmark = [
    pytest.mark.interop,
    # Children start while somebody is in the middle, in a thread of his own; they only ask to end with us.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
KINDS = [VMSIM, VIRTIOFSD]
CAUSE_LOADING = "Error loading back-end state of virtio-user-fs device"


@pytest.fixture
def world(peers, tmp_path):
    made = World(peers, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def kind(request):
    """The back-end that is tested."""
    return request.param


def told(what: str, log: str, *expected: str) -> None:
    """QEMU's log has these texts; the line with the first is printed."""
    for text in expected:
        assert text in log, log
    line = next((line for line in log.splitlines() if expected and expected[0] in line), "nothing")
    print(f"{what}: {line.removeprefix('qemu-system-x86_64: ')}")


def own_descriptor(message: Message) -> Message:
    """Success, with a descriptor of our own: somebody else's state can be read from it."""
    ours, theirs = os.pipe()
    os.write(theirs, b"somebody else's state")
    os.close(theirs)
    return message._replace(body=bytes(8), fds=(ours,))


def closed_at(name: str):
    """The connection ends when the front-end says that."""
    return lambda message: CLOSE if (message.towards, message.name) == (TO_BACKEND, name) else message


def without_payload(message: Message) -> Message:
    return message._replace(body=b"")


# The source


@pytest.mark.parametrize(("message", "bit", "why"), [
    ("GET_PROTOCOL_FEATURES", 1, "vhost-user backend lacks VHOST_USER_PROTOCOL_F_LOG_SHMFD feature"),
    ("GET_FEATURES", 26, "vhost lacks VHOST_F_LOG_ALL feature"),
], ids=["bit 1", "feature 26"])  # fmt: skip
def test_without_a_log_migration_is_blocked(world, kind, message, bit, why):
    client = world.booted(kind, reply(message, without(bit)))
    with pytest.raises(QmpError, match=why) as refusal:
        client.side.qemu.start_migration(f"file:{world.stream}")
    print(refusal.value)
    client.goes_on()


SOURCE = {
    "no bit 19": (
        reply("GET_PROTOCOL_FEATURES", without(19)), "does not support migration through qemu"
    ),
    "42 answers 0x101": (
        reply("SET_DEVICE_STATE_FD", number(0x101)), "Back-end did not accept migration state transfer"
    ),
    "42 answers nothing": (
        reply("SET_DEVICE_STATE_FD", without_payload), "Received bad message size, expected 8, received 0"
    ),
    "43 answers 1": (
        reply("CHECK_DEVICE_STATE", number(1)), "Back-end failed to process its internal state"
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", SOURCE)
def test_the_source_goes_on_when_its_state_cannot_be_saved(world, kind, row):
    rule, why = SOURCE[row]
    client = world.booted(kind, rule)
    qemu = client.side.qemu
    assert qemu.migrate(f"file:{world.stream}")["status"] == "failed"
    told(row, qemu.log, why)
    until(lambda: qemu.status == "running", "the source to go on")
    client.check()
    if row != "no bit 19":
        client.side.mitm.rule = lambda message: message
        world.save(client.side)
        there = world.side(kind, incoming=True)
        assert world.load(there) == "running"
        client.moved(there)


@pytest.mark.parametrize("name", ["SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE"])
def test_the_machine_survives_a_back_end_that_is_gone(world, kind, name):
    client = world.booted(kind, closed_at(name))
    qemu = client.side.qemu
    assert qemu.migrate(f"file:{world.stream}")["status"] == "failed"
    told(f"closed at {name}", qemu.log, "Error saving back-end state")
    until(lambda: qemu.status == "running", "the source to go on")
    assert name not in client.side.mitm.names()
    client.side.vm.patience_s = 0.3
    with pytest.raises(StallError):
        client.fs.read(client.fd, 1)


def test_a_lost_back_end_when_its_rings_stop(world, kind):
    client = world.booted(kind, closed_at("GET_VRING_BASE"))
    qemu = client.side.qemu
    assert qemu.migrate(f"file:{world.stream}")["status"] == "failed"
    until(lambda: qemu.status == "running", "the source to go on")
    told("closed at GET_VRING_BASE", qemu.log, "Error saving back-end state")


def test_qemu_takes_a_descriptor_from_the_back_end(world, kind):
    def rule(message: Message) -> Message:
        message = reply("SET_DEVICE_STATE_FD", own_descriptor)(message)
        return reply("CHECK_DEVICE_STATE", number(0))(message)

    client = world.booted(kind, rule)
    stream = world.save(client.side)
    assert b"vhost-user-fs-backend" + bytes(4) + (21).to_bytes(4) + b"somebody else's state" in stream
    print("the stream has what came through the descriptor of the reply")
    client.goes_on()


# The destination

DESTINATION = {
    "no bit 19": (
        reply("GET_PROTOCOL_FEATURES", without(19)), ["does not support migration through qemu"]
    ),
    "42 answers 0x101": (
        reply("SET_DEVICE_STATE_FD", number(0x101)),
        ["Back-end did not accept migration state transfer", CAUSE_LOADING],
    ),
    "43 answers 7": (
        reply("CHECK_DEVICE_STATE", number(7)),
        ["Back-end failed to process its internal state", CAUSE_LOADING],
    ),
    "closed at 42": (closed_at("SET_DEVICE_STATE_FD"), ["SET_DEVICE_STATE_FD", CAUSE_LOADING]),
    "closed at 43": (closed_at("CHECK_DEVICE_STATE"), ["CHECK_DEVICE_STATE", CAUSE_LOADING]),
}  # fmt: skip


def test_a_destination_that_fails_ends_and_the_source_can_go_on(world, kind):
    client = world.booted(kind)
    for row, (rule, texts) in DESTINATION.items():
        stream = world.save(client.side)
        there = world.side(kind, rule, incoming=True)
        assert world.load(there, stream) == "gone"
        assert there.qemu.wait() == 1
        told(row, there.qemu.log, *texts)
        client.goes_on()
    world.save(client.side)
    there = world.side(kind, incoming=True)
    assert world.load(there) == "running"
    client.moved(there)
