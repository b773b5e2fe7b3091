from __future__ import annotations

import errno
import os

import pytest

from devices.virtio_fs.state import blob, extension, records
from devices.virtio_fs.state.collect import StateCollector
from devices.virtio_fs.state.options import StateOptions
from tests.support.leaks import Held
from vmsim.errors import UsageError
from vmsim.host.fs import LinuxFs


def test_options_are_checked_at_once(guest):
    with pytest.raises(UsageError):
        guest.collector(mode="file-handles", confirm_paths=True)


def test_stopping_leaves_nothing(guest):
    guest.lookup("g")
    collector = guest.collector()
    collector.start()
    assert guest.fs.watch is collector
    collector.step(1)
    collector.stop()
    assert guest.fs.watch is None
    assert not collector.active
    assert not collector.found.places
    collector.stop()
    assert blob.decode(collector.save())[0].inodes[1].name == b"g"


def test_steps_are_as_small_as_asked(guest, share):
    for index in range(10):
        (share / f"n{index}").touch()
        guest.lookup(f"n{index}")
    collector = guest.collector()
    collector.start()
    steps = 0
    while not collector.step(1):
        steps += 1
    assert steps >= 11
    collector.stop()


def test_a_scan_is_spread_over_steps_and_can_be_dropped(guest, share):
    node = guest.lookup("g")
    for index in range(20):
        (share / f"dir{index}").mkdir()
    os.link(share / "g", share / "dir7" / "other")
    os.unlink(share / "g")  # the kernel now says "g (deleted)", and one link is left
    before = Held()
    collector = guest.collector()
    collector.start()
    for _ in range(5):
        assert not collector.step(1)
    collector.stop()
    assert before.more() == []
    state, _ = blob.decode(guest.save())
    names = {record.id: record.name for record in state.inodes}
    assert names[node] == b"other"
    assert b"dir7" in names.values()


def test_a_session_that_ends_and_begins_anew_meanwhile(guest, make_guest, share):
    """The nodeids begin at 2 again: what was collected about the old ones counts no more."""
    for mode in ("find-paths", "file-handles"):
        if mode == "file-handles" and not LinuxFs().handles_allowed():
            continue
        guest.open(guest.lookup("d/f.txt"))
        collector = guest.collector(mode=mode)
        collector.start()
        collector.step(2)
        guest.session.reset()
        guest.boot()
        node = guest.lookup("g")
        fh = guest.open(node)
        other = make_guest().load(collector.save())
        assert other.snapshot() == guest.snapshot()
        assert other.read(node, fh) == b"content of g"


class NoHandles(LinuxFs):
    """A file system without file handles."""

    def file_handle(self, fd):
        raise OSError(errno.EOPNOTSUPP, "no handles")

    def file_handle_at(self, dir_fd, name):
        raise OSError(errno.EOPNOTSUPP, "no handles")


def test_a_share_without_file_handles(make_guest):
    guest = make_guest(host=NoHandles(), boot=True, inode_fds=8)
    node = guest.lookup("d/f.txt")
    fh = guest.open(node)
    collector = guest.collector(mode="file-handles")
    collector.start()
    while not collector.step(10):
        pass
    guest.lookup("d/f.txt")
    data = collector.save()
    assert {r.id: r.location for r in blob.decode(data)[0].inodes}[node] == records.INVALID
    section = extension.decode(data, blob.decode(data)[1])
    assert "no file handle" in section.losses[0].reason
    other = make_guest(host=NoHandles()).load(guest.save())
    assert other.read(node, fh) == b"content of f"
    again = make_guest(host=NoHandles()).load(other.save())
    assert again.read(node, fh) == b"content of f"


def test_a_successor_with_the_same_number_is_no_match(guest, make_guest, share):
    """The inode has no descriptor any more, and its number was given to another file under its name."""
    node = guest.lookup("g")
    inode = guest.fs.inodes.get(node)
    evidence = guest.fs.evidence(inode.fd)
    inode.handle = evidence[:-1] + bytes((evidence[-1] ^ 0xFF,))
    guest.fs.fds.discard(inode)
    data = guest.save(extension=False)
    assert {r.id: r.location for r in blob.decode(data)[0].inodes}[node] == records.INVALID


def test_a_small_descriptor_cache_is_enough(make_guest, share):
    guest = make_guest(boot=True, inode_fds=8)
    for outer in range(12):
        for inner in range(12):
            folder = share / f"a{outer}" / f"b{inner}"
            folder.mkdir(parents=True)
            (folder / "leaf").write_text(f"{outer}-{inner}")
            guest.lookup(f"a{outer}/b{inner}/leaf")
    for options in ({}, {"verify_handles": True}, {"confirm_paths": True}):
        other = make_guest(inode_fds=8).load(guest.save(**options))
        assert other.snapshot() == guest.snapshot()
        node = other.lookup("a7/b9/leaf")
        assert other.read(node, other.open(node)) == b"7-9"


def test_collectors_of_two_machines_know_nothing_of_each_other(make_guest, share):
    one, two = make_guest(boot=True), make_guest(boot=True)
    first = StateCollector(one.fs, one.session, StateOptions())
    second = StateCollector(two.fs, two.session, StateOptions())
    one.lookup("g")
    two.lookup("d/f.txt")
    first.start()
    second.start()
    assert len(blob.decode(first.save())[0].inodes) == 2
    assert two.fs.watch is second
    assert len(blob.decode(second.save())[0].inodes) == 3
