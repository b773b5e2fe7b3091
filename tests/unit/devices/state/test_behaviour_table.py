"""The table of reference section 2.3: what happens to an inode between collection and save, in each mode.

``abort`` is what the loader does by default, ``EIO`` what the guest sees under guest-error, ``ours`` what
happens with our extension where that goes beyond virtiofsd.
"""

from __future__ import annotations

import errno
import os

import pytest

from devices.virtio_fs.state import blob, records
from devices.virtio_fs.state.restore import RestoreError
from vmsim.host.fs import LinuxFs

pytestmark = pytest.mark.unprivileged

COLUMNS = {
    "find-paths": {},
    "verify": {"verify_handles": True},
    "confirm": {"confirm_paths": True},
    "file-handles": {"mode": "file-handles"},
}
each_column = pytest.mark.parametrize("column", COLUMNS)
privileged = pytest.mark.skipif(not LinuxFs().handles_allowed(), reason="needs CAP_DAC_READ_SEARCH")


def columns(*names: str):
    marks = {"file-handles": privileged}
    params = [pytest.param(name, marks=marks.get(name, ())) for name in names]
    return pytest.mark.parametrize("column", params)


all_columns = columns(*COLUMNS)


def collected(guest, column: str, extension: bool = False):
    """A collection that has looked at everything, while the guest still runs."""
    collector = guest.collector(**COLUMNS[column], extension=extension)
    collector.start()
    while not collector.step(1):
        pass
    return collector


def assert_lost(make_guest, data: bytes, node: int, fh: int) -> None:
    """abort refuses and leaves nothing; guest-error gives EIO, and RELEASE and FORGET work."""
    refused = make_guest()
    with pytest.raises(RestoreError):
        refused.load(data)
    assert len(refused.fs.inodes) == 1
    assert not refused.session.state.initialized
    broken = make_guest().load(data, on_error="guest-error")
    for use in (
        lambda: broken.getattr(node), lambda: broken.read(node, fh), lambda: broken.open(node),
        lambda: broken.fs.lookup(broken.ctx(), node, b"x"),
    ):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno == errno.EIO
    assert any(loss.id == node for loss in broken.report.losses)
    again = broken.save(**COLUMNS["find-paths"], extension=False)
    assert {r.id: r for r in blob.decode(again)[0].inodes}[node].location == records.INVALID
    assert make_guest().load(again, on_error="guest-error").fs.inodes.get(node).state
    broken.fs.release(broken.ctx(), node, fh, 0, 0, 0)
    broken.fs.forget(node, broken.fs.inodes.get(node).nlookup)
    assert broken.fs.inodes.get(node) is None


def assert_alive(make_guest, data: bytes, node: int, fh: int, content: bytes):
    other = make_guest().load(data)
    assert other.read(node, fh) == content
    assert other.report.losses == []
    assert other.fs.inodes.get(node).state == 0
    return other


@all_columns
def test_guest_renames(guest, make_guest, column):
    g = guest.lookup("g")
    fh = guest.open(g)
    d = guest.lookup("d")
    collector = collected(guest, column)
    guest.rename(1, b"g", d, b"g2")
    other = assert_alive(make_guest, collector.save(), g, fh, b"content of g")
    assert other.lookup("d/g2") == g


@all_columns
def test_guest_renames_a_directory(guest, make_guest, column):
    f = guest.lookup("d/f.txt")
    fh = guest.open(f)
    collector = collected(guest, column)
    guest.rename(1, b"d", 1, b"e")
    other = assert_alive(make_guest, collector.save(), f, fh, b"content of f")
    assert other.lookup("e/f.txt") == f


@all_columns
def test_guest_exchanges_two_names(guest, make_guest, column):
    f, g = guest.lookup("d/f.txt"), guest.lookup("g")
    fh = guest.open(g)
    d = guest.lookup("d")
    collector = collected(guest, column)
    guest.rename(1, b"g", d, b"f.txt", 2)
    other = assert_alive(make_guest, collector.save(), g, fh, b"content of g")
    assert other.lookup("g") == f


@columns("find-paths", "verify", "confirm")
def test_guest_unlinks_an_open_file(guest, make_guest, column):
    g = guest.lookup("g")
    fh = guest.open(g)
    collector = collected(guest, column)
    guest.unlink(1, b"g")
    assert_lost(make_guest, collector.save(), g, fh)
    assert guest.read(g, fh) == b"content of g"


@columns("find-paths", "verify", "confirm")
def test_guest_unlinks_an_open_file_and_the_extension_carries_it(guest, make_guest, column):
    g = guest.lookup("g")
    fh = guest.open(g)
    collector = collected(guest, column, extension=True)
    guest.unlink(1, b"g")
    other = assert_alive(make_guest, collector.save(), g, fh, b"content of g")
    assert other.report.anonymous == 1


@privileged
def test_guest_unlinks_an_open_file_in_mode_file_handles(guest, make_guest):
    g = guest.lookup("g")
    fh = guest.open(g)
    collector = collected(guest, "file-handles")
    guest.unlink(1, b"g")
    data = collector.save()
    other = assert_alive(make_guest, data, g, fh, b"content of g")
    guest.close()
    assert other.read(g, fh) == b"content of g"


@columns("find-paths", "verify")
def test_third_party_renames(guest, make_guest, share, column):
    g = guest.lookup("g")
    fh = guest.open(g)
    collector = collected(guest, column)
    os.rename(share / "g", share / "d" / "moved")
    assert_lost(make_guest, collector.save(), g, fh)


@columns("confirm", "file-handles")
def test_third_party_renames_and_is_followed(guest, make_guest, share, column):
    g = guest.lookup("g")
    fh = guest.open(g)
    collector = collected(guest, column)
    os.rename(share / "g", share / "d" / "moved")
    assert_alive(make_guest, collector.save(), g, fh, b"content of g")


@all_columns
def test_third_party_renames_before_the_collection(guest, make_guest, share, column):
    g = guest.lookup("g")
    fh = guest.open(g)
    (share / "unknown" / "below").mkdir(parents=True)
    os.rename(share / "g", share / "unknown" / "below" / "moved")
    data = collected(guest, column).save()
    other = assert_alive(make_guest, data, g, fh, b"content of g")
    assert len(other.fs.inodes) == len(guest.fs.inodes)


def replaced(guest, share, column):
    g = guest.lookup("g")
    fh = guest.open(g)
    collector = collected(guest, column)
    os.rename(share / "g", share / "kept")
    (share / "g").write_bytes(b"impostor")
    return g, fh, collector.save()


def test_third_party_replaces_and_plain_paths_are_fooled(guest, make_guest, share):
    g, fh, data = replaced(guest, share, "find-paths")
    assert_alive(make_guest, data, g, fh, b"impostor")


def test_third_party_replaces_and_verified_handles_detect_it(guest, make_guest, share):
    g, fh, data = replaced(guest, share, "verify")
    assert_lost(make_guest, data, g, fh)


@columns("confirm", "file-handles")
def test_third_party_replaces_and_the_real_file_is_followed(guest, make_guest, share, column):
    g, fh, data = replaced(guest, share, column)
    assert_alive(make_guest, data, g, fh, b"content of g")


@columns("find-paths", "verify", "confirm")
def test_a_name_that_is_not_utf8(guest, make_guest, share, column):
    (share / os.fsdecode(b"\xff\xfe")).write_bytes(b"odd")
    node = guest.lookup(b"\xff\xfe")
    fh = guest.open(node)
    data = guest.save(**COLUMNS[column], extension=False)
    assert {r.id: r for r in blob.decode(data)[0].inodes}[node].location == records.INVALID
    assert_lost(make_guest, data, node, fh)


@all_columns
def test_a_name_that_is_not_utf8_travels_in_the_extension_or_by_handle(guest, make_guest, share, column):
    (share / os.fsdecode(b"\xff\xfe")).mkdir()
    (share / os.fsdecode(b"\xff\xfe") / "below").write_bytes(b"odd")
    node = guest.lookup(b"\xff\xfe/below")
    fh = guest.open(node)
    data = guest.save(**COLUMNS[column])
    assert_alive(make_guest, data, node, fh, b"odd")


@all_columns
@pytest.mark.parametrize("renamed", [False, True])
def test_a_file_that_is_called_deleted(guest, make_guest, share, column, renamed):
    (share / "x (deleted)").write_bytes(b"not deleted")
    node = guest.lookup("x (deleted)")
    fh = guest.open(node)
    if renamed:  # so that the server's own name is wrong and the kernel has to be asked
        os.rename(share / "x (deleted)", share / "y (deleted)")
    assert_alive(make_guest, guest.save(**COLUMNS[column]), node, fh, b"not deleted")


@all_columns
@pytest.mark.parametrize("gone", ["g", "d/second"])
def test_a_hard_link_is_one_inode_under_either_name(guest, make_guest, share, column, gone):
    os.link(share / "g", share / "d" / "second")
    node = guest.lookup("g")
    assert guest.lookup("d/second") == node
    fh = guest.open(node)
    collector = collected(guest, column)
    parent = guest.lookup("d") if "/" in gone else 1
    guest.unlink(parent, gone.rsplit("/", 1)[-1].encode())
    other = assert_alive(make_guest, collector.save(), node, fh, b"content of g")
    assert other.lookup("g" if gone != "g" else "d/second") == node


@each_column
def test_the_guest_goes_on_during_a_collection(make_guest, share, column):
    """Creates, renames and unlinks between any two steps: the state is that of the save."""
    if column == "file-handles" and not LinuxFs().handles_allowed():
        pytest.skip("needs CAP_DAC_READ_SEARCH")
    guest = make_guest(boot=True)
    nodes = []
    for index in range(12):
        node, fh = guest.create(1, b"file-%d" % index)
        guest.write(node, fh, b"content %d" % index)
        nodes.append((node, fh))
    collector = guest.collector(**COLUMNS[column])
    collector.start()
    for index in range(12):
        collector.step(1)
        guest.rename(1, b"file-%d" % index, 1, b"moved-%d" % index)
        late, late_fh = guest.create(1, b"late-%d" % index)
        guest.write(late, late_fh, b"late")
        if index % 3 == 0:
            guest.unlink(1, b"moved-%d" % index)
        if index % 4 == 0:
            guest.fs.release(guest.ctx(), late, late_fh, 0, 0, 0)
            guest.fs.forget(late, 1)
        else:
            nodes.append((late, late_fh))
    other = make_guest().load(collector.save())
    assert other.report.losses == []
    assert other.snapshot() == guest.snapshot()
    for node, fh in nodes:
        assert other.read(node, fh) == guest.read(node, fh) != b""
