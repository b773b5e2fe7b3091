"""READDIR and READDIRPLUS: positions that stay valid, counts that add up."""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.direct_fs import refused
from vmsim.fuse import client
from vmsim.fuse import opcodes as op


@pytest.fixture
def full(share):
    names = {b"name-%03d" % n for n in range(300)}
    for name in names:
        (share / os.fsdecode(name)).touch()
    return names


def opendir(fs, node=1):
    return fs.ask(op.OPENDIR, node, (0, 0)).fh


def readdir(fs, fh, position, size=400, node=1):
    body = fs.ask(op.READDIR, node, (fh, position, size, 0, 0, 0, 0), size=size)
    return [(name, row.off) for row, name in client.decode_dirents(body)]


def test_positions_belong_to_no_handle(fs, full):
    """Every position continues the listing: in the same handle, in another one, in any order."""
    fh, position, listing = opendir(fs), 0, []
    while rows := readdir(fs, fh, position):
        listing += rows
        position = rows[-1][1]
    names = [name for name, _ in listing]
    assert set(names) == full | {b".", b".."}
    assert len(names) == len(full) + 2
    other = opendir(fs)
    for index in (250, 3, 100, 3, 299, 0):
        expected = names[index + 1 : index + 5]
        assert [name for name, _ in readdir(fs, other, listing[index][1])][:4] == expected
        assert [name for name, _ in readdir(fs, fh, listing[index][1])][:4] == expected


def test_position_zero_reads_anew(fs, share, full):
    fh = opendir(fs)
    readdir(fs, fh, 0)
    (share / "late").touch()
    names, position = set(), 0
    while rows := readdir(fs, fh, position):
        names |= {name for name, _ in rows}
        position = rows[-1][1]
    assert b"late" in names


def test_plus_counts_what_went_out_and_nothing_else(fs, share, full):
    fh, position, counted = opendir(fs), 0, 0
    while True:
        body = fs.ask(op.READDIRPLUS, 1, (fh, position, 2000, 0, 0, 0, 0), size=2000)
        rows = list(client.decode_direntplus(body))
        if not rows:
            break
        for entry, row, name in rows:
            position = row.off
            if name in (b".", b".."):
                assert entry.nodeid == 0
            else:
                assert entry.ino == row.ino == (share / os.fsdecode(name)).stat().st_ino
                counted += 1
        assert sum(inode.nlookup for inode in fs.fs.inodes if inode.id != 1) == counted
    assert counted == len(full)


def test_plus_passes_over_what_vanished(fs, share, full):
    fh = opendir(fs)
    body = fs.ask(op.READDIRPLUS, 1, (fh, 0, 600, 0, 0, 0, 0), size=600)
    rows = list(client.decode_direntplus(body))
    seen = {name for _, _, name in rows}
    for name in full - seen:
        (share / os.fsdecode(name)).unlink()
    position = rows[-1][1].off
    rest = fs.ask(op.READDIRPLUS, 1, (fh, position, 8000, 0, 0, 0, 0), size=8000)
    assert not ({name for _, _, name in client.decode_direntplus(rest)} & full - seen)


def test_the_root_has_no_parent(fs, share):
    rows = fs.ask(op.READDIR, 1, (opendir(fs), 0, 400, 0, 0, 0, 0), size=400)
    numbers = {name: row.ino for row, name in client.decode_dirents(rows)}
    assert numbers[b".."] == numbers[b"."] == share.stat().st_ino


def test_removed_directory(fs, share):
    (share / "d").mkdir()
    node = fs.ask(op.LOOKUP, 1, (), (b"d",)).nodeid
    fh = opendir(fs, node)
    (share / "d").rmdir()
    with refused(errno.ENOENT):
        readdir(fs, fh, 0, node=node)
    fs.ask(op.RELEASEDIR, node, (fh, 0, 0, 0))
    with refused(errno.EBADF):
        readdir(fs, fh, 0, node=node)
    with refused(errno.ENOENT):
        fs.ask(op.MKDIR, node, (0o755, 0), (b"x",))


def test_fsyncdir(fs):
    fh = opendir(fs)
    fs.ask(op.FSYNCDIR, 1, (fh, 0, 0))


def test_what_is_read_ahead_is_bounded_over_all_handles(fs, full, monkeypatch):
    """However many directories a guest begins to read, and all of them go on where they were."""
    monkeypatch.setattr("devices.virtio_fs.passthrough.handles.DIR_ENTRIES_MAX", 1000)
    table = fs.fs.handles
    begun = []
    for _ in range(12):
        fh = opendir(fs)
        begun.append((fh, readdir(fs, fh, 0)))
        assert sum(len(handle.pending) for handle in table) <= 1000
    assert sum(bool(handle.pending) for handle in table) == 3
    for fh, listing in begun:
        rows = listing
        while rows := readdir(fs, fh, rows[-1][1]):
            listing += rows
        assert {name for name, _ in listing} == full | {b".", b".."}
        assert len(listing) == len(full) + 2
    for fh, _ in begun:
        readdir(fs, fh, 0)
        fs.ask(op.RELEASEDIR, 1, (fh, 0, 0, 0))
    assert fs.fs.handles._entries == 0
