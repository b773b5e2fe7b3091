"""A program that ends in a call, at any of its requests, leaves nothing behind, here or at the server."""

from __future__ import annotations

import itertools
import os
import stat

import pytest

from tests.support.guest_calls import CALLS, ELSEWHERE, QUIET, TREE, plant
from tests.support.guest_rig import GuestRig
from tests.support.sampling import sample
from vmsim.fuse import opcodes as op
from vmsim.guest.calls import context
from vmsim.guest.calls.posix import GuestFs
from vmsim.guest.state import QUEUED

KINDS = {
    "plain": {},
    "asked": {},
    "names": {"dentries": 64, "options": {"cache": "always"}},
    "writethrough": {"cache": "writethrough", "cache_pages": 32, "dentries": 64},
    "writeback": {"cache": "writeback", "cache_pages": 32, "dentries": 64, "options": {"writeback": True}},
}
"""``asked`` looks at attributes before each step: its program is one whose rights must be looked up."""
FULL = ("in the backlog", "again in the backlog", "moved in the backlog", "interrupted")
WAYS = ("in flight", "again", "answered", "moved", "stopped for a while", *FULL, "refused")
PAIRS = [
    (tuple(KINDS)[(at + step) % len(KINDS)], call) for at, call in enumerate(CALLS) for step in (0, 2)
]
"""Each call in two kinds of guest, each kind with two of five calls: all 405 pairs take many minutes."""
MEMBERS = sample(PAIRS, 20, "killed programs")


class Stage:
    """A guest with a program in a call, whose requests are served one by one."""

    def __init__(self, share, kind, name):
        self.rig = GuestRig(share, memory_bytes=4 << 20, queue_size=8, slots=6, **KINDS[kind])
        self.device, self.schedule, self.fs = self.rig.device, self.rig.schedule, self.rig.fs
        self.own = self.fs.open("/", os.O_DIRECTORY)
        self.before = self.ledger()
        self.lies(share)  # which are none; the caches are full now
        self.program = self.fs.fork()
        if kind == "asked":
            self.program.process.capabilities = (1 << 41) - 1
        self.fds = [self.program.open("/f", os.O_RDWR), self.program.open("/d/b", os.O_RDWR)]
        self.fds.append(self.program.open("/d", os.O_DIRECTORY))
        self.device.hold = True
        self.fillers = []
        self.begin = lambda: self.schedule.spawn(name, lambda: CALLS[name](self.program, *self.fds))

    @property
    def kernel(self):
        return self.rig.kernel

    def ledger(self):
        """What guest and server hold for one another, and what is taken of the guest's memory."""
        self.fs.drop_caches()
        kernel, state, server = self.kernel, self.kernel.state, self.rig.server
        lookups = {inode.id: inode.nlookup for inode in server.inodes if inode.id != 1}
        for nodeid, node in state.nodes.items():
            lookups[nodeid] = lookups.get(nodeid, 0) - node.nlookup
        return {
            "handles": [(handle.id, handle.inode.id) for handle in server.handles],
            "lookups that nobody owes": {nodeid: lookups[nodeid] for nodeid in lookups if lookups[nodeid]},
            "descriptions": {number: file.refs for number, file in state.files.items()},
            "references": {nodeid: node.refs for nodeid, node in state.nodes.items()},
            "truncating": [nodeid for nodeid, node in state.nodes.items() if node.truncating],
            "memory": kernel.allocator.free_bytes,
            "frames": kernel.pages and len(kernel.pages._free),
            "requests": list(state.requests),
            "processes": list(state.processes),
            "locks": list(state.local_locks),
        }

    def lies(self, share):
        """What the guest's caches say of the tree that is not so on the host."""
        wrong = []
        self.fs.sync()
        for name in ("", *TREE, "d/x", "empty/x"):
            there = os.path.lexists(share / name)
            if self.fs.access("/" + name, os.F_OK, follow_symlinks=False) != there:
                wrong.append((name, "existence", there))
            elif there:
                own, host = self.fs.lstat("/" + name), os.lstat(share / name)
                if [own.st_size, own.st_mode, own.st_nlink] != [host.st_size, host.st_mode, host.st_nlink]:
                    wrong.append((name, own, host))
                elif stat.S_ISREG(own.st_mode):
                    with self.fs.open_file("/" + name, "rb") as file:
                        if file.read() != (share / name).read_bytes():
                            wrong.append((name, "content"))
        return wrong

    def fill(self):
        """Leave no room in the ring: what is sent next stays in the backlog."""
        while len(self.kernel.queues[1].state.backlog) < 3:
            self.fillers.append(self.fs.submit_stat(self.own))

    def go(self, way, count):
        """Let the call come to its request ``count``; the task, or None if it has not that many."""
        full = way in FULL
        for at in range(count + 1):
            if at == count and full:
                self.fill()
            if not at:
                task = self.begin()
            else:
                others, self.device.held = self.device.held[1:], self.device.held[:1]
                self.device.serve()
                self.device.held += others
            self.schedule.settle()
            if task.done:
                return None
        pid = self.program.pid
        assert any(r.pid == pid and (r.status == QUEUED) == full for r in self.kernel.requests.values())
        return task

    def end(self, way, task):
        """End the call, and have everything served that is under way then."""
        if way == "interrupted":
            self.program.interrupt(self.program.pid)
        elif way == "refused":
            self.device.before = refuse
            self.device.serve()
            self.device.before = None
        else:
            if way == "answered":
                self.device.serve()
            if way.startswith(("moved", "stopped")):
                self.kernel.pause()
            self.schedule.kill(task)
            if way.startswith("moved"):
                self.rig.clone(self.schedule.settle)
        self.schedule.settle()
        self.kernel.resume()
        self.schedule.settle()
        if way.startswith("again"):
            self.schedule.close()
        self.device.hold = False
        while self.device.held:
            self.device.serve()
            self.schedule.settle()
            self.kernel.poll()
        assert task.done
        for pending in self.fillers:
            self.fs.result(pending)


def refuse(chain):
    """Answer EIO, unless something is given back by that."""
    opcode = int.from_bytes(bytes(chain.readable[0])[4:8], "little")
    if opcode in GIVES_BACK:
        return None
    header = (16).to_bytes(4, "little") + (-5 & 0xFFFFFFFF).to_bytes(4, "little")
    chain.writable[0][:16] = header + bytes(chain.readable[0])[8:16]
    return 16


GIVES_BACK = (op.RELEASE, op.RELEASEDIR)
"""What a server refuses of these it keeps, and nobody would ask again."""


def test_all_calls_are_there(rig):
    fs = rig().fs
    facade = {name for name in dir(fs) if not name.startswith("_") and callable(getattr(fs, name))}
    made = {name.partition(",")[0] for name in CALLS}
    assert made | ELSEWHERE.keys() | QUIET == facade
    assert isinstance(fs, GuestFs)


@pytest.mark.parametrize(("kind", "name"), MEMBERS)
def test_a_killed_program_leaves_nothing(tmp_path, kind, name):
    left = []
    for way in WAYS:
        for count in itertools.count():
            share = tmp_path / f"{way} {count}"
            plant(share)
            stage = Stage(share, kind, name)
            task = stage.go(way, count)
            if task is not None:
                stage.end(way, task)
                if stage.program.pid in stage.kernel.state.processes:
                    stage.program.exit()
                left += [f"{way}, request {count}: {lie}" for lie in stage.lies(share)]
                after = stage.ledger()
                left += [
                    f"{way}, request {count}: {what} {stage.before[what]} -> {after[what]}"
                    for what in after if after[what] != stage.before[what]
                ]  # fmt: skip
            stage.schedule.close()
            stage.rig.close()
            if task is None:
                break
    assert not left, "\n".join(left)


@pytest.fixture
def stage(tmp_path):
    plant(tmp_path)
    made = Stage(tmp_path, "plain", "stat")
    made.device.hold = False
    yield made
    made.schedule.close()
    made.rig.close()


@pytest.mark.parametrize("path", ["/f", "/d"])
def test_the_last_user_of_a_closed_file_is_killed(stage, path):
    fs = stage.program
    fd = fs.open(path, os.O_RDONLY)
    stage.device.hold = True
    last = stage.schedule.spawn("last", lambda: fs.read(fd, 1) if path == "/f" else fs.getdents(fd))
    stage.schedule.settle()
    closing = stage.schedule.spawn("closing", lambda: fs.close(fd))
    stage.schedule.settle()
    stage.end("in flight", last)
    stage.schedule.join(closing)
    fs.exit()
    assert stage.ledger() == stage.before


OPENS = [name for name in CALLS if name.partition(",")[0] in ("open", "openat", "scandir", "open_file")]


@pytest.mark.parametrize("name", OPENS)
def test_no_descriptor_is_left(stage, name, monkeypatch):
    monkeypatch.setattr(context, "FD_MAX", max(stage.fds) + 1)
    with pytest.raises(OSError, match="Too many open files"):
        CALLS[name](stage.program, *stage.fds)
    stage.program.exit()
    assert stage.ledger() == stage.before


def test_dup2_beyond_the_last_descriptor(stage):
    with pytest.raises(OSError, match="Bad file descriptor"):
        stage.program.dup2(0, context.FD_MAX)
    stage.program.exit()
    assert stage.ledger() == stage.before


@pytest.mark.parametrize("flags", [os.O_CREAT | os.O_RDWR, os.O_TMPFILE | os.O_RDWR])
@pytest.mark.parametrize(("at", "value"), [(116, 0o40755), (16, 1), (16, 0)], ids=["kind", "root", "known"])
def test_an_impossible_reply_to_a_creation(stage, flags, at, value):
    """The server made the file, and says something of it that cannot be: its handle goes back."""
    released = []
    if not value:
        nodes = stage.kernel.state.nodes.values()
        value = next(node.id for node in nodes if node.id != 1 and stat.S_ISDIR(node.attr.mode))

    def spoil(chain):
        opcode = int.from_bytes(bytes(chain.readable[0])[4:8], "little")
        if opcode == op.RELEASE:
            released.append(True)
        if opcode not in (op.CREATE, op.TMPFILE):
            return None
        written = stage.rig.session.handle(chain.readable, chain.writable, None)
        size = 4 if at > 16 else 8
        chain.writable[0][at : at + size] = value.to_bytes(size, "little")
        return written

    stage.device.before = spoil
    with pytest.raises(OSError, match="Input/output error"):
        stage.program.open("/d/x" if flags & os.O_CREAT else "/d", flags)
    assert released
    stage.device.before = None
    stage.program.exit()
    after = stage.ledger()
    assert at == 16 or after == stage.before  # who was told of another file's handle keeps it


def test_requests_that_nobody_asked_the_result_of(stage):
    fd = stage.program.open("/f", os.O_RDWR)
    stage.program.submit_read(fd, 100, 0)
    stage.device.hold = True
    stage.program.submit_read(fd, 100, 0)
    stage.device.hold = False
    stage.program.exit()
    stage.device.serve()
    assert stage.ledger() == stage.before


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("refused", "interrupted")])
@pytest.mark.parametrize("count", range(3))
def test_data_that_was_written_is_not_killed(tmp_path, way, count):
    """The page cache has taken it, and write has said so: whoever is killed writing it out, it gets there."""
    plant(tmp_path)
    stage = Stage(tmp_path, "writeback", "fsync")
    stage.device.hold = False
    fd = stage.program.open("/empty/new", os.O_CREAT | os.O_RDWR)
    stage.program.write(fd, b"new" * 5000)
    stage.device.hold = True
    stage.begin = lambda: stage.schedule.spawn("fsync", lambda: stage.program.fsync(fd))
    task = stage.go(way, count)
    if task is not None:
        stage.end(way, task)
    stage.device.hold = False
    stage.device.serve()
    stage.program.exit()
    assert (tmp_path / "empty/new").read_bytes() == b"new" * 5000
    assert stage.ledger() == stage.before
    stage.schedule.close()
    stage.rig.close()


def test_a_lock_is_not_granted_to_a_program_that_was_killed(rig):
    made = rig()
    fs = made.fs
    other = fs.fork()
    fd, fd2 = fs.open("/f", os.O_RDWR | os.O_CREAT), other.open("/f", os.O_RDWR)
    fs.lockf(fd, os.F_LOCK, 0)
    task = made.schedule.spawn("waiter", lambda: other.lockf(fd2, os.F_LOCK, 0))
    made.schedule.settle()
    made.schedule.kill(task)
    other.exit()
    fs.lockf(fd, os.F_ULOCK, 0)
    assert list(made.server.locks.held()) == []
