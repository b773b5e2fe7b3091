"""Between what goes ahead and the stop a file can be changed in many ways: each is noticed as without.

Every way in which an inode or its place changes, by the guest or behind its back, before the state is saved
or (behind its back) after it, in each path mode, with a load that gives up and one that goes on.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from devices.virtio_fs.state.early_inodes import EarlyInodes
from tests.support.mounts import mounted
from vmsim.host.fs import LinuxFs

from .early_rig import ahead, look_up_all, plant, same

EXCHANGE = 2
BY_HANDLE = pytest.mark.skipif(not LinuxFs().handles_allowed(), reason="needs CAP_DAC_READ_SEARCH")
MODES = [
    pytest.param({}, id="paths"),
    pytest.param({"verify_handles": True, "confirm_paths": True}, id="verified"),
    pytest.param({"mode": "file-handles"}, id="handles", marks=BY_HANDLE),
]  # fmt: skip
FILE, FOLDER = b"file3", b"dir1"


class Ways:
    """One change each. ``share/dir1/file3`` is what it is about."""

    def __init__(self, guest, share):
        self.guest, self.share = guest, share
        self.folder = guest.lookup("dir1")
        self.node = guest.lookup("dir1/file3")
        self.other = guest.lookup("dir2")
        self.file = share / "dir1" / "file3"

    # By the guest

    def forgotten(self):
        self.guest.fs.forget(self.node, self.guest.fs.inodes.get(self.node).nlookup)

    def forgotten_and_looked_up(self):
        self.forgotten()
        self.guest.lookup("dir1/file3")

    def looked_up_again(self):
        self.guest.lookup("dir1/file3")

    def folder_forgotten(self):
        """With all that is in it."""
        inodes = self.guest.fs.inodes
        for inode in [each for each in inodes if each.parent_id == self.folder] + [inodes.get(self.folder)]:
            self.guest.fs.forget(inode.id, inode.nlookup)

    def folder_alone_forgotten(self):
        self.guest.fs.forget(self.folder, self.guest.fs.inodes.get(self.folder).nlookup)

    def renamed(self):
        self.guest.rename(self.folder, FILE, self.folder, b"renamed")

    def moved(self):
        self.guest.rename(self.folder, FILE, self.other, b"moved")

    def exchanged(self):
        self.guest.rename(self.folder, FILE, self.other, FILE, EXCHANGE)

    def replaced(self):
        self.guest.rename(self.folder, b"file4", self.folder, FILE)

    def replaced_while_open(self):
        self.guest.open(self.node)
        self.replaced()

    def unlinked(self):
        self.guest.unlink(self.folder, FILE)

    def unlinked_while_open(self):
        self.guest.open(self.node)
        self.unlinked()

    def unlinked_and_made_anew(self):
        self.unlinked()
        self.guest.create(self.folder, FILE)

    def neighbour_made(self):
        self.guest.create(self.folder, b"neighbour")

    def opened(self):
        self.guest.open(self.node)

    def linked(self):
        self.guest.fs.link(self.guest.ctx(self.node), self.node, self.other, b"link")

    def linked_and_unlinked(self):
        self.linked()
        self.unlinked()

    def folder_moved(self):
        self.guest.rename(1, FOLDER, self.other, b"inside")

    def folders_exchanged(self):
        self.guest.rename(1, FOLDER, 1, b"dir2", EXCHANGE)

    def folder_removed(self):
        for name in os.listdir(self.share / "dir1"):
            self.guest.unlink(self.folder, os.fsencode(name))
        self.guest.rmdir(1, FOLDER)

    def written(self):
        self.guest.write(self.node, self.guest.open(self.node), b"other content")

    # By somebody else

    def host_renamed(self):
        self.file.rename(self.file.with_name("renamed"))

    def host_moved(self):
        self.file.rename(self.share / "dir2" / "moved")

    def host_moved_out(self):
        self.file.rename(self.share.parent / "out")

    def host_exchanged(self):
        other = self.share / "dir2" / "file3"
        self.file.rename(self.share.parent / "other")
        other.rename(self.file)
        (self.share.parent / "other").rename(other)

    def host_replaced(self):
        (self.share.parent / "new").write_text("an impostor")
        (self.share.parent / "new").rename(self.file)

    def host_replaced_by_folder(self):
        self.file.rename(self.share.parent / "away")
        self.file.mkdir()

    def host_replaced_by_symlink(self):
        self.file.rename(self.share.parent / "away")
        self.file.symlink_to("file4")

    def host_unlinked(self):
        self.file.unlink()

    def host_unlinked_and_made_anew(self):
        """Most file systems give it the number that has just become free."""
        self.file.unlink()
        self.file.write_text("an impostor")

    def host_linked(self):
        os.link(self.file, self.share / "dir2" / "link")

    def host_linked_and_unlinked(self):
        self.host_linked()
        self.file.unlink()

    def host_folder_moved(self):
        (self.share / "dir1").rename(self.share / "dir2" / "inside")

    def host_folder_moved_out(self):
        (self.share / "dir1").rename(self.share.parent / "out")

    def host_folder_replaced(self):
        (self.share / "dir1").rename(self.share.parent / "out")
        (self.share / "dir1").mkdir()
        self.file.write_text("an impostor")

    def host_written(self):
        self.file.write_text("other content")

    def host_mode_changed(self):
        self.file.chmod(0)

    def host_folder_mode_changed(self):
        self.file.parent.chmod(0)


BY_GUEST = [name for name in vars(Ways) if not name.startswith(("_", "host_"))]
BY_OTHERS = [name for name in vars(Ways) if name.startswith("host_")]


def both_policies(guest, make_guest, options, change, save_first):
    """Change something, and compare the loads that give up, and those that go on."""
    others = [make_guest(), make_guest()]
    collector, found = ahead(guest, *others, **options)
    data = collector.save() if save_first else b""
    change()
    if not save_first:
        data = collector.save()
        if change.__name__ in BY_GUEST or "confirm_paths" in options:  # else it has not heard of it
            assert data == guest.save(**options), "what was encoded early is as if it had been encoded now"
    for other, each, on_error in zip(others, found, ("abort", "guest-error"), strict=True):
        same(make_guest, data, other, each, on_error=on_error, **options)


@pytest.mark.parametrize("way", BY_GUEST + BY_OTHERS)
@pytest.mark.parametrize("options", MODES)
def test_before_the_state_is_saved(options, way, guest, make_guest, share):
    plant(share, 3, 6)
    look_up_all(guest)
    both_policies(guest, make_guest, options, getattr(Ways(guest, share), way), save_first=False)


@pytest.mark.parametrize("way", BY_OTHERS)
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("options", MODES)
def test_after_it_is_saved(options, is_open, way, guest, make_guest, share):
    plant(share, 3, 6)
    look_up_all(guest)
    ways = Ways(guest, share)
    if is_open:
        ways.opened()
    both_policies(guest, make_guest, options, getattr(ways, way), save_first=True)


@pytest.mark.parametrize("options", MODES)
def test_what_the_guest_meets_while_it_is_collected(options, guest, make_guest, share):
    """It goes ahead as it is known then, and is collected for good later."""
    plant(share, 3, 6)
    look_up_all(guest)
    guest.fs.forget(guest.lookup("dir1/file3"), 2)
    other = make_guest()
    collector, (found,) = ahead(guest, other, meanwhile=lambda: guest.lookup("dir1/file3"), **options)
    data = collector.save()
    assert data == guest.save(**options)
    same(make_guest, data, other, found, **options)


@BY_HANDLE
@pytest.mark.parametrize("how", ["unlinked", "replaced", "host_unlinked", "host_replaced"])
def test_what_has_lost_its_name_meanwhile_outlives_its_source(how, guest, make_guest, share):
    """In mode file-handles the record of such a file does not change, and only a descriptor holds it."""
    plant(share, 3, 6)
    look_up_all(guest)
    ways = Ways(guest, share)
    guest.open(ways.node)
    other = make_guest()
    collector, (found,) = ahead(guest, other, mode="file-handles")
    data_before = guest.save(mode="file-handles")
    getattr(ways, how)()
    data = collector.save()
    assert data == data_before, "no record says so"
    other.load(data, found, mode="file-handles")
    guest.close()
    fh = next(iter(other.fs.handles.items())).id
    assert other.read(ways.node, fh) == b"1/3"
    assert other.getattr(ways.node)


@pytest.mark.parametrize("over", ["dir1", "."])
@pytest.mark.parametrize("options", MODES)
def test_what_is_mounted_over_it_meanwhile(over, options, guest, make_guest, share):
    plant(share, 3, 6)
    look_up_all(guest)
    other = make_guest()
    collector, (found,) = ahead(guest, other, **options)
    data = collector.save()
    plain = make_guest()
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", share / over):
        same(lambda: plain, data, other, found, on_error="guest-error", **options)


@BY_HANDLE
def test_a_mount_beneath_the_share_goes_ahead_too(make_guest, share):
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", share / "d"):
        plant(share / "d", 2, 4)
        (share / "d" / "f.txt").touch()
        guest = make_guest(boot=True)
        look_up_all(guest)
        other = make_guest()
        collector, (found,) = ahead(guest, other, mode="file-handles")
        assert len(found.inodes) == len(guest.fs.inodes) - 1
        same(make_guest, collector.save(), other, found, mode="file-handles")
        for each in (guest, other):
            each.close()


@BY_HANDLE
def test_what_was_found_by_handle_alone_goes_ahead_the_next_time(guest, make_guest, share):
    plant(share, 3, 6)
    look_up_all(guest)
    second = make_guest().load(guest.save(mode="file-handles"))
    assert {inode.name for inode in second.fs.inodes} == {None}
    third = make_guest()
    collector, (found,) = ahead(second, third, mode="file-handles")
    assert isinstance(found, EarlyInodes)
    assert len(found.inodes) == len(guest.fs.inodes) - 1
    same(make_guest, collector.save(), third, found, mode="file-handles")


def mount_id(path):
    fd = os.open(path, os.O_PATH)
    try:
        return LinuxFs().identify(fd)[2]
    finally:
        os.close(fd)


def mount_again(mount_id_before, where, arguments):
    """Unmount, and mount something else there under the number that has become free."""
    for _ in range(20):
        subprocess.run(["umount", where], check=True)
        subprocess.run(["mount", *arguments, where], check=True)
        if mount_id(where) == mount_id_before:
            return
    pytest.skip("somebody else mounts at the same time and takes the number")


@pytest.mark.parametrize("what", ["file", "folder", "file_system"])
@pytest.mark.parametrize("options", MODES[:2])  # file handles go ahead only of mounts that are held
def test_what_is_mounted_anew_under_the_same_number(options, what, make_guest, share, monkeypatch):
    """The kernel gives numbers of mounts again, and no directory shows that something else lies there."""
    monkeypatch.setattr("devices.virtio_fs.state.early_inodes.RECENT_NS", -(1 << 60))
    plant(share, 2, 4)
    for name in ("first", "second"):
        (share.parent / name).mkdir()
        (share.parent / name / "file").write_text(name)
    below = {"file": "dir1/file3", "folder": "dir1", "file_system": "dir1"}[what]
    inside = "/file" if what == "file" else ""
    ways = [
        ["-t", "tmpfs", "none"] if what == "file_system" else ["--bind", f"{share.parent}/{name}{inside}"]
        for name in ("first", "second")
    ]
    with mounted(*ways[0], share / below):
        number = mount_id(share / below)
        guest = make_guest(boot=True)
        guest.lookup(below)
        other = make_guest(inode_file_handles="never")  # so that it holds nothing there
        collector, (found,) = ahead(guest, other, **options)
        data = collector.save()
        guest.close()
        mount_again(number, share / below, ways[1])
        plain = make_guest(inode_file_handles="never")
        same(lambda: plain, data, other, found, on_error="guest-error", **options)
        for each in (other, plain):
            each.close()
