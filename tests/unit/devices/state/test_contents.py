"""Unlinked files that travel in the extension, and locks that are held again."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

import pytest

from devices.virtio_fs.state import blob, collect_content, extension, restore_content
from devices.virtio_fs.state.restore import RestoreError
from tests.support.leaks import Held
from vmsim.host.fs import LinuxFs

NLINK, SIZE, BLOCKS = 10, 1, 2


def unlinked(guest, share, name: str, content: bytes = b"") -> tuple[int, int]:
    if content:
        (share / name).write_bytes(content)
    node = guest.lookup(name)
    fh = guest.open(node)
    guest.unlink(1, name.encode())
    return node, fh


def extra_of(data: bytes) -> extension.Extension:
    section = extension.decode(data, blob.decode(data)[1])
    assert section is not None
    return section


def test_attributes_travel(guest, make_guest, share):
    (share / "f").write_bytes(b"text")
    os.chmod(share / "f", 0o4751)
    try:
        os.setxattr(share / "f", "user.colour", b"blue")
        xattrs = True
    except OSError:
        xattrs = False
    os.utime(share / "f", ns=(1_111_111_111_222_222_222, 1_333_333_333_444_444_444))
    node, fh = unlinked(guest, share, "f")
    before = guest.getattr(node, fh)
    other = make_guest().load(guest.save())
    assert other.report.notes == []
    after = other.getattr(node, fh)
    # ino, ctime and blocks are another file's; everything else is the same
    attr_before, attr_after = before[3:], after[3:]
    for index in (1, 3, 4, 6, 7, 9, 10, 11, 12):
        assert attr_after[index] == attr_before[index], index
    assert attr_after[NLINK] == 0
    assert other.read(node, fh) == b"text"
    if xattrs:
        assert other.fs.getxattr(other.ctx(), node, b"user.colour", 10) == b"blue"


def test_the_source_still_has_its_file(guest, share):
    node, fh = unlinked(guest, share, "f", b"mine")
    before = guest.getattr(node, fh)
    guest.save()
    assert guest.getattr(node, fh) == before
    assert guest.read(node, fh) == b"mine"


def test_holes_stay_holes(guest, make_guest, share):
    with open(share / "sparse", "wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
        file.seek(1 << 20)
        file.write(b"middle")
    node, fh = unlinked(guest, share, "sparse")
    data = guest.save()
    assert len(data) < 1 << 20
    other = make_guest().load(data)
    assert other.read(node, fh, 10, 1 << 30) == b"end"
    assert other.read(node, fh, 6, 1 << 20) == b"middle"
    assert other.read(node, fh, 6, 2 << 20) == bytes(6)
    assert other.getattr(node, fh)[3 + BLOCKS] < 1024


def test_a_written_handle_goes_on_after_several_hops(guest, make_guest, share):
    node, fh = unlinked(guest, share, "f", b"a")
    here = guest
    for hop in range(4):
        here.write(node, fh, b"%d" % hop, 1 + hop)
        here = make_guest().load(here.save())
    assert here.read(node, fh) == b"a0123"
    assert here.report.anonymous == 1


def test_it_outlives_a_small_descriptor_cache(guest, make_guest, share):
    for index in range(40):
        (share / f"other-{index}").touch()
    nodes = [unlinked(guest, share, f"f{index}", b"content %d" % index) for index in range(4)]
    for node, fh in nodes[:2]:
        guest.fs.release(guest.ctx(), node, fh, 0, 0, 0)
    other = make_guest(inode_fds=8).load(guest.save())
    for index in range(40):
        other.lookup(f"other-{index}")
    for index, (node, _) in enumerate(nodes):
        again = other.open(node)
        assert other.read(node, again) == b"content %d" % index


@pytest.mark.parametrize("kind", ["dir", "symlink", "fifo"])
def test_other_kinds_travel_as_well(guest, make_guest, share, kind):
    name = share / "odd"
    if kind == "dir":
        name.mkdir(mode=0o750)
    elif kind == "symlink":
        name.symlink_to("the/target")
    else:
        os.mkfifo(name)
    node = guest.lookup("odd")
    fh = guest.opendir(node) if kind == "dir" else None
    mode = guest.fs.inodes.get(node).mode
    if kind == "dir":
        guest.rmdir(1, b"odd")
    else:
        guest.unlink(1, b"odd")
    other = make_guest().load(guest.save())
    assert other.report.losses == []
    assert other.fs.inodes.get(node).mode == mode
    if kind == "symlink":
        assert other.fs.readlink(other.ctx(), node) == b"the/target"
    if fh is not None:
        for server in (guest, other):  # what Linux answers in a directory that is no more
            with pytest.raises(FileNotFoundError):
                server.names(node, fh)
        assert stat.S_IMODE(other.getattr(node)[3 + 9]) == 0o750
    assert sorted(os.listdir(share)) == ["d", "g"]


def test_a_name_that_is_taken_is_left_alone(guest, make_guest, share):
    (share / "pipe").mkdir()
    node = guest.lookup("pipe")
    guest.rmdir(1, b"pipe")
    data = guest.save()
    taken = share / f".vmsim-unlinked-{node}-0"
    taken.write_text("somebody's")
    assert make_guest().load(data).report.losses == []
    assert taken.read_text() == "somebody's"


def test_too_much_content_is_reported_and_invalid(guest, make_guest, share, monkeypatch):
    monkeypatch.setattr(collect_content, "UNLINKED_CONTENT_MAX", 10)
    small, small_fh = unlinked(guest, share, "a", b"12345678")
    large, large_fh = unlinked(guest, share, "b", b"123")
    data = guest.save()
    loss = extra_of(data).losses[0]
    assert loss.id == large
    assert "2 bytes left" in loss.reason
    with pytest.raises(RestoreError) as refused:
        make_guest().load(data)
    assert "2 bytes left" in refused.value.message
    other = make_guest().load(data, on_error="guest-error")
    assert [loss.id for loss in other.report.losses] == [large, large]  # the inode and its handle
    assert other.read(small, small_fh) == b"12345678"
    with pytest.raises(OSError) as caught:
        other.read(large, large_fh)
    assert caught.value.errno == errno.EIO


class NoTmpfile(LinuxFs):
    """A share whose file system has no O_TMPFILE."""

    def open_beneath(self, dir_fd, path, flags, mode=0, umask=0):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
        return super().open_beneath(dir_fd, path, flags, mode, umask)


@pytest.mark.parametrize(
    "options", [{"host": NoTmpfile()}, {"readonly": True}], ids=["no-tmpfile", "readonly"]
)
def test_memory_takes_the_contents_where_the_share_does_not(guest, make_guest, share, options):
    (share / "f").write_bytes(b"kept")
    node = guest.lookup("f")
    fh = guest.open(node, os.O_RDONLY)
    guest.unlink(1, b"f")
    other = make_guest(**options).load(guest.save())
    assert other.read(node, fh) == b"kept"
    assert any("in memory" in note for note in other.report.notes)
    again = make_guest().load(other.save())
    assert again.read(node, fh) == b"kept"


def test_a_fault_while_making_the_file_leaves_nothing(guest, make_guest, share, monkeypatch):
    unlinked(guest, share, "f", b"text")
    data = guest.save()

    def fail(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(restore_content, "_write", fail)
    other = make_guest()
    before = Held()
    with pytest.raises(RestoreError) as caught:
        other.load(data)
    assert caught.value.errno == errno.ENOSPC
    assert before.more() == []


# -- locks -------------------------------------------------------------------------------------------


def test_locks_are_held_again(guest, make_guest, share):
    node = guest.lookup("g")
    fh = guest.open(node)
    guest.lock(node, fh, 7, 0, 9)
    guest.lock(node, fh, 7, 100, (1 << 63) - 1, fcntl.F_RDLCK)
    guest.lock(node, fh, 0, 0, (1 << 63) - 1, fcntl.F_RDLCK, flags=1)
    data = guest.save()
    guest.fs.suspend_locks()
    other = make_guest().load(data)
    assert other.report.locks == 3
    assert other.fs.locks.held() == guest.fs.locks.held()
    assert other.fs.locks.held_flocks() == guest.fs.locks.held_flocks()
    with open(share / "g", "rb+") as outsider:
        with pytest.raises(BlockingIOError):
            LinuxFs().set_lock(outsider.fileno(), fcntl.F_WRLCK, 5, 1)
        with pytest.raises(BlockingIOError):
            fcntl.flock(outsider, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("kind", ["posix", "flock"])
def test_a_lock_that_somebody_took_is_reported_before_anything_runs(guest, make_guest, share, kind):
    node = guest.lookup("g")
    fh = guest.open(node)
    guest.lock(node, fh, 7, 0, 9, flags=1 if kind == "flock" else 0)
    data = guest.save()
    guest.fs.suspend_locks()
    with open(share / "g", "rb+") as outsider:
        if kind == "posix":
            LinuxFs().set_lock(outsider.fileno(), fcntl.F_WRLCK, 5, 1)
        else:
            fcntl.flock(outsider, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused = make_guest()
        with pytest.raises(RestoreError) as caught:
            refused.load(data)
        assert caught.value.errno == errno.EAGAIN
        assert len(refused.fs.handles) == 0
        other = make_guest().load(data, on_error="guest-error")
        assert "lock" in other.report.losses[0].reason
        assert other.read(node, fh) == b"content of g"
    guest.fs.resume_locks()
    assert guest.read(node, fh) == b"content of g"


def test_locks_on_an_unlinked_file(guest, make_guest, share):
    node, fh = unlinked(guest, share, "f", b"text")
    guest.lock(node, fh, 7, 0, 9)
    data = guest.save()
    guest.fs.suspend_locks()
    other = make_guest().load(data)
    assert other.fs.locks.held() == guest.fs.locks.held()
