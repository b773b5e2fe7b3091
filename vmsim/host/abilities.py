"""What this host can do for us, found out by trying: one row per ability, with what is lost without it.

A probe changes nothing that outlives it: what has to be tried on a process is tried on a child, what has to
be tried on files is tried on a temporary one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from vmsim.errors import HostError
from vmsim.host.fs import LinuxFs
from vmsim.host.shm import SharedMemory

PROBE_S: Final = 20.0
"""How long a child may take."""
OLDEST: Final = (3, 11)
FEW_FILES: Final = 1024
"""Open files below which a guest soon runs into ENFILE."""
USERFAULTFD: Final = 282 if platform.machine() == "aarch64" else 323
UFFD_USER_MODE_ONLY: Final = 1

UNSHARE: Final = (
    "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
    "sys.exit(ctypes.get_errno() if libc.unshare({flags}) else 0)"
)
NEWNS, NEWUSER = 0x20000, 0x10000000
TRACE: Final = (
    "import ctypes, os, signal, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
    "child = os.fork()\n"
    "if not child: signal.pause()\n"
    "refused = libc.ptrace(0x4206, child, None, None) and ctypes.get_errno()\n"  # PTRACE_SEIZE
    "os.kill(child, signal.SIGKILL); os.waitpid(child, 0); sys.exit(refused)"
)


class Found(NamedTuple):
    """What a probe saw: whether the ability is there, and in which words."""

    there: bool
    what: str


class Ability(NamedTuple):
    """One row: ``without`` says what is lost; without a ``required`` one nothing works."""

    name: str
    probe: Callable[[str], Found]
    without: str
    required: bool = False


def _refused(number: int) -> Found:
    return Found(False, os.strerror(number) if number > 0 else "refused")


def _python(folder: str) -> Found:
    return Found(sys.version_info >= OLDEST, platform.python_version())


def _kernel(folder: str) -> Found:
    return Found(sys.platform == "linux", f"{platform.system()} {platform.release()}, {platform.machine()}")


def _memory(folder: str) -> Found:
    memory = SharedMemory("vmsim-doctor", 1 << 16, sealed=True)
    memory.close()
    return Found(True, "sealed memfds")


def _beneath(folder: str) -> Found:
    host = LinuxFs()
    root = host.open_share(os.fsencode(folder))
    try:
        try:
            os.close(host.open_beneath(root, b"..", os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            if error.errno == errno.EXDEV:
                return Found(True, "openat2 keeps names beneath the share")
            return Found(False, f"openat2: {error.strerror}")
        return Found(False, "openat2 left the share")
    finally:
        os.close(root)


def _files(folder: str) -> Found:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Found(hard >= FEW_FILES, f"{soft} open files, at most {hard}")


def _privilege(folder: str) -> Found:
    own = "as root" if os.geteuid() == 0 else f"as user {os.geteuid()}"
    effective = int(_status("CapEff"), 16)
    chown, setgid, setuid = 0, 6, 7
    able = all(effective >> bit & 1 for bit in (chown, setgid, setuid))
    return Found(able, f"{own}, {'may' if able else 'may not'} act as other users")


def _status(field: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.split()[1]
    return "0"


def _handles(folder: str) -> Found:
    host = LinuxFs()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _, kind, raw = host.file_handle(fd)
        os.close(host.open_handle(fd, kind, raw, os.O_PATH))
    except OSError as error:
        return Found(False, f"{folder}: {error.strerror}")
    finally:
        os.close(fd)
    return Found(True, f"{folder} has file handles, and we may open them")


def _attributes(folder: str) -> Found:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.fileno(), "user.vmsim", b"1")
        except OSError as error:
            return Found(False, f"{folder}: {error.strerror}")
    return Found(True, f"{folder} takes them")


def _nameless(folder: str) -> Found:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as error:
        return Found(False, f"{folder}: {error.strerror}")
    return Found(True, f"{folder} takes them")


def _child(script: str) -> int:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], stdin=subprocess.DEVNULL, capture_output=True,
        timeout=PROBE_S, check=False,
    )  # fmt: skip
    return done.returncode


def _sandbox(folder: str) -> Found:
    flags = NEWNS if os.geteuid() == 0 else NEWNS | NEWUSER
    refused = _child(UNSHARE.format(flags=flags))
    return _refused(refused) if refused else Found(True, "mount namespaces can be made")


def _trace(folder: str) -> Found:
    refused = _child(TRACE)
    return _refused(refused) if refused else Found(True, "children can be traced")


def _faults(folder: str) -> Found:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    if fd < 0:
        return _refused(ctypes.get_errno())
    os.close(fd)
    return Found(True, "page faults can be handled here")


def _fuse(folder: str) -> Found:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return _refused(error.errno or 0)
    return Found(True, "/dev/fuse can be opened")


def _compiler(folder: str) -> Found:
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    return Found(found is not None, found or "none on PATH")


def _peers(folder: str) -> Found:
    cache = os.environ.get("VMSIM_PEERS") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vmsim", "peers"
    )
    try:
        facts = json.loads(Path(cache, "peers.json").read_text())
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    except (OSError, ValueError, KeyError, AttributeError):
        return Found(False, "not fetched")
    return Found(bool(facts.get("ok")), versions)


def _processors(folder: str) -> Found:
    count = len(os.sched_getaffinity(0))
    return Found(count > 1, f"{count} to run on")


def _lock_free(folder: str) -> Found:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, _write_lock())
        except OSError as error:
            return Found(False, f"{folder}: {error.strerror}")
    return Found(True, f"{folder} takes open-file-description locks")


def _write_lock() -> bytes:
    """struct flock of the whole file: type, whence, start, length, pid."""
    flock = type("flock", (ctypes.Structure,), {"_fields_": [
        ("type", ctypes.c_short), ("whence", ctypes.c_short), ("start", ctypes.c_longlong),
        ("length", ctypes.c_longlong), ("pid", ctypes.c_int),
    ]})  # fmt: skip
    return bytes(flock(fcntl.F_WRLCK, 0, 0, 0, 0))


ABILITIES: Final = (
    Ability("python", _python, "Python 3.11 or newer is needed", required=True),
    Ability("kernel", _kernel, "Linux is needed", required=True),
    Ability("guest memory", _memory, "no machine can be built", required=True),
    Ability("beneath", _beneath, "names are resolved one component at a time: as safe, and slower"),
    Ability("locks", _lock_free, "guests' locks are refused; serve with locks off"),
    Ability("open files", _files, "guests with many open files get ENFILE: raise the hard limit"),
    Ability("other users", _privilege, "all files that guests make are ours, and chown fails"),
    Ability("file handles", _handles, "no migration mode file-handles; inodes are found again by name alone"),
    Ability("attributes", _attributes, "no extended attributes and no ACLs in such a share"),
    Ability("nameless files", _nameless, "unlinked open files arrive in memory, within a bound"),
    Ability("sandbox", _sandbox, "vmsim serve runs with --sandbox none"),
    Ability("second CPU", _processors, "back-ends in other processes take turns with their guest"),
    Ability("tracing", _trace, "no native guests"),
    Ability("userfaultfd", _faults, "native guests find out what they wrote by write protection, slower"),
    Ability("/dev/fuse", _fuse, "no host application can be a guest"),
    Ability("compiler", _compiler, "pure Python everywhere; guest images cannot be built anew"),
    Ability("peers", _peers, "tests against the real QEMU, virtiofsd and Linux are skipped: tools/peers"),
)
"""In the order in which they are told."""


def examine(folder: str | None = None) -> list[tuple[Ability, Found]]:
    """Try everything; ``folder`` stands for a share (default: a temporary one, gone afterwards)."""
    with tempfile.TemporaryDirectory(prefix="vmsim-doctor-") as temporary:
        place = folder or temporary
        return [(ability, _tried(ability, place)) for ability in ABILITIES]


def _tried(ability: Ability, folder: str) -> Found:
    try:
        return ability.probe(folder)
    except (OSError, HostError, subprocess.SubprocessError) as error:
        return Found(False, str(error))
