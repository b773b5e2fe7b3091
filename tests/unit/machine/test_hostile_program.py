"""vmsim inside a hostile program: nothing of the program changes, nothing of the machine fails unsaid.

Conditions of the program and of its interpreter, times what a machine does; the program is a process of its
own, which compares what belongs to it before and after, and looks at most of it all the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sampling import sample

PROGRAM = Path(__file__).parent / "hostile_program.py"
STEPS = ("inproc", "process", "saved", "command", "sockets", "refused")
CONDITIONS = (
    "calm", "umask_tight", "umask_open", "no_working_directory", "signals_at_their_default",
    "signals_ignored", "signals_handled", "signals_blocked", "somebody_waits_for_any_child", "streams_closed",
    "streams_full", "many_threads", "after_a_fork",
)  # fmt: skip
INTERPRETERS = {
    "optimized": (["-O"], {}), "development, warnings are errors": (["-X", "dev", "-W", "error"], {}),
    "isolated": (["-I"], {}),
    "plain locale": ([], {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    "other zone": ([], {"TZ": "Pacific/Apia", "LC_ALL": "C.UTF-8"}),
}  # fmt: skip


def run(folder, condition, name="", flags=(), **variables):
    """What the program says; what it left in its temporary folder is a failure as well.

    Each condition meets each step with ``--whole``; in a plain run three of them, so each step meets a few.
    """
    steps = sample(STEPS, 3, f"steps of hostile programs: {name or condition}")
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), **variables}
    command = [sys.executable, *flags, PROGRAM, condition, ",".join(steps), folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert os.listdir(temporary) == []
    lines = [line for line in done.stdout.splitlines() if line != "something to say"]
    assert lines == [f"{step}: unchanged" for step in steps], done.stderr
    # A shell, which is no part of vmsim, complains where there is no working directory.
    complaints = [line for line in done.stderr.splitlines() if "getcwd() failed" not in line]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_whatever_the_program_does(condition, tmp_path):
    run(tmp_path, condition)


@pytest.mark.parametrize("name", INTERPRETERS)
def test_whatever_the_interpreter_is_told(name, tmp_path):
    flags, variables = INTERPRETERS[name]
    run(tmp_path, "calm", name, flags, **variables)


@pytest.mark.parametrize("descriptors", [10, 14, 18, 24, 32, 64])
def test_few_descriptors(descriptors, tmp_path):
    """It works, or says that there are none left; and gives back what it had taken."""
    run(tmp_path, "few_descriptors", f"{descriptors} descriptors", DESCRIPTORS=str(descriptors))
