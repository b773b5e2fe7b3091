"""(st_dev, st_ino) tells the guest's files apart as the host's tell the host's apart, also below mounts."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack

import pytest

from tests.support.machine_rig import MODES
from tests.support.mounts import mounted, tmpfs
from vmsim.errors import StreamError
from vmsim.guest.config import GuestConfig
from vmsim.guest.kernel import snapshot
from vmsim.guest.kernel.nodes import NodeTable
from vmsim.guest.state import STATE_VERSION, AllocatorState, Attr, KernelState, Submount
from vmsim.limits import SUBMOUNTS_MAX
from vmsim.machine import Machine

PATHS = (
    "/", "/f", "/hard", "/dir", "/dir/f", "/m1", "/m1/f", "/m1/deep", "/m1/deep/f", "/m1/deep/m3",
    "/m1/deep/m3/f", "/m2", "/m2/f", "/m2/deep", "/m2/deep/f", "/m2/hard", "/file",
)  # fmt: skip
GUESTS = [GuestConfig(), GuestConfig(cache="writethrough", dentries=64), GuestConfig(readdirplus=False)]


@pytest.fixture
def share(tmp_path):
    """tmpfs within tmpfs, all with the same inode numbers, and a file bound over a file."""
    root = tmp_path / "share"
    with ExitStack() as stack:
        stack.enter_context(tmpfs(root))
        (root / "dir").mkdir()
        for name in ("f", "dir/f", "file"):
            (root / name).write_text(name)
        os.link(root / "f", root / "hard")
        for name in ("m1", "m2"):
            point = stack.enter_context(tmpfs(root / name))
            (point / "deep").mkdir()
            (point / "f").write_text(name)
            (point / "deep" / "f").write_text(name)
        os.link(root / "m2" / "f", root / "m2" / "hard")
        inner = stack.enter_context(tmpfs(root / "m1" / "deep" / "m3"))
        (inner / "f").write_text("m3")
        (tmp_path / "elsewhere").write_text("bound")
        stack.enter_context(mounted("--bind", tmp_path / "elsewhere", root / "file"))
        yield root


def groups(key):
    """The paths that ``key`` does not tell apart, as a set of sets."""
    found = {}
    for path in PATHS:
        found.setdefault(key(path), set()).add(path)
    return {frozenset(paths) for paths in found.values()}


def identities(stat):
    def file(path):
        return stat(path).st_dev, stat(path).st_ino

    return groups(file), groups(lambda path: stat(path).st_dev)


def of_guest(fs):
    return {path: fs.stat(path).st_dev for path in PATHS}


@pytest.mark.parametrize("guest", GUESTS, ids=["plain", "cached", "no-readdirplus"])
def test_files_and_devices_are_told_apart_as_on_the_host(share, guest):
    with Machine(share, guest=guest) as vm:
        fs = vm.mount()
        assert identities(fs.stat) == identities(lambda path: os.stat(str(share) + path))
        for path in PATHS:
            if path in ("/", "/file"):
                continue
            with_fd = fs.open(path, os.O_RDONLY)
            assert fs.fstat(with_fd).st_dev == fs.stat(path).st_dev
            fs.close(with_fd)


@pytest.mark.parametrize("order", [PATHS, PATHS[::-1]], ids=["from the top", "from below"])
@pytest.mark.parametrize("mode", MODES)
def test_device_numbers_stay_while_a_mount_does(share, mode, order):
    """Whatever the guest forgets, in whatever order it looks again, and on whatever machine."""
    with Machine(share, options={"migration_mode": mode}) as vm:
        fs = vm.mount()
        before = {path: fs.stat(path).st_dev for path in order}
        fs.listdir("/m1")
        fs.drop_caches()
        assert of_guest(fs) == before
        second = vm.migrate()
        fs = second.mount()
        assert of_guest(fs) == before
        fs.drop_caches()
        third = second.migrate()
        assert of_guest(third.mount()) == before
        third.close()
        second.close()


def test_without_announcing_there_is_one_device(share):
    with Machine(share, options={"announce_submounts": False}) as vm:
        assert len(set(of_guest(vm.mount()).values())) == 1


def test_what_is_mounted_anew_over_what_is_in_use_is_another_device(share):
    with Machine(share) as vm:
        fs = vm.mount()
        held = fs.open("/m2", os.O_RDONLY | os.O_DIRECTORY)
        with tmpfs(share / "m2"):
            assert fs.stat("/m2").st_dev != fs.fstat(held).st_dev


def test_more_mounts_than_are_remembered_never_share_a_number():
    attr = Attr(*[1] * 9, 0o040755, *[1] * 6)
    state = KernelState(STATE_VERSION, GuestConfig(), AllocatorState([], []))
    nodes = NodeTable(state)
    root = nodes.add_root(attr)
    seen = set()
    for number in range(SUBMOUNTS_MAX + 10):
        node, _ = nodes.learn(2 + number, 0, attr)
        nodes.put_on_device(node, root.id, b"%d" % number, 1)
        seen.add(node.device_number)
    assert len(seen) == SUBMOUNTS_MAX + 10
    assert len(state.submounts) == SUBMOUNTS_MAX


def test_submounts_of_a_state_are_checked(rig):
    kernel = rig().kernel
    for numbers, last in itertools.product(([5, 5], [0], [-1], [9]), (8,)):
        kernel.state.submounts = {(1, 1, b"%d" % at): Submount(number) for at, number in enumerate(numbers)}
        kernel.state.last_device = last
        with pytest.raises(StreamError):
            snapshot.load(kernel.save(), kernel.memory)
