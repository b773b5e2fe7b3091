"""Our guest on the real virtiofsd, and on ``vmsim serve`` in its own process: the whole file-system suite.

What virtiofsd does not offer is in ``DIFFERENCES``, one row each, with what a guest's program sees on either
side. Nothing else differs: the suites are the same and pass on both.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.contract import posix
from tests.interop.virtiofsd_rig import World, start_serve, start_virtiofsd
from tests.support.machine_rig import HANDLES_ALLOWED, host_lock
from tests.support.sampling import product
from vmsim.errors import VmsimError
from vmsim.fuse.abi.init_flags import flag_names
from vmsim.guest.config import GuestConfig
from vmsim.host.processes import BackendProcess
from vmsim.virtio.constants import F_RING_PACKED

pytestmark = pytest.mark.interop

CACHED = GuestConfig(cache="writeback", cache_pages=32, dentries=64)
HANDLES = ("--inode-file-handles=mandatory", "--modcaps=+dac_read_search")
ON_VIRTIOFSD: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": ((), {}),
    "writeback": (("--writeback", "--cache=always"), {"guest": CACHED}),
    "Linux' chains, small ring": (("--thread-pool-size=4",), {
        "queue_size": 8, "guest": GuestConfig(queue_size=8, linux_chains=True, indirect=False)
    }),
    **({"file handles": (HANDLES, {})} if HANDLES_ALLOWED else {}),
}  # fmt: skip
"""Options of virtiofsd and of the machine."""
ON_SERVE: dict[str, dict[str, Any]] = {
    "split, writethrough": {"guest": GuestConfig(cache="writethrough", cache_pages=32, dentries=64)},
    "packed, small ring": {
        "ring": "packed", "queue_size": 8, "guest": GuestConfig(queue_size=5, linux_chains=True)
    },
}  # fmt: skip


NOT_WITH_HANDLES = {"check_cwd": "Stale file handle"}
"""A directory that is removed while somebody is in it has no descriptor there, and so no handle: ESTALE in
place of ENOENT. Ours keeps a descriptor of what has lost its name."""


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture
def folders(tmp_path):
    """The share, and the directory on the host that it is compared with."""
    share, host = tmp_path / "share", tmp_path / "host"
    share.mkdir()
    host.mkdir()
    return share, host


@pytest.fixture
def virtiofsd(peers, world, folders):
    """Makes a machine on a virtiofsd with these options; both are gone after the test."""
    made = []

    def make(*options: str, **changes: Any):
        daemon = start_virtiofsd(peers, folders[0], "--xattr", *options)
        made.append(daemon)
        made.append(world.machine(daemon, **changes))
        return made[-1]

    yield make
    for each in reversed(made):
        each.stop() if isinstance(each, BackendProcess) else each.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One ``vmsim serve`` for the module: it stays while machines come and go."""
    share = tmp_path_factory.mktemp("served") / "share"
    share.mkdir()
    daemon = start_serve(share, "--reconnect")
    yield daemon
    daemon.stop()


@pytest.fixture
def served(server, world):
    """Makes a machine on ``vmsim serve``; its share is empty at first."""
    share = Path(server.share)
    for entry in share.iterdir():
        shutil.rmtree(entry) if stat.S_ISDIR(entry.lstat().st_mode) else entry.unlink()
    share.chmod(0o755)
    made = []

    def make(**changes: Any):
        made.append(world.machine(server, **changes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def name(check: Callable[..., None]) -> str:
    return check.__name__


# The suites


@pytest.mark.parametrize(  # a daemon for each: it ends with its first connection
    ("check", "kind"), product("POSIX on virtiofsd", 2, posix.CHECKS, ON_VIRTIOFSD),
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_on_virtiofsd_the_guest_sees_what_os_sees(check, kind, virtiofsd, folders):
    options, changes = ON_VIRTIOFSD[kind]
    both = posix.Both(virtiofsd(*options, **changes).mount(), folders[1])
    if kind == "file handles" and name(check) in NOT_WITH_HANDLES:
        with pytest.raises(OSError, match=NOT_WITH_HANDLES[name(check)]):
            check(both)
        return
    check(both)


@pytest.mark.parametrize("kind", ["plain", *(["file handles"] if HANDLES_ALLOWED else [])])
@pytest.mark.parametrize("check", posix.WITH_OTHERS, ids=name)
def test_virtiofsds_share_is_as_the_guest_left_it(check, kind, virtiofsd, folders):
    options, changes = ON_VIRTIOFSD[kind]
    check(virtiofsd(*options, "--cache=never", **changes).mount(), folders[0])


@pytest.mark.parametrize("kind", ON_SERVE)
@pytest.mark.parametrize("check", posix.CHECKS, ids=name)
def test_on_vmsim_serve_the_guest_sees_what_os_sees(check, kind, served, folders):
    check(posix.Both(served(**ON_SERVE[kind]).mount(), folders[1]))


@pytest.mark.parametrize("check", posix.WITH_OTHERS, ids=name)
def test_the_share_of_vmsim_serve_is_as_the_guest_left_it(check, served, server):
    check(served(ring="packed").mount(), Path(server.share))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")
@pytest.mark.parametrize("where", ["virtiofsd", "vmsim serve"])
def test_users_are_who_they_are_on_the_host(where, virtiofsd, served, folders, server):
    vm = virtiofsd() if where == "virtiofsd" else served()
    share = Path(vm.share)
    share.chmod(0o777)
    fs = vm.mount()
    with fs.as_user(1234, 2345):
        fs.mkdir("/theirs", 0o750)
        fs.close(fs.open("/theirs/f", os.O_CREAT | os.O_WRONLY, 0o640))
        fs.symlink("f", "/theirs/s")
        fs.mkfifo("/theirs/p", 0o604)
    for path, mode in (("", 0o750), ("f", 0o640), ("s", 0o777), ("p", 0o604)):
        there = (share / "theirs" / path).lstat()
        assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (1234, 2345, mode)
    with fs.as_user(999, 999), pytest.raises(PermissionError):
        fs.listdir("/theirs")


def test_file_objects_on_virtiofsd(virtiofsd, folders):
    fs = virtiofsd().mount()
    lines = [f"line {number} äöü\n" for number in range(500)]
    with fs.open_file("/log", "w+", encoding="utf-8") as text:
        text.writelines(lines)
        text.seek(0)
        assert list(text) == lines
    assert (folders[0] / "log").read_text(encoding="utf-8") == "".join(lines)


# What differs


def posix_lock_is_on_the_host(vm: Any) -> Any:
    fs = vm.mount()
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    fs.setlk(fd, fcntl.F_WRLCK, 0, 0)
    return not host_lock(Path(vm.share, "f"))


def flock_is_on_the_host(vm: Any) -> Any:
    fs = vm.mount()
    fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
    fs.flock(fd, fcntl.LOCK_EX)
    with Path(vm.share, "f").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def unnamed_file(vm: Any) -> Any:
    fs = vm.mount()
    try:
        fd = fs.open("/", os.O_RDWR | os.O_TMPFILE)
    except OSError as error:
        return os.strerror(error.errno)
    return fs.fstat(fd).st_nlink


def init_flags(vm: Any) -> Any:
    flags = flag_names(vm.kernel.state.session.flags)
    return [flag for flag in flags if flag.endswith("_LOCKS")]


def minor(vm: Any) -> Any:
    return vm.kernel.state.session.minor


def packed_rings(vm: Any) -> Any:
    return bool(vm.device.virtio.features_offered & F_RING_PACKED)


class Difference(NamedTuple):
    """What a probe finds on our back-end and on virtiofsd 1.13.2, and why that is right."""

    probe: Callable[[Any], Any]
    ours: Any
    theirs: Any
    why: str


DIFFERENCES = [
    Difference(
        posix_lock_is_on_the_host, True, False, "locks are the host's, so that they hold between guests"
    ),
    Difference(flock_is_on_the_host, True, False, "the same"),
    Difference(init_flags, ["POSIX_LOCKS", "FLOCK_LOCKS"], [], "how a server says so (reference 3.3)"),
    Difference(unnamed_file, 0, "Operation not supported", "TMPFILE (7.37) is ENOSYS there (reference 3.2)"),
    Difference(minor, 41, 38, "the lower minor of both sides rules, and the guest's is 41"),
    Difference(packed_rings, True, False, "its ring implementation has split rings alone (reference 1.3)"),
]


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: row.probe.__name__)
def test_exactly_this_differs(row, virtiofsd, served):
    found = row.probe(served(ring="packed")), row.probe(virtiofsd(ring="packed"))
    print(f"{row.probe.__name__}: vmsim {found[0]}, virtiofsd {found[1]}: {row.why}")
    assert found == (row.ours, row.theirs)


def test_virtiofsd_has_one_request_queue_and_says_so(peers, world, folders):
    daemon = start_virtiofsd(peers, folders[0])
    try:
        with pytest.raises(VmsimError, match="2 queues, the device needs 3"):
            world.machine(daemon, queues=2)
    finally:
        daemon.stop()
