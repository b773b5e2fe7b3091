"""The commands make use of all descriptors that they may have."""

from __future__ import annotations

import resource
import subprocess
import sys

LOW, HIGH = 200, 400
PROGRAM = """
import resource, sys
from vmsim.host.fs import LinuxFs
assert LinuxFs().fd_limit() == 200
{}
assert LinuxFs().fd_limit() == 400
"""
COMMAND = """
from vmsim.cli import main
sys.argv = ["vmsim", "--version"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
"""


def run(program):
    limits = (LOW, HIGH)
    subprocess.run(
        [sys.executable, "-c", PROGRAM.format(program)], check=True, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
    )  # fmt: skip


def test_the_soft_limit_rises_to_the_hard_one():
    run("from vmsim.host.rlimit import raise_fd_limit\nassert raise_fd_limit() == 400")


def test_the_command_line_raises_it():
    run(COMMAND)
