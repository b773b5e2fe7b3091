"""A program that vmsim is used in, under a hostile condition; it says whether anything of it has changed.

    hostile_program.py CONDITION STEPS FOLDER     says "STEP: unchanged", or what changed; 1 if something did

It looks before and after each of the STEPS (separated by commas), and a thread of it looks all the time.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import locale
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable

from vmsim import Machine
from vmsim.errors import VmsimError

FOLDER = os.path.abspath(sys.argv[3])
SHARE = os.path.join(FOLDER, "share")
WORK = os.path.join(FOLDER, "work")
TOLD = os.dup(1)
os.set_inheritable(TOLD, False)
NONE_LEFT = ("EMFILE", "none is left", f"refused it with {errno.EMFILE}")
"""How the refusals read that a lack of descriptors leads to."""
STATUS = os.open("/proc/self/status", os.O_RDONLY)
"""Held: looking must take no descriptor where there are few."""


# -- what belongs to the program ---------------------------------------------------------------------


def kernel_says(*names: str) -> dict[str, str]:
    """Fields of /proc/self/status."""
    lines = os.pread(STATUS, 1 << 16, 0).decode().splitlines()
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {name: fields[name] for name in names}


def lasting() -> dict[str, object]:
    """What must not change, not for a moment, and costs little to look at."""
    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        cwd = "gone"
    return {
        **kernel_says("Umask", "SigIgn", "SigCgt"), "cwd": cwd, "environ": dict(os.environ),
        "gc": gc.isenabled(),
        "streams": (id(sys.stdin), id(sys.stdout), id(sys.stderr)), "locale": locale.setlocale(locale.LC_ALL),
        "zone": time.tzname, "path": list(sys.path), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "recursion": sys.getrecursionlimit(), "trace": (sys.gettrace(), sys.getprofile()),
    }  # fmt: skip


def everything() -> dict[str, object]:
    """Also what a machine may have meanwhile: descriptors, threads, children, files."""
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # that of the list
    children = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            children += file.read().split()
    return {
        **lasting(), **kernel_says("Uid", "Gid", "Groups", "SigBlk"), "descriptors": descriptors,
        "threads": len(os.listdir("/proc/self/task")),
        "children": children, "temporary": os.listdir(tempfile.gettempdir()), "work": os.listdir(WORK),
        "handlers": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "filters": list(warnings.filters),
        "limits": [resource.getrlimit(n) for n in range(16)], "logging": list(logging.root.handlers),
        "pending": signal.sigpending() - {signal.SIGCHLD}, "modules": sys.modules.get("__main__"),
    }  # fmt: skip


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    changed = [name for name in before if before[name] != after[name]]
    return [f"{name}: {before[name]!r} became {after[name]!r}" for name in changed]


class Watcher(threading.Thread):
    """Looks all the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: list[str] = []
        self.over = False
        self.lock = threading.Lock()

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with self.lock:
            before = lasting()
        while not self.over:
            with self.lock:
                self.found += differences(before, lasting())
            time.sleep(0.001)


# -- conditions ----------------------------------------------------------------------------------------


def calm() -> None:
    pass


def umask_tight() -> None:
    os.umask(0o777)


def umask_open() -> None:
    os.umask(0)


def no_working_directory() -> None:
    os.mkdir(f"{FOLDER}/doomed")
    os.chdir(f"{FOLDER}/doomed")
    os.rmdir(f"{FOLDER}/doomed")


def signals_at_their_default() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)


def signals_ignored() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def signals_handled() -> None:
    def unexpected(number: int, frame: object) -> None:
        if number != signal.SIGCHLD:
            os.write(TOLD, f"a signal came: {number}\n".encode())

    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, unexpected)


def signals_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def somebody_waits_for_any_child() -> None:
    def reap(number: int, frame: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    signal.signal(signal.SIGCHLD, reap)


def streams_closed() -> None:
    for fd in range(3):
        os.close(fd)


def streams_full() -> None:
    full = os.open("/dev/full", os.O_RDWR)
    for fd in (1, 2):
        os.dup2(full, fd)
    os.close(full)


def many_threads() -> None:
    def work() -> None:
        while True:
            sum(range(1000))
            time.sleep(0.001)

    for _ in range(8):
        threading.Thread(target=work, daemon=True).start()
    sys.setswitchinterval(1e-5)


def after_a_fork() -> None:
    global STATUS
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    STATUS = os.open("/proc/self/status", os.O_RDONLY)  # the other one is the parent's


def few_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(os.environ["DESCRIPTORS"]), hard))


# -- steps ----------------------------------------------------------------------------------------------


def work(vm: Machine, number: int) -> None:
    fs = vm.mount()
    fs.mkdir(f"/d{number}", 0o755)
    with fs.open_file(f"/d{number}/f", "w") as file:
        file.write("text")
    fs.mknod(f"/d{number}/p", 0o010644)
    fs.rename(f"/d{number}/f", f"/d{number}/g")
    assert fs.stat(f"/d{number}/g").st_size == 4
    assert fs.stat(f"/d{number}").st_mode & 0o777 == 0o755
    with contextlib.suppress(OSError):  # where the streams are closed or full
        print("something to say", flush=True)


def inproc(**more: object) -> None:
    with Machine(SHARE, memory="8M", **more) as vm:
        work(vm, 0)
        with vm.migrate() as there:
            work(there, 1)


def process() -> None:
    inproc(transport="vhost-user")


def saved() -> None:
    with Machine(SHARE, memory="8M") as vm:
        vm.save(f"{FOLDER}/saved")
    with Machine.restore(f"{FOLDER}/saved", share=SHARE) as vm:
        work(vm, 2)
    os.unlink(f"{FOLDER}/saved")


def command() -> None:
    with Machine(SHARE, memory="8M") as vm:
        for failing in ("exit 3", "true", "kill -9 $$"):
            try:
                vm.send(f"exec:{failing}")
            except VmsimError:
                work(vm, 3 + len(os.listdir(SHARE)))
            else:
                raise AssertionError(f"{failing} is no success")
        vm.send(f"exec:cat > {FOLDER}/sent")
    with Machine.receive(f"exec:cat {FOLDER}/sent", SHARE) as vm:
        work(vm, 9)
    os.unlink(f"{FOLDER}/sent")


def sockets() -> None:
    path = f"{FOLDER}/socket"
    got: list[object] = []

    def receive() -> None:
        try:
            got.append(Machine.receive(f"unix:{path}", SHARE))
        except VmsimError as error:
            got.append(error)

    thread = threading.Thread(target=receive)
    with Machine(SHARE, memory="8M") as vm:
        thread.start()
        try:
            while thread.is_alive() and not os.path.exists(path):
                time.sleep(0.001)
            while True:
                try:
                    vm.send(f"unix:{path}")
                    break
                except VmsimError as error:
                    number = getattr(error, "errno", 0)
                    if number == errno.ECONNREFUSED:  # it does not listen yet
                        continue
                    thread.join()
                    # Who only finds the connection closed does not know why; the other end does.
                    if number in (errno.EPIPE, errno.ECONNRESET) and got and isinstance(got[0], VmsimError):
                        raise got[0] from error
                    raise
        finally:
            thread.join()
    if isinstance(got[0], VmsimError):
        raise got[0]
    work(got[0], 12)
    got[0].close()
    assert not os.path.exists(path)


def refused() -> None:
    """What fails leaves nothing behind either."""
    for call in (
        lambda: Machine(f"{FOLDER}/none", memory="8M"),
        lambda: Machine(SHARE, transport="vhost-user", backend_command="/does/not/exist {socket}"),
        lambda: Machine(SHARE, transport="vhost-user", backend_command="false {socket}"),
        lambda: Machine.receive(f"unix:{SHARE}", SHARE),
        lambda: Machine.receive("exec:echo nonsense", SHARE),
        lambda: Machine.restore("/etc/passwd", share=SHARE),
    ):
        try:
            call()
        except VmsimError:
            continue
        raise AssertionError("it was not refused")


def change(step: Callable[[], None], watcher: Watcher) -> list[str]:
    """What ``step`` changes, or how it fails where it should not."""
    found = []
    with watcher.lock:
        before = everything()
    try:
        step()
    except BaseException as error:
        number, why = getattr(error, "errno", 0), str(error)
        none_left = number == errno.EMFILE or any(words in why for words in NONE_LEFT)
        if sys.argv[1] != "few_descriptors" or not none_left:
            found.append(traceback.format_exc())
    gc.collect()
    with watcher.lock:
        return found + differences(before, everything())


def main() -> int:
    for folder in (SHARE, WORK):
        os.makedirs(folder)
    os.chdir(WORK)
    globals()[sys.argv[1]]()
    watcher = Watcher()
    watcher.start()
    bad = 0
    for name in sys.argv[2].split(","):
        found = change(globals()[name], watcher)
        shutil.rmtree(SHARE)
        os.mkdir(SHARE)
        os.write(TOLD, f"{name}: {chr(10).join(found) or 'unchanged'}\n".encode())
        bad |= bool(found)
    watcher.over = True
    watcher.join()
    os.write(TOLD, "".join(f"meanwhile: {line}\n" for line in watcher.found[:3]).encode())
    return bad or bool(watcher.found)


if __name__ == "__main__":
    os._exit(main())
