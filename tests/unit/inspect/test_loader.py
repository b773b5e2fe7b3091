"""Lint and the loader agree about a saved machine, whatever has happened to it: same verdict, same place.

Real restores with the real share, against what lint says of the file alone. Only what lies in the share lint
cannot know: a name in the state that is no longer one of a file there.
"""

from __future__ import annotations

import random

import pytest

from tests.support.machine_rig import Life, make
from tests.support.sampling import Run, sample
from vmsim.errors import StreamError, UsageError, VmsimError
from vmsim.inspect.opening import read_capture
from vmsim.inspect.source import MemoryBytes
from vmsim.inspect.trial import BytesChannel
from vmsim.machine import Machine
from vmsim.wire.tree import Severity

SEED = 8
IN_THE_SHARE = (
    "No such file", "Not a directory", "Is a directory", "Stale file handle", "another file",
    "did not survive",
    "Too many levels", "shared directory", "Invalid argument", "Bad file descriptor", "No such device",
    "Operation not", "conflicts",
)  # fmt: skip
"""How a refusal reads that is about the share."""


class Saved:
    """One machine, saved in several ways, and where its sections lie."""

    def __init__(self, folder, **changes) -> None:
        self.share = folder / "share"
        self.share.mkdir()
        vm = make(self.share, memory="1M", **changes)
        Life(vm, waiter=True)
        vm.programs["note"] = b"kept"
        vm.save(folder / "saved", keep_running=False)
        vm.close()
        self.data = (folder / "saved").read_bytes()
        capture = read_capture(MemoryBytes(self.data), "saved")
        assert not capture.errors(), capture.findings
        sections = capture.root.find("sections")
        assert sections is not None
        self.places = sorted(
            {place for node in sections.children for place in (node.offset, node.offset + node.size)}
            | {capture.root.find("end").offset}
        )
        self.devices = next(node.offset for node in sections.children if node.key == "vmsim/guest")

    def loads(self, data: bytes) -> VmsimError | OSError | None:
        try:
            Machine.receive(BytesChannel(MemoryBytes(data)), self.share).close()
        except (VmsimError, OSError) as error:
            return error
        return None


@pytest.fixture(scope="module", params=["upstream", "rfc2023"])
def saved(request, tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("saved"), dialect=request.param)


def place_of(error: BaseException | None) -> int:
    while error is not None and not isinstance(error, StreamError):
        error = error.__cause__
    return -1 if error is None else error.offset


def check(saved: Saved, data: bytes, what: object) -> bool:
    """Assert that both say the same; whether it loads."""
    refusal = saved.loads(data)
    try:
        capture = read_capture(MemoryBytes(data), "changed", loading=True)
    except UsageError:
        nothing = True
    else:
        nothing = False
    if nothing:  # not even to lint
        assert refusal is not None, what
        return False
    errors = [finding for finding in capture.findings if finding.severity is Severity.ERROR]
    told = [(finding.code, finding.offset, finding.message) for finding in errors]
    if refusal is None:
        assert not told, what
        return True
    if not told:
        assert any(words in str(refusal) for words in IN_THE_SHARE), (what, str(refusal))
        return False
    if (place := place_of(refusal)) >= 0:
        assert any(finding.offset == place for finding in errors), (what, str(refusal), place, told)
    return False


def test_the_whole_one(saved):
    assert check(saved, saved.data, "whole")


def test_cut_off_anywhere(saved, request):
    size = len(saved.data)
    around = {place + more for place in saved.places for more in (-1, 0, 1, 4, 5)}
    rest = range(saved.devices, size, 509)
    anywhere = random.Random(SEED).sample(range(size), 20)
    lengths = sorted({*range(48), *around, *rest, *anywhere, *range(size - 9, size)})
    lengths = [length for length in lengths if 0 <= length < size]
    for length in sample(lengths, 100, f"loader: {request.node.name}"):
        assert not check(saved, saved.data[:length], f"cut to {length} of {size}")


@pytest.mark.parametrize("junk", [b"\0", b"junk", b"\x7e" * 5, bytes(5000)], ids=repr)
def test_something_behind_it(saved, junk):
    assert not check(saved, saved.data + junk, "junk")
    assert not check(saved, saved.data + saved.data[:100], "a beginning")


def test_bytes_missing_or_doubled(saved):
    for place in saved.places:
        if place < len(saved.data):
            assert not check(saved, saved.data[:place] + saved.data[place + 1 :], f"without byte {place}")
            assert not check(saved, saved.data[:place] + b"\0" + saved.data[place:], f"one more at {place}")


@pytest.mark.parametrize("how", [0x01, 0x80, 0xFF])
def test_one_byte_changed(saved, how, request):
    """Every few bytes of all that is no page of memory, and some of those."""
    size, dice = len(saved.data), random.Random(SEED + how)
    near = {place + more for place in saved.places for more in range(0, 24, 3)}
    some = dice.sample(range(saved.devices, size), 120) + dice.sample(range(size), 20)
    wanted = {*range(0, 64, 2), *near, *some}
    taken = 0
    places = sample(sorted(place for place in wanted if place < size), 60, f"loader: {request.node.name}")
    for place in places:
        data = bytearray(saved.data)
        data[place] ^= how
        taken += check(saved, bytes(data), f"{how:#x} at {place} ({place:#x}) of {size}")
    assert taken < 0.8 * len(places), "most are refused"
    assert taken > 10 or not Run.whole, "and some taken: seven in a hundred"
