"""Why a destination gave up arrives at the source: step, reason, errno, what to do."""

from __future__ import annotations

import errno

import pytest

from tests.support.migration_rig import Run
from vmsim.errors import MigrationError
from vmsim.migration.byteio import StreamInput
from vmsim.migration.channel import MemoryChannel
from vmsim.migration.returnpath import FAILED, READY, REASON_MAX, SHUT, ReturnMessage, encode, receive
from vmsim.schedule.immediate import ImmediateSchedule


def travelled(data: bytes) -> ReturnMessage:
    there, here = MemoryChannel.pair(ImmediateSchedule())
    there.write(data)
    there.close_write()
    return receive(StreamInput(here))


@pytest.mark.parametrize(
    "message",
    [
        ReturnMessage(SHUT, READY),
        ReturnMessage(SHUT, FAILED, "loading ram", "two\nlines", errno.ENOSPC, "free some space"),
        ReturnMessage(SHUT, FAILED, "loading ram", "no more is known"),
    ],
)
def test_round_trip(message):
    assert travelled(encode(message)) == message


def test_a_hint_is_one_line_and_the_whole_is_bounded():
    told = travelled(encode(ReturnMessage(SHUT, FAILED, "s", "r" * (2 * REASON_MAX), 5, "do\nthis")))
    assert told.hint == "do this"
    assert len(told.reason) < REASON_MAX


@pytest.mark.parametrize(
    "text", [b"", b"step", b"step\nreason", b"s\n-1\nh\nr", b"s\n99999\nh\nr", b"\xff\n\xff"]
)
def test_other_texts_are_no_trouble(text):
    head = SHUT.to_bytes(2, "big") + (4 + len(text)).to_bytes(2, "big") + FAILED.to_bytes(4, "big")
    assert travelled(head + text).errno == 0


def test_the_source_knows_what_the_destination_knew():
    def prepare(machine) -> None:
        def load(src, version: int) -> None:
            raise MigrationError("not here", errno=errno.EPERM, hint="elsewhere")

        machine.devices[0].load = load

    run = Run(prepare=prepare).go()
    for side in ("source", "destination"):
        error = run.errors[side]
        assert "not here" in str(error)
        assert (error.errno, error.hint, error.side) == (errno.EPERM, "elsewhere", "destination")
