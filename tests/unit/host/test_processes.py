"""Back-ends in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.support.waiting import state_of, until
from vmsim.errors import HostError, UsageError
from vmsim.host.processes import BackendProcess, words_of

LISTENER = """
import socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
print("listening for", sys.argv[2:], flush=True)  # before: who can connect can read it
listening.listen(5)
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


def wait_for_end(pid: int) -> None:
    """A signal takes effect when its receiver gets its turn."""
    until(lambda: gone(pid), f"the end of process {pid}")


def gone(pid: int) -> bool:
    return state_of(pid) in ("Z", "gone")


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
        until(lambda: process.said().endswith("]"), "what it says, which comes in pieces", saw=process.said)
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
        assert not gone(child)
    wait_for_end(child)


def test_forgotten_it_ends(own_folder: Path) -> None:
    process = BackendProcess("/", LISTEN)
    pid = process.pid
    del process
    wait_for_end(pid)
    assert list(own_folder.iterdir()) == []


PROGRAM = """
import gc, os, signal, subprocess, sys, threading, time
from vmsim.errors import VmsimError
from vmsim.host.processes import BackendProcess
"""


def run(body: str, folder: Path) -> list[str]:
    """What a program prints that has a back-end ``process``; it is a process of its own."""
    script = PROGRAM + textwrap.dedent(body).replace("LISTEN", repr(LISTEN))
    environment = os.environ | {"TMPDIR": str(folder)}
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "Error" not in ran.stderr or "KeyboardInterrupt" in ran.stderr, ran.stderr
    return ran.stdout.split()


def wait_until_empty(folder: Path) -> None:
    """The keeper tidies up when the program has ended."""
    until(lambda: not list(folder.iterdir()), f"{folder} to be emptied", saw=lambda: list(folder.iterdir()))


@pytest.mark.parametrize(
    "end", ["raise KeyboardInterrupt", "os.kill(os.getpid(), 9)", "os._exit(1)", "os.abort()",
            "os.execv('/bin/true', ['true'])", "pass"],
)  # fmt: skip
def test_it_never_outlives_its_parent(end: str, own_folder: Path) -> None:
    said = run(f"""
        process = BackendProcess("/", LISTEN)
        process.wait_ready()
        print(process.pid, flush=True)
        {end}
    """, own_folder)  # fmt: skip
    wait_for_end(int(said[0]))
    wait_until_empty(own_folder)


def test_it_outlives_the_thread_that_started_it(own_folder: Path) -> None:
    said = run("""
        made = []
        thread = threading.Thread(target=lambda: made.append(BackendProcess("/", LISTEN)))
        thread.start()
        thread.join()
        made[0].wait_ready()
        time.sleep(0.2)
        print(made[0].alive)
        made[0].stop()
    """, own_folder)  # fmt: skip
    assert said == ["True"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_other_ids_change_nothing(own_folder: Path) -> None:
    """Linux forgets PR_SET_PDEATHSIG when a process takes other ids."""
    other = "import os; os.setresuid(1234, 1234, 0); os.setresuid(0, 0, 0)\n" + LISTENER
    said = run(f"""
        process = BackendProcess("/", {[sys.executable, "-c", other, "{socket}"]!r})
        process.wait_ready()
        print(process.pid, flush=True)
        os.kill(os.getpid(), 9)
    """, own_folder)  # fmt: skip
    wait_for_end(int(said[0]))
    wait_until_empty(own_folder)


@pytest.mark.parametrize(
    "how", ["process.stop()", "process.kill()", "del process; gc.collect()", "sys.exit()",
            "process.__exit__(None, None, None)", "process._process.let_go()"],
)  # fmt: skip
def test_a_forked_child_does_nothing_to_it(how: str, own_folder: Path) -> None:
    """Whatever the child does with its copy, the back-end lives on; and it ends with its own program only."""
    said = run(f"""
        process = BackendProcess("/", LISTEN)
        process.wait_ready()
        child = os.fork()
        if not child:
            try:
                {how}
            except VmsimError as error:
                assert "forked child" in str(error), error
            sys.exit()
        os.waitpid(child, 0)
        print(process.alive, os.path.exists(process.socket), flush=True)
        child = os.fork()
        if not child:
            os.close(1)
            os.close(2)
            time.sleep(1000)
        print(process.pid, child)
        process.stop()
        print(process.status, os.path.exists(process.socket))
    """, own_folder)  # fmt: skip
    assert said[:2] == ["True", "True"]
    os.kill(int(said[3]), signal.SIGKILL)
    wait_for_end(int(said[2]))
    assert said[4:] == [str(-signal.SIGTERM), "False"]


def test_a_forked_child_that_lives_on_does_not_keep_it(own_folder: Path) -> None:
    said = run("""
        process = BackendProcess("/", LISTEN)
        process.wait_ready()
        child = os.fork()
        if child:
            print(process.pid, child, flush=True)
            os.kill(os.getpid(), 9)
        os.close(1)
        os.close(2)
        time.sleep(1000)
    """, own_folder)  # fmt: skip
    wait_for_end(int(said[0]))
    assert not gone(int(said[1]))
    os.kill(int(said[1]), signal.SIGKILL)
    wait_until_empty(own_folder)


@pytest.mark.parametrize("disposition", ["SIG_IGN", "SIG_DFL", "reaper"])
def test_how_it_ended_is_known_whoever_waits_for_children(disposition: str, own_folder: Path) -> None:
    said = run(f"""
        def reaper(number, frame):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, getattr(signal, "{disposition}", reaper))
        for command in ("exit 3", "kill -9 $$", "exit 0"):
            process = BackendProcess("/", ["sh", "-c", command, "{{socket}}"])
            process.wait(30)
            print(process.status)
            process.stop()
        print(signal.getsignal(signal.SIGCHLD) == getattr(signal, "{disposition}", reaper))
    """, own_folder)  # fmt: skip
    assert said == ["3", "-9", "0", "True"]
    assert list(own_folder.iterdir()) == []


def test_it_gets_fresh_signals_and_streams_and_nothing_else(own_folder: Path) -> None:
    """Whatever the program ignores, blocks, has closed, or lets its children inherit."""
    look = (
        "import os, signal; names = sorted(os.listdir('/proc/self/fd'), key=int)[:-1]; "
        "print([signal.getsignal(n) for n in (15, 1, 17)] == [signal.SIG_DFL] * 3, "
        "signal.pthread_sigmask(0, ()), names, [n for n in os.environ if n.startswith('LC_')])"
    )
    said = run(f"""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM, signal.SIGUSR1}})
        leak = os.open("/", os.O_RDONLY)
        os.set_inheritable(leak, True)
        out = os.dup(1)
        for fd in range(3):
            os.close(fd)
        for name in list(os.environ):
            if name.startswith("LC_"):
                del os.environ[name]
        os.environ["LANG"] = "C"
        os.environ["PYTHONCOERCECLOCALE"] = "0"  # for the one that looks; its keeper does not heed it
        process = BackendProcess("/", {[sys.executable, "-c", look, "{socket}"]!r})
        process.wait(30)
        os.write(out, process.said().replace(" ", "").encode())
        process.stop()
        os._exit(0)
    """, own_folder)  # fmt: skip
    assert said == ["True" + "set()" + "['0','1','2']" + "[]"]
