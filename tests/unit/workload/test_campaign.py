"""The oracle agrees with Linux, and a file system that is wrong anywhere is found out."""

from __future__ import annotations

import os

import pytest

from vmsim.workload.campaign import ARGUMENTS, WEIGHTS, Campaign, Divergence, Operation, Slot
from vmsim.workload.fileapi import OsFiles


@pytest.fixture
def share(tmp_path):
    return OsFiles(str(tmp_path))


@pytest.fixture
def campaign(share):
    campaigns = []

    def make(seed, **options):
        campaigns.append(Campaign(seed, **options))
        return campaigns[-1]

    yield make
    for used in campaigns:
        for fd in used.fds.values():
            os.close(fd)


@pytest.mark.unprivileged
@pytest.mark.parametrize("seed", range(12))
def test_the_oracle_agrees_with_linux(share, campaign, seed):
    run = campaign(seed)
    for _ in range(4):
        run.run(share, 150)
        run.check(share)


def test_every_operation_is_drawn_and_succeeds_and_fails(share, campaign, tmp_path):
    answers = {}

    class Watched(OsFiles):
        def __getattribute__(self, name):
            method = super().__getattribute__(name)
            if name not in ARGUMENTS:
                return method

            def call(*words):
                try:
                    result = method(*words)
                except OSError:
                    answers.setdefault(name, set()).add("failed")
                    raise
                answers.setdefault(name, set()).add("succeeded")
                return result

            return call

    os.mkdir(tmp_path / "share")
    run = campaign(5)
    run.run(Watched(str(tmp_path / "share")), 4000)
    assert set(answers) == set(WEIGHTS)
    assert {name for name, seen in answers.items() if "succeeded" not in seen} == set()
    assert {name for name, seen in answers.items() if "failed" not in seen} <= {"close", "fsync", "fstat"}


def test_same_seed_same_operations(share, campaign, tmp_path):
    done = []
    for name in ("one", "two"):
        os.mkdir(tmp_path / name)
        run = campaign(3)
        run.run(OsFiles(str(tmp_path / name)), 200)
        done.append(run.done)
    assert done[0] == done[1]


def loses_a_byte(fs):
    write = fs.pwrite
    fs.pwrite = lambda fd, data, offset: write(fd, data[:-1] + b"\0", offset) if data else 0


def forgets_append(fs):
    opens = fs.open
    fs.open = lambda path, flags, mode=0o777: opens(path, flags & ~os.O_APPEND, mode)


def forgets_modes(fs):
    mkdir = fs.mkdir
    fs.mkdir = lambda path, mode=0o777: mkdir(path)


def hides_names(fs):
    listdir = fs.listdir
    fs.listdir = lambda path: listdir(path)[1:]


def says_eio(fs):
    def rename(src, dst):
        raise OSError(5, "io")

    fs.rename = rename


def moves_offsets(fs):
    fs.pread = lambda fd, n, offset: (os.lseek(fd, offset, os.SEEK_SET), os.read(fd, n))[1]


def truncates_short(fs):
    fs.ftruncate = lambda fd, length: os.ftruncate(fd, max(0, length - 1))


MUTANTS = [loses_a_byte, forgets_append, forgets_modes, hides_names, says_eio, moves_offsets, truncates_short]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_what_is_wrong_is_found(share, campaign, mutant):
    mutant(share)
    run = campaign(1, repro="run it with seed 1")

    def all_of_it():
        run.run(share, 400)
        run.check(share)

    with pytest.raises(Divergence) as caught:
        all_of_it()
    assert "the last operations" in caught.value.message
    assert "run it with seed 1" in caught.value.hint
    assert caught.value.details["seed"] == 1


def test_what_changes_behind_its_back_is_found(share, campaign, tmp_path):
    run = campaign(1)
    run.step(share, Operation("open", ("/f", os.O_RDWR | os.O_CREAT, 0o700)))
    run.step(share, Operation("write", (Slot(0), b"hello")))
    run.check(share)
    (tmp_path / "f").write_bytes(b"hellO")
    with pytest.raises(Divergence, match="bytes of /f"):
        run.check(share)
    (tmp_path / "f").write_bytes(b"hello")
    os.lseek(run.fds[0], 1, os.SEEK_SET)
    with pytest.raises(Divergence, match="offset of fd0"):
        run.check(share)
    os.lseek(run.fds[0], 5, os.SEEK_SET)
    (tmp_path / "g").touch()
    with pytest.raises(Divergence, match="names in /"):
        run.check(share)
    (tmp_path / "g").unlink()
    run.check(share)
    run.close(share)
    assert run.fds == {}


def test_operations_print_short():
    text = str(Operation("pwrite", (Slot(3), b"x" * 5000, 7)))
    assert text.startswith("pwrite(fd3, <5000 bytes 7878")
    assert len(text) < 80
