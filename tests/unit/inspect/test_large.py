"""Files of hundreds of MB cost neither their size in memory nor an object per page."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

from vmsim.migration.ram import EOS, MEM_SIZE, PAGE

PAGES = 75_000
PAGE_BYTES = 4096
LOOK = """
import json, resource, sys
from vmsim.host.readable import ReadableFile
from vmsim.inspect.opening import read_capture
with ReadableFile(sys.argv[1]) as source:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    capture = read_capture(source, sys.argv[1])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
block = capture.ram.blocks["mem"]
print(json.dumps({"kib": after - before, "pages": block.counts()[0], "records": block.page_records,
                  "codes": [finding.code for finding in capture.findings], "end": capture.end}))
"""


def write_stream(path: Path) -> int:
    """A stream of about 300 MB whose pages are holes in the file; its length in bytes."""
    be64 = struct.Struct(">Q")
    with path.open("wb") as file:
        file.write(struct.pack(">IIBI", 0x5145564D, 3, 7, 6) + b"test-1")
        size = PAGES * PAGE_BYTES
        file.write(b"\1" + struct.pack(">IB", 0, 3) + b"ram" + struct.pack(">II", 0, 4))
        file.write(be64.pack(size | MEM_SIZE) + b"\3mem" + be64.pack(size) + be64.pack(EOS))
        file.write(b"\x7e" + bytes(4))
        file.write(b"\3" + bytes(4))
        for page in range(PAGES):
            file.write(be64.pack(page * PAGE_BYTES | PAGE) + b"\3mem")
            file.seek(PAGE_BYTES, 1)
        text = b'{"page_size": 4096, "devices": []}'
        file.write(be64.pack(EOS) + b"\x7e" + bytes(4) + b"\0" + b"\6" + struct.pack(">I", len(text)) + text)
        return file.tell()


def test_a_large_stream_is_not_held(tmp_path):
    path = tmp_path / "stream"
    size = write_stream(path)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, timeout=100,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["pages"] == facts["records"] == PAGES
    assert facts["end"] == size > 300_000_000
    assert facts["codes"] == []
    assert facts["kib"] < 64 << 10
