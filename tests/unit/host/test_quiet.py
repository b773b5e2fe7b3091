"""Writing to somebody who is gone is an error, whatever the program does with the signals of it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

COMMON = """
import errno, os, resource, signal, socket, sys, tempfile
from vmsim.errors import VmsimError
from vmsim.host import quiet

def refused(call, number):
    try:
        call()
    except (OSError, VmsimError) as error:
        assert error.errno == number, error
    else:
        raise AssertionError("nothing was refused")

called = []
dispositions = {
    "default": signal.SIG_DFL, "ignored": signal.SIG_IGN,
    "handled": lambda number, frame: called.append(number),
}
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, dispositions[sys.argv[1]])
blocked = {"blocked": {signal.SIGPIPE, signal.SIGXFSZ}}.get(sys.argv[2], set())
signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

def unchanged():
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    assert not signal.sigpending() and not called, (signal.sigpending(), called)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert signal.getsignal(number) is dispositions[sys.argv[1]]

def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer
"""
CASES = {
    "pipe": "refused(lambda: quiet.write(closed_pipe(), b'x'), errno.EPIPE)",
    "state transfer": """
        from vmsim.host.pipes import Pipes
        refused(lambda: Pipes().write(closed_pipe(), b'x'), errno.EPIPE)
    """,
    "state transfer to a socket": """
        from vmsim.host.pipes import Pipes
        a, b = socket.socketpair(); b.close()
        refused(lambda: Pipes().write(a.fileno(), b'x'), errno.EPIPE)
    """,
    "socket": """
        from vmsim.host.channels import SocketChannel
        a, b = socket.socketpair(); b.close()
        refused(lambda: SocketChannel(a).write(b'x'), errno.EPIPE)
    """,
    "vhost-user": """
        from vmsim.host.sockets import UnixSocket
        a, b = UnixSocket.pair(); b.close()
        refused(lambda: a.send(b'x'), errno.EPIPE)
    """,
    "command": """
        from vmsim.host.channels import CommandWriter
        channel = CommandWriter("true")
        def write():
            while True:
                channel.write(bytes(1 << 16))
        refused(write, errno.EPIPE)
        channel.close()
    """,
    "saved file that grows too large": """
        from vmsim.host.files import FileWriter
        with tempfile.TemporaryDirectory() as folder:
            channel = FileWriter(folder + "/saved")
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            channel.write(bytes(1000))
            refused(lambda: channel.write(b'x'), errno.EFBIG)
            channel.close()
            assert not os.listdir(folder)
    """,
    "guest beyond the limit of a file's size": """
        from vmsim import Machine
        with tempfile.TemporaryDirectory() as folder, Machine(folder, memory="8M") as vm:
            fs = vm.mount()
            fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
            low = fs.open("/append", os.O_RDWR | os.O_CREAT | os.O_APPEND)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            refused(lambda: fs.pwrite(fd, b'x', 5000), errno.EFBIG)
            refused(lambda: fs.ftruncate(fd, 5001), errno.EFBIG)
            refused(lambda: fs.posix_fallocate(fd, 0, 5001), errno.EFBIG)
            fs.write(low, bytes(5000))
            refused(lambda: fs.write(low, b'x'), errno.EFBIG)
            fs.pwrite(fd, b'x', 4999)
            other = fs.open("/other", os.O_RDWR | os.O_CREAT)
            refused(lambda: fs.copy_file_range(fd, other, 10, 0, 6000), errno.EFBIG)
            assert fs.fstat(fd).st_size == 5000
    """,
}


# One interpreter for all cases, each in a process forked from it: they lower limits, and may be killed.
EACH = """
import ast
import vmsim.host.channels, vmsim.host.files, vmsim.machine
for name, case in ast.literal_eval(sys.stdin.read()).items():
    if not (child := os.fork()):
        exec(case)
        unchanged()
        os._exit(0)
    print(name, os.waitpid(child, 0)[1], sep=": ")
"""


@pytest.mark.parametrize("mask", ["open", "blocked"])
@pytest.mark.parametrize("disposition", ["default", "ignored", "handled"])
def test_no_signal_is_raised(disposition, mask):
    cases = {name: textwrap.dedent(case) for name, case in CASES.items()}
    command = [sys.executable, "-c", COMMON + EACH, disposition, mask]
    done = subprocess.run(command, input=repr(cases), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{name}: 0" for name in CASES]


def test_what_was_pending_before_is_somebody_elses():
    """A program that blocks SIGPIPE, and has one pending, finds it afterwards."""
    program = COMMON + textwrap.dedent("""
        os.kill(os.getpid(), signal.SIGPIPE)
        refused(lambda: quiet.write(closed_pipe(), b'x'), errno.EPIPE)
        assert signal.sigpending() == {signal.SIGPIPE}
    """)
    command = [sys.executable, "-c", program, "default", "blocked"]
    assert subprocess.run(command, check=False).returncode == 0


def test_interrupts_leave_the_mask_as_it_was():
    """An interrupt that arrives while the write waits is raised, and nothing stays blocked."""
    program = COMMON + textwrap.dedent("""
        reader, writer = os.pipe()
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            while True:
                quiet.write(writer, bytes(1 << 16))
        except KeyboardInterrupt:
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
            print("interrupted")
    """)
    command = [sys.executable, "-c", program, "default", "open"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "interrupted\n", done.stderr
