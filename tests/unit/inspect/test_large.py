"""Files of hundreds of MB: read through windows, memory stays flat, and nothing is kept of a page but its
place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from struct import pack

import pytest

PAGE = 4096
BLOCK = b"\x03mem"
LARGE = 300 << 20
GROWTH_KIB = 32 << 10

# A process of its own: what a small file costs first, then the large ones. VmHWM begins anew with it.
MEASURE = """
import json, re, sys
from pathlib import Path
from vmsim.host.readable import ReadableFile
from vmsim.inspect.diff import diff
from vmsim.inspect.opening import read_capture

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def look(*paths):
    sources = [ReadableFile(path) for path in paths]
    captures = [read_capture(source, source.name) for source in sources]
    block = captures[0].ram.blocks["mem"]
    changes, memory = diff(*captures) if len(paths) > 1 else ([], [])
    return {
        "kind": captures[0].kind, "findings": [one.message for one in captures[0].findings],
        "end": captures[0].end, "counts": block.counts(), "records": block.page_records,
        "changes": [change.path for change in changes], "ranges": [pages.ranges for pages in memory],
    }

small = look(sys.argv[1]), look(sys.argv[1], sys.argv[1])
before = peak()
large = look(*sys.argv[2:])
print(json.dumps({"growth": peak() - before, **large}))
"""


def measured(*paths: Path) -> dict:
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Writer:
    """Writes a stream whose pages are holes in the file: it takes hardly any room."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.at = 0

    def write(self, data: bytes) -> None:
        os.pwrite(self.fd, data, self.at)
        self.at += len(data)

    def close(self) -> None:
        os.ftruncate(self.fd, self.at)
        os.close(self.fd)


def start(out: Writer, size: int, subsections: bytes = b"") -> None:
    """Up to the size of the only block."""
    out.write(pack(">4sIBI", b"QEVM", 3, 7, 4) + b"none" + subsections)
    out.write(pack(">BI", 1, 2) + b"\x03ram" + pack(">II", 0, 4))
    out.write(pack(">Q", size | 4) + BLOCK + pack(">Q", size))


def finish(out: Writer) -> None:
    """From the end of the first body on."""
    footer = pack(">QBI", 0x10, 0x7E, 2)
    out.write(footer + pack(">BI", 3, 2) + footer + b"\0")
    text = json.dumps({"page_size": PAGE, "devices": []}).encode()
    out.write(pack(">BI", 6, len(text)) + text)
    out.close()


def classic(path: Path, size: int, marked: int = -1) -> Path:
    """Every page is sent, with contents; one of them may have a mark."""
    out = Writer(path)
    start(out, size)
    for page in range(size // PAGE):
        flags = 8 | (0x20 if page else 0)
        out.write(pack(">Q", page * PAGE | flags) + (b"" if page else BLOCK))
        if page == marked:
            os.pwrite(out.fd, b"mark", out.at)
        out.at += PAGE
    finish(out)
    return path


def mapped(path: Path, size: int) -> Path:
    """A mapped-ram file of which every second page is there."""
    out = Writer(path)
    name = b"configuration/capabilities"
    capability = pack(">BB", 5, len(name)) + name + pack(">II", 1, 1) + b"\x0amapped-ram"
    start(out, size, capability)
    bitmap = b"\x55" * (size // PAGE // 8)
    header = out.at + 28
    pages = (header + len(bitmap) + (1 << 20) - 1) >> 20 << 20
    out.write(pack(">IQQQ", 1, PAGE, header, pages) + bitmap)
    out.at = pages + size
    finish(out)
    return path


@pytest.fixture
def small(tmp_path):
    return classic(tmp_path / "small", 64 * PAGE)


def test_a_stream_of_300_mb(tmp_path, small):
    large = classic(tmp_path / "large", LARGE)
    found = measured(small, large)
    assert found["findings"] == []
    assert found["end"] == large.stat().st_size > LARGE
    assert found["counts"] == [LARGE // PAGE, 0]
    assert found["records"] == LARGE // PAGE
    assert found["growth"] < GROWTH_KIB


def test_a_mapped_ram_file_of_300_mb(tmp_path, small):
    large = mapped(tmp_path / "large", LARGE)
    found = measured(small, large)
    assert (found["kind"], found["findings"]) == ("QEMU mapped-ram file", [])
    assert found["end"] == large.stat().st_size > LARGE
    assert found["counts"] == [LARGE // PAGE // 2, LARGE // PAGE // 2]
    assert found["growth"] < GROWTH_KIB


def test_two_streams_of_300_mb_that_differ_in_one_page(tmp_path, small):
    a, b = classic(tmp_path / "a", LARGE), classic(tmp_path / "b", LARGE, marked=70_001)
    found = measured(small, a, b)
    assert found["changes"] == []
    assert found["ranges"] == [[[70_001 * PAGE, PAGE]]]
    assert found["growth"] < GROWTH_KIB


def test_the_same_memory_in_either_format(tmp_path, small):
    found = measured(small, classic(tmp_path / "a", LARGE), mapped(tmp_path / "b", LARGE))
    assert found["ranges"] == [[]]
    assert found["growth"] < GROWTH_KIB
