"""The workload on the host's own file system: it agrees, survives as plain data, and notices any loss."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from vmsim.errors import StreamError
from vmsim.workload.checks import Checker, verify
from vmsim.workload.fileapi import OsFiles
from vmsim.workload.operations import OPERATIONS
from vmsim.workload.reader import Reader, decode_reader
from vmsim.workload.writer import Workload, WorkloadError, decode_state, mass_path


class OtherProcess(OsFiles):
    """The same files as a child process sees them; only F_TEST is asked of it."""

    def open(self, path, flags, mode=0o777):
        return self._at(path)

    def close(self, fd):
        """Nothing was opened in this process."""

    def lockf(self, fd, cmd, length):
        script = "import os, sys; os.lockf(os.open(sys.argv[1], os.O_RDWR), os.F_TEST, 0)"
        child = subprocess.run([sys.executable, "-c", script, fd], capture_output=True)
        if child.returncode:
            raise BlockingIOError(11, "locked")


@pytest.fixture
def work(tmp_path):
    fs = OsFiles(str(tmp_path))
    started = Workload.start(fs, "/scratch", seed=1, inodes=25)
    yield started, fs
    for handle in started.state.handles:
        try:
            os.close(handle.fd)
        except OSError:
            pass


@pytest.mark.unprivileged
def test_hundreds_of_steps_hold(work, tmp_path):
    load, fs = work
    names = {load.step(fs) for _ in range(1500)}
    assert names == set(OPERATIONS)
    checker = Checker(load, fs, str(tmp_path), peer=OtherProcess(str(tmp_path)), host_locks=True)
    assert checker.run() == []
    assert all(checker.checked.values())
    load.finish(fs)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("seed", range(20))
def test_seeds(tmp_path, seed):
    fs = OsFiles(str(tmp_path))
    load = Workload.start(fs, "/scratch", seed=seed)
    try:
        for _ in range(200):
            load.step(fs)
        assert verify(load, fs, str(tmp_path)) == []
    finally:
        load.finish(fs)


def test_everything_hard_is_alive_from_the_start_on(work):
    load, fs = work
    for _ in range(2):
        counts = load.counts()
        for kind in ("unlinked", "renamed", "hard_links", "symlinks", "directories", "files", "handles"):
            assert counts[kind] > 0, kind
        assert counts["locks"] >= 2
        assert counts["inodes"] > 25
        for _ in range(300):
            load.step(fs)


def test_state_travels_as_bytes(work, tmp_path):
    load, fs = work
    for _ in range(100):
        load.step(fs)
    other = Workload(decode_state(load.encode()))
    for _ in range(100):
        other.step(fs)
    assert verify(other, fs, str(tmp_path)) == []
    load.state = other.state


def test_the_same_steps_whenever_it_is_moved(tmp_path):
    trails = []
    for moves in (0, 7):
        share = tmp_path / str(moves)
        share.mkdir()
        fs = OsFiles(str(share))
        load, trail = Workload.start(fs, "/scratch", seed=4), []
        for step in range(150):
            trail.append(load.step(fs))
            if moves and step % moves == 0:
                load = Workload(decode_state(load.encode()))
        trails.append((trail, [(record.data, record.names) for record in load.state.files.values()]))
        load.finish(fs)
    assert trails[0] == trails[1]


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x81\xa4seed\xa1x"])
def test_a_bad_state_is_refused(data):
    with pytest.raises(StreamError):
        decode_state(data)
    with pytest.raises(StreamError):
        decode_reader(data)


def handle_with(load, **wanted):
    handles = load.state.handles
    return next(h for h in handles if all(getattr(h, name) == value for name, value in wanted.items()))


def unlinked(load):
    return next(h for h in load.state.handles if not load.state.files[h.file].names)


LOSSES = {
    "an offset": lambda load, root: os.lseek(handle_with(load, lock="").fd, 77, os.SEEK_SET),
    "a byte of an unlinked file": lambda load, root: os.pwrite(unlinked(load).fd, b"!", 10),
    "a flock": lambda load, root: fcntl.flock(handle_with(load, lock="flock").fd, fcntl.LOCK_UN),
    "a POSIX lock": lambda load, root: os.lockf(handle_with(load, lock="posix").fd, os.F_ULOCK, 0),
    "a handle": lambda load, root: os.close(unlinked(load).fd),
    "a name": lambda load, root: os.unlink(root + load.path(next(iter(load.state.files.values())).names[0])),
    "a mass file": lambda load, root: os.unlink(root + mass_path("/scratch", 7)),
    "a mass file's bytes": lambda load, root: os.truncate(root + mass_path("/scratch", 3), 0),
    "a mode": lambda load, root: os.fchmod(unlinked(load).fd, 0o777),
    "a symlink": lambda load, root: os.unlink(f"{root}/scratch/{next(iter(load.state.symlinks))}"),
    "an extra name": lambda load, root: os.mkdir(f"{root}/scratch/extra"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_is_noticed(work, tmp_path, loss):
    load, fs = work
    peer = OtherProcess(str(tmp_path))
    assert verify(load, fs, str(tmp_path), peer=peer, host_locks=True) == []
    LOSSES[loss](load, str(tmp_path))
    found = verify(load, fs, str(tmp_path), peer=peer, host_locks=True)
    assert found
    assert all(str(discrepancy) for discrepancy in found)


def test_a_wrong_answer_ends_the_step(work):
    load, fs = work
    fs.read = lambda fd, n: b"nonsense"
    fs.pread = lambda fd, n, offset: b"nonsense"

    def many():
        for _ in range(200):
            load.step(fs)

    with pytest.raises(WorkloadError, match="the record says"):
        many()


class TestReader:
    @pytest.fixture
    def share(self, tmp_path):
        for folder in ("a", "a/b", "c"):
            (tmp_path / folder).mkdir()
            for number in range(4):
                (tmp_path / folder / f"f{number}").write_bytes(os.urandom(number * 50_000))
        (tmp_path / "link").symlink_to("a")
        os.mkfifo(tmp_path / "fifo")
        return tmp_path

    @pytest.fixture
    def reader(self, share):
        started = Reader.start(OsFiles(str(share)), seed=2)
        yield started
        started.finish(OsFiles(str(share)))

    @pytest.mark.unprivileged
    def test_it_reads_and_changes_nothing(self, reader, share):
        before = sorted((str(path), path.lstat().st_mtime_ns) for path in share.rglob("*"))
        fs = OsFiles(str(share))
        assert {reader.step(fs) for _ in range(200)} == {"read", "pread", "stat", "list"}
        assert reader.verify(fs, str(share)) == []
        assert reader.counts() == {"files": 12, "handles": 12, "directories": 4, "steps": 200}
        assert sorted((str(path), path.lstat().st_mtime_ns) for path in share.rglob("*")) == before

    def test_its_state_travels(self, reader, share):
        fs = OsFiles(str(share))
        for _ in range(50):
            reader.step(fs)
        other = Reader(decode_reader(reader.encode()))
        assert other.state == reader.state
        for _ in range(50):
            other.step(fs)
        assert other.verify(fs, str(share)) == []

    @pytest.mark.parametrize("change", ["offset", "byte", "size", "handle"])
    def test_what_differs_is_noticed(self, reader, share, change):
        fs = OsFiles(str(share))
        for _ in range(300):
            reader.step(fs)
        handle = next(h for h in reader.state.handles if reader.state.files[h.file].size > 60_000)
        path = str(share) + reader.state.files[handle.file].path
        if change == "offset":
            os.lseek(handle.fd, 5, os.SEEK_SET)
        elif change == "byte":
            with open(path, "r+b") as file:
                file.write(b"\0" * 16)
        elif change == "size":
            os.truncate(path, 5)
        else:
            os.close(handle.fd)
        assert len(reader.verify(fs)) == 1
        if change == "handle":
            reader.state.handles.remove(handle)

    def test_a_change_while_it_reads_ends_the_step(self, reader, share):
        fs = OsFiles(str(share))
        for _ in range(200):
            reader.step(fs)
        for path in share.rglob("f*"):
            if path.is_file():
                path.write_bytes(b"other")

        def many():
            for _ in range(100):
                reader.step(fs)

        with pytest.raises(WorkloadError):
            many()
