"""Bare back-end states: what is read, and every finding about them."""

from __future__ import annotations

import os

import pytest

from devices.virtio_fs.state.records import (
    FILE_HANDLE,
    FULL_PATH,
    INVALID,
    PATH,
    FileHandle,
    HandleRecord,
    InodeRecord,
)
from tests.unit.inspect.states import STATES, WORKED, codes, encoded, look, small, state_bytes
from vmsim.errors import UsageError
from vmsim.wire.tree import Severity


def test_the_worked_example():
    capture = look(WORKED)
    state = capture.root.get("state")
    assert {node.key: node.value["path"] for node in state.get("inodes").children} == {
        "1": "/", "2": "/d", "3": "/d/f.txt", "4": "/g",
    }  # fmt: skip
    root = state.get("inodes", "1").value
    assert (root["refcount"], root["base"], root["lookups"], root["children"]) == (4, 2, 0, 2)
    file = state.get("inodes", "3").value
    assert (file["refcount"], file["lookups"], file["children"]) == (2, 2, 0)
    assert state.get("handles", "0").value["names"] == ["O_RDWR"]
    assert state.get("handles", "1").value["names"] == ["O_RDONLY", "O_DIRECTORY"]
    assert state.get("negotiated").text == "announce_submounts, sup_group_extension"
    assert capture.findings == []
    for node in state.get("inodes").children:
        assert WORKED[node.offset] == int(node.key)


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_what_virtiofsd_wrote(path):
    capture = look(state_bytes(path))
    expected = {
        "virtiofsd-unlinked-open": {"invalid-inode", "handle-invalid"},
        "virtiofsd-no-session": {"no-session"},
    }  # fmt: skip
    assert codes(capture) == expected.get(path.stem, set())


def change(**fields):
    def apply(state):
        for name, value in fields.items():
            setattr(state, name, value)

    return apply


def inode(index, **fields):
    return lambda state: change(**fields)(state.inodes[index])


def flags(value):
    return lambda state: change(flags=value)(state.handles[0])


def more(record):
    return lambda state: state.inodes.append(record)


@pytest.mark.parametrize(
    ("damage", "code", "severity"),
    [
        (inode(0, refcount=1), "refcount-underflow", Severity.ERROR),
        (inode(1, refcount=0), "refcount-underflow", Severity.ERROR),
        (inode(2, refcount=0), "refcount-zero", Severity.ERROR),
        (inode(0, refcount=2), "root-refcount", Severity.WARNING),
        (inode(2, refcount=1 << 63 | 1), "refcount-large", Severity.WARNING),
        (inode(2, location=INVALID), "invalid-inode", Severity.ERROR),
        (inode(2, name=b"../etc"), "unsafe-name", Severity.ERROR),
        (inode(2, name=b".."), "unsafe-name", Severity.ERROR),
        (inode(2, name=b""), "unsafe-name", Severity.ERROR),
        (inode(2, name=b"a\0b"), "unsafe-name", Severity.ERROR),
        (inode(2, name=b"a/b"), "unsafe-name", Severity.ERROR),
        (inode(2, location=FULL_PATH, name=b"/etc/passwd"), "unsafe-name", Severity.ERROR),
        (inode(2, location=FULL_PATH, name=b"d/f"), "full-path", Severity.NOTE),
        (inode(2, parent=9), "parent-missing", Severity.ERROR),
        (inode(1, parent=3), "parent-cycle", Severity.ERROR),
        (inode(2, parent=3), "parent-cycle", Severity.ERROR),
        (inode(2, id=2), "inode-twice", Severity.ERROR),
        (inode(0, id=7), "no-root", Severity.ERROR),
        (inode(0, location=INVALID), "root-location", Severity.ERROR),
        (flags(os.O_RDWR | os.O_TRUNC), "open-trunc", Severity.ERROR),
        (flags(os.O_RDWR | os.O_CREAT), "open-creat", Severity.ERROR),
        (flags(os.O_RDWR | os.O_APPEND), "open-append", Severity.WARNING),
        (flags(os.O_ACCMODE), "open-mode", Severity.ERROR),
        (flags(os.O_PATH), "open-flags", Severity.ERROR),
        (lambda state: state.handles.append(HandleRecord(0, 3, 0)), "handle-twice", Severity.ERROR),
        (lambda state: change(inode=77)(state.handles[0]), "handle-inode", Severity.ERROR),
        (change(next_inode=3), "next-id", Severity.ERROR),
        (change(next_handle=0), "next-id", Severity.ERROR),
        (change(mount_paths={3: b"../up"}), "unsafe-mount", Severity.ERROR),
        (change(version=0), "state-v1", Severity.NOTE),
        (more(InodeRecord(3, 1, FILE_HANDLE, handle=FileHandle(5, 1, b""))), "mount-missing", Severity.ERROR),
    ],
)
def test_findings(damage, code, severity):
    state = small()
    damage(state)
    found = [finding for finding in look(encoded(state)).findings if finding.code == code]
    assert found
    for finding in found:
        assert finding.severity is severity
        assert finding.offset >= 0
        assert finding.field
        assert finding.message
        assert finding.hint


def test_a_sound_state_has_no_findings():
    assert codes(look(encoded(small()))) == set()


def test_many_findings_of_one_kind_are_counted():
    state = small()
    state.inodes += [InodeRecord(number, 1, PATH, 1, b"..") for number in range(10, 1000)]
    state.inodes[0].refcount += 990
    state.next_inode = 1000
    found = [finding for finding in look(encoded(state)).findings if finding.code == "unsafe-name"]
    assert len(found) == 101
    assert "890 more" in " ".join(finding.message for finding in found)


def test_truncation_at_every_byte():
    whole = encoded(small())
    for size in range(1, len(whole)):
        capture = look(whole[:size], "state")
        found = [finding for finding in capture.findings if finding.code == "state-damaged"]
        assert found, size
        assert 0 <= found[0].offset <= size


def test_trailing_bytes():
    capture = look(WORKED + b"junk")
    assert [(f.code, f.offset) for f in capture.findings] == [("trailing-state", len(WORKED))]


def test_long_chains_of_parents_cost_little():
    state = small()
    state.inodes += [InodeRecord(number, 2, PATH, number - 1, b"n" * 200) for number in range(4, 20_000)]
    state.inodes[2].refcount = 2
    state.inodes[-1].refcount = 1
    state.next_inode = 20_000
    capture = look(encoded(state))
    assert "inode-twice" not in codes(capture)
    assert max(len(node.value["path"]) for node in capture.root.get("state", "inodes").children) <= 4400


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(100), b"hello, world\n"])
def test_other_files_are_refused(data):
    with pytest.raises(UsageError):
        look(data)
