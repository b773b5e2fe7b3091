"""What is made has the mode that it was asked for, whatever the umask of the program; that stays as it is."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leaks import Held
from tests.support.sampling import Run, remainder
from vmsim.host.fs import LinuxFs

HERE = Path(__file__).parent
FRESH = os.O_CREAT | os.O_EXCL | os.O_RDWR


@pytest.mark.unprivileged
def test_modes_are_those_that_the_system_gives(tmp_path):
    """Kinds, modes, callers, both umasks, folders with default ACL or set-group-id bit: all combinations, or
    in a plain run one in five."""
    command = [sys.executable, "-W", "error", HERE / "modes_like_os.py", tmp_path]
    one_in = 1 if Run.whole else 5
    command += [str(one_in), str(remainder(one_in, "modes"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[:-1]) == (0, "", [])
    assert int(lines[-1]) >= 1440 // one_in


@pytest.fixture
def at(tmp_path, set_umask):
    """A directory in a program with umask 077."""
    set_umask(0o077)
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)
    assert set_umask(0) == 0o077


def make_all(host, at):
    yield lambda: host.mkdir(at, b"d", 0o755, 0)
    yield lambda: host.mknod(at, b"p", stat.S_IFIFO | 0o644, 0, 0)
    yield lambda: host.open_beneath(at, b"f", FRESH, 0o644, 0)
    yield lambda: host.open_beneath(at, b".", os.O_TMPFILE | os.O_RDWR, 0o644, 0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_what_cannot_get_its_mode_is_not_made(at, tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    host = LinuxFs()
    before = Held()
    for make in make_all(host, at):
        with monkeypatch.context() as patch:
            patch.setattr(os, "chmod", refuse)
            patch.setattr(os, "fchmod", refuse)
            with pytest.raises(OSError, match=os.strerror(number)):
                make()
    assert os.listdir(tmp_path) == []
    assert before.more() == []


def test_a_file_system_without_modes_keeps_what_it_has(at, tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EPERM, "FAT has no such modes")

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    for make in make_all(LinuxFs(), at):
        fd = make()
        if fd is not None:
            os.close(fd)
    assert sorted(os.listdir(tmp_path)) == ["d", "f", "p"]


@pytest.mark.parametrize("other", ["full directory", "file", "symbolic link", "nothing"])
def test_what_somebody_put_there_meanwhile_keeps_its_mode(at, tmp_path, monkeypatch, other):
    made = os.mkdir

    def mkdir_and_lose(name, mode, *, dir_fd):
        made(name, mode, dir_fd=dir_fd)
        os.rename(tmp_path / "d", tmp_path / "ours")
        private = tmp_path / "private"
        if other == "full directory":
            made(private, 0o700)
            made(private / "diary", 0o700)
        elif other == "file":
            private.write_text("diary")
            private.chmod(0o600)
        elif other == "symbolic link":
            (tmp_path / "diary").write_text("dear diary")
            (tmp_path / "diary").chmod(0o600)
            private.symlink_to("diary")
        if other != "nothing":
            private.rename(tmp_path / "d")

    monkeypatch.setattr(os, "mkdir", mkdir_and_lose)
    LinuxFs().mkdir(at, b"d", 0o755, 0)
    monkeypatch.undo()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("ours") == 0o700
    assert set(modes.values()) <= {0o700, 0o600}
