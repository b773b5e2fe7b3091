"""A machine of an ordinary user: everything works, and what needs privilege is refused in so many words.

As root the same statements hold where privilege makes no difference, and their opposite where it does.
"""

from __future__ import annotations

import errno
import os

import pytest

from tests.support.leaks import no_leaks
from tests.support.machine_rig import FEW_KINDS, Kind, Life, make
from vmsim.errors import MigrationError, UsageError
from vmsim.host.fs import LinuxFs
from vmsim.machine import Machine
from vmsim.machine.states import RUNNING

pytestmark = pytest.mark.unprivileged
HANDLES = LinuxFs().handles_allowed()
MAY_GIVE_AWAY = LinuxFs().privileged
SOMEBODY = 54321
KINDS = [kind for kind in FEW_KINDS if kind.mode == "find-paths"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("verify", [False, True])
def test_everything_survives(tmp_path, kind, verify):
    options = {"migration_mode": kind.mode, "migration_verify_handles": verify}
    with no_leaks():
        vm = make(tmp_path, kind, options=options)
        life = Life(vm)
        for _ in range(3):
            before, vm = vm, vm.migrate()
            before.close()
            life.check(vm)
            life.go_on(vm)
        life.finish(vm)
        vm.close()


@pytest.mark.parametrize("dialect", ["upstream", "rfc2023"])
def test_file_handles_are_refused_with_what_to_do(tmp_path, dialect):
    with no_leaks():
        vm = make(tmp_path, Kind("split", dialect, "file-handles", None))
        life = Life(vm)
        if HANDLES:
            before, vm = vm, vm.migrate()
            before.close()
        else:
            assert any("CAP_DAC_READ_SEARCH" in finding.what for finding in vm.preflight())
            with pytest.raises(MigrationError, match=r"not permitted \(open_by_handle_at\)") as caught:
                vm.migrate()
            assert (caught.value.errno, caught.value.side) == (errno.EIO, "destination")
            assert "CAP_DAC_READ_SEARCH" in caught.value.hint
            assert "find-paths" in caught.value.hint
            assert vm.state == RUNNING
        life.check(vm)
        life.go_on(vm)
        life.finish(vm)
        vm.close()


@pytest.mark.skipif(HANDLES, reason="says something only without privilege")
def test_a_server_that_must_use_file_handles_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match="CAP_DAC_READ_SEARCH"):
        Machine(tmp_path, options={"inode_file_handles": "mandatory"})


def test_foreign_owners_are_refused_and_change_nothing(tmp_path):
    with make(tmp_path) as vm:
        fs = vm.mount()
        fs.close(fs.open("/mine", os.O_CREAT | os.O_RDWR, 0o4711))
        mine = fs.stat("/mine")
        for uid, gid in ((SOMEBODY, -1), (-1, SOMEBODY), (0, 0)):
            if MAY_GIVE_AWAY:
                fs.chown("/mine", uid, gid)
                continue
            with pytest.raises(PermissionError):
                fs.chown("/mine", uid, gid)
            now = fs.stat("/mine")
            assert (now.st_uid, now.st_gid) == (mine.st_uid, mine.st_gid) == (os.geteuid(), os.getegid())


def test_other_users_of_the_guest_work_as_ourselves(tmp_path):
    """With privilege as themselves."""
    owner = SOMEBODY if MAY_GIVE_AWAY else os.geteuid()
    tmp_path.chmod(0o711)
    with make(tmp_path) as vm:
        fs = vm.mount()
        fs.mkdir("/all")
        fs.chmod("/all", 0o777)
        with fs.as_user(SOMEBODY, SOMEBODY):
            fd = fs.open("/all/theirs", os.O_CREAT | os.O_RDWR, 0o600)
            fs.write(fd, b"x")
        assert (tmp_path / "all" / "theirs").stat().st_uid == owner
        with vm.migrate() as vm2:
            assert vm2.mount().pread(fd, 2, 0) == b"x"
            assert vm2.mount().fstat(fd).st_uid == owner


@pytest.mark.skipif(MAY_GIVE_AWAY, reason="says something only without privilege")
def test_devices_are_refused(tmp_path):
    with make(tmp_path) as vm:
        with pytest.raises(PermissionError):
            vm.mount().mknod("/null", 0o20666, os.makedev(1, 3))
        assert os.listdir(tmp_path) == []
