"""Names that would lead out of the shared directory, or somewhere else than to one entry."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmsim.check.case import SHARE, Group
from vmsim.check.cases.hostile_fuse import ENTRY_ROOM, refused, survives
from vmsim.check.device import RawDriver
from vmsim.check.outcome import check
from vmsim.check.rigs import RingRig
from vmsim.fuse import opcodes as op

CASES = Group("hostile")
NAMES = "virtio 1.3 section 5.11.6; a name is one component"
NEEDS = (SHARE,)


class Walls:
    """The case's directory, in a parent of its own in which nothing may appear."""

    def __init__(self, rig: RingRig) -> None:
        self.rig = rig
        self.inner = rig.share / "inner"
        self.inner.mkdir()
        self.device: RawDriver = rig.device()
        self.nodeid = self.device.lookup(f"{rig.home}/inner").nodeid
        self.escaped = f"vmsim-escaped-{rig.random.randrange(1 << 40):x}"
        self.outside = rig.share.parent / self.escaped
        rig.on_close(lambda: remove(self.outside))

    def untouched(self) -> None:
        """Fail if something was made outside."""
        check(not os.path.lexists(self.outside), "nothing outside the shared directory",
              f"{self.outside} was made there")  # fmt: skip


def remove(path: Path) -> None:
    """Remove what should not be there."""
    if os.path.lexists(path):
        if stat.S_ISDIR(path.lstat().st_mode):
            path.rmdir()
        else:
            path.unlink()


@CASES.case("lookup-dot-dot", NAMES, needs=NEEDS)
def lookup_dot_dot(rig: RingRig) -> None:
    """LOOKUP of .. in the root does not lead above the share."""
    walls = Walls(rig)
    device = walls.device
    answer = device.fuse(op.LOOKUP, 1, (), (b"..",))
    parent = rig.share.parent.stat() if rig.home == "/" else rig.share.parent.parent.stat()
    check(answer.error or answer.body.ino != parent.st_ino, "an error, or the root itself", "the parent")


@CASES.case("lookup-slash", NAMES, needs=NEEDS)
def lookup_slash(rig: RingRig) -> None:
    """LOOKUP of a/b is refused."""
    walls = Walls(rig)
    (walls.inner / "a").mkdir()
    (walls.inner / "a/b").touch()
    refused(walls.device, walls.device.request(op.LOOKUP, walls.nodeid, (), (b"a/b",)), ENTRY_ROOM)


@CASES.case("lookup-absolute", NAMES, needs=NEEDS)
def lookup_absolute(rig: RingRig) -> None:
    """LOOKUP of an absolute path is refused."""
    walls = Walls(rig)
    refused(walls.device, walls.device.request(op.LOOKUP, 1, (), (b"/etc/passwd",)), ENTRY_ROOM)


def up(walls: Walls) -> bytes:
    """A name that leads out of the share from its root."""
    depth = 0 if walls.rig.home == "/" else 1
    return b"../" * (depth + 1) + walls.escaped.encode()


@CASES.case("mkdir-outside", NAMES, needs=NEEDS)
def mkdir_outside(rig: RingRig) -> None:
    """MKDIR of ../name makes nothing outside."""
    walls = Walls(rig)
    survives(walls.device, [walls.device.request(op.MKDIR, 1, (0o755, 0), (up(walls),))], [ENTRY_ROOM])
    walls.untouched()


@CASES.case("symlink-outside", NAMES, needs=NEEDS)
def symlink_outside(rig: RingRig) -> None:
    """SYMLINK with an absolute new name makes nothing outside."""
    walls = Walls(rig)
    name = os.fsencode(walls.outside)
    survives(walls.device, [walls.device.request(op.SYMLINK, 1, (), (name, b"target"))], [ENTRY_ROOM])
    walls.untouched()


@CASES.case("create-outside", NAMES, needs=NEEDS)
def create_outside(rig: RingRig) -> None:
    """CREATE with a path makes nothing outside."""
    walls = Walls(rig)
    args = (os.O_RDWR, 0o600, 0, 0)
    for name in (up(walls), os.fsencode(walls.outside)):
        survives(walls.device, [walls.device.request(op.CREATE, 1, args, (name,))], [ENTRY_ROOM + 16])
        walls.untouched()


@CASES.case("mknod-outside", NAMES, needs=NEEDS)
def mknod_outside(rig: RingRig) -> None:
    """MKNOD with a path makes nothing outside."""
    walls = Walls(rig)
    args = (stat.S_IFREG | 0o600, 0, 0, 0)
    survives(walls.device, [walls.device.request(op.MKNOD, 1, args, (up(walls),))], [ENTRY_ROOM])
    walls.untouched()


@CASES.case("rename-outside", NAMES, needs=NEEDS)
def rename_outside(rig: RingRig) -> None:
    """RENAME to a path moves nothing outside."""
    walls = Walls(rig)
    (rig.share / "f").write_text("mine")
    home = walls.device.lookup(rig.home).nodeid if rig.home != "/" else 1
    name = os.fsencode(walls.outside)
    survives(walls.device, [walls.device.request(op.RENAME, home, (1,), (b"f", name))], [16])
    walls.untouched()
    check((rig.share / "f").exists(), "the file where it was")


@CASES.case("link-outside", NAMES, needs=NEEDS)
def link_outside(rig: RingRig) -> None:
    """LINK to a path links nothing outside."""
    walls = Walls(rig)
    (rig.share / "f").write_text("mine")
    nodeid = walls.device.lookup(f"{rig.home}/f").nodeid
    survives(walls.device, [walls.device.request(op.LINK, 1, (nodeid,), (up(walls),))], [ENTRY_ROOM])
    walls.untouched()


@CASES.case("unlink-outside", NAMES, needs=NEEDS)
def unlink_outside(rig: RingRig) -> None:
    """UNLINK of a path removes nothing outside."""
    walls = Walls(rig)
    walls.outside.write_text("not yours")
    survives(walls.device, [walls.device.request(op.UNLINK, 1, (), (up(walls),))], [16])
    check(walls.outside.exists(), "the file outside stays", "it was removed")


@CASES.case("symlink-followed", NAMES, needs=NEEDS)
def symlink_followed(rig: RingRig) -> None:
    """A symlink to the outside is not followed by LOOKUP, nor by OPEN of its node."""
    walls = Walls(rig)
    os.symlink("/etc", walls.inner / "link")
    device = walls.device
    entry = device.ok(op.LOOKUP, walls.nodeid, (), (b"link",))
    check(stat.S_ISLNK(entry.mode), "the symlink itself", f"mode {entry.mode:o}")
    refused(device, device.request(op.LOOKUP, entry.nodeid, (), (b"passwd",)), ENTRY_ROOM)
    refused(device, device.request(op.OPENDIR, entry.nodeid, (0, 0)), 32)
