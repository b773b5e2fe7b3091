"""``vmsim serve`` as a program: what it says, its exit status, and the files beside its socket."""

import grp
import json
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from tests.support.sampling import sample
from vmsim.errors import HostError
from vmsim.host.sockets import UnixSocket

ROOT = os.geteuid() == 0


def start(*words, **popen):
    command = [sys.executable, "-P", "-m", "vmsim.cli", "serve", *map(str, words)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def ended(*words):
    """Exit status and standard error of a command that ends by itself."""
    with start(*words) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, err + out


def connect(process, path):
    """A connection, once it listens."""
    while True:
        try:
            return UnixSocket.connect(str(path))
        except HostError:
            assert process.poll() is None, process.stderr.read()


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "socket"


@pytest.mark.parametrize("words", sample([
    "", "--sandbox=none", "--reconnect", "--sandbox=none --reconnect", "--tag=shared --request-queues=4",
    "--no-packed --no-inflight --dialect=rfc2023", "--posix-acl --writeback --cache=always --log-level=trace",
    "--inode-file-handles=never --rlimit-nofile=512", "--rlimit-nofile=0 --readonly --trace=vhost.*",
], 5, "serve: options"))  # fmt: skip
def test_it_serves_and_leaves_nothing(share, path, words):
    with start("--socket-path", path, "--shared-dir", share, *words.split()) as process:
        line = ""
        while f"serving {share} on {path}" not in line:
            line = process.stderr.readline()
            assert line
        connection = connect(process, path)
        pid = path.with_name("socket.pid")
        assert int(pid.read_text()) == process.pid
        assert stat.S_IMODE(pid.stat().st_mode) == 0o600
        if "--reconnect" in words:
            connection.close()
            connect(process, path).close()
            process.send_signal(signal.SIGTERM)
        else:
            connection.close()
        process.stderr.read()
        assert process.wait(60) == (143 if "--reconnect" in words else 0)
    assert sorted(os.listdir(path.parent)) == ["share"]


@pytest.mark.skipif(not ROOT, reason="chroot needs root")
def test_it_serves_in_a_changed_root(share, path):
    test_it_serves_and_leaves_nothing(share, path, "--sandbox=chroot")


@pytest.mark.parametrize(("words", "said"), sample([
    ("--sandbox=jail", "--sandbox"), ("--shared-dir={share}", "where to serve?"),
    ("--socket-path={path}", "say --shared-dir"),
    ("--socket-path={path} --shared-dir=/nowhere", "not a directory"),
    ("--socket-path={path} --fd=5 --shared-dir={share}", "either --socket-path or --fd"),
    ("--socket-path={path} --shared-dir={share} --socket-group=no-such-group", "no group"),
    ("--fd=5 --shared-dir={share} --socket-group=root", "--socket-group is for --socket-path"),
    ("--socket-path={path} --shared-dir={share} --modcaps=+all", "capabilities(7)"),
    ("--socket-path={path} --shared-dir={share} --uid-map=0:1", "INSIDE"),
    ("--socket-path={path} --shared-dir={share} --sandbox=none --uid-map=:0:1:1:", "--sandbox namespace"),
    ("--socket-path={path} --shared-dir={share} -o cache=none,xattr", "use --cache none --xattr"),
    ("--socket-path={path} --shared-dir={share} --seccomp=kill", "use --seccomp none"),
    ("--socket-path={path} --shared-dir={share} --rlimit-nofile=4000000000", "open files"),
    ("--socket-path={path} --shared-dir={share} --xattrmap=nonsense", "xattr"),
    ("--socket-path={path} --shared-dir={share} --trace=nothing", "no event matches"),
], 6, "serve: misuse"))  # fmt: skip
def test_wrong_usage(share, path, words, said):
    status, text = ended(*words.format(share=share, path=path).split())
    assert (status, said in text) == (2, True), text
    assert "Traceback" not in text
    assert os.listdir(path.parent) == ["share"]


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(share, path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    words = ("--socket-path", path, "--shared-dir", share, "--reconnect")
    with start(*words) as process:
        connect(process, path).close()
        status, text = ended(*words)
        assert status == 2
        assert f"process {process.pid}" in text
        connect(process, path).close()
        process.kill()  # so that it leaves both files
    assert path.with_name("socket.pid").exists()
    with start(*words) as process:
        while path.with_name("socket.pid").read_text().strip() != str(process.pid):
            assert process.poll() is None, process.stderr.read()
        connect(process, path).close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


def test_a_file_that_is_no_socket_is_left_alone(share, path):
    path.write_text("precious")
    status, text = ended("--socket-path", path, "--shared-dir", share)
    assert (status, "is no socket" in text) == (2, True)
    assert path.read_text() == "precious"


def test_the_group_of_the_socket(share, path):
    group = os.getegid() if not ROOT else 1
    name = grp.getgrgid(group).gr_name
    with start("--socket-path", path, "--shared-dir", share, "--socket-group", name) as process:
        connect(process, path).close()
        found = path.stat()
        assert process.wait(60) == 0
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (group, 0o660)


@pytest.mark.parametrize("listens", [True, False])
def test_an_inherited_socket(share, path, listens):
    theirs = socket.socket(socket.AF_UNIX)
    theirs.bind(str(path))
    theirs.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    given = theirs if listens else theirs.accept()[0]
    with start("--fd", given.fileno(), "--shared-dir", share, pass_fds=[given.fileno()]) as process:
        given.close()
        theirs.close()
        client.close()
        assert process.wait(60) == 0, process.stderr.read()
        process.stderr.read()
    assert path.exists()  # whoever made it removes it


def test_what_breaks_the_protocol_ends_it_with_1(share, path):
    with start("--socket-path", path, "--shared-dir", share) as process:
        connection = connect(process, path)
        connection.send(b"\xff" * 64)
        assert process.wait(60) == 1
        assert "connection ended" in process.stderr.read()
        connection.close()


def test_what_it_prints_for_managers():
    status, text = ended("--print-capabilities")
    features = ["migrate-precopy", "separate-options"]
    assert (status, json.loads(text)) == (0, {"type": "fs", "features": features})
    status, text = ended("--print-vhost-user-json")
    document = json.loads(text)
    assert status == 0
    assert set(document) == {"description", "type", "binary", "features"}
    told = subprocess.run([document["binary"], "--print-capabilities"], capture_output=True, check=True)
    assert json.loads(told.stdout)["type"] == document["type"]


SERVED = """
import ast, pathlib, sys
import vmsim.cli.program, vmsim.cli.serve
from vmsim.machine.installed import find_device
find_device("virtio-fs")
had = {name: module for name, module in sys.modules.items() if name.startswith(("vmsim", "devices"))}
for name, module in sorted(had.items()):
    for function in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text())):
        if isinstance(function, ast.FunctionDef):
            for each in ast.walk(function):
                if isinstance(each, ast.ImportFrom) and each.module not in sys.modules:
                    print(name, each.module)
"""
LATE = {
    # The guest's side, and what looks at streams: not here.
    "devices.virtio_fs devices.virtio_fs.checker", "devices.virtio_fs devices.virtio_fs.device",
    "devices.virtio_fs devices.virtio_fs.inspection", "devices.virtio_fs devices.virtio_fs.section",
    # Types of options, when the command line is read.
    "vmsim.cli.common vmsim.machine.asked", "vmsim.cli.common vmsim.machine.config",
    # Reports of other commands.
    "vmsim.cli.common rich.console",
    # With --trace it has been imported before.
    "vmsim.cli.serve vmsim.cli.tracing",
}


def test_what_serves_imports_nothing_once_it_is_in_the_sandbox():
    """There is nothing there to import from."""
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()) == LATE
