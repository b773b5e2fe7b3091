"""One life of a machine on virtiofsd and on ``vmsim serve``: the messages, and every reply, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.interop.virtiofsd_rig import SANDBOX
from tests.support.vhost_rig import Recorder
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine, Seams
from vmsim.machine.remote import started
from vmsim.migration.report import MigrationParameters
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.vhost.messages import Reply
from vmsim.vhost.payloads import Number
from vmsim.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1

pytestmark = pytest.mark.interop

BASIC = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
THEIRS = {"GET_FEATURES": 0x1_7400_0000, "GET_PROTOCOL_FEATURES": 0x8A42B}
"""What virtiofsd 1.13.2 offers (reference section 1.3)."""
MORE = {
    "GET_FEATURES": "packed rings, IN_ORDER, RING_RESET, NOTIFICATION_DATA and the like",
    "GET_PROTOCOL_FEATURES": "STATUS, the in-flight buffer, in-band notifications and the like",
}
"""Where our replies differ, and why: we offer what it offers, and more."""


class Masked(Recorder):
    """Records what the back-end replies; the front-end sees only what virtiofsd offers as well."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.shares_process = inner.shares_process

    def request(self, request: Any) -> Any:
        reply = super().request(request)
        mask = THEIRS.get(request.row.name)
        return reply if mask is None else Reply(Number(reply.payload.value & mask))


def life(share: Path, command: Any) -> list[Any]:
    """The messages of a machine that boots, works, stops, goes on, migrates and ends."""
    wires: list[Masked] = []

    def wrap(inner: Any) -> Masked:
        wires.append(Masked(inner))
        return wires[-1]

    seams = Seams(transport=wrap, start=started(command))
    vm = Machine(
        share, memory="4M", schedule=ImmediateSchedule(), seams=seams, guest=GuestConfig(features=BASIC),
    )  # fmt: skip
    fs = vm.mount()
    fs.mkdir("/d")
    with fs.open_file("/d/f", "w") as file:
        file.write("content")
    vm.pause()
    vm.resume()
    # How many rounds memory takes, each with a message for the log, would else be a matter of time.
    vm = vm.migrate(seams=seams, parameters=MigrationParameters(max_rounds=1))
    assert fs.listdir("/d") == ["f"]
    vm.close()
    assert len(wires) == 2
    return [row for wire in wires for row in wire.log]


def test_every_reply_is_as_virtiofsds(peers, tmp_path):
    command = [peers.virtiofsd, *SANDBOX, "--socket-path={socket}", "--shared-dir={dir}"]
    logs = []
    for name, start in (("theirs", command), ("ours", None)):
        (tmp_path / name).mkdir()
        logs.append(life(tmp_path / name, start))
    theirs, ours = logs
    assert [row[:2] for row in ours] == [row[:2] for row in theirs], "the order of messages"
    replies = 0
    for mine, other in zip(ours, theirs, strict=True):
        direction, name, flags, size, fds, body = mine
        assert (flags, size, fds) == other[2:5], mine
        if direction != "BE>FE":
            continue
        replies += 1
        if name in THEIRS:
            words = [int.from_bytes(bytes.fromhex(text), "little") for text in (body, other[5])]
            assert words[1] == THEIRS[name]
            assert words[0] & words[1] == words[1], f"{name}: {MORE[name]}"
            assert words[0] != words[1]
        else:
            assert body == other[5], mine
    names = {row[1] for row in ours}
    print(f"{len(ours)} messages of {len(names)} kinds, {replies} replies: {', '.join(sorted(names))}")
    assert {"SET_DEVICE_STATE_FD", "CHECK_DEVICE_STATE", "GET_VRING_BASE", "SET_LOG_BASE"} <= names
