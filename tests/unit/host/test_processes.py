"""Back-ends in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from vmsim.errors import HostError, UsageError
from vmsim.host.processes import BackendProcess, words_of

LISTENER = """
import socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1]); listening.listen(5)
print("listening for", sys.argv[2:], flush=True)
time.sleep(1000)
"""
LISTEN = [sys.executable, "-c", LISTENER, "{socket}"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders are made here, so that a forgotten one is seen."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def gone(pid: int) -> bool:
    """Whether it ends, soon: a signal takes effect when its receiver gets its turn."""
    return any(_gone(pid) or time.sleep(0.001) for _ in range(10_000))


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_words() -> None:
    assert words_of("serve '{socket}' --dir={dir}", "/s", "/a b") == ["serve", "/s", "--dir=/a b"]
    assert words_of("serve {socket}", "/s", "/d", ["--readonly"]) == ["serve", "/s", "--readonly"]
    assert words_of("serve {options} {socket}", "/s", "/d", ["-r", "{dir}"]) == ["serve", "-r", "{dir}", "/s"]
    for wrong in ("serve {dir}", "serve '{socket}"):
        with pytest.raises(UsageError):
            words_of(wrong, "/s", "/d")


def test_from_start_to_stop(own_folder: Path) -> None:
    with BackendProcess("/some where", [*LISTEN, "{dir}"], ["-o"]) as process:
        assert process.alive
        assert process.ending() == ""
        assert Path(process.socket).parent.stat().st_mode & 0o077 == 0
        process.wait_ready()
        one, other = process.connect(), process.connect()
        assert process.said() == "listening for ['/some where', '-o']"
        one.close()
        other.close()
    assert not process.alive
    assert process.status == -signal.SIGTERM
    assert list(own_folder.iterdir()) == []
    process.stop()


def test_one_that_ends_says_why(own_folder: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such disk')", "{socket}"]
    with BackendProcess("/", command) as process:
        with pytest.raises(HostError, match="exit status 1") as caught:
            process.connect()
        assert caught.value.hint == "it said: no such disk"
    assert list(own_folder.iterdir()) == []


def test_one_that_never_listens(own_folder: Path) -> None:
    quiet = [sys.executable, "-c", "import time; time.sleep(1000)", "{socket}"]
    with BackendProcess("/", quiet) as process, pytest.raises(HostError, match="ETIMEDOUT"):
        process.wait_ready(timeout_s=0.05)
    assert list(own_folder.iterdir()) == []


def test_one_that_cannot_be_started(own_folder: Path) -> None:
    with pytest.raises(HostError, match="ENOENT"):
        BackendProcess("/", "/does/not/exist {socket}")
    assert list(own_folder.iterdir()) == []


def test_killed_it_can_still_be_asked(own_folder: Path) -> None:
    process = BackendProcess("/", LISTEN)
    process.wait_ready()
    process.kill()
    assert process.ending() == "the back-end was killed by SIGKILL"
    assert process.said().startswith("listening")
    process.stop()
    assert process.said() == ""
    assert list(own_folder.iterdir()) == []


def test_one_that_does_not_want_to_end(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsim.host.processes.STOP_S", 0.05)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + LISTENER
    with BackendProcess("/", [sys.executable, "-c", deaf, "{socket}"]) as process:
        process.wait_ready()
    assert process.status == -signal.SIGKILL


def test_its_own_children_end_too(own_folder: Path) -> None:
    parent = "import subprocess; child = subprocess.Popen(['sleep', '1000']); print(child.pid, flush=True)"
    with BackendProcess("/", [sys.executable, "-c", parent + LISTENER, "{socket}"]) as process:
        process.wait_ready()
        child = int(process.said().splitlines()[0])
        assert not _gone(child)
    assert gone(child)


def test_forgotten_it_ends(own_folder: Path) -> None:
    process = BackendProcess("/", LISTEN)
    pid = process.pid
    del process
    assert gone(pid)
    assert list(own_folder.iterdir()) == []


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "import os; os.kill(os.getpid(), 9)", "pass"])
def test_it_never_outlives_its_parent(end: str, own_folder: Path) -> None:
    script = textwrap.dedent(f"""
        from vmsim.host.processes import BackendProcess
        process = BackendProcess("/", {LISTEN!r})
        process.wait_ready()
        print(process.pid, flush=True)
        {end}
    """)
    environment = os.environ | {"TMPDIR": str(own_folder)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    pid = int(ran.stdout)
    assert gone(pid)
    if "kill" not in end:
        assert list(own_folder.iterdir()) == []
