"""A machine goes on with the directory that it was made on, wherever the program and that directory go."""

from __future__ import annotations

import itertools
import os
import shlex
import socket
import sys
import threading

import pytest

from vmsim.errors import HostError, VmsimError
from vmsim.host.channels import SocketChannel
from vmsim.host.directory import fixed
from vmsim.machine import Machine
from vmsim.machine.parts import Seams
from vmsim.machine.remote import started


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A program that works in ``mine``, with ``private`` beside it."""
    for name in ("mine", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path


def listing(vm):
    return sorted(vm.mount().listdir("/"))


TRANSPORTS = pytest.mark.parametrize("transport", [None, "vhost-user"])


# What a name means is settled before a back-end is started: one name is enough for those in processes.
@pytest.mark.parametrize(
    ("transport", "share"), [(None, "."), (None, "../mine"), (None, "./"), ("vhost-user", "../mine")]
)
def test_migrating_after_a_change_of_directory(places, transport, share):
    vm = Machine(share, memory="8M", transport=transport)
    for elsewhere in (places / "private", places, "/"):
        os.chdir(elsewhere)
        vm = vm.migrate()
        assert listing(vm) == ["of-mine"]
        assert os.path.isabs(vm.share)
    vm.close()


def test_a_name_that_leads_back_from_a_link(places):
    """``link/..`` is the parent of what the link leads to, and not where the link is."""
    (places / "private" / "below").mkdir()
    os.symlink(places / "private" / "below", "link")
    with Machine("link/..", memory="8M") as vm, vm.migrate() as there:
        assert listing(there) == ["below", "of-private"]


@TRANSPORTS
def test_a_directory_that_is_renamed_and_replaced(places, transport):
    vm = Machine(places / "mine", memory="8M", transport=transport)
    os.rename(places / "mine", places / "now")
    os.rename(places / "private", places / "mine")
    vm = vm.migrate()
    assert listing(vm) == ["of-mine"]
    assert vm.share == str(places / "now")
    vm.close()


@TRANSPORTS
def test_a_directory_that_is_gone_is_said_to_be(places, transport):
    with Machine(places / "private", memory="8M", transport=transport) as vm:
        os.rename(places / "private", places / "moved")
        os.remove(places / "moved" / "of-private")
        os.rmdir(places / "moved")
        (places / "private").mkdir()
        with pytest.raises(HostError, match="ESTALE") as caught:
            vm.migrate()
        assert "share=" in caught.value.hint
        assert vm.state == "running"
        with vm.migrate(share=places / "private") as there:
            assert listing(there) == []


def test_paths_are_those_of_the_moment_of_the_call(places):
    vm = Machine("../private", memory="8M")
    os.chdir(places)
    vm.save("saved")
    os.chdir(places / "mine")
    with Machine.restore("../saved", share="../private") as vm:
        os.chdir("/")
        assert listing(vm) == ["of-private"]
    assert sorted(os.listdir(places)) == ["mine", "private", "saved"]


def test_a_command_is_relative_to_where_it_was_said(places):
    """The program of the command, and whatever else its words name."""
    serve = f'exec {shlex.quote(sys.executable)} -m vmsim.cli serve "$@"'
    lines = "#!/bin/sh", "test -e of-mine || exit 3", serve
    (places / "mine" / "start").write_text("\n".join(lines))
    (places / "mine" / "start").chmod(0o755)
    command = "./start --socket-path {socket} --shared-dir {dir} --sandbox=none --reconnect --xattr"
    for make in (
        lambda: Machine(places / "private", memory="8M", transport="vhost-user", backend_command=command),
        lambda: Machine(places / "private", memory="8M", seams=Seams(start=started(command))),
    ):
        os.chdir(places / "mine")
        vm = make()
        os.chdir("/")
        vm = vm.migrate()
        assert listing(vm) == ["of-private"]
        vm.close()


def test_no_working_directory_at_all(places):
    with Machine("../private", memory="8M") as vm:
        os.mkdir("doomed")
        os.chdir("doomed")
        os.rmdir("../doomed")
        with pytest.raises(HostError, match="no working directory") as caught:
            Machine(".", memory="8M")
        assert "absolute" in caught.value.hint
        with vm.migrate() as there:
            assert listing(there) == ["of-private"]
        with pytest.raises(VmsimError):
            there.save("somewhere")


def test_absolute_paths_stay_as_they_are_written():
    assert fixed("/a/../b//c/") == "/a/../b//c/"
    assert fixed("a/..") == os.path.join(os.getcwd(), "a/..")


@TRANSPORTS
def test_a_change_of_directory_while_the_machine_moves(places, transport):
    """At every report of a migration the program is somewhere else."""
    vm = Machine("../mine", memory="8M", transport=transport)
    elsewhere = itertools.cycle((places / "private", places, "/"))
    for _ in range(2):
        vm = vm.migrate(progress=lambda report: os.chdir(next(elsewhere)))
        assert listing(vm) == ["of-mine"]
    vm.close()


def test_a_change_of_directory_while_a_stream_comes(places):
    """``share`` is said before the stream comes, and what it names then is what counts."""
    ours, theirs = socket.socketpair()
    got = []
    said = threading.Event()

    class Coming(SocketChannel):
        def read_some(self, limit):
            said.set()
            return super().read_some(limit)

    receive = threading.Thread(target=lambda: got.append(Machine.receive(Coming(theirs), "../mine")))
    vm = Machine("../mine", memory="8M")
    receive.start()
    assert said.wait(60), "nobody receives after 60 s"
    elsewhere = itertools.cycle((places / "private", "/"))
    vm.send(SocketChannel(ours), progress=lambda report: os.chdir(next(elsewhere)))
    receive.join()
    vm.close()
    assert listing(got[0]) == ["of-mine"]
    got[0].close()
