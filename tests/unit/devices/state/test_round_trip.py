from __future__ import annotations

import os
import stat

import pytest

from devices.virtio_fs.state import blob, extension, records
from devices.virtio_fs.state.restore import RestoreError
from vmsim.errors import StateError, StreamError
from vmsim.host.fs import LinuxFs

pytestmark = pytest.mark.unprivileged

MODES = {
    "find-paths": {},
    "verify": {"verify_handles": True},
    "confirm": {"confirm_paths": True},
    "both": {"verify_handles": True, "confirm_paths": True},
}
if LinuxFs().handles_allowed():
    MODES["file-handles"] = {"mode": "file-handles"}
all_modes = pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())


def worked_example(guest):
    """What the reference's example does: LOOKUP d, d/f.txt twice, g; OPEN f.txt; OPENDIR d."""
    d = guest.lookup("d")
    f = guest.fs.lookup(guest.ctx(), d, b"f.txt")[0]
    assert guest.fs.lookup(guest.ctx(), d, b"f.txt")[0] == f
    g = guest.lookup("g")
    return d, f, g, guest.open(f), guest.opendir(d)


def test_the_worked_example_is_written_as_virtiofsd_writes_it(guest):
    worked_example(guest)
    state, _ = blob.decode(guest.save())
    golden, _ = blob.decode(bytes.fromhex(
        "01040104000002020101016400030201020566 2e74787400 0401010101670005".replace(" ", "")
        + "0200030004010200808008020001000100"
    ))  # fmt: skip
    assert state.inodes[2].refcount == 2
    assert state == golden


@all_modes
def test_everything_is_the_same_on_the_other_side(guest, make_guest, options):
    d, f, g, fh, dh = worked_example(guest)
    guest.write(f, fh, b"changed")
    before = guest.snapshot()
    data = guest.save(**options)
    assert guest.snapshot() == before
    other = make_guest().load(data)
    assert other.snapshot() == before
    assert other.read(f, fh) == b"changed of f"
    assert other.names(d, dh) == [b"f.txt"]
    assert other.fs.lookup(other.ctx(), 1, b"g")[0] == g
    assert guest.read(f, fh) == b"changed of f"
    assert guest.fs.watch is None


@all_modes
def test_many_hops_change_nothing(guest, make_guest, options):
    worked_example(guest)
    before = guest.snapshot()
    data = guest.save(**options)
    first, _ = blob.decode(data)
    for _ in range(5):
        other = make_guest().load(data)
        assert other.snapshot() == before
        data = other.save(**options)
        assert blob.decode(data)[0] == first


def test_a_session_that_has_not_begun(make_guest):
    data = make_guest().save()
    assert data.startswith(bytes.fromhex("01000200000000000000"))
    other = make_guest().load(data)
    assert not other.session.state.initialized
    other.boot()
    assert other.lookup("g") == 2


def test_saving_twice_gives_the_same(guest):
    worked_example(guest)
    assert guest.save() == guest.save()


def test_without_extension_a_state_is_what_virtiofsd_writes(guest, make_guest):
    _, f, _, fh, _ = worked_example(guest)
    data = guest.save(extension=False)
    assert blob.decode(data)[1] == len(data)
    other = make_guest().load(data)
    assert other.read(f, fh) == b"content of f"
    assert other.session.state.minor == 38


def test_trailing_junk_is_ignored_and_v1_is_taken(guest, make_guest):
    _, f, _, fh, _ = worked_example(guest)
    data = guest.save(extension=False)
    v1 = b"\x00" + data[1:-1]
    for variant in (data + b"junk", v1):
        assert make_guest().load(variant).read(f, fh) == b"content of f"


def test_reversed_order_is_taken(guest, make_guest):
    _, f, _, fh, _ = worked_example(guest)
    state, _ = blob.decode(guest.save(extension=False))
    state.inodes.reverse()
    other = make_guest().load(bytes(blob.encode(state)))
    assert other.read(f, fh) == b"content of f"
    assert other.snapshot()[0] == guest.snapshot()[0]


def test_full_path_locations_are_taken(guest, make_guest):
    _, f, _, fh, _ = worked_example(guest)
    state, _ = blob.decode(guest.save(extension=False))
    state.inodes = [
        records.InodeRecord(1, 2, records.ROOT),
        records.InodeRecord(f, 1, records.FULL_PATH, name=b"d/f.txt"),
    ]
    state.handles = state.handles[:1]
    other = make_guest().load(bytes(blob.encode(state)))
    assert other.read(f, fh) == b"content of f"
    again = make_guest().load(other.save())
    assert again.read(f, fh) == b"content of f"


def test_a_name_with_a_slash_is_resolved_beneath(guest, make_guest, share):
    _, f, _, fh, _ = worked_example(guest)
    state, _ = blob.decode(guest.save(extension=False))
    by_id = {record.id: record for record in state.inodes}
    by_id[f].parent, by_id[f].name = 1, b"d/f.txt"
    by_id[1].refcount += 1
    by_id[2].refcount -= 1
    assert make_guest().load(bytes(blob.encode(state))).read(f, fh) == b"content of f"
    (share / "link").symlink_to("d")
    by_id[f].name = b"link/f.txt"
    with pytest.raises(RestoreError):
        make_guest().load(bytes(blob.encode(state)))


def test_a_symlink_inode_without_handle_is_taken(guest, make_guest, share):
    (share / "s").symlink_to("g")
    node = guest.lookup("s")
    for options in MODES.values():
        other = make_guest().load(guest.save(**options))
        assert stat.S_ISLNK(other.fs.inodes.get(node).mode)
        assert other.fs.readlink(other.ctx(), node) == b"g"


def test_state_loads_only_into_a_fresh_server(guest):
    guest.lookup("g")
    with pytest.raises(StateError):
        guest.load(guest.save())


def test_a_missing_parent_is_written_as_an_inode_of_its_own(guest, make_guest):
    d, f, _, fh, dh = worked_example(guest)
    guest.fs.releasedir(guest.ctx(), d, dh, 0)
    guest.fs.forget(d, 1)
    before = guest.snapshot()
    data = guest.save()
    assert guest.snapshot() == before
    state, _ = blob.decode(data)
    parent = {record.id: record for record in state.inodes}[f].parent
    assert parent >= guest.fs.inodes.next_id
    assert {record.id: record for record in state.inodes}[parent].refcount == 1
    other = make_guest().load(data)
    assert [row[:2] for row in other.snapshot()[0]] == [row[:2] for row in before[0]]
    assert other.read(f, fh) == b"content of f"
    assert other.fs.inodes.next_id > parent


def test_external_migration_has_no_state(guest, make_guest):
    worked_example(guest)
    assert guest.save(empty_state=True) == b""
    other = make_guest()
    other.load(b"", empty_state=True)
    with pytest.raises(StreamError) as caught:
        other.load(b"")
    assert "empty_state" in caught.value.hint
    with pytest.raises(StreamError):
        other.load(guest.save(), empty_state=True)


def test_attributes_that_only_the_extension_carries(make_guest):
    guest = make_guest(boot=True)
    guest.lookup("g")
    data = guest.save()
    other = make_guest().load(data)
    assert other.session.state == guest.session.state
    assert other.session.state.minor == 41
    extra = extension.decode(data, blob.decode(data)[1])
    assert extra.info.mode == "find-paths"


def test_directories_far_below_keep_their_order(guest, make_guest, share):
    deep = share
    for index in range(60):
        deep = deep / f"level-{index}"
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")
    node = guest.lookup(os.path.relpath(deep / "leaf", share))
    fh = guest.open(node, os.O_RDONLY)
    for options in MODES.values():
        assert make_guest().load(guest.save(**options)).read(node, fh) == b"leaf"


def test_file_handles_without_privilege_are_refused_with_a_hint(guest, make_guest):
    """Saving needs no privilege, loading does; the refusal says which, and find-paths works."""
    guest.lookup("g")
    data = guest.save(mode="file-handles")
    if LinuxFs().handles_allowed():
        assert make_guest().load(data).report.losses == []
    else:
        with pytest.raises(RestoreError) as caught:
            make_guest().load(data)
        assert "CAP_DAC_READ_SEARCH" in caught.value.hint
    _, f, _, fh, _ = worked_example(guest)
    other = make_guest().load(guest.save())
    assert other.read(f, fh) == b"content of f"
