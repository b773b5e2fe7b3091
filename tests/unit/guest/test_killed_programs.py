"""A program that ends in a call, at any of its requests, leaves nothing behind, here or at the server."""

from __future__ import annotations

import itertools
import os

import pytest

from tests.support.guest_calls import CALLS, ELSEWHERE, QUIET, plant
from tests.support.guest_rig import GuestRig
from tests.support.sampling import sample
from vmsim.fuse import opcodes as op
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
FULL = ("in the backlog", "again in the backlog", "interrupted")
WAYS = ("in flight", "again", "answered", *FULL, "refused")
MEMBERS = sample(itertools.product(KINDS, CALLS), 20, "killed programs")


class Stage:
    """A guest with a program in a call, whose requests are served one by one."""

    def __init__(self, share, kind, name):
        self.rig = GuestRig(share, memory_bytes=4 << 20, queue_size=8, slots=6, **KINDS[kind])
        self.device, self.schedule, self.fs = self.rig.device, self.rig.schedule, self.rig.fs
        self.own = self.fs.open("/d/e", os.O_DIRECTORY)
        self.before = self.ledger()
        self.program = self.fs.fork()
        if kind == "asked":
            self.program.process.capabilities = (1 << 41) - 1
        fds = [self.program.open("/f", os.O_RDWR), self.program.open("/d/b", os.O_RDWR)]
        fds.append(self.program.open("/d", os.O_DIRECTORY))
        self.device.hold = True
        self.fillers = []
        self.begin = lambda: self.schedule.spawn(name, lambda: CALLS[name](self.program, *fds))

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
            self.schedule.kill(task)
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
