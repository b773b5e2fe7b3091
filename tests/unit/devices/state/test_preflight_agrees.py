"""What the pre-flight says is what loading says: each way to lose a file, in each mode, under each policy.

A guest knows a file in one of several ways, then something happens to it, then the pre-flight is asked, the
state is saved and loaded. An error that was told fails the load under ``abort`` and loses exactly what was
named under ``guest-error``; without one everything is there afterwards, as it was at the source.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat

import pytest

from devices.virtio_fs.state import collect_content
from devices.virtio_fs.state.options import StateOptions
from devices.virtio_fs.state.preflight import preflight
from devices.virtio_fs.state.restore import RestoreError
from tests.support.inode_flags import APPEND, IMMUTABLE, change_flags
from tests.support.machine_rig import HANDLES_ALLOWED
from tests.support.sampling import product

pytestmark = pytest.mark.unprivileged
ROOT = os.geteuid() == 0

MODES = {"paths": {}, "verified": {"verify_handles": True}, "confirmed": {"confirm_paths": True}}
if HANDLES_ALLOWED:
    MODES["handles"] = {"mode": "file-handles"}
MODES["plain"] = {"extension": False}
FEW_MODES = [mode for mode in MODES if mode in ("paths", "handles", "plain")]


class World:
    """A guest that knows ``d/f`` (and ``d``), and what is done to it."""

    def __init__(self, guest, share, known):
        self.guest, self.share, self.outside = guest, share, share.parent / "outside"
        self.outside.mkdir(exist_ok=True)
        self.known = known
        self.directory = guest.lookup("d")
        self.node = guest.lookup("d/f.txt")
        self.handles = [(self.node, guest.open(self.node, flags)) for flags in known.flags]
        self.path = share / "d" / "f.txt"

    def special(self, kind):
        """Let the guest know a thing of another kind as ``d/odd``; nothing of these is ever opened."""
        path = self.share / "d" / "odd"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(os.fspath(path))
        elif kind == "symlink":
            path.symlink_to("nowhere")
        elif kind == "directory":
            path.mkdir()
        else:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        self.guest.lookup("d/odd")
        return path


class Known:
    """How the guest knows a file: what it has open, and whether the server kept a descriptor of the inode."""

    def __init__(self, *flags, evicted=False, by_handle="prefer"):
        self.flags, self.evicted, self.by_handle = flags, evicted, by_handle


KNOWN = {
    "looked up": Known(),
    "forgotten descriptor": Known(evicted=True),
    "forgotten descriptor, no handles": Known(evicted=True, by_handle="never"),
    "open for reading": Known(os.O_RDONLY),
    "open for writing": Known(os.O_WRONLY),
    "open twice, no descriptor": Known(os.O_RDWR, os.O_WRONLY | os.O_APPEND, evicted=True),
}


def nothing(world):
    pass


def host_renames(world):
    os.rename(world.path, world.share / "elsewhere")


def host_renames_into_the_unknown(world):
    (world.share / "new" / "below").mkdir(parents=True)
    os.rename(world.path, world.share / "new" / "below" / "f.txt")


def host_moves_out(world):
    os.rename(world.path, world.outside / "f.txt")


def host_moves_out_and_puts_another_there(world):
    os.rename(world.path, world.outside / "f.txt")
    world.path.write_bytes(b"changed")


def host_moves_away_and_puts_another_there(world):
    os.rename(world.path, world.share / "kept")
    world.path.write_bytes(b"changed")


def host_replaces(world):
    (world.share / "new").write_bytes(b"changed")
    os.rename(world.share / "new", world.path)


def host_replaces_by_a_directory(world):
    os.unlink(world.path)
    world.path.mkdir()


def host_deletes(world):
    os.unlink(world.path)


def guest_deletes(world):
    world.guest.unlink(world.directory, b"f.txt")


def guest_replaces(world):
    (world.share / "d" / "other").write_bytes(b"changed")
    world.guest.lookup("d/other")
    world.guest.rename(world.directory, b"other", world.directory, b"f.txt")


def host_links_outside_and_guest_deletes(world):
    os.link(world.path, world.outside / "second")
    guest_deletes(world)


def host_links_inside_and_guest_deletes(world):
    os.link(world.path, world.share / "second")
    guest_deletes(world)


def host_removes_the_directory(world):
    shutil.rmtree(world.share / "d")


def host_moves_the_directory(world):
    os.rename(world.share / "d", world.share / "e")


def host_moves_the_directory_out(world):
    os.rename(world.share / "d", world.outside / "d")


def host_puts_a_symlink_for_the_directory(world):
    os.rename(world.share / "d", world.share / "e")
    (world.share / "d").symlink_to("e")


def host_puts_a_symlink_that_leads_out(world):
    os.rename(world.share / "d", world.outside / "d")
    (world.share / "d").symlink_to(world.outside / "d")


def host_saves_the_file_from_a_removed_directory(world):
    os.rename(world.path, world.share / "saved")
    shutil.rmtree(world.share / "d")


def host_takes_all_rights(world):
    world.path.chmod(0)


def guest_deletes_what_nobody_may_open(world):
    world.path.chmod(0)
    guest_deletes(world)


def host_makes_it_read_only(world):
    world.path.chmod(0o444)


def guest_deletes_too_much(world):
    with open(world.path, "r+b") as file:
        file.write(b"c" * 3000)
    guest_deletes(world)


def guest_deletes_what_is_full_of_holes(world):
    os.truncate(world.path, 1 << 30)
    guest_deletes(world)


def guest_deletes_two_and_one_fits(world):
    for name, size in (("large", 3000), ("small", 10)):
        (world.share / name).write_bytes(b"c" * size)
        node = world.guest.lookup(name)
        world.handles.append((node, world.guest.open(node)))
        world.guest.unlink(1, name.encode())


def name_is_not_utf8(world):
    world.guest.rename(world.directory, b"f.txt", world.directory, b"\xff")


def guest_forgets_what_is_open(world):
    if world.known.flags:
        world.guest.fs.forget(world.node, 1)
        world.handles.clear()


def immutable(world):
    flags_or_skip(world, IMMUTABLE)


def append_only(world):
    flags_or_skip(world, APPEND)


def flags_or_skip(world, flag):
    try:
        change_flags(world.path, flag)
    except OSError:
        pytest.skip("no inode flags here")


def special(kind, loss):
    def way(world):
        path = world.special(kind)
        if loss == "guest deletes":
            remove = world.guest.rmdir if kind == "directory" else world.guest.unlink
            remove(world.directory, b"odd")
        elif loss == "host deletes":
            (os.rmdir if kind == "directory" else os.unlink)(path)
        else:
            os.rename(path, world.outside / "odd")

    way.__name__ = f"{loss} a {kind}"
    return way


WAYS = [
    nothing, host_renames, host_renames_into_the_unknown, host_moves_out,
    host_moves_out_and_puts_another_there, host_moves_away_and_puts_another_there, host_replaces,
    host_replaces_by_a_directory, host_deletes, guest_deletes, guest_replaces,
    host_links_outside_and_guest_deletes, host_links_inside_and_guest_deletes,
    host_removes_the_directory, host_moves_the_directory, host_moves_the_directory_out,
    host_puts_a_symlink_for_the_directory, host_puts_a_symlink_that_leads_out,
    host_saves_the_file_from_a_removed_directory, host_takes_all_rights, guest_deletes_what_nobody_may_open,
    host_makes_it_read_only, guest_deletes_too_much, guest_deletes_what_is_full_of_holes,
    guest_deletes_two_and_one_fits, name_is_not_utf8, guest_forgets_what_is_open, immutable, append_only,
]  # fmt: skip
SPECIAL = [
    special(kind, loss)
    for kind in ("fifo", "socket", "symlink", "directory", *(("device",) if ROOT else ()))
    for loss in ("guest deletes", "host deletes", "host moves out")
]


def results(guest, nodes, handles):
    """What each use of each node and open file gives: contents, or an errno. All contents begin alike."""
    found = {}
    for node in nodes:
        found["attributes", node] = use(lambda node=node: guest.getattr(node)[3 + 9])
    for node, fh in handles:
        found["attributes", node, fh] = use(lambda node=node, fh=fh: guest.getattr(node, fh)[3 + 9])
        found["content", node, fh] = use(lambda node=node, fh=fh: guest.read(node, fh, 12))
        found["writing", node, fh] = use(lambda node=node, fh=fh: guest.write(node, fh, b"c"))
    return found


def use(call):
    try:
        return "is", call()
    except OSError as error:
        return "raises", error.errno


@pytest.fixture
def world(request, make_guest, share, monkeypatch):
    """The budget for contents is small, so that it can be exceeded."""
    monkeypatch.setattr(collect_content, "UNLINKED_CONTENT_MAX", 2000)
    known = KNOWN[request.param]
    guest = make_guest(boot=True, inode_fds=16 if known.evicted else 0, inode_file_handles=known.by_handle)
    world = World(guest, share, known)
    yield world
    for path in (world.path, world.share / "d"):
        if path.exists() and ROOT:
            try:
                change_flags(path, remove=IMMUTABLE | APPEND)
            except OSError:
                pass


def evict(world):
    """So many other files are looked up that the server gives up its descriptor of this one."""
    if world.known.evicted:
        for number in range(40):
            (world.share / f"crowd-{number}").touch()
            world.guest.lookup(f"crowd-{number}")


def ways(name, one_in, known, modes, ways):
    """Parametrizes a test with a table of these: all of it, or one in so many with every pair."""
    rows = product(f"pre-flight and load agree: {name}", one_in, known, modes, ways)
    ids = [f"{way.__name__}-{known}-{mode}" for known, mode, way in rows]
    return pytest.mark.parametrize(("world", "mode", "way"), rows, ids=ids, indirect=["world"])


@ways("files", 3, KNOWN, FEW_MODES, WAYS)
def test_a_file(world, make_guest, way, mode):
    agree(world, make_guest, way, mode)


@ways("checks", 2, ["open for reading", "forgotten descriptor"], ["verified", "confirmed"], WAYS)
def test_a_file_with_checks(world, make_guest, way, mode):
    agree(world, make_guest, way, mode)


@ways("special files", 2, ["looked up", "forgotten descriptor"], FEW_MODES, SPECIAL)
def test_what_is_never_opened(world, make_guest, way, mode):
    agree(world, make_guest, way, mode)


def agree(world, make_guest, way, mode):
    guest = world.guest
    evict(world)
    way(world)
    options = MODES[mode]
    before = guest.snapshot()
    found = preflight(guest.fs, guest.session, StateOptions(**options))
    errors = {(finding.inode, finding.fh) for finding in found if finding.severity == "error"}
    told = {inode for inode, _ in errors}
    assert guest.snapshot() == before
    data = guest.save(**options)
    nodes = [inode.id for inode in guest.fs.inodes.items()]
    loading = {"extension": options.get("extension", True)}
    servers = {"inode_fds": guest.fs.options.inode_fds, "inode_file_handles": world.known.by_handle}

    # A refusal, or all of it
    first = make_guest(**servers)
    if told:
        with pytest.raises(RestoreError) as refusal:
            first.load(data, **loading)
        assert "is this the right directory" not in (refusal.value.hint or "")
        assert len(first.fs.inodes) == 1
    else:
        first.load(data, **loading)

    # Exactly what was named is lost
    second = make_guest(**servers).load(data, on_error="guest-error", **loading)
    assert {loss.id for loss in second.report.losses} == told, second.report.losses
    at_source = results(guest, nodes, world.handles)
    there = results(second, nodes, world.handles)
    for key, value in at_source.items():
        _, node, *fh = key
        lost = (node, None) in errors or (fh and (node, fh[0]) in errors)
        assert there[key] == (("raises", errno.EIO) if lost else value), key
