"""Unix sockets with descriptors, and the files of listening ones."""

import array
import errno
import grp
import os
import select
import socket

import pytest

from tests.support.leaks import Held
from vmsim.errors import HostError, UsageError
from vmsim.host.sockets import Listener, UnixSocket


@pytest.fixture(autouse=True)
def _nothing_leaks():
    before = Held()
    yield
    assert before.more() == []


def test_bytes_and_descriptors_arrive_together():
    ours, theirs = UnixSocket.pair()
    read_end, write_end = os.pipe()
    assert ours.send(b"hello", (read_end, write_end)) == 5
    data, came = theirs.receive(2)
    assert (data, len(came)) == (b"he", 2)
    data, fds = theirs.receive(100)
    assert (data, fds) == (b"llo", [])
    assert theirs.receive(10) is None
    for fd in (read_end, write_end, *came):
        os.close(fd)
    ours.close()
    assert theirs.receive(10) == (b"", [])
    theirs.close()


@pytest.fixture
def descriptors():
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def test_what_came_is_the_receivers(descriptors):
    ours, theirs = UnixSocket.pair()
    ours.send(b"x", descriptors)
    _, fds = theirs.receive(1)
    os.write(fds[1], b"through")
    assert os.read(descriptors[0], 10) == b"through"
    assert not os.get_inheritable(fds[0])
    for fd in fds:
        os.close(fd)
    ours.close()
    theirs.close()


def test_too_many_descriptors_are_an_error_and_none_stays_open(descriptors):
    raw, other = socket.socketpair()
    theirs = UnixSocket(other)
    fds = array.array("i", [descriptors[0]] * 60)
    raw.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(HostError) as caught:
        theirs.receive(1)
    assert caught.value.errno == errno.EMSGSIZE
    raw.close()
    theirs.close()


def test_a_full_socket_says_so_and_a_closed_one_too():
    ours, theirs = UnixSocket.pair()
    while ours.send(bytes(65536)) is not None:
        pass
    theirs.close()
    with pytest.raises(HostError) as caught:
        ours.send(b"x")
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)
    ours.close()


def connected(path):
    listener = Listener(str(path))
    client = UnixSocket.connect(str(path))
    select.select([listener.fd], [], [], 5)
    return listener, client, listener.accept()


@pytest.mark.parametrize("depth", [1, 30])
def test_listening_and_connecting_with_paths_of_any_length(tmp_path, depth):
    folder = tmp_path.joinpath(*["folder"] * depth)
    folder.mkdir(parents=True)
    listener, client, server = connected(folder / "socket")
    assert listener.accept() is None
    client.send(b"here")
    assert server.receive(10) == (b"here", [])
    for end in (listener, client, server):
        end.close()
    assert not (folder / "socket").exists()


def test_stale_sockets_are_replaced_live_ones_and_files_are_not(tmp_path):
    path = tmp_path / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    listener = Listener(str(path))
    with pytest.raises(UsageError, match="listens"):
        Listener(str(path))
    listener.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(UsageError, match="no socket"):
        Listener(str(path))
    assert path.read_text() == "precious"


def test_a_file_that_somebody_else_put_there_meanwhile_stays(tmp_path):
    path = tmp_path / "socket"
    listener = Listener(str(path))
    path.unlink()
    path.write_text("theirs")
    listener.close()
    assert path.read_text() == "theirs"


def test_the_group_of_the_socket_file(tmp_path):
    path = tmp_path / "socket"
    name = grp.getgrgid(os.getegid()).gr_name
    listener = Listener(str(path), group=name)
    assert path.stat().st_gid == os.getegid()
    assert path.stat().st_mode & 0o777 == 0o660
    listener.close()
    with pytest.raises(UsageError, match="no group"):
        Listener(str(path), group="no-such-group")
    assert not path.exists()


def test_connecting_to_nothing(tmp_path):
    with pytest.raises(HostError) as caught:
        UnixSocket.connect(str(tmp_path / "nobody"))
    assert caught.value.errno == errno.ENOENT


def test_inherited_sockets(tmp_path):
    ours, theirs = socket.socketpair()
    adopted = UnixSocket.adopt(theirs.detach())
    ours.send(b"hi")
    assert adopted.receive(10) == (b"hi", [])
    adopted.close()
    ours.close()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "inherited"))
    listening.listen()
    listener = Listener.adopt(listening.detach())
    assert listener.listens
    listener.close()
    assert (tmp_path / "inherited").exists(), "the file belongs to whoever made it"
    with pytest.raises(HostError, match="no socket"):
        UnixSocket.adopt(os.open(os.devnull, os.O_RDONLY))


@pytest.mark.parametrize("mask", [0, 0o077])
def test_nobody_gets_in_before_the_group_is_set(tmp_path, set_umask, mask):
    """Not even for a moment is the file more open than asked for, and a link there is not followed."""
    set_umask(mask)
    listener = Listener(str(tmp_path / "socket"), group=str(os.getegid()))
    assert set_umask(0) == mask
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660
    listener.close()


@pytest.mark.parametrize("path", ["", "folder/"])
def test_a_path_without_a_name(tmp_path, monkeypatch, path):
    """Bound to an empty name a socket would be reachable by anybody, under a name of the system's choice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises((HostError, UsageError)):
        Listener(path)
    assert [found.name for found in tmp_path.rglob("*")] == ["folder"]


def test_a_socket_that_cannot_be_used_is_closed():
    try:
        odd = socket.socket(44, socket.SOCK_RAW)  # AF_XDP: it has no address
    except OSError:
        pytest.skip("no such sockets here")
    before = Held()
    with odd, pytest.raises(HostError):
        UnixSocket.adopt(os.dup(odd.fileno()))
    assert before.more() == []


def test_a_name_too_long_for_any_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = Held()
    for path in (str(tmp_path / ("x" * 120)), "x" * 120):
        for use in (Listener, UnixSocket.connect):
            with pytest.raises(HostError) as caught:
                use(path)
            assert caught.value.errno == errno.ENAMETOOLONG
    assert before.more() == []
