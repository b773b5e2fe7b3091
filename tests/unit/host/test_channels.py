from __future__ import annotations

import contextlib
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading

import pytest

from tests.contract.channel import DUPLEX_CHECKS, ONE_WAY_CHECKS
from vmsim.errors import HostError, StateError, UsageError, VmsimError
from vmsim.host.channels import CommandReader, CommandWriter, SocketChannel
from vmsim.host.files import FileReader, FileWriter, incoming_channel, outgoing_channel
from vmsim.host.waits import FdWaits
from vmsim.migration.errors import ChannelError
from vmsim.schedule.immediate import ImmediateSchedule


def unix_pair():
    return socket.socketpair()


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


@pytest.mark.parametrize("check", DUPLEX_CHECKS)
@pytest.mark.parametrize("connect", [unix_pair, tcp_pair])
def test_sockets(check, connect):
    waits = FdWaits(patience_ns=10_000_000_000)
    schedule = ImmediateSchedule(descriptors=waits)
    ends = [SocketChannel(end, schedule, waits) for end in connect()]
    try:
        check(schedule, *ends)
    finally:
        for end in ends:
            end.close()


@pytest.mark.parametrize("check", ONE_WAY_CHECKS)
def test_files(check, tmp_path):
    path = tmp_path / "stream"
    check(lambda: FileWriter(path), lambda: FileReader(path))
    left = [entry.name for entry in tmp_path.iterdir()]
    assert left in ([], ["stream"]), "a temporary file was left behind"


@pytest.mark.parametrize("check", [ONE_WAY_CHECKS[0], ONE_WAY_CHECKS[2]])
def test_commands(check, tmp_path):
    path = shlex.quote(str(tmp_path / "stream"))
    check(lambda: CommandWriter(f"cat > {path}"), lambda: CommandReader(f"cat {path}"))


def test_a_saved_file_replaces_the_old_one_only_when_it_is_finished(tmp_path):
    path = tmp_path / "stream"
    path.write_bytes(b"old")
    writer = FileWriter(path)
    writer.write(b"new")
    assert path.read_bytes() == b"old"
    writer.finish()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_is_not_there_is_a_host_error(tmp_path):
    with pytest.raises(HostError):
        FileWriter(tmp_path / "no" / "stream")
    with pytest.raises(HostError):
        FileReader(tmp_path / "nothing")


def test_a_command_that_fails_fails_the_stream():
    writer = CommandWriter("cat > /dev/null; exit 3")
    writer.write(b"x")
    with pytest.raises(VmsimError, match="status 3"):
        writer.finish()
    writer.close()
    reader = CommandReader("printf half; exit 1")
    assert reader.read(4) == b"half"
    with pytest.raises(VmsimError, match="status 1"):
        reader.read_some(1)
    reader.close()


def test_a_command_that_does_not_read_is_an_error_and_not_a_signal():
    writer = CommandWriter("exec 0<&-; exit 0")
    with pytest.raises(VmsimError):
        writer.write(bytes(1 << 20))
    writer.close()


def test_a_command_is_ended_when_the_channel_is_given_up(tmp_path):
    marker = tmp_path / "marker"
    writer = CommandWriter(f"cat > /dev/null && sleep 100 && touch {shlex.quote(str(marker))}")
    writer.close()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_channels_by_uri_across_threads(kind, tmp_path):
    if kind == "unix":
        uri = f"unix:{tmp_path}/socket"
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            uri = f"tcp:127.0.0.1:{server.getsockname()[1]}"
    received = []

    def receive():
        channel = incoming_channel(uri)
        received.append(channel.read(7))
        channel.write(b"ok")
        channel.close()

    thread = threading.Thread(target=receive)
    thread.start()
    for _ in range(1000):
        try:
            channel = outgoing_channel(uri)
            break
        except HostError:
            thread.join(0.01)
    channel.write(b"message")
    assert channel.read(2) == b"ok"
    thread.join()
    channel.close()
    assert received == [b"message"]
    assert not os.path.exists(f"{tmp_path}/socket")


@pytest.mark.parametrize("uri", ["smoke:signals", "tcp:nowhere", "tcp:host:port", ""])
def test_a_uri_that_makes_no_sense_is_refused(uri):
    with pytest.raises(UsageError):
        outgoing_channel(uri)
    with pytest.raises(UsageError):
        incoming_channel(uri)


def test_file_and_command_uris(tmp_path):
    path = tmp_path / "stream"
    channel = outgoing_channel(f"file:{path}")
    channel.write(b"abc")
    channel.finish()
    for uri in (f"file:{path}", f"exec:cat {shlex.quote(str(path))}"):
        channel = incoming_channel(uri)
        assert channel.read(3) == b"abc"
        channel.close()
    channel = outgoing_channel(f"exec:cat > {shlex.quote(str(path))}")
    channel.write(b"def")
    channel.finish()
    assert path.read_bytes() == b"def"


def test_nothing_but_files_is_replaced(tmp_path):
    """Saving to /dev/null as root must not put a file in its place."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for name in ("fifo", "folder", "link"):
        with pytest.raises(UsageError, match="is there and no file") as caught:
            FileWriter(tmp_path / name)
        assert "exec:" in caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder", "link"]


def test_a_symlink_to_a_file_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("file")
    writer = FileWriter(tmp_path / "link")
    writer.write(b"stream")
    writer.finish()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"stream"


@pytest.mark.parametrize("size_bytes", [1, 1 << 16, (1 << 20) + 1])
@pytest.mark.parametrize("command", ["true", "head -c 1 > /dev/null", "exec < /dev/null; sleep 0.05"])
def test_a_command_that_leaves_some_of_it_unread_fails_the_stream(command, size_bytes):
    """It may succeed: what it was given is lost all the same."""
    channel = outgoing_channel(f"exec:{command}")

    def send():
        channel.write(bytes(size_bytes + 1))
        channel.finish()

    with pytest.raises(ChannelError, match=r"without reading|cannot write"):
        send()
    channel.close()


@pytest.mark.parametrize(
    "command", ["cat > {}", "dd of={} status=none", "cat /dev/stdin > {}", "sleep 0.05; cat > {}"]
)
def test_a_command_gets_every_byte_and_the_end(command, tmp_path):
    data = os.urandom((1 << 20) + 7)
    channel = outgoing_channel("exec:" + command.format(shlex.quote(str(tmp_path / "out"))))
    for at in range(0, len(data), 100_000):
        channel.write(data[at : at + 100_000])
    channel.finish()
    assert (tmp_path / "out").read_bytes() == data


def test_commands_need_no_standard_streams_and_no_children(tmp_path):
    """SIGCHLD is ignored, the streams are closed, a forked child lives on: only failures fail."""
    program = """if True:
        import os, signal, sys
        out = os.dup(1)
        for fd in range(3):
            os.close(fd)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        from vmsim.host.files import incoming_channel, outgoing_channel
        from vmsim.errors import VmsimError

        def whole(command, data=b"data"):
            channel = outgoing_channel(f"exec:{command}")
            child = os.fork()
            if not child:
                signal.pause()
            try:
                channel.write(data)
                channel.finish()
            except VmsimError as error:
                return str(error)
            finally:
                channel.close()
                os.kill(child, signal.SIGKILL)
            return "done"

        said = [whole("cat > out; echo noise; echo noise >&2")]
        said += [whole("cat > /dev/null; exit 3"), whole("kill -9 $$")]
        channel = incoming_channel("exec:cat out")
        said.append(bytes(channel.read_some(100)).decode())
        said.append(bytes(channel.read_some(100)).decode())
        channel.close()
        os.write(out, "|".join(said).encode())
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout.split("|")
    assert said[0] == "done", done
    assert "failed with status 3" in said[1]
    assert "failed with status -9" in said[2] or "cannot write" in said[2]
    assert said[3:] == ["data", ""]


def channels_in_use(tmp_path):
    """One of each kind that has a descriptor, and what is to come of it if nobody but us uses it."""
    ours, theirs = SocketChannel.pair(ImmediateSchedule())
    theirs.write(b"abc")
    yield ours, lambda: ours.write(b"xyz") or (bytes(ours.read(3)), bytes(theirs.read(3))) == (b"abc", b"xyz")
    (tmp_path / "in").write_bytes(b"abc")
    for reader in FileReader(tmp_path / "in"), CommandReader("printf abc"):
        yield reader, lambda reader=reader: bytes(reader.read(3)) == b"abc"
    out = tmp_path / "out"
    for writer in FileWriter(out), CommandWriter(f"cat > {shlex.quote(str(out))}"):
        yield writer, lambda each=writer: (each.write(b"xyz"), each.finish(), out.read_bytes())[2] == b"xyz"
    theirs.close()


@pytest.mark.parametrize("use", ["read_some(1)", "write(b'c')", "finish()", "close_write()", "close()"])
def test_a_forked_child_can_only_close_its_copy(use, tmp_path):
    for channel, whole in channels_in_use(tmp_path):
        child = os.fork()
        if not child:
            code = 1
            try:
                with contextlib.suppress(StateError):
                    eval(f"channel.{use}")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0, channel
        assert whole(), channel
        channel.close()
