"""What only the destination's user decides: a state cannot talk its server out of it."""

from __future__ import annotations

import errno
import os

import msgspec
import pytest

from devices.virtio_fs.options import FsOptions
from devices.virtio_fs.state import blob, extension, records
from devices.virtio_fs.state.extension import Anonymous, Extension, HandleExtra
from devices.virtio_fs.state.records import HandleRecord, InodeRecord, StateBlob
from devices.virtio_fs.state.restore import RestoreError
from vmsim.errors import StreamError, UsageError
from vmsim.host.fs import LinuxFs

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files away")


def state(make_guest, extra: Extension, handles=(), **fields) -> bytes:
    fields = {"next_inode": 50, "next_handle": 50} | fields
    inodes = [InodeRecord(1, 3, records.ROOT), InodeRecord(2, 1, records.PATH, 1, b"g")]
    inodes += [InodeRecord(file.id, 1, records.INVALID) for file in extra.anonymous]
    plain = bytes(blob.encode(StateBlob(inodes, handles=list(handles), **fields)))
    negotiated = make_guest(boot=True, announce_submounts=False).session.save()._replace(flags=0)
    return plain + extension.encode(msgspec.structs.replace(extra, negotiated=negotiated))


def link(guest, node: int) -> None:
    guest.fs.link(guest.ctx(node), node, 1, b"named")


def setuid_file(**fields) -> Extension:
    return Extension(anonymous=[Anonymous(3, 0o104755, size=4, extents=[(0, b"evil")], **fields)])


def may_link(share) -> bool:
    """Whether the file system here has O_TMPFILE at all."""
    try:
        os.close(os.open(share, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"uid": 0}, {"translate_uid": ("map:0:100000:65536", "squash-host:0:65534:100000")}),
        ({"gid": 0}, {"translate_gid": ("map:0:100000:65536", "forbid-guest:65536:1000")}),
        ({"xattrs": [(b"user.capability", b"x")]}, {"xattrmap": ":map::user.virtiofs.:"}),
    ],
    ids=["owner", "group", "attribute"],
)
def test_what_guests_are_kept_from_making_never_gets_a_name(make_guest, share, fields, options):
    guest = make_guest(**options).load(state(make_guest, setuid_file(**fields)))
    with pytest.raises(OSError):
        link(guest, 3)
    assert not (share / "named").exists()


@root_only
def test_what_guests_may_make_can_be_named(make_guest, share):
    if not may_link(share):
        pytest.skip("no O_TMPFILE here")
    extra = setuid_file(uid=100_000, xattrs=[(b"user.virtiofs.user.a", b"x")])
    options = {"translate_uid": ("map:0:100000:65536",), "xattrmap": ":map::user.virtiofs.:"}
    guest = make_guest(**options).load(state(make_guest, extra))
    link(guest, 3)
    assert (share / "named").read_bytes() == b"evil"


class Recorder(LinuxFs):
    """Notes the flags with which files are opened, and refuses to open any for reading."""

    def __init__(self) -> None:
        super().__init__()
        self.flags: list[int] = []

    def reopen(self, fd: int, flags: int) -> int:
        self.flags.append(flags)
        raise PermissionError(errno.EACCES, "refused")


@pytest.mark.parametrize("guest_flags", [os.O_WRONLY, os.O_RDWR, os.O_ACCMODE])
def test_the_flags_that_the_guest_asked_for_do_not_get_around_readonly(make_guest, guest_flags):
    extra = Extension(handles=[HandleExtra(0, os.O_RDONLY, guest_flags)])
    data = state(make_guest, extra, [HandleRecord(0, 2, os.O_RDONLY)])
    host = Recorder()
    guest = make_guest(host=host, readonly=True)
    with pytest.raises(RestoreError) as caught:
        guest.load(data)
    assert caught.value.errno in (errno.EROFS, errno.EINVAL)
    assert not any(flags & os.O_ACCMODE for flags in host.flags)


@pytest.mark.parametrize(
    "file",
    [
        Anonymous(3, 0o100644, xattrs=[(b"user.\0a", b"x")]),
        Anonymous(3, 0o120777, target=b"a\0b"),
    ],
    ids=["attribute", "symlink"],
)
@pytest.mark.parametrize("policy", ["abort", "guest-error"])
def test_no_nul_reaches_the_host(make_guest, file, policy):
    data = state(make_guest, Extension(anonymous=[file]))
    with pytest.raises(StreamError, match="NUL") as caught:
        make_guest().load(data, on_error=policy)
    assert caught.value.field == "extension.anonymous"


@pytest.mark.parametrize("field", ["next_inode", "next_handle"])
@pytest.mark.parametrize("value", [(1 << 63) + 1, (1 << 64) - 1])
def test_ids_that_would_run_out(make_guest, field, value):
    with pytest.raises(StreamError, match="no room for new ids") as caught:
        make_guest().load(state(make_guest, Extension(), **{field: value}))
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["timeout_s", "inode_fds", "guest_fds", "search_entries"])
@pytest.mark.parametrize("value", [-1, 1 << 62])
def test_options_come_with_streams_and_have_bounds(name, value):
    with pytest.raises(UsageError, match=f"{name}={value} is out of range"):
        FsOptions(**{name: value})


def test_descriptors_that_the_process_does_not_have(make_guest):
    guest = make_guest(guest_fds=1 << 30, inode_fds=1 << 30)
    limit = guest.fs.host.fd_limit()
    assert guest.fs.handles.limit <= limit
