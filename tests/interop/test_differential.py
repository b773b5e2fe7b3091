"""The same random FUSE requests at our server and at virtiofsd 1.13.2: same errnos, structs and bytes.

``DIFFERENCES`` are all that there are, one row each. A row that no request needs any more fails the test, as
does a difference without a row. Some inputs kill virtiofsd (reference section 6.3); they are
left out, and ``vmsim check`` has a case for each.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable

import pytest

from tests.interop.differential import Ask, Difference, Outcome, Replay
from tests.interop.fuse_stream import NO_NAME, PATHS, WEIGHTS, Ref, on
from tests.interop.virtiofsd_rig import World, start_serve, start_virtiofsd
from vmsim.fuse import opcodes as op
from vmsim.fuse.abi.flags import FATTR_FH, FATTR_GID, FATTR_SIZE, FATTR_UID
from vmsim.host.processes import BackendProcess
from vmsim.machine import Machine

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0, reason="the requests act for several users and make devices"),
]

OK = 0
UNOFFERED = (op.GETLK, op.SETLK, op.IOCTL, op.POLL, op.STATX)
MAKES = (op.MKNOD, op.MKDIR, op.SYMLINK, op.CREATE)
LISTS = (op.READDIR, op.READDIRPLUS)
OFFSET_MAX = (1 << 63) - 1
LATER = (errno.ENOTDIR, errno.ENOENT, errno.EBADF, errno.EACCES, errno.EPERM, errno.EINVAL)
RENAMES = ((errno.ENOTDIR, errno.EBADF), (errno.EBADF, errno.ENOTDIR))
ID_NONE = 0xFFFFFFFF


def row(
    name: str, opcodes: tuple[int, ...], ours: int | None, theirs: int | None, why: str,
    when: Callable[[Ask], bool] = lambda ask: True,
) -> Difference:  # fmt: skip
    """A difference in the errno; None stands for any."""

    def applies(ask: Ask, mine: Outcome, other: Outcome) -> bool:
        return (
            (not opcodes or ask.opcode in opcodes)
            and ours in (None, mine.error) and theirs in (None, other.error) and when(ask)
        )  # fmt: skip

    return Difference(name, applies, why)


def no_name(ask: Ask) -> bool:
    return any(name in NO_NAME + PATHS for name in ask.names)


def stale_attributes(ask: Ask, ours: Outcome, theirs: Outcome) -> bool:
    if ask.opcode != op.CREATE or ours.error or theirs.error or not ask.args[0] & os.O_TRUNC:
        return False
    differ = {name for name in ours.body if ours.body[name] != theirs.body[name]}
    return differ <= {"size", "blocks", "mtime", "mtimensec", "ctime", "mode"} and ours.body["size"] == 0


def parent_of_root(ask: Ask, ours: Outcome, theirs: Outcome) -> bool:
    """The number of '..' in a listing of the root is all that differs."""
    if ask.opcode not in LISTS or ours.error or theirs.error or on(ask.nodeid, 0) != 1:
        return False
    mine, other = ([row for row in rows if row[0] != b".."] for rows in (ours.body, theirs.body))
    places = [row[2] for rows in (ours.body, theirs.body) for row in rows if row[0] == b".."]
    return mine == other and places == [".", "?"]


def listing_of_a_forgotten_node(ask: Ask, ours: Outcome, theirs: Outcome) -> bool:
    """Its entries cannot be looked up there: EBADF, or nothing but what needs no lookup."""
    if ask.opcode != op.READDIRPLUS or ours.error:
        return False
    return theirs.error == errno.EBADF or {row[0] for row in theirs.body} <= {b".", b".."}


def by_handle(ask: Ask) -> bool:
    return bool(ask.args[0] & 1)


def nothing(index: int) -> Callable[[Ask], bool]:
    return lambda ask: ask.args[index] == 0


def beyond(*indices: int) -> Callable[[Ask], bool]:
    """Arguments whose sum is no offset."""
    return lambda ask: sum(ask.args[index] for index in indices) > OFFSET_MAX


def odd_copy(ask: Ask) -> bool:
    _, offset_in, _, _, offset_out, length, flags = ask.args
    return bool(flags) or max(offset_in, offset_out) + length > OFFSET_MAX


def no_id(ask: Ask) -> bool:
    valid, uid, gid = ask.args[0], ask.args[13], ask.args[14]
    return bool((valid & FATTR_UID and uid == ID_NONE) or (valid & FATTR_GID and gid == ID_NONE))


def odd_time(ask: Ask) -> bool:
    return max(ask.args[8:11]) > 999_999_999


def of_directory(ask: Ask) -> bool:
    return isinstance(ask.args[0], Ref) and ask.args[0].kind == stat.S_IFDIR


def roomy(ask: Ask) -> bool:
    return ask.room > 16 + ask.args[2]


def in_another_order(ask: Ask, ours: Outcome, theirs: Outcome) -> bool:
    """Two mistakes in one request: which of them is told is a matter of order."""
    found = ours.error, theirs.error
    return (
        (found[0] == errno.ENAMETOOLONG and found[1] in LATER)
        or (ask.opcode == op.RENAME2 and ask.args[1] == 3 and found[1] == errno.EINVAL and found[0] != OK)
        or (ask.opcode == op.SYMLINK and not ask.names[1] and found[0] == errno.ENOENT and found[1] != OK)
        or (ask.opcode in (op.RENAME, op.RENAME2) and found in RENAMES)
        or (ask.opcode == op.SETATTR and OK not in found and (no_id(ask) or ask.args[0] & FATTR_SIZE))
        or (ask.opcode == op.MKNOD and OK not in found and found[1] in (errno.EINVAL, errno.EPERM))
        or (ask.opcode == op.READ and found == (errno.EINVAL, errno.EBADF) and beyond(1, 2)(ask))
    )  # fmt: skip


DIFFERENCES = [
    row("unoffered", UNOFFERED, None, errno.ENOSYS, "locks, IOCTL, POLL, STATX are served here (3.2)"),
    row("names", (), errno.EINVAL, None, "a name is one component: nothing else is passed on (6.1)", no_name),
    row("create permission", MAKES, None, errno.EACCES,
        "the guest has checked (default_permissions), and may have let CAP_DAC_OVERRIDE or an ACL decide"),
    row("access mask", (op.ACCESS,), errno.EINVAL, None, "access(2): EINVAL for unknown bits",
        lambda ask: ask.args[0] > 7),
    row("readlink", (op.READLINK,), errno.EINVAL, errno.ENOENT, "readlink(2): EINVAL for what is no link"),
    row("getattr fh", (op.GETATTR,), errno.EBADF, OK, "FUSE_GETATTR_FH says that the handle counts",
        by_handle),
    row("getattr of a forgotten node", (op.GETATTR,), OK, errno.EBADF,
        "the same: an open file has attributes", by_handle),
    row("copy arguments", (op.COPY_FILE_RANGE,), errno.EINVAL, None,
        "flags and ranges without a meaning are refused before handles are looked up", odd_copy),
    row("whence", (op.LSEEK,), errno.EINVAL, errno.EBADF, "the same", lambda ask: ask.args[2] > 4),
    row("fallocate range", (op.FALLOCATE,), errno.EINVAL, None, "the same", beyond(1, 2)),
    row("access mode", (op.OPEN, op.CREATE), errno.EINVAL, None, "open(2) knows modes 0, 1 and 2",
        lambda ask: ask.args[0] & os.O_ACCMODE == 3),
    row("O_EXCL", (op.OPEN,), None, errno.EEXIST, "OPEN makes nothing: O_CREAT and O_EXCL say nothing to it",
        lambda ask: bool(ask.args[0] & os.O_EXCL)),
    row("open of a directory", (op.OPEN,), errno.EISDIR, OK, "directories are opened by OPENDIR"),
    row("empty listing", LISTS, None, OK, "a handle is looked at even if nothing is asked for", nothing(2)),
    row("empty transfer", (op.READ, op.WRITE), None, OK, "the same", nothing(2)),
    row("fsyncdir", (op.FSYNCDIR,), errno.ENOTDIR, OK, "a file is no directory"),
    row("syncfs", (op.SYNCFS,), OK, errno.EBADF, "nothing has to be opened for it, so special files do"),
    row("no size to set", (op.SETATTR,), errno.EINVAL, errno.EBADF, "truncate(2): EINVAL for special files",
        lambda ask: bool(ask.args[0] & FATTR_SIZE)),
    row("truncate", (op.SETATTR,), OK, errno.EINVAL, "truncate by a handle for reading goes by the node",
        lambda ask: ask.args[0] & FATTR_SIZE and ask.args[0] & FATTR_FH),
    row("ids", (op.SETATTR,), errno.EINVAL, OK, "no id is 2^32 - 1", no_id),
    row("nanoseconds", (op.SETATTR,), errno.EINVAL, None, "utimensat(2)", odd_time),
    row("unknown rename flags", (op.RENAME2,), errno.EINVAL, None, "renameat2(2): EINVAL",
        lambda ask: ask.args[1] > 7),
    row("search", (op.ACCESS,), OK, errno.EACCES, "root searches every directory (capabilities(7))",
        lambda ask: ask.ids[0] == 0 and bool(ask.args[0] & os.X_OK)),
    row("long reply buffer", (op.READ,), OK, errno.EIO, "READ may have more room than it asks for", roomy),
    Difference("stale attributes", stale_attributes,
               "CREATE with O_TRUNC of a file that exists tells its attributes as they are then"),
    row("create on a directory", (op.CREATE,), errno.EISDIR, OK, "open(2) with O_CREAT: EISDIR"),
    row("opendir", (op.OPENDIR,), errno.ENOTDIR, errno.EBADF, "opendir(3): ENOTDIR, also for special files"),
    Difference("listing of a forgotten node", listing_of_a_forgotten_node, "an open directory can be read"),
    row("seek in a directory", (op.LSEEK,), errno.EINVAL, None, "its positions belong to READDIR",
        of_directory),
    Difference("order", in_another_order, "two mistakes, and both servers refuse"),
    Difference("root's parent", parent_of_root, "the share has no outside: '..' of the root is the root"),
]  # fmt: skip
"""Ordered: the first that applies counts."""

OPTIONS = ("--xattr", "--modcaps=+sys_admin")
"""virtiofsd gives CAP_SYS_ADMIN up, and with it attributes called trusted.*."""
REQUESTS = 2500
SEEDS = (1, 2, 3, 4)


@pytest.fixture
def replay(peers, tmp_path):
    """Makes a replay on two empty shares. ``where`` our server runs: in this process, or in another one."""
    ended = []

    def make(seed: int, where: str = "in process", options=OPTIONS, **ours):
        world = World()
        shares = [tmp_path / f"{seed}-{side}" for side in ("ours", "theirs")]
        for share in shares:
            share.mkdir()
        daemon = start_virtiofsd(peers, shares[1], *options, confined=True)
        ended.append(daemon)
        if where == "in process":
            mine = Machine(shares[0], schedule=world.schedule, memory="8M", **ours)
        else:
            ended.append(start_serve(shares[0]))
            mine = world.machine(ended[-1])
        ended.append(mine)
        ended.append(world.machine(daemon))
        # Raw names must not reach anything but the share, whoever runs the tests.
        assert os.path.samefile(f"/proc/{daemon.pid}/root", shares[1])
        return Replay(mine, ended[-1], seed, DIFFERENCES)

    yield make
    for each in reversed(ended):
        each.stop() if isinstance(each, BackendProcess) else each.close()


def run(both: Replay, seed: int) -> None:
    for _ in range(REQUESTS // 100):
        for _ in range(100):
            both.step()
        files = both.compare_trees()
    nodes = both.compare_states()
    same = both.asked - sum(both.seen[each.name] for each in DIFFERENCES)
    print(
        f"seed {seed}: {both.asked} requests, {len(both.opcodes)} opcodes, {len(both.errors)} errnos; "
        f"{same} answers are the same, the others differ as listed; so are {files} files, {nodes} nodes"
    )
    assert len(both.opcodes) >= len(WEIGHTS)


def test_the_same_answers(replay):
    """Every seed, and every difference in the list is still one."""
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        both = replay(seed)
        run(both, seed)
        seen.update(both.seen)
    print(", ".join(f"{name} {count}" for name, count in seen.most_common()))
    assert {each.name for each in DIFFERENCES} <= seen.keys()


def test_the_same_answers_from_vmsim_serve(replay):
    both = replay(4, "vmsim serve", options=("--xattr",))
    for name in (b"trusted.t", b"security.x"):  # for these, a server has to keep CAP_SYS_ADMIN
        both.stream.xattrs.remove(name)
    run(both, 4)
