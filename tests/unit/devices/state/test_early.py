"""Inodes that are found before their state comes: the end is the same as without, whatever happened."""

from __future__ import annotations

import os
import random

import msgspec
import pytest

from devices.virtio_fs.state import blob
from devices.virtio_fs.state.early import EarlyPiece
from devices.virtio_fs.state.early_inodes import EarlyInodes
from devices.virtio_fs.state.records import FILE_HANDLE, PATH, ROOT, FileHandle, InodeRecord, StateBlob
from devices.virtio_fs.state.restore import RestoreError
from tests.support.costs import CountingHost
from tests.support.leaks import Held
from tests.support.mounts import tmpfs
from vmsim.errors import StreamError, VmsimError
from vmsim.host.fs import LinuxFs

from .conftest import Guest
from .early_rig import ahead, look_up_all, plant, same

EXCHANGE = 2


BY_HANDLE = pytest.mark.skipif(not LinuxFs().handles_allowed(), reason="needs CAP_DAC_READ_SEARCH")
MODES = [
    pytest.param({}, id="plain"), pytest.param({"verify_handles": True}, id="verify"),
    pytest.param({"mode": "file-handles"}, id="handles", marks=BY_HANDLE),
]  # fmt: skip


@pytest.mark.parametrize("options", MODES)
def test_nothing_changes_and_nothing_is_looked_for_again(options, guest, make_guest, share):
    plant(share)
    look_up_all(guest)
    other = make_guest()
    collector, (found,) = ahead(guest, other, **options)
    assert len(found.inodes) == len(guest.fs.inodes) - 1
    report, _ = same(make_guest, collector.save(), other, found, **options)
    assert report.inodes == len(guest.fs.inodes)


class Changes:
    """Random changes by the guest and behind its back; ``log`` says which."""

    def __init__(self, guest, numbers):
        self.guest, self.numbers, self.log = guest, numbers, []
        self.opened = []
        self.made = 0

    def name(self):
        return f"dir{self.numbers.randrange(4)}", f"file{self.numbers.randrange(60)}"

    def one(self, kinds):
        kind = self.numbers.choice(kinds)
        (folder, file), (folder2, file2) = self.name(), self.name()
        self.log.append((kind, folder, file, folder2, file2))
        try:
            getattr(self, kind)(folder, os.fsencode(file), folder2, os.fsencode(file2))
        except (OSError, AttributeError):
            self.log[-1] = ("vain", *self.log[-1])

    def look(self, folder, file, *_):
        self.guest.lookup(f"{folder}/{file.decode()}")

    def forget(self, folder, file, *_):
        inodes = self.guest.fs.inodes
        known = [inode for inode in inodes if inode.name == file and inode.id > 2]
        node = self.numbers.choice(known)
        self.guest.fs.forget(node.id, self.numbers.randint(1, node.nlookup))

    def unlink(self, folder, file, *_):
        self.guest.unlink(self.guest.lookup(folder), file)

    def unlink_open(self, folder, file, *_):
        self.opened.append(self.guest.open(self.guest.lookup(f"{folder}/{file.decode()}")))
        self.guest.unlink(self.guest.lookup(folder), file)

    def create(self, folder, *_):
        self.made += 1
        self.guest.create(self.guest.lookup(folder), b"new%d" % self.made)

    def rename(self, folder, file, folder2, file2):
        self.guest.rename(self.guest.lookup(folder), file, self.guest.lookup(folder2), file2)

    def exchange(self, folder, file, folder2, file2):
        self.guest.rename(self.guest.lookup(folder), file, self.guest.lookup(folder2), file2, EXCHANGE)

    def move_directory(self, folder, _, folder2, __):
        self.guest.rename(1, os.fsencode(folder), self.guest.lookup(folder2), os.fsencode(folder))

    def swap_directories(self, folder, _, folder2, __):
        self.guest.rename(1, os.fsencode(folder), 1, os.fsencode(folder2), EXCHANGE)

    def path(self, folder, file):
        return os.path.join(os.fsencode(self.guest.share), os.fsencode(folder), file)

    def host_rename(self, folder, file, folder2, file2):
        os.rename(self.path(folder, file), self.path(folder2, file2))

    def host_remove(self, folder, file, *_):
        self.made += 1
        away = os.path.join(os.fsencode(self.guest.share), b"..", b"away%d" % self.made)
        os.rename(self.path(folder, file), away)  # its number is not free for another

    def host_move_directory(self, folder, _, folder2, __):
        os.rename(self.path(folder, b""), self.path(folder2, os.fsencode(folder)))


BY_GUEST = ["look", "forget", "unlink", "unlink_open", "create", "rename", "exchange", "move_directory",
            "swap_directories"]  # fmt: skip
BY_OTHERS = ["host_rename", "host_remove", "host_move_directory"]


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("options", MODES)
def test_whatever_happens_meanwhile_the_end_is_the_same(seed, options, guest, make_guest, share):
    numbers = random.Random(seed)
    plant(share)
    look_up_all(guest)
    other = make_guest()
    collector, (found,) = ahead(guest, other, **options)
    changes = Changes(guest, numbers)
    for _ in range(numbers.choice((1, 3, 40))):
        changes.one(BY_GUEST if seed % 3 else BY_GUEST + BY_OTHERS)
    data = collector.save()
    if seed % 3:  # of what others did it has not heard
        assert data == guest.save(**options), "what was encoded early is as if it had been encoded now"
    else:
        for _ in range(numbers.choice((0, 1, 10))):
            changes.one(BY_OTHERS)
    on_error = numbers.choice(("abort", "guest-error"))
    print(changes.log)
    same(make_guest, data, other, found, on_error=on_error, **options)


@pytest.mark.parametrize("on_error", ["abort", "guest-error"])
def test_a_file_that_somebody_removed_is_missed_as_without(on_error, guest, make_guest, share):
    plant(share)
    look_up_all(guest)
    other = make_guest()
    collector, (found,) = ahead(guest, other)
    data = collector.save()
    os.rename(f"{share}/dir2/file7", f"{share}/../away")
    first, *_ = same(make_guest, data, other, found, on_error=on_error)
    if on_error == "guest-error":
        assert len(first.losses) == 1
    else:
        assert issubclass(first, VmsimError)


@pytest.mark.parametrize("options", MODES)
def test_directories_that_nobody_changed_prove_themselves(options, guest, make_guest, share):
    plant(share)
    for folder, _, _ in os.walk(share):
        os.utime(folder, (1, 1))
    look_up_all(guest)
    host = CountingHost()
    other = Guest(share, host)
    try:
        collector, (found,) = ahead(guest, other, **options)
        for nodeid in found._stamps:
            found._stamps[nodeid] = found._stamp(nodeid, fresh=False)
        data = collector.save()
        host.calls.clear()
        other.load(data, found, **options)
        assert host.calls["identify"] == len(found.children)
        assert host.calls.total() < 3 * len(found.children)
    finally:
        other.close()


def load_calls(guest, share, found_early, options):
    """How many calls of the host one load makes."""
    host = CountingHost()
    other = Guest(share, host)
    try:
        collector, (found,) = ahead(guest, other, **options)
        if options:  # where handles are compared, only old directories prove their names
            found._stamps = {nodeid: found._stamp(nodeid, fresh=False) for nodeid in found._stamps}
        data = collector.save()
        if not found_early:
            other.session.reset()
        host.calls.clear()
        other.load(data, found if found_early else None, **options)
        return host.calls.total()
    finally:
        other.close()


@pytest.mark.parametrize("options", MODES)
def test_the_cost_of_a_load_does_not_grow_with_the_inodes_that_were_found(options, make_guest, tmp_path):
    totals = {}
    for files in (100, 200, 400):
        share = tmp_path / str(files)
        share.mkdir()
        plant(share, 4, files)
        guest = make_guest(boot=True, directory=share)
        look_up_all(guest)
        totals[files] = (
            load_calls(guest, share, True, options), load_calls(guest, share, False, options)
        )
    (few, few_plain), (more, _), (most, most_plain) = totals.values()
    assert most_plain > 3 * few_plain
    assert few < few_plain / 8
    assert most - few <= 4 * (more - few) + 16, "a look at each directory, piece by piece"
    assert most < most_plain / 20


@pytest.mark.parametrize("options", MODES)
def test_what_is_mounted_elsewhere_meanwhile_changes_nothing(options, guest, make_guest, share, tmp_path):
    plant(share)
    look_up_all(guest)
    other = make_guest()
    collector, (found,) = ahead(guest, other, **options)
    with tmpfs(tmp_path / "elsewhere"):
        found.look_again()
    assert len(found.inodes) == len(guest.fs.inodes) - 1
    same(make_guest, collector.save(), other, found, **options)


@pytest.mark.parametrize("options", MODES)
def test_descriptors_are_given_back(options, guest, make_guest, share):
    plant(share)
    look_up_all(guest)
    before = Held()
    other = make_guest()
    collector, (found,) = ahead(guest, other, **options)
    collector.stop()
    del found
    other.session.reset()
    assert len(other.fs.inodes) == 1
    other.close()
    assert before.more() == []


# Hostile pieces


def piece(*records, mounts=None):
    return msgspec.msgpack.encode(EarlyPiece([bytes(blob.encode_inodes(list(records)))], mounts))


def path(nodeid, parent=1, name=b"g", refcount=1):
    return InodeRecord(nodeid, refcount, PATH, parent, name)


@pytest.mark.parametrize("data", [
    b"", b"\xc0", b"\x91\xc0", b"\x91\x91\xc4\x00", b"\x91\x91\xc4\x01\x01", b"\x91\x91\xc4\x02\x00\x00",
    b"\x91\x91\xc4\x05\xff\xff\xff\xff\x0f",
    piece(path(0)), piece(path(1)), piece(path(1 << 63)), piece(path(5), path(5)), piece(path(5), path(4)),
    piece(path(5, refcount=0)), piece(path(5, name=b"d/f.txt")), piece(path(5, name=b"..")),
    piece(path(5, name=b"")), piece(path(5, name=b"a" * 256)), piece(path(5, name=b"a\0")),
    piece(InodeRecord(5, 1, ROOT)),
    piece(InodeRecord(5, 1, FILE_HANDLE, handle=FileHandle(1, 1, b"x" * 8))),
    piece(path(5), mounts={1: b"."}), piece(mounts={1: b".."}), piece(mounts={1: b"/etc"}),
    piece(mounts={1: b"d/../.."}), piece(mounts={1: b""}), b"\x92\x90\x80\x80", b"\x92\x90\xc4\x00",
])  # fmt: skip
def test_pieces_are_checked_like_any_state(data, make_guest):
    with pytest.raises(StreamError):
        EarlyInodes(make_guest().fs).take(data)


@BY_HANDLE
@pytest.mark.parametrize("how", ["another file's", "another mount's", "no mount's", "made up", "outside"])
def test_a_handle_that_is_not_that_of_its_name_waits_for_the_state(how, guest, make_guest, share, tmp_path):
    guest.lookup("g")
    (tmp_path / "outside").touch()
    inode = guest.fs.inodes.get(2)
    here, host = inode.mount.mnt_id, guest.fs.host
    root = guest.fs.root.fd
    mounts = {here: b"."}
    kind, raw = host.file_handle_at(root, b"g")[1:]
    if how == "another file's":
        raw = host.file_handle_at(root, b"d")[2]
    elif how == "another mount's":
        mounts = {here: b"d/nothing"}
    elif how == "no mount's":
        mounts = {here + 1: b"."}
    elif how == "made up":
        raw = bytes(len(raw))
    elif how == "outside":
        fd = os.open(tmp_path, os.O_PATH)
        raw = host.file_handle_at(fd, b"outside")[2]
        os.close(fd)
    other = make_guest()
    found = EarlyInodes(other.fs)
    found.take(piece(InodeRecord(2, 1, PATH, 1, b"g", None, FileHandle(here, kind, raw)), mounts=mounts))
    assert found.inodes == {}
    assert len(other.fs.inodes) == 1
    same(make_guest, guest.save(mode="file-handles"), other, found, mode="file-handles")


@BY_HANDLE
def test_one_mount_at_two_places_is_refused(make_guest):
    found = EarlyInodes(make_guest().fs)
    found.take(piece(mounts={1: b".", 2: b"d"}))
    with pytest.raises(StreamError, match="two places"):
        found.take(piece(mounts={2: b"g"}))


@BY_HANDLE
@pytest.mark.parametrize("paths", [[], [b"d"]])
def test_a_state_that_has_the_mount_elsewhere_is_loaded_as_it_says(paths, guest, make_guest, share):
    guest.lookup("g")
    other = make_guest()
    collector, (found,) = ahead(guest, other, mode="file-handles")
    state, _ = blob.decode(collector.save())
    (here,) = state.mount_paths
    state.mount_paths = dict.fromkeys([here], *paths) if paths else {}
    state.inodes[0].refcount = 2
    data = bytes(blob.encode(state))
    kind, *_ = same(make_guest, data, other, found, mode="file-handles", extension=False)
    assert (kind is RestoreError) == (not paths)


def test_what_came_early_and_is_not_in_the_state_leaves_nothing(guest, make_guest, share):
    plant(share)
    guest.lookup("dir1/file3")
    other = make_guest()
    found = EarlyInodes(other.fs)
    found.take(piece(path(7, 1, b"g"), path(8, 1, b"dir0"), path(9, 8, b"file1"), path(10, 77, b"x")))
    assert sorted(found.inodes) == [7, 8, 9]
    same(make_guest, guest.save(), other, found)


def test_a_directory_beneath_itself_is_refused_as_without(make_guest, share):
    os.mkdir(share / "d" / "e")
    other = make_guest()
    found = EarlyInodes(other.fs)
    found.take(piece(path(2, 1, b"d", 2), path(200, 2, b"e", 2)))
    state = StateBlob(
        inodes=[InodeRecord(1, 2, ROOT), path(2, 200, b"d", 2), path(200, 2, b"e", 2)], next_inode=300
    )
    kind, text, *_ = same(make_guest, bytes(blob.encode(state)), other, found)
    assert kind is StreamError
    assert "cycle" in text


@pytest.mark.parametrize("refcount", [1, 2, 3])
def test_counts_of_directories_are_those_of_the_state(refcount, make_guest, share):
    """The children take one each: with less than that it is refused, and with no more it goes with them."""
    (share / "d" / "g").touch()
    records = [path(2, 1, b"d", refcount), path(65, 2, b"f.txt", 3), path(66, 2, b"g", 1)]
    other = make_guest()
    found = EarlyInodes(other.fs)
    found.take(piece(records[0]))
    found.take(piece(*records[1:]))
    state = StateBlob(inodes=[InodeRecord(1, 3, ROOT), *records], next_inode=300)
    same(make_guest, bytes(blob.encode(state)), other, found)


def test_an_inode_twice_is_refused_as_without(make_guest):
    other = make_guest()
    found = EarlyInodes(other.fs)
    found.take(piece(path(2)))
    state = StateBlob(inodes=[InodeRecord(1, 3, ROOT), path(2), path(2)], next_inode=3)
    kind, text, *_ = same(make_guest, bytes(blob.encode(state)), other, found)
    assert kind is StreamError
    assert "comes twice" in text


@pytest.mark.parametrize("verify", [False, True])
def test_what_the_state_gives_up_gives_way_though_it_has_gone_ahead(make_guest, share, monkeypatch, verify):
    """Away when the source looked for the last time, and back when the destination does: still stale."""
    options = {"confirm_paths": True, "verify_handles": verify}
    monkeypatch.setattr(LinuxFs, "handles_allowed", lambda self: False)
    guest, other = make_guest(boot=True), make_guest()
    plant(share)
    look_up_all(guest)
    node = guest.lookup("dir1/file3")
    collector, (found,) = ahead(guest, other, **options)
    assert node in found.inodes
    for each in (guest, other):
        while each.fs.fds.evict():
            pass
    file, away = share / "dir1" / "file3", share.parent / "away"
    file.rename(away)
    data = collector.save()
    away.rename(file)
    report, _ = same(make_guest, data, other, found, **options)
    assert report.losses == []
