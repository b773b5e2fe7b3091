"""A program that forks: the child leaves the parent's machine alone, and may have its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap

import pytest

from tests.support.sampling import product, sample

PROGRAM = """
import gc, os, socket, sys, tempfile
from vmsim import Machine
from vmsim.guest.config import GuestConfig
from vmsim.errors import StateError, VmsimError

share = sys.argv[1]
vm = Machine(share, memory="8M", transport=sys.argv[2] if sys.argv[2] != "inproc" else None,
             guest=GuestConfig(cache="writeback"))
fs = vm.mount()
fd = fs.open("/f", os.O_RDWR | os.O_CREAT)
fs.write(fd, b"before")
fs.pread(fd, 6, 0)

def refused(call):
    try:
        call()
    except StateError as error:
        assert f"process {os.getppid()}" in str(error), error
    else:
        raise AssertionError("it was not refused")

def in_a_child(body):
    child = os.fork()
    if not child:
        try:
            body()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(9)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
USES = {
    "calls": """
        def body():
            for call in (lambda: fs.pwrite(fd, b"CHILD!", 0), lambda: fs.pread(fd, 6, 0),
                         lambda: fs.stat("/f"), lambda: fs.listdir("/"),
                         lambda: fs.fstat(fd), lambda: fs.close(fd), fs.sync,
                         lambda: fs.mkdir("/d"), fs.fork, fs.exit, fs.drop_caches, lambda: fs.umask(0)):
                refused(call)
    """,
    "machine": """
        def body():
            for call in (vm.mount, vm.migrate, vm.pause, vm.preflight, lambda: vm.save("/nowhere"),
                         lambda: vm.send("exec:cat > /dev/null"), lambda: vm.spawn("x", print)):
                refused(call)
    """,
    "closing": """
        def body():
            vm.close()
            vm.close()
    """,
    "leaving a block": """
        def body():
            with vm:
                pass
    """,
    "garbage": """
        def body():
            global vm, fs
            del vm, fs
            gc.collect()
    """,
    "the end of an interpreter": """
        def in_a_child(body):
            child = os.fork()
            if not child:
                sys.exit()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        body = None
    """,
    "a machine of its own": """
        def body():
            with Machine(share, memory="8M") as own:
                own.mount().mkdir("/of-the-child")
                with own.migrate() as there:
                    there.mount().rmdir("/of-the-child")
    """,
}


@pytest.mark.parametrize(("use", "transport"), sample(
    itertools.product(USES, ["inproc", "vhost-user"]), 9, "what a forked child does", kind=lambda row: row[0]
))  # fmt: skip
def test_the_parents_machine_goes_on(use, transport, tmp_path):
    program = PROGRAM + textwrap.dedent(USES[use]) + textwrap.dedent("""
        in_a_child(body)
        assert fs.pread(fd, 6, 0) == b"before"
        fs.pwrite(fd, b"after!", 0)
        vm = vm.migrate()
        fs = vm.mount()
        assert fs.pread(fd, 6, 0) == b"after!"
        in_a_child(body)
        assert fs.listdir("/") == ["f"]
        vm.close()
        print("goes on")
    """)
    share = tmp_path / "share"
    share.mkdir()
    command = [sys.executable, "-c", program, share, transport]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr, done.returncode) == ("goes on\n", "", 0)
    assert os.listdir(tmp_path) == ["share"]
    assert (share / "f").read_bytes() == b"after!"


WAYS = {
    "migrate": """
        def leave(vm, progress):
            return vm.migrate(progress=progress)
    """,
    "save": """
        def leave(vm, progress):
            vm.save(share + "/saved", progress=progress, keep_running=False)
            return Machine.restore(share + "/saved", share=share)
    """,
    "a command": """
        def leave(vm, progress):
            vm.send(f"exec:cat > {share}/saved", progress=progress)
            return Machine.restore(share + "/saved", share=share)
    """,
    "a socket": """
        def leave(vm, progress):
            ours, theirs = SocketChannel.pair(vm.schedule)
            receive = lambda: Machine.receive(theirs, share, schedule=vm.schedule)
            arriving = vm.schedule.spawn("arriving", receive)
            vm.send(ours, progress=progress)
            vm.schedule.wait(lambda: arriving.done, "the destination")
            return arriving.result()
    """,
}


@pytest.mark.parametrize(("how", "way", "transport"), product(
    "forked out of a migration", 2, ["sys.exit()", "return"], WAYS, ["inproc", "vhost-user"]
))  # fmt: skip
def test_a_child_that_leaves_a_migration_leaves_it_to_the_parent(how, way, transport, tmp_path):
    """In each phase, whether it unwinds through all that is under way or tries to go on with it."""
    program = PROGRAM + "from vmsim.host.channels import SocketChannel\n" + textwrap.dedent(WAYS[way])
    program += textwrap.dedent(f"""
        parent, phases = os.getpid(), set()

        def progress(now):
            if os.getpid() == parent and now.phase not in phases:
                phases.add(now.phase)
                child = os.fork()
                if not child:
                    {how}
                else:
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, now.phase

        try:
            there = leave(vm, progress)
        except (StateError, VmsimError):
            if os.getpid() != parent:
                os._exit(0)
            raise
        if os.getpid() != parent:
            os._exit(0 if vm.state != "running" and phases == {{"done"}} else 9)
        assert there.mount().pread(fd, 6, 0) == b"before"
        there.close()
        vm.close()
        print(*sorted(phases))
    """)
    command = [sys.executable, "-c", program, tmp_path, transport]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    phases = {"precopy", "stop", "device", "commit" if way in ("save", "a command") else "ready", "done"}
    assert done.stdout.split() == sorted(phases), done.stderr


@pytest.mark.parametrize("way", ["fork", "forkserver", "spawn"])
def test_multiprocessing(way, tmp_path):
    """Workers of each kind have machines of their own, beside one of the parent."""
    (tmp_path / "work.py").write_text(textwrap.dedent("""
        import multiprocessing, os, sys
        from vmsim import Machine

        def work(number):
            with Machine(sys.argv[1], memory="8M") as vm, vm.migrate() as there:
                there.mount().mkdir(f"/{number}")
            return number

        if __name__ == "__main__":
            with Machine(sys.argv[1], memory="8M") as vm:
                with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
                    print(sorted(pool.map(work, range(4))))
                print(sorted(vm.mount().listdir("/")))
    """))
    share = tmp_path / "share"
    share.mkdir()
    command = [sys.executable, tmp_path / "work.py", share, way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[0, 1, 2, 3]\n['0', '1', '2', '3']\n", done.stderr
