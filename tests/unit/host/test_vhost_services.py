"""memfds, mappings, pipes and eventfds: what the vhost halves ask of the host."""

import errno
import fcntl
import os

import pytest

from tests.support.leaks import Held
from vmsim.errors import HostError
from vmsim.host.eventfd import EventFd
from vmsim.host.services import HostServices
from vmsim.host.shm import SharedMemory

HOST = HostServices()


def test_shared_memory_is_shared_named_and_released():
    before = Held()
    memory = SharedMemory("some name", 8192)
    assert os.readlink(f"/proc/self/fd/{memory.fd}") == "/memfd:some name (deleted)"
    view = HOST.map(memory.fd, 4096, 4096)
    view[0:3] = b"abc"
    assert bytes(memory.view[4096:4099]) == b"abc"
    HOST.unmap(view)
    memory.close()
    memory.close()
    assert before.more() == []


def test_a_mapping_outlives_its_close_while_somebody_looks():
    memory = SharedMemory("x", 4096)
    part = memory.view[0:16].cast("Q")
    part[0] = 7
    memory.close()
    assert part[0] == 7
    part.release()


def test_offsets_need_not_be_aligned():
    memory = SharedMemory("x", 8192)
    memory.view[5000:5003] = b"xyz"
    view = HOST.map(memory.fd, 100, 5000)
    assert bytes(view[:3]) == b"xyz"
    assert len(view) == 100
    HOST.unmap(view)
    memory.close()


def test_seals():
    memory = SharedMemory("x", 4096, sealed=True)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 8192)
    assert fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
    memory.close()


@pytest.mark.parametrize(
    ("size", "offset"), [(4097, 0), (1, 4096), (0, 0), (-1, 0), (1, -1), (1 << 64, 0), (4096, 1 << 63)]
)
def test_mappings_beyond_the_file_are_refused(size, offset):
    """Touching what lies beyond a file would be a SIGBUS."""
    memory = SharedMemory("x", 4096)
    before = Held()
    with pytest.raises(HostError) as caught:
        HOST.map(memory.fd, size, offset)
    assert caught.value.errno == errno.EINVAL
    assert before.more() == []
    memory.close()


@pytest.mark.parametrize("size", [0, -1, 1 << 62])
def test_impossible_sizes(size):
    before = Held()
    with pytest.raises(HostError):
        SharedMemory("x", size)
    assert before.more() == []


def test_a_read_only_descriptor_cannot_be_mapped(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(HostError) as caught:
        HOST.map(fd, 4096, 0)
    assert caught.value.errno == errno.EACCES
    os.close(fd)


def test_pipes_do_not_block():
    read_end, write_end = HOST.pipe()
    for end in (read_end, write_end):
        assert os.get_blocking(end), "the peer that gets it may be a thread that waits for bytes"
        HOST.adopt(end)
    assert HOST.read(read_end, 10) is None
    assert HOST.write(write_end, b"abc") == 3
    assert HOST.read(read_end, 10) == b"abc"
    total = 0
    while (written := HOST.write(write_end, bytes(1 << 16))) is not None:
        total += written
    assert total >= 1 << 16
    HOST.close(write_end)
    while (data := HOST.read(read_end, 1 << 20)) != b"":
        assert data is not None
        total -= len(data)
    assert total == 0
    HOST.close(read_end)


def test_writing_to_nobody():
    read_end, write_end = HOST.pipe()
    HOST.close(read_end)
    with pytest.raises(HostError) as caught:
        HOST.write(write_end, b"x")
    assert caught.value.errno == errno.EPIPE
    HOST.close(write_end)


def test_adopt_makes_a_peers_descriptor_harmless():
    read_end, write_end = os.pipe2(0)
    HOST.adopt(read_end)
    assert not os.get_blocking(read_end)
    assert not os.get_inheritable(read_end)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("call", [HOST.close, HOST.dup, HOST.adopt, lambda fd: HOST.read(fd, 1)])
def test_bad_descriptors_are_typed_errors(call):
    with pytest.raises(HostError) as caught:
        call(1 << 20)
    assert caught.value.errno == errno.EBADF


def test_eventfd_counts():
    event = EventFd()
    assert event.drain() == 0
    event.signal()
    event.signal()
    assert event.drain() == 2
    event.close()
    event.close()
