"""What a state may not do: defect D6 of virtiofsd's loader, reference section 1.5, and atomicity."""

from __future__ import annotations

import errno
import os

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.virtio_fs.state import blob, extension, records
from devices.virtio_fs.state.extension import Anonymous, Extension, HandleExtra, RawName
from devices.virtio_fs.state.records import FileHandle, HandleRecord, InodeRecord, NegotiatedOpts, StateBlob
from devices.virtio_fs.state.restore import RestoreError
from tests.support.leaks import Held
from vmsim.errors import StreamError, VmsimError
from vmsim.host.fs import LinuxFs

ROOT = InodeRecord(1, 2, records.ROOT)
POLICIES = pytest.mark.parametrize("policy", ["abort", "guest-error"])
privileged = pytest.mark.skipif(not LinuxFs().handles_allowed(), reason="needs CAP_DAC_READ_SEARCH")


def state(*inodes: InodeRecord, handles=(), **fields) -> bytes:
    fields = {"next_inode": 50, "next_handle": 50} | fields
    return bytes(blob.encode(StateBlob(list(inodes), handles=list(handles), **fields)))


def path(nodeid: int, name: bytes, parent: int = 1, refcount: int = 1) -> InodeRecord:
    return InodeRecord(nodeid, refcount, records.PATH, parent, name)


def root(children: int) -> InodeRecord:
    return InodeRecord(1, 2 + children, records.ROOT)


def assert_refused(make_guest, data: bytes, field: str, policy: str = "abort", **options) -> StreamError:
    guest = make_guest(**options)
    with pytest.raises(StreamError) as caught:
        guest.load(data, on_error=policy)
    assert caught.value.field.startswith(field)
    assert_fresh(guest)
    return caught.value


def assert_fresh(guest) -> None:
    """Nothing of a refused state stays: a guest can begin here as if nothing had happened."""
    assert [inode.id for inode in guest.fs.inodes.items()] == [1]
    assert len(guest.fs.handles) == 0
    assert (guest.fs.inodes.next_id, guest.fs.handles.next_id) == (2, 0)
    assert not guest.session.state.initialized
    guest.boot()
    assert guest.read(guest.lookup("g"), guest.open(2)) == b"content of g"


# -- names -------------------------------------------------------------------------------------------


@POLICIES
@pytest.mark.parametrize(
    "name",
    [b"..", b".", b"", b"/etc", b"d/../../x", b"d//f.txt", b"../share", b"a\0b", b"x" * 256, b"d/", b"/"],
)
@pytest.mark.parametrize("location", [records.PATH, records.FULL_PATH])
def test_names_that_lead_out_are_refused(make_guest, name, location, policy):
    inode = InodeRecord(2, 1, location, 1 if location == records.PATH else 0, name)
    assert_refused(make_guest, state(root(1), inode), "inodes[1].location", policy)


@pytest.mark.parametrize("location", [records.PATH, records.FULL_PATH])
def test_symlinks_on_the_way_are_not_followed(make_guest, share, tmp_path, location):
    (tmp_path / "secret").write_text("secret")
    (share / "out").symlink_to(tmp_path)
    for name in (b"out/secret", b"out/share/g"):
        inode = InodeRecord(2, 1, location, 1 if location == records.PATH else 0, name)
        guest = make_guest()
        with pytest.raises(RestoreError):
            guest.load(state(root(1), inode))
        assert_fresh(guest)
    below = state(root(1), path(2, b"out", refcount=2), path(3, b"secret", 2))
    other = make_guest().load(below, on_error="guest-error")
    assert other.fs.inodes.get(3).state
    assert other.fs.readlink(other.ctx(), 2) == os.fsencode(tmp_path)


def test_a_child_of_a_file_is_lost(make_guest):
    with pytest.raises(RestoreError) as caught:
        make_guest().load(state(root(1), path(2, b"g", refcount=2), path(3, b"x", 2)))
    assert caught.value.details["inode"] == 3
    assert caught.value.errno == errno.ENOTDIR


@POLICIES
def test_raw_names_lead_nowhere_else(make_guest, policy):
    for name in (b"..", b"a/b"):
        extra = extension.encode(Extension(raw_names=[RawName(2, 1, name)]))
        data = state(ROOT, InodeRecord(2, 1, records.INVALID)) + extra
        assert_refused(make_guest, data, "extension.raw_names", policy)


@privileged
def test_a_file_handle_that_leads_out_of_the_share(make_guest, share, tmp_path):
    host = LinuxFs()
    (tmp_path / "outside").write_text("secret")
    fd = os.open(tmp_path / "outside", os.O_PATH)
    mnt_id, kind, raw = host.file_handle(fd)
    inode = InodeRecord(2, 1, records.FILE_HANDLE, handle=FileHandle(mnt_id, kind, raw))
    data = state(ROOT, inode, mount_paths={mnt_id: b"."})
    for unlinked in (False, True):
        if unlinked:
            os.unlink(tmp_path / "outside")
        guest = make_guest()
        with pytest.raises(RestoreError) as caught:
            guest.load(data)
        assert caught.value.errno == errno.EXDEV
        assert_fresh(guest)
        broken = make_guest().load(data, on_error="guest-error")
        assert broken.fs.inodes.get(2).state
    os.close(fd)


@POLICIES
@pytest.mark.parametrize("mount", [b"..", b"/", b"d/..", b""])
def test_mount_paths_lead_nowhere_else(make_guest, mount, policy):
    assert_refused(make_guest, state(ROOT, mount_paths={1: mount}), "mount_paths", policy)


# -- references --------------------------------------------------------------------------------------


@POLICIES
@pytest.mark.parametrize(
    ("inodes", "field"),
    [
        ([path(2, b"g")], "inodes"),
        ([root(1), path(3, b"f.txt", 2)], "inodes"),
        ([root(0), path(2, b"a", 3, 2), path(3, b"b", 2, 2)], "inodes"),
        ([root(0), path(2, b"a", 2, 2)], "inodes"),
        ([root(2), path(2, b"g"), path(2, b"d")], "inodes[2].id"),
        ([ROOT, ROOT], "inodes[1].id"),
        ([root(1), path(0, b"g")], "inodes[1].id"),
        ([root(1), path(2**64 - 1, b"g")], "inodes[1].id"),
        ([ROOT, InodeRecord(2, 1, records.ROOT)], "inodes[1].location"),
        ([InodeRecord(1, 1, records.INVALID)], "inodes[0].location"),
        ([InodeRecord(1, 1, records.ROOT), path(2, b"g")], "inodes.refcount"),
        ([root(1), path(2, b"d", refcount=0), path(3, b"f.txt", 2)], "inodes.refcount"),
    ],
    ids=["no root", "no parent", "cycle", "own parent", "twice", "root twice", "id 0", "id max", "two roots",
         "root invalid", "root underflow", "underflow"],
)  # fmt: skip
def test_references_without_sense_are_refused(make_guest, inodes, field, policy):
    assert_refused(make_guest, state(*inodes), field, policy)


@POLICIES
@pytest.mark.parametrize(
    ("handles", "field"),
    [
        ([HandleRecord(0, 9, 0)], "handles[0].inode"),
        ([HandleRecord(0, 2, 0), HandleRecord(0, 2, 0)], "handles[1].id"),
        ([HandleRecord(0, 2, 3)], "handles[0].source.flags"),
    ],
)
def test_handles_without_sense_are_refused(make_guest, handles, field, policy):
    assert_refused(make_guest, state(root(1), path(2, b"g"), handles=handles), field, policy)


@pytest.mark.parametrize("name", ["s", "fifo"])
def test_a_handle_on_what_is_never_open(make_guest, share, name):
    (share / "s").symlink_to("g")
    os.mkfifo(share / "fifo")
    data = state(root(1), path(2, name.encode()), handles=[HandleRecord(7, 2, 2)])
    guest = make_guest()
    with pytest.raises(RestoreError) as caught:
        guest.load(data)
    assert caught.value.errno == errno.EBADF
    assert caught.value.details["fh"] == 7
    assert_fresh(guest)
    broken = make_guest().load(data, on_error="guest-error")
    with pytest.raises(OSError):
        broken.read(2, 7)
    broken.getattr(2)


def test_ids_that_would_be_given_twice_are_skipped(make_guest):
    data = state(root(1), path(9, b"g"), handles=[HandleRecord(5, 9, 0)], next_inode=2, next_handle=0)
    guest = make_guest().load(data)
    assert guest.lookup("d") == 10
    assert guest.open(9) == 6
    assert len(guest.report.notes) == 2


# -- flags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", [os.O_TRUNC, os.O_CREAT, os.O_EXCL | os.O_CREAT, os.O_TMPFILE, os.O_PATH, 1 << 30]
)
def test_flags_that_change_files_are_dropped(make_guest, share, flag):
    """Defect D6: an O_TRUNC in a blob truncates."""
    data = state(root(1), path(2, b"g"), handles=[HandleRecord(0, 2, os.O_RDWR | flag & ~os.O_DIRECTORY)])
    guest = make_guest().load(data)
    assert guest.read(2, 0) == b"content of g"
    assert guest.fs.handles.get(0).flags & flag & ~os.O_DIRECTORY == 0
    assert (share / "g").read_bytes() == b"content of g"
    assert any("open flags" in note for note in guest.report.notes)


def test_effective_flags_of_the_extension_are_cleaned_as_well(make_guest, share):
    data = state(root(1), path(2, b"g"), handles=[HandleRecord(0, 2, os.O_RDONLY)])
    state_of = msgspec.structs.replace(
        Extension(handles=[HandleExtra(0, os.O_RDWR | os.O_TRUNC, os.O_RDWR)]),
        negotiated=make_guest(boot=True, announce_submounts=False).session.save()._replace(flags=0),
    )
    guest = make_guest().load(data + extension.encode(state_of))
    assert guest.read(2, 0) == b"content of g"
    assert (share / "g").read_bytes() == b"content of g"


def test_a_read_only_share_opens_nothing_for_writing(make_guest):
    data = state(root(1), path(2, b"g"), handles=[HandleRecord(0, 2, os.O_RDWR)])
    guest = make_guest(readonly=True)
    with pytest.raises(RestoreError) as caught:
        guest.load(data)
    assert caught.value.errno == errno.EROFS


# -- options, extension, atomicity -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["writeback", "announce_submounts", "posix_acl"])
def test_a_negotiated_option_that_is_off_here(make_guest, name):
    data = state(ROOT, negotiated=NegotiatedOpts(**{name: True}))
    error = assert_refused_keeping(make_guest, data, {name: False})
    assert name.replace("_", "-") in error.hint
    make_guest(**{name: True}).load(data)


def assert_refused_keeping(make_guest, data, options) -> StreamError:
    with pytest.raises(StreamError) as caught:
        make_guest(**options).load(data)
    return caught.value


def test_options_of_the_state_win(make_guest):
    guest = make_guest(announce_submounts=True).load(state(ROOT))
    assert not guest.fs.core.submounts


@pytest.mark.parametrize(
    "extra",
    [
        Extension(handles=[HandleExtra(9, 0, 0)]),
        Extension(locks=[extension.PosixLock(9, 1, 0, 1, 1, 1)]),
        Extension(flocks=[extension.Flock(9, 1)]),
        Extension(anonymous=[Anonymous(9, 0o100644)]),
        Extension(raw_names=[RawName(9, 1, b"x")]),
    ],
)
def test_an_extension_that_speaks_of_others(make_guest, guest, extra):
    extra.negotiated = guest.session.save()
    opts = NegotiatedOpts(announce_submounts=True, sup_group_extension=True)
    assert_refused(make_guest, state(ROOT, negotiated=opts) + extension.encode(extra), "extension.")


def test_a_newer_extension_is_refused(guest, make_guest):
    data = bytearray(guest.save())
    data[blob.decode(bytes(data))[1] + 8] = 2
    error = assert_refused(make_guest, bytes(data), "extension.version")
    assert error.hint
    make_guest().load(bytes(data), extension=False)


def test_every_host_call_may_fail(guest, make_guest, share):
    """Whichever call of a load fails: a typed refusal, and not one descriptor or inode stays."""
    (share / os.fsdecode(b"\xff")).write_bytes(b"odd")
    (share / "gone").write_bytes(b"gone")
    for name in ("d/f.txt", "g", b"\xff", "gone"):
        guest.open(guest.lookup(name))
    guest.opendir(guest.lookup("d"))
    guest.unlink(1, b"gone")
    data = guest.save(verify_handles=True)
    calls = counted_load(make_guest, data, None)
    assert calls > 20
    for number in range(calls):
        counted_load(make_guest, data, number)


class Failing(LinuxFs):
    """Fails call number ``at`` of those that may fail, once it is armed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.at: int | None = None
        self.armed = False
        for name in (
            "open_beneath", "reopen", "file_handle", "file_handle_at", "identify", "identify_at",
            "memory_file", "pwritev", "ftruncate", "fstat", "path_of", "open_handle",
        ):  # fmt: skip
            setattr(self, name, self._counted(getattr(self, name)))

    def _counted(self, call):
        def counted(*args):
            if self.armed:
                self.count += 1
                if self.count - 1 == self.at:
                    raise OSError(errno.EIO, "made to fail")
            return call(*args)

        return counted


def counted_load(make_guest, data: bytes, at: int | None) -> int:
    host = Failing()
    host.at = at
    guest = make_guest(host=host)
    before = Held()
    host.armed = True
    try:
        guest.load(data)
        loaded = True
    except (VmsimError, OSError):
        loaded = False
    host.armed = False
    if not loaded:
        assert before.more() == []
        assert_fresh(guest)
    return host.count


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_never_escapes(guest, make_guest, data):
    """A byte changed anywhere: loaded, or refused with a typed error; nothing outside is touched."""
    if len(guest.fs.inodes) == 1:
        guest.open(guest.lookup("d/f.txt"))
        guest.opendir(guest.lookup("d"))
    raw = bytearray(guest.save(extension=False))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    other = make_guest()
    try:
        other.load(bytes(raw), on_error=data.draw(st.sampled_from(["abort", "guest-error"])))
    except VmsimError:
        assert_fresh(other)
    other.close()
