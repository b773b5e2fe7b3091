"""READ and WRITE of 1 MiB between a file and guest memory against bare preadv and pwritev.

Both sides move the same bytes of the same file to and from the very same pages of guest memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import Figure, Plan, interleave, micros, speed
from vmsim import Machine

AIM = 0.9
SIZE = 1 << 20
FILE_BYTES = 16 << 20


def run(plan: Plan, folder: Path) -> Iterator[Figure]:
    """Both directions, both kinds of ring."""
    path = folder / "file"
    path.write_bytes(os.urandom(1 << 20) * (FILE_BYTES >> 20))
    for ring in ("split", "packed"):
        with Machine(share=folder, ring=ring, memory="64M") as vm:
            yield from measure(plan, vm, path, ring)


def measure(plan: Plan, vm: Machine, path: Path, ring: str) -> Iterator[Figure]:
    """READ and WRITE on one machine."""
    fs = vm.mount()
    gpa = fs.alloc_guest(SIZE)
    pages = [(gpa, SIZE)]
    view = [vm.memory.view(gpa, SIZE)]
    fd = fs.open("/file", os.O_RDWR)
    host_fd = os.open(path, os.O_RDWR)
    offsets = {"read": 0, "write": 0}

    def at(what: str) -> int:
        offsets[what] = offset = (offsets[what] + SIZE) % FILE_BYTES
        return offset

    def check(moved: int) -> None:
        if moved != SIZE:
            raise RuntimeError(f"{moved} of {SIZE} bytes were moved")

    cases = {
        "preadv": lambda: check(os.preadv(host_fd, view, at("read"))),
        "READ": lambda: check(fs.pread_guest(fd, pages, at("read"))),
        "pwritev": lambda: check(os.pwritev(host_fd, view, at("write"))),
        "WRITE": lambda: check(fs.pwrite_guest(fd, pages, at("write"))),
    }
    try:
        times = interleave(cases, plan.pick(60, 3), plan.pick(16, 2))
    finally:
        os.close(host_fd)
        fs.close(fd)
    for subject, bare in (("READ", "preadv"), ("WRITE", "pwritev")):
        extra = micros(times, subject) - micros(times, bare)
        yield Figure(
            f"transfer.{subject.lower()}.{ring}", speed(times, subject, bare), f"x bare {bare}", AIM,
            more_is_better=True,
            detail={
                "us": micros(times, subject), "bare us": micros(times, bare),
                "GB/s": SIZE / micros(times, subject) / 1e3,
            },
            note=f"no copy is made; the request itself costs {extra:.0f} us, however large it is",
        )  # fmt: skip
