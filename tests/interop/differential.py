"""One stream of FUSE requests at two servers: every reply compared, and the trees that come of it."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from devices.virtio_fs.state import blob
from devices.virtio_fs.state.records import PATH, StateBlob
from tests.interop.fuse_stream import OLD_NS, Ask, Stream, on
from tests.interop.test_our_stream import Pieces
from tests.support.attacker import Attacker
from vmsim.fuse import client
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_MODE, FATTR_MTIME, FATTR_MTIME_NOW, FATTR_SIZE
from vmsim.migration.byteio import StreamInput
from vmsim.vhost.dialects import DIALECTS

ENTRIES = (op.LOOKUP, op.MKNOD, op.MKDIR, op.SYMLINK, op.LINK, op.CREATE)
MAKES = (op.MKNOD, op.MKDIR, op.SYMLINK, op.LINK, op.CREATE)
OPENS = {op.OPEN: stat.S_IFREG, op.OPENDIR: stat.S_IFDIR, op.CREATE: stat.S_IFREG}
MTIME_NOW = FATTR_MTIME | FATTR_MTIME_NOW
TIMES = ("atime", "mtime", "ctime")


class Wire:
    """A machine whose guest's kernel is passed by: raw requests on its queue."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.attacker = Attacker(machine)
        machine.device.virtio.on_interrupt = lambda: None  # the kernel would take what is ours

    def call(self, data: bytes, room: int) -> bytes | None:
        """The reply, as far as it was written."""
        attacker = self.attacker
        attacker.memory.write(attacker.readable, data)
        ring = attacker.ring
        ring.add([(attacker.readable, len(data))], [(attacker.writable, room)] if room else [])
        ring.publish()
        ring.arm_interrupts()
        attacker.notify()
        used: list[Any] = []

        def there() -> bool:
            found = ring.reap()
            if found is not None:
                used.append(found)
            assert not attacker.needs_reset, "the device gave up"
            return bool(used)

        self.machine.schedule.wait(there, "a reply")
        return bytes(attacker.memory.read(attacker.writable, used[0][1]))


class Outcome(NamedTuple):
    """A reply: an errno and what came with it, plain."""

    error: int
    body: Any

    def __str__(self) -> str:
        return os.strerror(self.error) if self.error else str(self.body)[:600]


SET_IDS = stat.S_ISUID | stat.S_ISGID
"""Not compared: when a request says that they go, they go here, and there only with killpriv_v2. What is
right is in the permission table, against the host."""


class Difference(NamedTuple):
    """One intended difference: when it is one, and why ours is right."""

    name: str
    applies: Callable[[Ask, Outcome, Outcome], bool]
    why: str


class Replay:
    """A stream at two machines, ours first; differences are counted by name."""

    def __init__(self, ours: Any, theirs: Any, seed: int, differences: list[Difference]) -> None:
        self.wires = (Wire(ours), Wire(theirs))
        self.roots = (Path(ours.share), Path(theirs.share))
        self.stream = Stream(seed)
        self.differences = differences
        self.seen: Counter[str] = Counter()
        self.opcodes: Counter[str] = Counter()
        self.errors: Counter[int] = Counter()
        self.unique = 1 << 32
        self.asked = 0

    def step(self) -> None:
        """One request of the stream."""
        self.ask(self.stream.next())

    def ask(self, ask: Ask) -> tuple[Outcome, Outcome]:
        """Put it to both; AssertionError if they differ in a way that is not intended."""
        self.asked += 1
        self.unique += 2
        answers = []
        for side, wire in enumerate(self.wires):
            reply = wire.call(ask.bytes_for(side, self.unique), ask.room)
            size_query = ask.opcode in (op.GETXATTR, op.LISTXATTR) and ask.args[0] == 0
            answers.append(client.decode(ask.opcode, reply, self.unique, size_query=size_query))
        ours, theirs = (
            Outcome(answer.error, self.plain(ask, answer.body, side)) for side, answer in enumerate(answers)
        )
        self.opcodes[op.BY_NUMBER[ask.opcode].name] += 1
        self.errors[theirs.error] += 1
        if ours != theirs:
            self.excuse(ask, ours, theirs)
        self.learn(ask, answers)
        return ours, theirs

    def excuse(self, ask: Ask, ours: Outcome, theirs: Outcome) -> None:
        for row in self.differences:
            if row.applies(ask, ours, theirs):
                self.seen[row.name] += 1
                return
        raise AssertionError(f"request {self.asked}: {ask}\n  ours:   {ours}\n  theirs: {theirs}")

    # -- what may differ by its nature

    def plain(self, ask: Ask, body: Any, side: int) -> Any:
        """A body without the numbers that a server chooses, and without times of the host's clock."""
        if body is None:
            return None
        if ask.opcode in (op.READDIR, op.READDIRPLUS):
            return self.listing(ask, body, side)
        if ask.opcode == op.STATFS:
            return body._replace(bfree=0, bavail=0, ffree=0)
        if not hasattr(body, "_fields"):
            return body
        fields = body._asdict()
        fields["fh"] = 0
        if ask.opcode == op.LSEEK and ask.args[2] in (os.SEEK_DATA, os.SEEK_HOLE):
            fields["offset"] = 0  # ext4: what was written into preallocated space is data, or soon will be
        if "mtime" in fields and "ino" in fields:
            fields = self.attributes(ask, fields, side)
        return fields

    def attributes(self, ask: Ask, fields: dict[str, Any], side: int) -> dict[str, Any]:
        for name in TIMES:
            if name == "atime" and stat.S_ISDIR(fields["mode"]):
                fields[name], fields[name + "nsec"] = 0, 0  # who reads a directory how often is his business
            elif fields[name] > OLD_NS:
                fields[name], fields[name + "nsec"] = "now", 0
        if "nodeid" in fields:
            pair = [ref for ref in self.stream.nodes.values() if ref.pair[side] == fields["nodeid"]]
            fields["nodeid"] = pair[0].pair if pair else "new"
            known = pair[0] if pair else None
        else:
            known = ask.nodeid
        if known is not None and known.inos is not None:
            assert fields["ino"] == known.inos[side], f"inode number changed: {ask}"
        fields["mode"] &= ~SET_IDS
        fields["ino"] = fields["blocks"] = 0  # when a file system allocates is its own business
        return fields

    def listing(self, ask: Ask, body: bytes, side: int) -> Any:
        """Entries in the order of their names, with the place of their inodes in place of numbers."""
        places = self.places(side)
        rows = []
        if ask.opcode == op.READDIR:
            for dirent, name in client.decode_dirents(body):
                rows.append((name, dirent.type, places.get(dirent.ino, "?")))
        else:
            for entry, dirent, name in client.decode_direntplus(body):
                fields = self.attributes(ask, entry._asdict(), side) if entry.nodeid else {"nodeid": 0}
                rows.append((name, dirent.type, places.get(dirent.ino, "?"), sorted(fields.items())))
        return sorted(rows)

    def places(self, side: int) -> dict[int, str]:
        """Where each inode number of the share lies; the shortest of several names."""
        root = self.roots[side]
        found = {root.stat().st_ino: "."}
        stack = [""]
        while stack:
            folder = stack.pop()
            with os.scandir(root / folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = f"{folder}/{entry.name}".lstrip("/")
                    found.setdefault(entry.inode(), path)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(path)
        return found

    # -- what is known now

    def learn(self, ask: Ask, answers: list[client.Answer]) -> None:
        ours, theirs = answers
        if ask.opcode == op.FORGET:
            self.stream.forgotten(ask.nodeid, ask.args[0])
        elif ask.opcode == op.BATCH_FORGET:
            for ref, count in ask.forgets:
                self.stream.forgotten(ref, count)
        elif ours.error and theirs.error:
            self.repair(ask, theirs.error)
        elif ours.error or theirs.error:
            self.undo(ask, answers)
        elif ask.opcode in ENTRIES:
            self.entered(ask, ours.body, theirs.body)
        elif ask.opcode in OPENS:
            self.stream.opened((ours.body.fh, theirs.body.fh), ask.nodeid, OPENS[ask.opcode])
        elif ask.opcode in (op.RELEASE, op.RELEASEDIR):
            self.stream.released(ask)
        elif ask.opcode == op.READDIRPLUS:
            rows = [
                {name: entry for entry, _, name in client.decode_direntplus(body) if entry.nodeid}
                for body in (ours.body, theirs.body)
            ]
            for name, entry in sorted(rows[0].items()):
                if name in rows[1]:
                    self.entered(ask, entry, rows[1][name])
                else:
                    self.alone(0, Ask(op.FORGET, entry.nodeid, (1,), room=0))

    def entered(self, ask: Ask, ours: Any, theirs: Any) -> None:
        ref = self.stream.entered((ours.nodeid, theirs.nodeid), ours.mode, (ours.ino, theirs.ino))
        if ask.opcode == op.CREATE:
            self.stream.opened((ours.fh, theirs.fh), ref, OPENS[op.CREATE])

    def undo(self, ask: Ask, answers: list[client.Answer]) -> None:
        """An intended difference in which one side did something: it takes it back, or the other follows."""
        for side, answer in enumerate(answers):
            if answer.error:
                continue
            if ask.opcode == op.SETATTR:
                self.follow(1 - side, ask, answer.body)
            if ask.opcode == op.READDIRPLUS:
                for entry, _, _ in client.decode_direntplus(answer.body):
                    if entry.nodeid:
                        self.alone(side, Ask(op.FORGET, entry.nodeid, (1,), room=0))
            node = on(ask.nodeid, side)
            if ask.opcode in ENTRIES:
                node = answer.body.nodeid
            if ask.opcode in OPENS:
                kind = op.RELEASEDIR if OPENS[ask.opcode] == stat.S_IFDIR else op.RELEASE
                self.alone(side, Ask(kind, node, (answer.body.fh, 0, 0, 0)))
            if ask.opcode in ENTRIES:
                self.alone(side, Ask(op.FORGET, node, (1,), room=0))
            if ask.opcode in MAKES and not self.exists(1 - side, ask):
                kind = op.RMDIR if stat.S_ISDIR(answer.body.mode) else op.UNLINK
                self.alone(side, Ask(kind, on(ask.nodeid, side), (), ask.names[:1]))
                for each in (0, 1):  # it has changed the directory's times
                    self.alone(each, Ask(op.SETATTR, ask.nodeid, (MTIME_NOW, *[0] * 15)))

    def repair(self, ask: Ask, error: int) -> None:
        """virtiofsd's CREATE counts a lookup of what it then cannot open, and its client never knows."""
        if ask.opcode == op.CREATE and error in (errno.EISDIR, errno.EBADF):
            found = self.alone(1, Ask(op.LOOKUP, ask.nodeid, (), ask.names))
            if not found.error:
                self.alone(1, Ask(op.FORGET, found.body.nodeid, (2,), room=0))
                self.seen["CREATE's lookup"] += 1

    def follow(self, side: int, ask: Ask, body: Any) -> None:
        """What the other side's SETATTR did to size and mode."""
        args = [0] * 16
        args[0] = ask.args[0] & FATTR_SIZE | FATTR_MODE
        args[2 + 1], args[11] = body.size, body.mode
        if not stat.S_ISLNK(body.mode):
            self.alone(side, Ask(op.SETATTR, ask.nodeid, tuple(args)))

    def exists(self, side: int, ask: Ask) -> bool:
        """Whether the name that a request was to make is there on the side that refused."""
        found = self.alone(side, Ask(op.LOOKUP, ask.nodeid, (), ask.names[:1]))
        if found.error:
            return False
        if ask.opcode == op.CREATE and ask.args[0] & os.O_TRUNC:
            self.alone(side, Ask(op.SETATTR, found.body.nodeid, (FATTR_SIZE, *[0] * 15)))
        self.alone(side, Ask(op.FORGET, found.body.nodeid, (1,), room=0))
        return True

    def alone(self, side: int, ask: Ask) -> client.Answer:
        self.unique += 2
        reply = self.wires[side].call(ask.bytes_for(side, self.unique), ask.room)
        return client.decode(ask.opcode, reply, self.unique)

    # -- the trees

    def compare_trees(self) -> int:
        """Names, kinds, modes, owners, content, attributes of both shares; how many files there are."""
        trees = [tree(root) for root in self.roots]
        for path in trees[0].keys() | trees[1].keys():
            ours, theirs = (found.get(path) for found in trees)
            why = f"after {self.asked} requests: {path}\n  ours:   {ours}\n  theirs: {theirs}"
            assert ours == theirs, why
        return len(trees[0])

    def compare_states(self) -> int:
        """The states that both save: nodes, their lookups, handles; how many nodes."""
        nodes = {ref.pair[1]: ref.pair[0] for ref in self.stream.nodes.values()}
        handles = {ref.pair[1]: ref.pair[0] for ref in self.stream.handles}
        ours, theirs = (state_of(wire.machine) for wire in self.wires)
        counts = lookups(theirs)
        found = {nodes.get(number, f"unknown {number}"): count for number, count in counts.items()}
        compare(found, {number: count for number, count in lookups(ours).items() if number in nodes.values()})
        # The flags of a handle are as the server saw fit to open it; those without a node end with the guest.
        opened = {handles[each.id]: nodes[each.inode] for each in theirs.handles if each.inode in nodes}
        compare(opened, {each.id: each.inode for each in ours.handles if each.inode in nodes.values()})
        return len(found)


def compare(theirs: dict[Any, int], ours: dict[Any, int]) -> None:
    """AssertionError with what differs, by our numbers."""
    odd = {key: (ours.get(key), theirs.get(key)) for key in ours.keys() | theirs.keys()}
    odd = {key: pair for key, pair in odd.items() if pair[0] != pair[1]}
    assert not odd, f"(ours, theirs): {odd}"


def state_of(machine: Any) -> StateBlob:
    """What the back-end of a machine saves; the machine goes on."""
    machine.pause()
    data = b"".join(machine.device.frontend.save_backend_state())
    machine.resume()
    stream = StreamInput(Pieces(data))
    return blob.decode(DIALECTS["upstream"].read_state(stream.read))[0]


def lookups(state: StateBlob) -> dict[int, int]:
    """The guest's lookups by nodeid: a child whose place is its parent's counts in the blob as well."""
    children = Counter(record.parent for record in state.inodes if record.location == PATH)
    counts = {record.id: record.refcount - children[record.id] for record in state.inodes}
    return {number: count for number, count in counts.items() if count > 0}


def tree(root: Path) -> dict[str, Any]:
    """Everything about every file below ``root`` by its path."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = look(path)
    return found


def look(path: str) -> Any:
    st = os.lstat(path)
    content: Any = None
    if stat.S_ISREG(st.st_mode):
        content = sparse(path) if st.st_size < 1 << 32 else st.st_size
    elif stat.S_ISLNK(st.st_mode):
        content = os.readlink(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    mtime = st.st_mtime_ns if st.st_mtime < OLD_NS else "now"
    who = oct(st.st_mode & ~SET_IDS), st.st_nlink, st.st_uid, st.st_gid
    return (*who, st.st_size, st.st_rdev, mtime, xattrs, content)


def sparse(path: str) -> list[tuple[int, bytes]]:
    """The pages of a file that are not zero."""
    pages = []
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) & ~4095
            except OSError:
                break
            page = os.pread(file.fileno(), 4096, at)
            if page.strip(b"\0"):
                pages.append((at, page))
            at += 4096
    return pages
