"""Whoever listens takes a free name, gives it back, and leaves alone what somebody else has there."""

from __future__ import annotations

import os
import socket
import stat
import threading

import pytest

from vmsim.errors import HostError, UsageError
from vmsim.host.channels import accept, connect
from vmsim.host.sockets import Listener
from vmsim.machine import Machine

OTHERS = (
    "file", "directory", "full directory", "link", "dangling link", "pipe", "stale socket", "live socket",
)  # fmt: skip


@pytest.fixture
def others(tmp_path):
    """Makes what somebody else has at a path, and tells it from anything else."""
    held = []

    def make(kind, path):
        if kind == "file":
            path.write_text("years of work")
        elif kind.endswith("directory"):
            path.mkdir()
            if kind.startswith("full"):
                (path / "thesis").write_text("years of work")
        elif kind.endswith("link"):
            path.symlink_to(tmp_path / "target")
            if kind == "link":
                (tmp_path / "target").write_text("years of work")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].bind(str(path))
            if kind == "live socket":
                held[-1].listen(1)
                held[-1].setblocking(False)
            else:
                held[-1].close()

    yield make, held
    for each in held:
        each.close()


def looks(path):
    return {each.name: (each.lstat().st_ino, each.lstat().st_mode, each.lstat().st_ctime_ns)
            for each in (path.parent, *path.parent.rglob("*"))}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_incoming_migration_leaves_alone_what_is_there(kind, others, tmp_path):
    make, held = others
    path = tmp_path / "name"
    make(kind, path)
    before = looks(path)
    with pytest.raises(HostError, match=r"cannot listen on .*: it is a ") as caught:
        accept(str(path))
    with pytest.raises(HostError, match="EADDRINUSE"):
        Machine.receive(f"unix:{path}", tmp_path)
    assert looks(path) == before
    if kind == "live socket":
        assert f"process {os.getpid()} " in str(caught.value)
        with pytest.raises(BlockingIOError):
            held[0].accept()  # it was not even disturbed


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "stale socket"])
def test_a_back_end_leaves_alone_what_is_there(kind, others, tmp_path):
    make, held = others
    path = tmp_path / "name"
    make(kind, path)
    before = looks(path)
    with pytest.raises(UsageError, match=f"{path} "):
        Listener(str(path))
    assert looks(path) == before
    if kind == "live socket":
        with pytest.raises(BlockingIOError):
            held[0].accept()


@pytest.mark.parametrize("folder", ["", "d" * 100 + "/" + "e" * 100], ids=["short", "longer than an address"])
def test_the_name_is_free_again_afterwards(tmp_path, folder):
    path = tmp_path / folder / "socket"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = []
    thread = threading.Thread(target=lambda: found.append(accept(str(path))))
    thread.start()
    while thread.is_alive():
        try:
            connect(str(path)).close()
            break
        except HostError:
            continue  # it does not listen yet
    thread.join(60)
    found[0].close()
    assert os.listdir(path.parent) == []


def test_a_name_that_was_taken_over_stays(tmp_path, monkeypatch):
    """Between listening and the end, somebody removes our socket and puts a file of theirs there."""
    path = tmp_path / "socket"

    def accepted(listener):
        path.unlink()
        path.write_text("theirs")
        raise TimeoutError(110, "nobody came")

    monkeypatch.setattr("vmsim.host.channels._accepted", accepted)
    with pytest.raises(HostError, match="no connection on"):
        accept(str(path))
    assert path.read_text() == "theirs"


def test_the_folder_is_the_one_that_it_was(tmp_path, monkeypatch):
    """A relative name, and another working directory when the socket is removed."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "socket").write_text("theirs")
    monkeypatch.chdir(tmp_path / "here")

    def accepted(listener):
        assert stat.S_ISSOCK(os.stat("socket").st_mode)
        os.chdir(tmp_path / "there")
        raise TimeoutError(110, "nobody came")

    monkeypatch.setattr("vmsim.host.channels._accepted", accepted)
    with pytest.raises(HostError):
        accept("socket")
    assert os.listdir(tmp_path / "here") == []
    assert (tmp_path / "there" / "socket").read_text() == "theirs"

