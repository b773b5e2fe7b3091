from __future__ import annotations

import os

import pytest

from devices.virtio_fs.state import collect_content
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.preflight import preflight
from devices.virtio_fs.state.restore import RestoreError
from vmsim.host.fs import LinuxFs


def ask(guest, **options):
    before = guest.snapshot()
    watch = guest.fs.watch
    findings = preflight(guest.fs, guest.session, StateOptions(**options))
    assert guest.snapshot() == before
    assert guest.fs.watch is watch
    return findings


def test_all_is_well(guest):
    guest.open(guest.lookup("d/f.txt"))
    guest.opendir(guest.lookup("d"))
    assert ask(guest) == []


def test_an_unlinked_file(guest):
    node = guest.lookup("g")
    guest.open(node)
    guest.unlink(1, b"g")
    (finding,) = ask(guest)
    assert (finding.severity, finding.inode) == ("info", node)
    assert "12 bytes travel" in finding.why
    (finding,) = ask(guest, extension=False)
    assert finding.severity == "error"
    assert "file-handles" in finding.what
    if LinuxFs().handles_allowed():
        assert ask(guest, mode="file-handles") == []


def test_too_much_content(guest, monkeypatch):
    monkeypatch.setattr(collect_content, "UNLINKED_CONTENT_MAX", 5)
    guest.open(guest.lookup("g"))
    guest.unlink(1, b"g")
    (finding,) = ask(guest)
    assert finding.severity == "error"
    assert "left of 5" in finding.why


def test_a_name_that_is_not_utf8(guest, share):
    (share / os.fsdecode(b"\xff")).touch()
    node = guest.lookup(b"\xff")
    assert [(f.severity, f.inode) for f in ask(guest)] == [("info", node)]
    assert [(f.severity, f.inode) for f in ask(guest, extension=False)] == [("error", node)]


def test_what_others_did(guest, share):
    moved, gone = guest.lookup("g"), guest.lookup("d/f.txt")
    guest.open(moved)
    guest.open(gone)
    os.rename(share / "g", share / "elsewhere")
    os.rename(share / "d" / "f.txt", share.parent / "outside")
    findings = ask(guest)
    assert [(f.severity, f.inode) for f in findings] == [("error", gone), ("info", moved)]
    assert "elsewhere" in findings[1].why


def test_what_is_found_is_what_happens(guest, make_guest, share):
    """An error is a load that fails under abort, and no error is a load that succeeds."""
    guest.open(guest.lookup("g"))
    assert not [f for f in ask(guest) if f.severity == "error"]
    make_guest().load(guest.save())
    guest.open(guest.lookup("d/f.txt"))
    os.rename(share / "d" / "f.txt", share.parent / "outside")
    assert [f for f in ask(guest) if f.severity == "error"]
    data = guest.save()
    with pytest.raises(RestoreError):
        make_guest().load(data)
    broken = make_guest().load(data, on_error="guest-error")
    lost = {loss.id for loss in broken.report.losses}
    assert lost == {guest.fs.handles.get(1).inode_id}
    assert {f.inode for f in ask(broken) if f.severity == "error"} == lost


def test_a_handle_whose_inode_is_forgotten(guest):
    node = guest.lookup("g")
    fh = guest.open(node)
    guest.fs.forget(node, 1)
    (finding,) = ask(guest)
    assert (finding.severity, finding.fh) == ("error", fh)


def test_without_state_everything_depends_on_the_back_end(guest):
    (finding,) = ask(guest, empty_state=True)
    assert finding.severity == "warning"


def test_a_collection_under_way_is_not_disturbed(guest, make_guest):
    node = guest.lookup("g")
    collector = guest.collector()
    collector.start()
    collector.step(1)
    assert ask(guest) == []
    guest.rename(1, b"g", 1, b"h")
    assert make_guest().load(collector.save()).lookup("h") == node
