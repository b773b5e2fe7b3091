"""Files that are read by place."""

from __future__ import annotations

import os

import pytest

from tests.support.leaks import Held
from vmsim.errors import UsageError
from vmsim.host.readable import ReadableFile


def test_any_part(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    with ReadableFile(path) as file:
        assert (file.size, file.name) == (200, str(path))
        assert file.read_at(10, 3) == b"\x0a\x0b\x0c"
        assert file.read_at(198, 10) == b"\xc6\xc7"
        assert file.read_at(200, 1) == file.read_at(5, 0) == file.read_at(1 << 40, 9) == b""


def test_a_file_that_shrinks_meanwhile(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with ReadableFile(path) as file:
        os.truncate(path, 40)
        assert len(file.read_at(30, 50)) == 10


def dangling(path):
    os.symlink("nowhere", path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, dangling, lambda path: None])
def test_what_is_no_file_is_refused_at_once(tmp_path, make):
    """A pipe that nobody writes to as well; and no descriptor is left."""
    path = tmp_path / "it"
    make(path)
    before = Held()
    with pytest.raises(UsageError, match="it"):
        ReadableFile(path)
    assert before.more() == []


def test_closing_twice(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    before = Held()
    file = ReadableFile(path)
    file.close()
    file.close()
    assert before.more() == []
