"""A guest migrates into another instance on the same directory: open files, load, hops, failures."""

from __future__ import annotations

import os

from vmsim.check.case import PAIR, SHARE, Group
from vmsim.check.cases.common import populate
from vmsim.check.outcome import Failed, check, fail, same
from vmsim.check.rigs import PairRig
from vmsim.errors import MigrationError
from vmsim.guest.calls.posix import GuestFs
from vmsim.guest.config import GuestConfig
from vmsim.host.vhost_user.transport import PeerSilent

CASES = Group("migration")
NEEDS = (SHARE, PAIR)
SPEC = "vhost-user 'Migrating back-end state'; virtio 1.3 section 5.11"


def moved(rig: PairRig) -> GuestFs:
    """The guest's file system at the destination; the migration must succeed."""
    try:
        return rig.migrate()
    except MigrationError as error:
        raise Failed("the migration succeeds", str(error)) from error


def stays(rig: PairRig, why: str) -> GuestFs:
    """The migration must fail, because of ``why``, and the guest go on where it is."""
    try:
        rig.migrate()
    except (MigrationError, PeerSilent):
        return rig.mount()
    fail(f"the migration fails: {why}", "it succeeded")


@CASES.case("open-files", SPEC, needs=NEEDS)
def open_files(rig: PairRig) -> None:
    """Open files keep content, position and access mode."""
    (rig.share / "f").write_bytes(b"0123456789")
    fs = rig.boot()
    reading, writing = fs.open("f", os.O_RDONLY), fs.open("new", os.O_CREAT | os.O_WRONLY)
    same(fs.read(reading, 4), b"0123", "what is read before")
    fs.write(writing, b"before ")
    fs = moved(rig)
    same(fs.read(reading, 4), b"4567", "what is read after")
    fs.write(writing, b"after")
    same((rig.share / "new").read_bytes(), b"before after", "what was written")
    try:
        fs.write(reading, b"x")
    except OSError:
        return
    fail("EBADF when a descriptor for reading is written", "it succeeded")


@CASES.case("packed-rings", SPEC, needs=NEEDS)
def packed_rings(rig: PairRig) -> None:
    """The same with packed rings, where they are offered, and a small ring."""
    (rig.share / "f").write_bytes(b"content")
    fs = rig.boot(ring="packed", queue_size=16)
    fd = fs.open("f", os.O_RDWR)
    for _ in range(50):
        fs.fstat(fd)
    fs = moved(rig)
    for _ in range(50):
        same(fs.pread(fd, 10, 0), b"content", "what is read after")


@CASES.case("directories", SPEC, needs=NEEDS)
def directories(rig: PairRig) -> None:
    """The working directory, open directories, and names below them."""
    fs = rig.boot()
    fs.makedirs("a/b/c")
    fs.chdir("a/b")
    fd = fs.open("c", os.O_RDONLY | os.O_DIRECTORY)
    fs = moved(rig)
    fs.mkdir("c/new")
    same(fs.listdir(fd), ["new"], "names in the open directory")
    check((rig.share / "a/b/c/new").is_dir(), "the new directory on the host")


@CASES.case("many-nodes", SPEC, needs=NEEDS)
def many_nodes(rig: PairRig) -> None:
    """Three hundred files that the guest knows, with a cache of names, are the same afterwards."""
    populate(rig.share, 300)
    fs = rig.boot(guest=GuestConfig(dentries=512), memory="16M")
    before = {name: fs.stat(name).st_ino for name in fs.listdir(".")}
    fs = moved(rig)
    for name in rig.random.sample(sorted(before), 100):
        same(fs.stat(name).st_ino, before[name], f"the inode of {name}")


@CASES.case("renamed", SPEC, needs=NEEDS)
def renamed(rig: PairRig) -> None:
    """Files that the guest renamed, and whose directory it renamed, while they were open."""
    fs = rig.boot()
    fs.mkdir("dir")
    fd = fs.open("dir/f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"content")
    fs.rename("dir/f", "dir/g")
    fs.rename("dir", "elsewhere")
    fs = moved(rig)
    same(fs.pread(fd, 100, 0), b"content", "what is read after")
    fs.rename("elsewhere/g", "h")
    same((rig.share / "h").read_bytes(), b"content", "the file at its last place")


@CASES.case("linked", SPEC, needs=NEEDS)
def linked(rig: PairRig) -> None:
    """A file of two names whose first was removed."""
    fs = rig.boot()
    fd = fs.open("one", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"content")
    fs.link("one", "two")
    fs.unlink("one")
    fs = moved(rig)
    same(fs.pread(fd, 100, 0), b"content", "what is read after")
    same(fs.fstat(fd).st_nlink, 1, "links")


@CASES.case("renamed-by-others", SPEC, needs=NEEDS)
def renamed_by_others(rig: PairRig) -> None:
    """A file that was renamed on the host before the migration began."""
    (rig.share / "f").write_bytes(b"content")
    fs = rig.boot()
    fd = fs.open("f", os.O_RDONLY)
    (rig.share / "f").rename(rig.share / "g")
    fs = moved(rig)
    same(fs.pread(fd, 100, 0), b"content", "what is read after")


@CASES.case("replaced-by-others", SPEC, needs=NEEDS)
def replaced_by_others(rig: PairRig) -> None:
    """An open file that was moved on the host, and another put in its place: never the wrong content."""
    (rig.share / "f").write_bytes(b"the right one")
    fs = rig.boot()
    fd = fs.open("f", os.O_RDONLY)
    (rig.share / "f").rename(rig.share / "g")
    (rig.share / "f").write_bytes(b"an impostor")
    try:
        fs = rig.migrate()
        found = fs.pread(fd, 100, 0)
    except (MigrationError, OSError):
        return
    same(found, b"the right one", "what is read after")


@CASES.case("unlinked-open", SPEC, needs=NEEDS)
def unlinked_open(rig: PairRig) -> None:
    """A file that is open and has no name any more can still be read."""
    fs = rig.boot()
    fd = fs.open("f", os.O_CREAT | os.O_RDWR)
    fs.write(fd, b"content")
    fs.unlink("f")
    fs = moved(rig)
    same(fs.pread(fd, 100, 0), b"content", "what is read after")


@CASES.case("odd-names", SPEC, needs=NEEDS)
def odd_names(rig: PairRig) -> None:
    """Names with spaces, line breaks, that end in (deleted), and that are no UTF-8."""
    fs = rig.boot()
    names = [b"with space", b"line\nbreak", b"looks (deleted)", "ünïcode".encode(), b"\xff\xfe"]
    fds = {name: fs.open(name, os.O_CREAT | os.O_RDWR) for name in names}
    for name, fd in fds.items():
        fs.write(fd, name)
    fs = moved(rig)
    for name, fd in fds.items():
        same(fs.pread(fd, 100, 0), name, f"what is read of {name!r}")


@CASES.case("hops", SPEC, needs=NEEDS)
def hops(rig: PairRig) -> None:
    """Four migrations in a row, the guest working in between."""
    fs = rig.boot()
    fd = fs.open("log", os.O_CREAT | os.O_RDWR)
    wanted = b""
    for number in range(4):
        line = b"hop %d\n" % number
        fs.write(fd, line)
        wanted += line
        fs = moved(rig)
        same(fs.pread(fd, 1000, 0), wanted, f"what is read after hop {number}")
        fs.close(fs.open(f"made-{number}", os.O_CREAT | os.O_WRONLY))
    same((rig.share / "log").read_bytes(), wanted, "the file on the host")


@CASES.case("under-load", SPEC, needs=NEEDS)
def under_load(rig: PairRig) -> None:
    """A program that writes and checks all the time notices nothing."""
    rig.boot()

    def work(fs: GuestFs) -> int:
        fd = fs.open("work", os.O_CREAT | os.O_RDWR)
        for number in range(300):
            data = number.to_bytes(4, "little") * 256
            fs.pwrite(fd, data, number % 16 * 1024)
            same(fs.pread(fd, 1024, number % 16 * 1024), data, f"what round {number} reads")
            rig.schedule.checkpoint("working")
        fs.close(fd)
        return 300

    task = rig.vm.spawn("work", work)
    for _ in range(2):
        moved(rig)
    rig.schedule.wait(lambda: task.done, "the program")
    same(task.result(), 300, "rounds")


@CASES.case("cached", SPEC, needs=NEEDS)
def cached(rig: PairRig) -> None:
    """A guest that caches pages and names takes its caches along."""
    (rig.share / "f").write_bytes(b"x" * 20000)
    fs = rig.boot(guest=GuestConfig(cache="writethrough", cache_pages=64, dentries=64))
    fd = fs.open("f", os.O_RDWR)
    same(len(fs.read(fd, 20000)), 20000, "bytes read before")
    fs = moved(rig)
    fs.pwrite(fd, b"y" * 100, 50)
    same(fs.pread(fd, 200, 0), b"x" * 50 + b"y" * 100 + b"x" * 50, "what is read after")
    fs.fsync(fd)
    same((rig.share / "f").read_bytes()[50:150], b"y" * 100, "what the host sees")


@CASES.case("load-refused", SPEC, needs=NEEDS)
def load_refused(rig: PairRig) -> None:
    """A destination on another directory refuses the state; the source goes on, and migrates after all."""
    (rig.share / "f").write_bytes(b"content")
    fs = rig.boot()
    fd = fs.open("f", os.O_RDWR)
    rig.next_elsewhere()
    fs = stays(rig, "the destination has another directory")
    same(fs.pread(fd, 10, 0), b"content", "what the source reads")
    fs.pwrite(fd, b"CONTENT", 0)
    fs = moved(rig)
    same(fs.pread(fd, 10, 0), b"CONTENT", "what is read after")


@CASES.case("destination-killed", SPEC, needs=NEEDS)
def destination_killed(rig: PairRig) -> None:
    """A destination that is dead when the guest comes: the source goes on, and migrates after all."""
    (rig.share / "f").write_bytes(b"content")
    fs = rig.boot()
    fd = fs.open("f", os.O_RDWR)
    rig.kill_next()
    fs = stays(rig, "the destination is dead")
    same(fs.pread(fd, 10, 0), b"content", "what the source reads")
    fs = moved(rig)
    same(fs.pread(fd, 10, 0), b"content", "what is read after")


@CASES.case("cancelled", SPEC, needs=NEEDS)
def cancelled(rig: PairRig) -> None:
    """Paused and resumed, again and again, the guest goes on and can still migrate."""
    (rig.share / "f").write_bytes(b"content")
    fs = rig.boot()
    fd = fs.open("f", os.O_RDWR)
    for _ in range(5):
        rig.vm.pause()
        rig.vm.resume()
        same(fs.pread(fd, 10, 0), b"content", "what is read in between")
    fs = moved(rig)
    same(fs.pread(fd, 10, 0), b"content", "what is read after")
