"""A guest that works on while it moves between virtiofsd and vmsim, there and back, in every mode.

What a hop may lose is everything that the guest holds by a number alone: nodeids, handles, positions. All of
it is looked at after each hop, through the back-end that has just loaded the other one's state.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from devices.virtio_fs.state.records import INVALID, PATH, StateBlob
from tests.interop.differential import state_of
from tests.interop.virtiofsd_rig import SANDBOX
from tests.support.machine_rig import HANDLES_ALLOWED
from vmsim.errors import MigrationError
from vmsim.guest.config import GuestConfig
from vmsim.machine import Backend, Machine, Seams
from vmsim.machine.remote import started
from vmsim.migration.report import Progress
from vmsim.schedule.immediate import ImmediateSchedule
from vmsim.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1

pytestmark = pytest.mark.interop

BASIC = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
"""What both back-ends offer."""
INODES = 5000
MODES: dict[str, dict[str, Any]] = {
    "find-paths": {},
    "verify-handles": {"migration_verify_handles": True},
    "confirm-paths": {"migration_confirm_paths": True},
}
if HANDLES_ALLOWED:
    MODES["file-handles"] = {"migration_mode": "file-handles"}
    MODES["file-handles, no descriptors"] = {
        "migration_mode": "file-handles", "inode_file_handles": "mandatory"
    }  # fmt: skip
"""Options that both back-ends have by these names."""
ROUND = ("virtiofsd", "vmsim", "virtiofsd", "vmsim")


class Ends:
    """How a machine gets a back-end: ``virtiofsd``, ``vmsim`` (in this process) or ``serve``."""

    def __init__(self, peers: Any) -> None:
        command = [peers.virtiofsd, *SANDBOX, "--socket-path={socket}", "--shared-dir={dir}", "{options}"]
        if HANDLES_ALLOWED:
            command.append("--modcaps=+dac_read_search")
        self._starts = {"virtiofsd": started(command), "serve": started(), "vmsim": Backend}

    def __getitem__(self, kind: str) -> Seams:
        return Seams(start=self._starts[kind])


@pytest.fixture
def ends(peers):
    return Ends(peers)


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


def boot(ends: Ends, share: Path, kind: str, mode: str, **guest: Any) -> Machine:
    return Machine(
        share, memory="16M", schedule=ImmediateSchedule(), seams=ends[kind],
        options={"xattr": True, **MODES[mode]}, guest=GuestConfig(features=BASIC, **guest),
    )  # fmt: skip


class Held:
    """What a program of the guest holds by numbers, and what it must find there."""

    def __init__(self, vm: Machine, unlinked: bool) -> None:
        fs = vm.mount()
        fs.makedirs("/work/deep/er/est")
        self.files: dict[int, bytes] = {}
        for number, name in enumerate(("plain", "ünï", "x (deleted)", "s p", "n" * 255, "deep/er/est/f")):
            fd = fs.open(f"/work/{name}", os.O_RDWR | os.O_CREAT, 0o640)
            self.files[fd] = b"%d " % number * 1000
            fs.write(fd, self.files[fd])
            fs.lseek(fd, number, os.SEEK_SET)
        self.reading = fs.open("/work/plain", os.O_RDONLY)
        self.writing = fs.open("/work/plain", os.O_WRONLY)
        self.log = fs.open("/work/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        fs.rename("/work/s p", "/work/deep/renamed")
        fs.link("/work/ünï", "/work/deep/linked")
        fs.symlink("../plain", "/work/deep/link")
        fs.setxattr("/work/plain", "user.kept", b"value")
        self.folder = fs.open("/work/deep", os.O_RDONLY | os.O_DIRECTORY)
        self.gone = -1
        if unlinked:
            self.gone = fs.open("/work/gone", os.O_RDWR | os.O_CREAT)
            fs.write(self.gone, b"only here")
            fs.unlink("/work/gone")
        self.appended = 0

    def check(self, vm: Machine) -> int:
        """Everything is there; the number of things looked at."""
        fs = vm.mount()
        for number, (fd, content) in enumerate(self.files.items()):
            assert fs.lseek(fd, 0, os.SEEK_CUR) == number
            assert fs.pread(fd, 1 << 20, 0) == content
            assert fs.pwrite(fd, content[:10], 0) == 10
        with pytest.raises(OSError, match="Bad file"):
            fs.write(self.reading, b"x")
        with pytest.raises(OSError, match="Bad file"):
            fs.read(self.writing, 1)
        self.appended += fs.write(self.log, b"x" * 7)
        assert fs.fstat(self.log).st_size == self.appended
        assert sorted(fs.listdir(self.folder)) == ["er", "link", "linked", "renamed"]
        assert fs.stat("er/est/f", dir_fd=self.folder).st_size == 2000
        assert fs.readlink("link", dir_fd=self.folder) == "../plain"
        assert fs.stat("/work/ünï").st_ino == fs.stat("/work/deep/linked").st_ino
        assert fs.getxattr("/work/plain", "user.kept") == b"value"
        if self.gone >= 0:
            assert fs.pread(self.gone, 100, 0) == b"only here"
            assert fs.fstat(self.gone).st_nlink == 0
        return len(self.files) + 10


class Worker:
    """A program that never stops: it makes, writes, reads back and moves, whoever serves it.

    ``removes``: it also unlinks what it has open. The guest forgets such a node a while later only, and
    meanwhile only a file handle leads to it, and only as long as the source has it open.
    """

    def __init__(self, vm: Machine, removes: bool) -> None:
        self.removes = removes
        self.stop = False
        self.rounds = 0
        self.schedule = vm.schedule
        self.task = vm.spawn("worker", self._run, pid=9)

    def _run(self, fs: Any) -> None:
        fs.mkdir("/worker")
        log = fs.open("/worker/log", os.O_RDWR | os.O_CREAT)
        while not self.stop:
            word = b"%08d" % self.rounds
            fd = fs.open("/worker/new", os.O_RDWR | os.O_CREAT | os.O_EXCL)
            assert fs.write(fd, word) == 8
            old = f"/worker/{self.rounds}"
            fs.rename("/worker/new", old)
            assert fs.pread(fd, 20, 0) == word
            assert fs.stat(old).st_size == 8
            if self.removes:
                fs.unlink(old)
            assert fs.fstat(fd).st_nlink == (not self.removes)
            fs.close(fd)
            assert fs.pwrite(log, word, 8 * self.rounds) == 8
            self.rounds += 1
            self.schedule.sleep_ns(100_000)

    def during(self, progress: Progress) -> None:
        """Between two looks at memory, while the source's back-end collects its state, it goes on as well."""
        if progress.phase == "precopy":
            self.go_on()

    def go_on(self) -> None:
        """Return when it has done more."""
        wanted = self.rounds + 10
        self.schedule.wait(lambda: self.rounds >= wanted or self.task.done, "the worker's work")
        assert not self.task.done

    def end(self, vm: Machine, share: Path) -> None:
        self.stop = True
        vm.schedule.wait(lambda: self.task.done, "the worker")
        self.task.result()
        assert (share / "worker" / "log").read_bytes() == b"".join(b"%08d" % at for at in range(self.rounds))


def places(state: StateBlob) -> dict[int, str]:
    """Nodeids and paths of what is open, below the folder that the worker leaves alone."""
    records = {record.id: record for record in state.inodes}
    found = {}
    for record in [records[number] for number in {handle.inode for handle in state.handles}]:
        names, at = [], record
        while at.location == PATH:
            names.append(at.name.decode())
            at = records[at.parent]
        if names and names[-1] != "worker" and names[0] not in ("ünï", "linked"):
            found[record.id] = "/".join(reversed(names))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_there_and_back_while_the_guest_works(ends, share, mode):
    vm = boot(ends, share, ROUND[0], mode)
    held = Held(vm, unlinked=mode.startswith("file-handles"))
    known = places(state_of(vm))
    worker = Worker(vm, removes=mode == "file-handles")
    worker.go_on()
    looked = meanwhile = 0
    for kind in ROUND[1:]:
        before = worker.rounds
        vm = vm.migrate(seams=ends[kind], progress=worker.during)
        meanwhile += worker.rounds - before
        looked += held.check(vm)
        worker.go_on()
        state = state_of(vm)
        assert places(state) == known
    worker.end(vm, share)
    vm.close()
    print(
        f"{mode}: {' > '.join(ROUND)}: {looked} looks at what is held, {len(known)} nodeids, "
        f"{worker.rounds} rounds of work, {meanwhile} of them during the hops"
    )
    assert meanwhile >= 10 * (len(ROUND) - 1)


def test_thousands_of_inodes(ends, share):
    """Nodeids, with their names, as the guest's cache of names has them; each still leads to its file."""
    for folder in range(50):
        (share / f"d{folder}").mkdir()
        for number in range(INODES // 50):
            (share / f"d{folder}" / f"f{number}").write_bytes(b"%d" % number)
    vm = boot(ends, share, "virtiofsd", "find-paths", dentries=8192)
    fs = vm.mount()
    for folder in range(50):
        for number in range(INODES // 50):
            fs.stat(f"/d{folder}/f{number}")
    fds = [fs.open(f"/d{number}/f{number}", os.O_RDONLY) for number in range(50)]
    known = where(state_of(vm))
    assert len(known) >= INODES + 50
    for kind in ROUND[1:]:
        vm = vm.migrate(seams=ends[kind])
        assert where(state_of(vm)) == known
        assert [fs.pread(fd, 9, 0) for fd in fds] == [b"%d" % number for number in range(50)]
        for folder in range(0, 50, 7):
            for number in range(0, INODES // 50, 9):
                assert fs.stat(f"/d{folder}/f{number}").st_size == len(b"%d" % number)
        known = where(state_of(vm))  # they have been looked up once more
    print(f"{' > '.join(ROUND)}: {len(known)} nodeids: parents, names and lookups are the same")
    vm.close()


@pytest.mark.parametrize(("source", "destination"), [("virtiofsd", "vmsim"), ("vmsim", "virtiofsd")])
def test_a_file_that_is_missing(ends, share, source, destination):
    """abort: the source goes on. guest-error: EIO for that file, all else as before, also a hop later."""
    vm = boot(ends, share, source, "find-paths", remote_locks=False, forget_batch=1)
    fs = vm.mount()
    fds = [fs.open(f"/{name}", os.O_RDWR | os.O_CREAT) for name in ("kept", "lost")]
    for fd in fds:
        fs.write(fd, b"content")
    elsewhere = share.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"content")
    with pytest.raises(MigrationError, match="loading back-end state"):
        vm.migrate(share=elsewhere, seams=ends[destination])
    assert [fs.pread(fd, 9, 0) for fd in fds] == [b"content"] * 2
    vm = vm.migrate(share=elsewhere, seams=ends[destination], options={"migration_on_error": "guest-error"})
    for kind in (source, destination, ""):
        assert fs.pread(fds[0], 9, 0) == b"content"
        for call, args in ((fs.pread, (9, 0)), (fs.fstat, ()), (fs.pwrite, (b"x", 0))):
            with pytest.raises(OSError, match="Input/output error"):
                call(fds[1], *args)
        assert [each.location for each in state_of(vm).inodes].count(INVALID) == 1
        if kind:
            vm = vm.migrate(seams=ends[kind])
    with pytest.raises(OSError, match="Input/output error"):
        fs.close(fds[1])  # FLUSH cannot succeed; RELEASE does
    fs.listdir("/")  # a request, before which FORGETs go out
    assert INVALID not in [each.location for each in state_of(vm).inodes]
    vm.close()
    print(
        f"{source} > {destination}: a missing file is refused, or an error node until it is closed"
    )


def where(state: StateBlob) -> dict[int, Any]:
    """What leads to each node, and how often the guest looked it up."""
    return {each.id: (each.refcount, each.location, each.parent, each.name) for each in state.inodes}
