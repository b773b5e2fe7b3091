"""A mount below the share whose server does not answer holds up who asks it, and nobody else."""

from __future__ import annotations

import errno
import os
import struct
import threading
from contextlib import suppress

import pytest

from devices.virtio_fs.backend import VirtioFsBackend
from devices.virtio_fs.passthrough import slow
from tests.support.backend_rig import Driver
from tests.support.costs import CountingHost
from tests.support.slow_mount import CONTENT, SlowMount
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi import flags as f
from vmsim.fuse.client import decode
from vmsim.host.fs import LinuxFs
from vmsim.host.workers import Workers
from vmsim.limits import FUSE_ALLOCATE_MAX, WORKERS_PER_KEY

WAIT_S = 30


class Served(Driver):
    """A back-end with a pool; ``until`` joins results."""

    def __init__(self, share):
        self.pool = Workers(LinuxFs)
        super().__init__(VirtioFsBackend(LinuxFs(), share, pool=self.pool))
        self.init()

    def until(self, ready, what):
        """Join results until ``ready()``."""
        for _ in range(WAIT_S * 10):
            if ready():
                return
            self.pool.wait(100_000_000)
            self.backend.join_aside()
        raise AssertionError(f"{what}: not within {WAIT_S} s; {self.pool.pending} calls are out")

    def answered(self, opcode, *args, **kwargs):
        """The body of a reply that may come later; OSError as it says."""
        chain = self.send(opcode, *args, **kwargs)
        if not hasattr(chain, "reply"):
            return chain
        unique = self.unique
        name = op.BY_NUMBER[opcode].name
        self.until(lambda: chain in [done for done, _ in self.done], f"the answer to {name}")
        return self.reply_to(opcode, chain, unique)

    def reply_to(self, opcode, chain, unique):
        written = {id(done): count for done, count in self.done}[id(chain)]
        answer = decode(opcode, bytes(chain.reply[:written]), unique)
        if answer.error:
            raise OSError(answer.error, os.strerror(answer.error))
        return answer.body


@pytest.fixture
def share(tmp_path):
    share = tmp_path / "share"
    (share / "slow").mkdir(parents=True)
    (share / "a").write_bytes(b"local")
    return share


@pytest.fixture
def mount(share):
    mount = SlowMount(share / "slow")
    yield mount
    mount.close()


@pytest.fixture
def served(share, mount):
    served = Served(share)
    yield served
    mount.answer()
    served.backend.close()
    served.until(lambda: not served.pool.pending, "the end of all calls")
    served.pool.close()


@pytest.fixture
def known(served):
    """Everything below the mount is known and open before it hangs."""
    served.root = served.answered(op.LOOKUP, 1, (), (b"slow",)).nodeid
    served.file = served.answered(op.LOOKUP, served.root, (), (b"x",)).nodeid
    served.fh = served.answered(op.OPEN, served.file, (os.O_RDWR, 0)).fh
    served.dh = served.answered(op.OPENDIR, served.root, (0, 0)).fh
    served.local = served.answered(op.LOOKUP, 1, (), (b"a",)).nodeid
    served.local_fh = served.answered(op.OPEN, served.local, (os.O_RDWR, 0)).fh
    return served


def attributes(valid, **values):
    return (valid, 0, 0, values.get("size", 0), *[0] * 12)


REQUESTS = {
    "LOOKUP of the mount": lambda d: d.send(op.LOOKUP, 1, (), (b"slow",)),
    "LOOKUP": lambda d: d.send(op.LOOKUP, d.root, (), (b"x",)),
    "GETATTR": lambda d: d.send(op.GETATTR, d.file, (0, 0, 0)),
    "GETATTR of the mount": lambda d: d.send(op.GETATTR, d.root, (0, 0, 0)),
    "GETATTR by handle": lambda d: d.send(op.GETATTR, d.file, (1, 0, d.fh)),
    "STATX": lambda d: d.send(op.STATX, d.file, (0, 0, 0, 0, 0xFFF)),
    "SETATTR": lambda d: d.send(op.SETATTR, d.file, attributes(f.FATTR_SIZE, size=3)),
    "OPEN": lambda d: d.send(op.OPEN, d.file, (os.O_RDONLY, 0)),
    "OPENDIR": lambda d: d.send(op.OPENDIR, d.root, (0, 0)),
    "READ": lambda d: d.send(op.READ, d.file, (d.fh, 0, 8, 0, 0, 0, 0), size=8),
    "READDIR": lambda d: d.send(op.READDIR, d.root, (d.dh, 0, 4096, 0, 0, 0, 0), size=4096),
    "READDIRPLUS": lambda d: d.send(op.READDIRPLUS, d.root, (d.dh, 0, 4096, 0, 0, 0, 0), size=4096),
    "STATFS": lambda d: d.send(op.STATFS, d.file),
    "FSYNC": lambda d: d.send(op.FSYNC, d.file, (d.fh, 0, 0)),
    "FLUSH": lambda d: d.send(op.FLUSH, d.file, (d.fh, 0, 0, 0)),
    "CREATE": lambda d: d.send(op.CREATE, d.root, (os.O_RDWR, 0o600, 0, 0), (b"new",)),
    "MKDIR": lambda d: d.send(op.MKDIR, d.root, (0o700, 0), (b"new",)),
    "UNLINK": lambda d: d.send(op.UNLINK, d.root, (), (b"x",)),
    "RENAME into it": lambda d: d.send(op.RENAME, 1, (d.root,), (b"a", b"b")),
    "LINK into it": lambda d: d.send(op.LINK, d.root, (d.local,), (b"b",)),
    "GETXATTR": lambda d: d.send(op.GETXATTR, d.file, (0, 0), (b"user.x",)),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_only_who_asks_waits(known, mount, name):
    mount.hang()
    chain = REQUESTS[name](known)
    unique = known.unique
    assert hasattr(chain, "reply"), f"{name} is answered at once: {chain}"
    assert known.send(op.GETATTR, known.local, (0, 0, 0)).size == 5
    assert known.send(op.LOOKUP, 1, (), (b"a",)).nodeid == known.local
    assert known.send(op.READ, known.local, (known.local_fh, 0, 8, 0, 0, 0, 0), size=8) == b"local"
    root = known.send(op.OPENDIR, 1, (0, 0)).fh
    assert b"slow" in known.send(op.READDIRPLUS, 1, (root, 0, 4096, 0, 0, 0, 0), size=4096)
    assert known.done == [] or chain not in [done for done, _ in known.done]
    mount.answer()
    known.until(lambda: chain in [done for done, _ in known.done], f"the answer to {name}")
    failure = None
    try:
        known.reply_to(op.BY_NAME[name.split()[0]].number, chain, unique)
    except OSError as error:
        failure = error.errno
    assert failure in (None, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOENT, errno.EPERM)


def test_what_it_answers_is_right(known):
    assert known.answered(op.READ, known.file, (known.fh, 0, 64, 0, 0, 0, 0), size=64) == CONTENT
    assert known.answered(op.GETATTR, known.file, (0, 0, 0)).size == len(CONTENT)
    entries = known.answered(op.READDIRPLUS, known.root, (known.dh, 0, 4096, 0, 0, 0, 0), size=4096)
    assert b"x" in entries


def test_closing_never_waits(known, mount):
    """Linux tells a FUSE server of each close, and waits: somebody else does."""
    mount.hang()
    known.send(op.RELEASE, known.file, (known.fh, 0, 0, 0))
    assert known.send(op.GETATTR, known.local, (0, 0, 0)).size == 5
    known.backend.reset()  # closes the rest
    known.init()
    assert known.send(op.LOOKUP, 1, (), (b"a",)).size == 5


def test_a_reset_ends_who_waits(known, mount):
    mount.hang()
    chain = REQUESTS["OPEN"](known)
    descriptors = known.backend.fs.handles
    known.backend.reset()
    known.init()
    assert len(descriptors) == 0
    mount.answer()
    known.until(lambda: not known.pool.pending, "the end of the call")
    assert chain not in [done for done, _ in known.done]
    assert len(descriptors) == 0, "what was opened for a session that is over belongs to none"
    assert known.answered(op.LOOKUP, known.answered(op.LOOKUP, 1, (), (b"slow",)).nodeid, (), (b"x",)).nodeid


def test_it_cannot_be_parked(known, mount):
    """It may have happened already: only its end ends it. A migration waits for a while, and then fails."""
    mount.hang()
    chain = REQUESTS["FSYNC"](known)
    assert known.backend.parked(1) == []
    mount.answer()
    known.until(lambda: chain in [done for done, _ in known.done], "the answer")


def test_an_interrupt_changes_nothing(known, mount):
    mount.hang()
    chain = REQUESTS["FSYNC"](known)
    known.backend.handle(0, known.chain(op.INTERRUPT, 0, (known.unique,)), None)
    mount.answer()
    known.until(lambda: chain in [done for done, _ in known.done], "the answer")


def test_the_state_is_saved_all_the_same(known, mount):
    """What the dead mount does not tell is left out, or an error; nobody waits for it for ever."""
    mount.hang()
    known.backend.log_started()
    while known.backend.idle():
        pass
    with suppress(TimeoutError):
        assert b"".join(known.backend.save_state())


def test_forgotten_while_a_request_is_under_way(known, mount):
    mount.hang()
    chain = REQUESTS["GETATTR"](known)
    other = REQUESTS["LOOKUP"](known)
    known.backend.handle(0, known.chain(op.FORGET, known.file, (1,)), None)
    known.backend.handle(0, known.chain(op.FORGET, known.root, (1,)), None)
    mount.answer()
    for each in (chain, other):
        known.until(lambda each=each: each in [done for done, _ in known.done], "the answer")


def test_many_at_once_use_a_bounded_number_of_threads(known, mount):
    mount.hang()
    before = set(threading.enumerate())
    chains = [REQUESTS["GETATTR"](known) for _ in range(100)]
    assert len(set(threading.enumerate()) - before) <= WORKERS_PER_KEY
    assert known.send(op.GETATTR, known.local, (0, 0, 0)).size == 5
    mount.answer()
    wanted = {id(chain) for chain in chains}
    known.until(lambda: wanted <= {id(done) for done, _ in known.done}, "the answers")


def test_a_mount_that_comes_later_is_noticed(share):
    served = Served(share)
    late = SlowMount(share / "slow")
    try:
        served.backend.mounts_changed()
        late.hang()
        assert hasattr(served.send(op.LOOKUP, 1, (), (b"slow",)), "reply")
        late.answer()
        served.until(lambda: not served.pool.pending, "the end of the call")
    finally:
        late.answer()
        served.backend.close()
        served.until(lambda: not served.pool.pending, "the end of all calls")
        served.pool.close()
        late.close()


def test_a_plain_share_needs_no_thread(share):
    before = set(threading.enumerate())
    served = Served(share)
    try:
        node = served.send(op.LOOKUP, 1, (), (b"a",)).nodeid
        fh = served.send(op.OPEN, node, (os.O_RDWR, 0)).fh
        served.send(op.WRITE, node, (fh, 0, 4, 0, 0, 0, 0), names=())
        served.send(op.FALLOCATE, node, (fh, 0, 4096, 0, 0))
        assert not set(threading.enumerate()) - before
        assert served.answered(op.FSYNC, node, (fh, 0, 0)) is None
    finally:
        served.backend.close()
        served.pool.close()


LARGE, SMALL = b"large", b"small"


FREEING = {
    "SETATTR": lambda d, node, fh, name: d.send(op.SETATTR, node, attributes(f.FATTR_SIZE, size=1)),
    "SETATTR by handle": lambda d, node, fh, name: d.send(
        op.SETATTR, node, (f.FATTR_SIZE | f.FATTR_FH, 0, fh, 1, *[0] * 12)
    ),
    "OPEN": lambda d, node, fh, name: d.send(op.OPEN, node, (os.O_WRONLY | os.O_TRUNC, 0)),
    "CREATE": lambda d, node, fh, name: d.send(
        op.CREATE, 1, (os.O_WRONLY | os.O_TRUNC, 0o600, 0, 0), (name,)
    ),
    "UNLINK": lambda d, node, fh, name: d.send(op.UNLINK, 1, (), (name,)),
    "RENAME": lambda d, node, fh, name: d.send(op.RENAME, 1, (1,), (b"a", name)),
    "RENAME2": lambda d, node, fh, name: d.send(op.RENAME2, 1, (1, 0, 0), (b"a", name)),
}  # fmt: skip
"""Requests that free the space of a file."""


@pytest.fixture(params=["disk", "memory"])
def plain(request, share, monkeypatch):
    """A share where what is larger than 32 KiB counts as large, on a disk and in memory."""
    monkeypatch.setattr(slow, "SECTORS_MAX", 64)
    if request.param == "memory":
        monkeypatch.setattr(slow, "MEMORY", slow.FAST)
    for name, size in ((LARGE, 1 << 16), (SMALL, 1 << 12)):
        (share / os.fsdecode(name)).write_bytes(b"x" * size)
        os.sync()
    served = Served(share)
    yield served
    served.until(lambda: not served.pool.pending, "the end of all calls")
    served.backend.close()
    served.until(lambda: not served.pool.pending, "the end of all closes")
    served.pool.close()


@pytest.mark.parametrize("name", FREEING)
def test_who_frees_much_space_holds_up_nobody(plain, name):
    """Gigabytes take a file system seconds to free: that is done aside, what is small at once."""
    share = os.fsdecode(plain.backend.fs.share)
    for file in (SMALL, LARGE):
        if not os.path.exists(f"{share}/a"):
            os.link(f"{share}/small", f"{share}/a")  # for the second RENAME
        node = plain.send(op.LOOKUP, 1, (), (file,)).nodeid
        fh = plain.answered(op.OPEN, node, (os.O_RDWR, 0)).fh
        chain = FREEING[name](plain, node, fh, file)
        assert hasattr(chain, "reply") == (file is LARGE), f"{name} of {file}: {chain}"
        if file is LARGE:
            unique = plain.unique
            plain.until(lambda it=chain: it in [done for done, _ in plain.done], f"the answer to {name}")
            plain.reply_to(op.BY_NAME[name.split()[0]].number, chain, unique)
    size = plain.send(op.GETATTR, node, (0, 0, 0))
    assert size.size <= 1 or size.nlink == 0


def test_what_is_small_costs_no_call_more_than_without_a_pool(tmp_path):
    """How much space goes is seen in the look that is taken in any case, or known without."""
    spent = {}
    for pool in (None, Workers(LinuxFs)):
        share = tmp_path / ("plain" if pool is None else "pooled")
        share.mkdir()
        for name in ("a", "b"):
            (share / name).touch()
        host = CountingHost()
        driver = Driver(VirtioFsBackend(host, share, pool=pool))
        driver.init()
        node = driver.send(op.LOOKUP, 1, (), (b"a",)).nodeid
        driver.send(op.LOOKUP, 1, (), (b"b",))
        host.calls.clear()
        fh = driver.send(op.OPEN, node, (os.O_RDWR, 0)).fh
        driver.send(op.RELEASE, node, (fh, 0, 0, 0))
        for name in (b"new", b"a"):
            made = driver.send(op.CREATE, 1, (os.O_RDWR | os.O_TRUNC, 0o600, 0, 0), (name,))
            driver.send(op.RELEASE, made.nodeid, (made.fh, 0, 0, 0))
        driver.send(op.RENAME, 1, (1,), (b"new", b"newer"))
        driver.send(op.RENAME2, 1, (1, 0, 0), (b"newer", b"b"))
        driver.send(op.UNLINK, 1, (), (b"b",))
        host.calls["identify_at"] += host.calls.pop("identify_name", 0)  # one says more than the other
        spent[pool is None] = dict(host.calls)
        driver.backend.close()
        if pool is not None:
            pool.close()
    emptying = spent[False].pop("fstat") - spent[True].pop("fstat", 0)
    assert emptying == 1, "O_TRUNC of a file that is there, which nobody looks at otherwise"
    assert spent[False] == spent[True]


def test_long_allocations_leave_the_loop_on_every_file_system(plain):
    node = plain.send(op.LOOKUP, 1, (), (SMALL,)).nodeid
    fh = plain.send(op.OPEN, node, (os.O_RDWR, 0)).fh
    for length, mode, aside in ((4096, 0, False), (FUSE_ALLOCATE_MAX + 1, 1, True), (4096, 3, True)):
        chain = plain.send(op.FALLOCATE, node, (fh, 0, length, mode, 0))
        assert hasattr(chain, "reply") == aside, f"{length} bytes, mode {mode}: {chain}"
        plain.until(lambda: not plain.pool.pending, "the end of the call")


@pytest.mark.parametrize("last", ["RELEASE", "FORGET"])
def test_the_last_user_of_a_large_file_does_not_free_it_in_the_loop(plain, last):
    """Without a name the space goes with the last descriptor, whoever has it."""
    node = plain.send(op.LOOKUP, 1, (), (LARGE,)).nodeid
    fh = plain.send(op.OPEN, node, (os.O_RDWR, 0)).fh
    plain.send(op.UNLINK, 1, (), (LARGE,))
    plain.until(lambda: not plain.pool.pending, "the end of the UNLINK")
    calls, submit = [], plain.pool.submit

    def counted(key, call, done):
        calls.append(key)
        submit(key, call, done)

    plain.pool.submit = counted
    ends = {
        "RELEASE": lambda: plain.send(op.RELEASE, node, (fh, 0, 0, 0)),
        "FORGET": lambda: plain.backend.handle(0, plain.chain(op.FORGET, node, (1,)), None),
    }
    end = ends.pop(last)
    ends.popitem()[1]()
    calls.clear()
    end()
    assert len(calls) == 1, calls


@pytest.mark.parametrize("end", ["BATCH_FORGET", "INIT"])
def test_many_small_files_do_not_free_much_space_in_the_loop(plain, end):
    """One request may let go of any number of files; no file of them is large."""
    share, count = os.fsdecode(plain.backend.fs.share), 12
    nodes = []
    for number in range(count):
        with open(f"{share}/{number}", "wb") as file:
            file.write(b"x" * (1 << 14))
            os.fsync(file.fileno())
        nodes.append(plain.send(op.LOOKUP, 1, (), (b"%d" % number,)).nodeid)
        plain.send(op.OPEN, nodes[-1], (os.O_RDWR, 0))
        os.unlink(f"{share}/{number}")
    if end == "BATCH_FORGET":
        for fh in list(plain.backend.fs.handles):
            plain.send(op.RELEASE, fh.inode_id, (fh.id, 0, 0, 0))
        data = b"".join(struct.pack("<QQ", node, 1) for node in nodes)
        plain.backend.handle(0, plain.chain(op.BATCH_FORGET, 0, (count, 0), data=data), None)
    else:
        plain.init()
    assert plain.pool.pending >= count - 2
    plain.until(lambda: not plain.pool.pending, "the end of all closes")
