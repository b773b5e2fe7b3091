"""Shared memory that is written through its file."""

from __future__ import annotations

import errno
import os

import pytest

from tests.unit.migration.test_ram import PAGE, encode
from vmsim.errors import HostError
from vmsim.host.shm import SharedMemory, write_pages
from vmsim.memory import GuestMemory, Region
from vmsim.migration.byteio import StreamInput
from vmsim.migration.ram import RamLoader


@pytest.fixture
def shared():
    memory = SharedMemory("test", 2000 * PAGE, sealed=True)
    yield memory
    memory.close()


def test_pages_written_through_the_file_are_in_the_mapping(shared):
    pages = [memoryview(bytes([number % 251 + 1]) * PAGE) for number in range(1500)]  # more than IOV_MAX
    write_pages(shared.fd, 100 * PAGE, pages)
    assert shared.view[100 * PAGE : 1600 * PAGE].tobytes() == b"".join(pages)
    assert not any(shared.view[99 * PAGE : 100 * PAGE])
    assert not any(shared.view[1600 * PAGE : 1601 * PAGE])


def test_what_does_not_fit_is_an_error(shared):
    with pytest.raises(HostError) as caught:
        write_pages(shared.fd, 1999 * PAGE, [memoryview(bytes(PAGE))] * 2)
    assert caught.value.errno in (errno.ENOMEM, errno.EPERM)  # cut short, or refused by the seals
    with pytest.raises(HostError):
        write_pages(-1, 0, [memoryview(bytes(PAGE))])


def test_a_loader_writes_runs_through_the_file(shared):
    content = os.urandom(300 * PAGE) + bytes(100 * PAGE) + os.urandom(600 * PAGE)
    source = GuestMemory([Region("ram", 0, len(content), memoryview(bytearray(content)))])
    data, _ = encode(source)
    target = GuestMemory([Region("ram", 0, len(content), shared.view[: len(content)], shared.fd)])
    runs = []

    def write(region, offset, pages):
        runs.append((offset, len(pages)))
        write_pages(region.fd, region.fd_offset + offset, pages)

    pieces = iter([data])
    stream = type("Source", (), {"read_some": lambda self, limit: next(pieces, b"")})()
    loader = RamLoader(target, StreamInput(stream), write)
    loader.load_start()
    loader.load_part()
    assert sum(count for _, count in runs) > 800
    assert target.regions[0].view.tobytes() == content
