"""vmsim lives in somebody else's program: its source changes nothing that belongs to the whole process.

Every place that does is listed here with its reason; most belong to programs of our own (``serve``, the
command line, the keeper), which never run in anybody else's process.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("vmsim", "devices") for path in (ROOT / folder).rglob("*.py"))

LISTED = {
    "os": """umask chdir fchdir chroot putenv unsetenv setuid setgid seteuid setegid setreuid setregid
        setresuid setresgid setgroups initgroups nice setpriority
        sched_setscheduler sched_setaffinity sched_setparam setsid setpgid setpgrp tcsetpgrp
        fork forkpty _exit abort kill killpg register_at_fork closerange dup2
        execv execve execvp execvpe execl execlp unshare setns plock""",
    "signal": "signal set_wakeup_fd setitimer alarm siginterrupt pthread_sigmask raise_signal",
    "resource": "setrlimit prlimit", "locale": "setlocale", "time": "tzset", "atexit": "register unregister",
    "faulthandler": "enable disable register dump_traceback_later",
    "gc": "enable disable freeze unfreeze collect set_threshold set_debug",
    "sys": """setrecursionlimit settrace setprofile setswitchinterval addaudithook set_asyncgen_hooks
        set_int_max_str_digits set_coroutine_origin_tracking_depth setdlopenflags""",
    "warnings": "filterwarnings simplefilter resetwarnings catch_warnings",
    "logging": "basicConfig disable captureWarnings setLoggerClass setLogRecordFactory addLevelName",
    "socket": "setdefaulttimeout", "threading": "settrace setprofile stack_size",
    "multiprocessing": "set_start_method set_executable", "random": "seed",
    "asyncio": "set_event_loop set_event_loop_policy", "decimal": "setcontext", "pdb": "set_trace",
    "weakref": "finalize",
}  # fmt: skip
"""By module, what changes the process, or asks for something at its end or in its children."""
CALLS = {module: frozenset(names.split()) for module, names in LISTED.items()}

NATIVE = {
    "prctl", "unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "setresuid",
    "setresgid", "setuid", "setgid", "setgroups", "capset", "personality", "signal", "sigaction",
    "sigprocmask", "alarm", "setlocale", "setenv", "putenv", "umask", "chdir", "setrlimit", "prlimit",
}
"""Functions of libc that do, called through cffi; those that take one thread's are listed as well."""

STATE = ("os.environ", "os.environb", "sys.path", "sys.meta_path", "sys.modules", "sys.path_importer_cache",
         "sys.path_hooks", "sys.stdin", "sys.stdout", "sys.stderr", "sys.excepthook", "sys.unraisablehook",
         "sys.argv", "sys.displayhook", "threading.excepthook", "tempfile.tempdir")  # fmt: skip
CHANGES = {
    "append", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update", "reconfigure",
}

KEEPER = "the keeper is a process of its own"
SANDBOX = "the sandbox is made in processes of the back-end's own, which `serve` starts"
PROGRAM = "only the command line, a program of our own, does this"
THREAD = "of this thread alone: raw system calls, or the thread's mask"
ENDS = "of a process that was started here, by its id"
ALLOWED = {
    "vmsim/host/keeper.py": (KEEPER, {"signal.signal", "os.dup2", "os.chdir", "os.killpg"}),
    "vmsim/host/sandbox.py": (
        SANDBOX,
        {"os.fork", "os._exit", "os.kill", "os.setresuid", "os.setresgid", "os.setgroups", "os.chdir",
         "os.fchdir", "os.chroot", "os.umask", "os.environ", "time.tzset", "sys.path", "sys.meta_path",
         "sys.path_importer_cache", "native prctl", "native unshare", "native mount", "native umount2"},
    ),
    "vmsim/host/capabilities.py": (SANDBOX, {"native prctl"}),
    "vmsim/host/rlimit.py": (PROGRAM, {"resource.setrlimit"}),
    "vmsim/cli/__init__.py": (PROGRAM, {"sys.argv"}),
    "vmsim/cli/interrupts.py": (PROGRAM, {"signal.signal", "signal.setitimer", "sys.unraisablehook"}),
    "vmsim/cli/streams.py": (PROGRAM, {"os.dup2", "sys.stdin", "sys.stdout", "sys.stderr"}),
    "vmsim/host/quiet.py": (THREAD, {"signal.pthread_sigmask"}),
    "vmsim/host/fs/credentials.py": (
        THREAD + "; and rather no process than one that goes on as somebody else", {"os.abort"}
    ),
    "vmsim/host/kept.py": (ENDS + "; finalize has it ended with this object or the interpreter",
                           {"os.killpg", "weakref.finalize"}),
    "vmsim/host/processes.py": ("closes a file of this object", {"weakref.finalize"}),
}  # fmt: skip


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of names and attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


class Finder(ast.NodeVisitor):
    """Collects what a module does to the process, under whatever names it has imported things."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.found: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.names[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else (
                alias.name.split(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def full(self, node: ast.AST) -> str:
        first, dot, rest = dotted(node).partition(".")
        return self.names.get(first, first) + dot + rest

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.use(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.use(node)

    def use(self, node: ast.Name | ast.Attribute) -> None:
        """A function counts where it is named: it may be called under another one."""
        module, _, name = self.full(node).rpartition(".")
        if name in CALLS.get(module, ()):
            self.found.add(f"{module}.{name}")
        if self.full(node) in STATE and not isinstance(node.ctx, ast.Load):
            self.found.add(self.full(node))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load) and self.full(node.value) in STATE:
            self.found.add(self.full(node.value))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        target = node.func
        if isinstance(target, ast.Attribute):
            owner = self.full(target.value)
            if target.attr in CHANGES and owner in STATE:
                self.found.add(owner)
            if owner.rpartition(".")[2].lstrip("_") == "libc" and target.attr in NATIVE:
                self.found.add(f"native {target.attr}")
        self.found.update("preexec_fn" for keyword in node.keywords if keyword.arg == "preexec_fn")
        self.generic_visit(node)


def is_possible(source: str) -> bool:
    """Whether it has the words for any of it: under whatever name, it has to be imported under its own."""
    words = set(re.findall(r"\w+", source))
    return (
        any(module in words and names & words for module, names in CALLS.items())
        or any(words.issuperset(state.split(".")) for state in STATE)
        or ("libc" in {word.lstrip("_") for word in words} and bool(NATIVE & words))
        or "preexec_fn" in words
    )


def found_in(source: str) -> set[str]:
    if not is_possible(source):
        return set()
    finder = Finder()
    finder.visit(ast.parse(source))
    return finder.found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_process_is_left_alone(path: Path) -> None:
    _, allowed = ALLOWED.get(str(path.relative_to(ROOT)), ("", set()))
    assert found_in(path.read_text()) == allowed, "neither more than the list says nor less"


def test_the_list_is_short_and_says_why() -> None:
    for path, (reason, calls) in ALLOWED.items():
        assert (ROOT / path).exists(), path
        assert reason
        assert calls
    assert len(ALLOWED) <= 12, "that is no short list any more"


@pytest.mark.parametrize(("source", "what"), [
    ("import os\nos.umask(0)", "os.umask"),
    ("import os as o\nold = o.umask(0)", "os.umask"),
    ("from os import umask as mask\nmask(0)", "os.umask"),
    ("from os import chdir\nkeep = [chdir]", "os.chdir"),
    ("import os\nos.environ['A'] = 'b'", "os.environ"),
    ("import os\ndel os.environ['A']", "os.environ"),
    ("from os import environ\nenviron.update(A='b')", "os.environ"),
    ("import signal\nsignal.signal(13, signal.SIG_IGN)", "signal.signal"),
    ("from resource import setrlimit\nsetrlimit(7, (1, 1))", "resource.setrlimit"),
    ("import sys\nsys.stdout = None", "sys.stdout"),
    ("import sys\nsys.path.insert(0, '')", "sys.path"),
    ("import sys\nsys.modules['a'] = None", "sys.modules"),
    ("import gc\ngc.disable()", "gc.disable"),
    ("import subprocess\nsubprocess.run([], preexec_fn=print)", "preexec_fn"),
    ("_libc = dlopen()\n_libc.prctl(1, 9)", "native prctl"),
    ("import warnings\nwith warnings.catch_warnings(): pass", "warnings.catch_warnings"),
    ("import logging\nlogging.basicConfig()", "logging.basicConfig"),
    ("import atexit\n@atexit.register\ndef end(): pass", "atexit.register"),
    ("import locale, time\nlocale.setlocale(0, '')", "locale.setlocale"),
    ("import os\nos.register_at_fork(before=print)", "os.register_at_fork"),
])  # fmt: skip
def test_each_way_of_writing_it_is_seen(source: str, what: str) -> None:
    assert found_in(source) == {what}


def test_what_only_looks_is_not_meant() -> None:
    assert not found_in("import os, sys, signal\nos.environ.get('A'), os.getcwd(), sys.stdout.write('')\n"
                        "signal.getsignal(2), os.environ['A'], sys.path[0], vm.umask(0), fs.chdir('/')")
