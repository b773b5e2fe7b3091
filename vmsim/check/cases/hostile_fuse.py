"""Requests that no honest guest sends. The back-end answers with an error, or not at all, and lives on."""

from __future__ import annotations

from vmsim.check.case import Group
from vmsim.check.device import Device, GivenUp
from vmsim.check.rigs import RingRig
from vmsim.fuse import opcodes as op

CASES = Group("hostile")


def survives(device: Device, readable: list[bytes], writable: list[int]) -> bytes | None:
    """Post a chain and find the device working afterwards, if need be after a reset; what was written."""
    posted = device.post(readable, writable)
    try:
        _, length = device.used()
        reply = device.written(posted, length)
    except GivenUp:
        device.recover()
        reply = None
    device.getattr()
    return reply


@CASES.case("lookup-without-nul", "FUSE LOOKUP")
def lookup_without_nul(rig: RingRig) -> None:
    """A LOOKUP whose name has no NUL at its end."""
    device = rig.device()
    name = b"no-end"
    request = bytearray(device.request(op.LOOKUP, 1, (), (name,)))[:-1]
    request[0:4] = len(request).to_bytes(4, "little")
    survives(device, [bytes(request)], [144])
