"""After a migration a file is what it was: every attribute of every kind, named and unlinked."""

from __future__ import annotations

import errno
import itertools
import os
import stat

import pytest

from devices.virtio_fs.passthrough.told import OTHER
from devices.virtio_fs.state import restore_content, restore_inodes
from devices.virtio_fs.state.restore import Load
from tests.support.exhibits import exhibit
from tests.support.inventory import changes, inventory
from tests.support.machine_rig import MODES
from tests.support.sampling import sample
from vmsim.errors import MigrationError, UsageError
from vmsim.guest.config import GuestConfig
from vmsim.machine import Machine
from vmsim.machine.roles import Destination


def boot(share, mode="find-paths", cache="none", **arguments):
    share.mkdir(exist_ok=True)
    options = {"migration_mode": mode, "posix_acl": True, "writeback": cache == "writeback"}
    return Machine(share, memory="8M", guest=GuestConfig(cache=cache), options=options, **arguments)


def hop(vm, share, way):
    """The same machine after a voyage."""
    if way == "live":
        return vm.migrate()
    if way == "external":
        vm.migration = "external"
        return vm.migrate()
    file = share.parent / "machine.vmsim"
    vm.save(file, keep_running=False)
    vm.close()
    return Machine.restore(file, share=share)


WAYS = [(mode, way) for mode in MODES for way in ("live", "file", "external")
        if (mode, way) != ("file-handles", "file")]  # fmt: skip
"""In a file by handle: nobody holds what has no name."""


@pytest.mark.parametrize("cache", ["none", "writethrough", "writeback"])
@pytest.mark.parametrize(("mode", "way"), WAYS)
def test_every_attribute(tmp_path, mode, way, cache):
    share = tmp_path / "share"
    vm = boot(share, mode, cache)
    try:
        exhibit(vm.mount(), "/exhibits")
        vm.mount().sync()
        before = inventory(vm)
        assert changes(before, inventory(vm)) == []
        for _ in range(3):
            vm = hop(vm, share, way)
            assert changes(before, inventory(vm)) == []
    finally:
        vm.close()


def test_a_back_end_in_another_process(tmp_path):
    share = tmp_path / "share"
    vm = boot(share, transport="vhost-user")
    try:
        exhibit(vm.mount(), "/exhibits")
        before = inventory(vm)
        for _ in range(2):
            vm = vm.migrate()
            assert changes(before, inventory(vm)) == []
    finally:
        vm.close()


def forgets(name, value):
    """A loader that takes one fact of an unlinked file for another."""

    def defect(monkeypatch):
        restore = restore_content.set_attributes

        def changed(host, fd, file, *more):
            setattr(file, name, value(file) if callable(value) else value)
            restore(host, fd, file, *more)

        monkeypatch.setattr(restore_inodes, "set_attributes", changed)

    defect.__name__ = name
    return defect


def opens_for_reading_only(monkeypatch):
    handle = Load._handle
    monkeypatch.setattr(
        Load, "_handle", lambda load, record, flags, asked: handle(load, record, flags & ~os.O_ACCMODE, asked)
    )


def forgets_locks(monkeypatch):
    monkeypatch.setattr(Load, "_locks", lambda load, extra: None)


DEFECTS = [
    forgets("mode", lambda file: file.mode ^ 0o40), forgets("uid", 77), forgets("gid", 77),
    forgets("atime_ns", 5), forgets("mtime_ns", lambda file: file.mtime_ns + 1), forgets("xattrs", []),
    forgets("flags", 0), forgets("ino", 0), forgets("ctime_ns", 7), forgets("blocks", 0),
    opens_for_reading_only, forgets_locks,
]  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_what_is_lost_is_noticed(tmp_path, monkeypatch, defect):
    share = tmp_path / "share"
    vm = boot(share)
    try:
        exhibit(vm.mount(), "/exhibits")
        before = inventory(vm)
        defect(monkeypatch)
        vm = vm.migrate()
        assert changes(before, inventory(vm)) != []
    finally:
        vm.close()


def test_a_number_that_the_host_gives_again_is_not_shown_twice(tmp_path):
    """The host's file system may take it for another file as soon as the source has let go of it."""
    share = tmp_path / "share"
    vm = boot(share)
    try:
        fs = vm.mount()
        fd = fs.open("/gone", os.O_CREAT | os.O_RDWR)
        number = fs.fstat(fd).st_ino
        fs.unlink("/gone")
        vm = vm.migrate()
        fs = vm.mount()
        name = again(share, number)
        assert fs.fstat(fd).st_ino == number
        for _ in range(2):
            assert fs.stat(name).st_ino == number ^ OTHER
            entries = {entry.name: entry.inode() for entry in fs.scandir("/")}
            assert entries[name] == number ^ OTHER
            vm = vm.migrate()
            fs = vm.mount()
        fs.close(fd)
        assert fs.stat(name).st_ino == number ^ OTHER, "nobody's number changes because of others"
    finally:
        vm.close()


def again(share, number):
    """Make files until one has this inode number; its name."""
    for attempt in range(2000):
        path = share / f"f{attempt}"
        path.touch()
        if path.stat().st_ino == number:
            return path.name
    return pytest.skip("this file system does not use inode numbers again soon")


def test_the_ctime_is_the_old_one_until_the_file_changes(tmp_path):
    vm = boot(tmp_path / "share")
    try:
        fs = vm.mount()
        fd = fs.open("/gone", os.O_CREAT | os.O_RDWR)
        fs.unlink("/gone")
        before = fs.fstat(fd).st_ctime_ns
        vm = vm.migrate()
        fs = vm.mount()
        assert fs.fstat(fd).st_ctime_ns == before
        fs.fchmod(fd, 0o600)
        changed = fs.fstat(fd).st_ctime_ns
        assert changed > before
        vm = vm.migrate()
        assert vm.mount().fstat(fd).st_ctime_ns == changed
    finally:
        vm.close()


def fifo(fs):
    fs.mkfifo("/special")


def device(fs):
    fs.mknod("/special", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def unix_socket(fs):
    fs.mknod("/special", stat.S_IFSOCK | 0o600)


def symlink(fs):
    fs.symlink("anywhere", "/special")
    fs.utime("/special", ns=(2_000_000_000_000_000_000, 1), follow_symlinks=False)  # looking changes none


def directory(fs):
    fs.mkdir("/special")


MAKES = [fifo, device, unix_socket, symlink, directory]


@pytest.mark.parametrize(
    ("make", "mode", "transport"),
    [
        *itertools.product(MAKES, MODES, [None]),
        # It is the same back-end: a few show that nothing of it depends on who connects.
        *sample(itertools.product(MAKES, MODES, ["vhost-user"]), 3, "what another process makes anew"),
    ],
    ids=lambda value: getattr(value, "__name__", value or "here"),
)  # fmt: skip
def test_what_is_made_anew_in_a_directory_leaves_it_as_it_was(tmp_path, make, mode, transport):
    """There is no O_TMPFILE of it: it has a name in the share's root for a moment."""
    share = tmp_path / "share"
    vm = boot(share, mode, transport=transport)
    try:
        fs = vm.mount()
        try:
            make(fs)
        except PermissionError:
            pytest.skip("this process may make no devices")
        fs.open("/special", os.O_PATH | (os.O_NOFOLLOW if make is symlink else 0))
        (fs.rmdir if make is directory else fs.unlink)("/special")
        fs.open("/", os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(3):
            before = inventory(vm)
            vm = vm.migrate()
            assert changes(before, inventory(vm)) == []
        assert os.listdir(share) == []
        entries = {entry.name: entry.inode() for entry in vm.mount().scandir("/")}
        assert entries == {}
        assert vm.mount().stat("/").st_ino == share.stat().st_ino
        (share / "new").touch()
        changed = vm.mount().stat("/").st_ctime_ns
        assert changed == share.stat().st_ctime_ns, "what others do is seen"
        vm = vm.migrate()
        assert vm.mount().stat("/").st_ctime_ns == changed
    finally:
        vm.close()


@pytest.mark.parametrize("transport", [None, "vhost-user"], ids=["here", "vhost-user"])
@pytest.mark.parametrize("tries", [1, 2])
def test_a_migration_that_fails_leaves_the_directory_as_it_was_too(tmp_path, monkeypatch, tries, transport):
    """The destination has made the file already when the source goes on."""
    share = tmp_path / "share"
    vm = boot(share, transport=transport)
    try:
        fs = vm.mount()
        fifo(fs)
        fs.open("/special", os.O_PATH)
        fs.unlink("/special")

        def attempt(meanwhile=lambda: None):
            def fail(destination):
                meanwhile()
                raise UsageError("it is loaded, and gives up")

            with monkeypatch.context() as context:
                context.setattr(Destination, "prepare", fail)
                with pytest.raises(MigrationError, match="gives up"):
                    vm.migrate()

        before = inventory(vm)
        for _ in range(tries):
            on_host = share.stat().st_ctime_ns
            attempt()
            assert share.stat().st_ctime_ns > on_host, "else there is nothing to hide"
            assert changes(before, inventory(vm)) == []
        vm = vm.migrate()
        assert changes(before, inventory(vm)) == []
        share.chmod(0o700)
        attempt(lambda: share.chmod(0o755))
        assert vm.mount().stat("/").st_ctime_ns == share.stat().st_ctime_ns, "what others do is seen"
    finally:
        vm.close()


def test_preallocation_has_a_bound(tmp_path, monkeypatch):
    """A state may not fill the disk of a host: no more space than contents may take, all files together."""
    share = tmp_path / "share"
    vm = boot(share)
    try:
        fs = vm.mount()
        try:
            fds = [fs.open(f"/{number}", os.O_CREAT | os.O_RDWR) for number in range(4)]
            for number, fd in enumerate(fds):
                fs.fallocate(fd, 1, 0, 1 << 20)
                fs.unlink(f"/{number}")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip("no preallocation here")
        monkeypatch.setattr(restore_inodes, "ContentBudget", lambda: type("Small", (), {"left": 5 << 19})())
        vm = vm.migrate()
        blocks = sorted(vm.mount().fstat(fd).st_blocks // 2048 for fd in fds)
        assert blocks == [0, 0, 1, 1]
        assert any("preallocated space" in note for note in vm.notes())
    finally:
        vm.close()
