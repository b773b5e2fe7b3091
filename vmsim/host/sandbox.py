"""Confinement of a served back-end, as virtiofsd offers it: namespaces, a changed root, fewer capabilities.

Every name from a guest is resolved beneath the share anyway. This is for the case that something goes wrong:
the process that serves sees the share and next to nothing else.

``namespace``: the server is a process of its own in new mount, process, network and IPC namespaces (and in a
user namespace, unless it is root). Its root is an empty read-only file system in which there are only the
share, under a name that nobody can guess, and the process's own /proc/self/fd, mountinfo and status. The root
is not the share itself: so no file of a guest has a name that Python or libc would look for, and a file that
was opened by a forged handle is never mistaken for one of the share.

``chroot``: a process whose root is the share, and whose working directory is its own /proc/self (a mount of
it that leads nowhere else, if the kernel lets us have one). That confines names, not a process that has been
taken over.

The process that asked stays outside as the keeper: it passes on signals and the exit status, and tidies up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter
from typing import Final, NamedTuple, NoReturn

import msgspec

from vmsim.errors import HostError, UsageError
from vmsim.host import capabilities
from vmsim.host.fs import LinuxFs
from vmsim.host.fs.libc import AT_FDCWD, ffi, libc, syscall
from vmsim.host.waits import wait_ready

KINDS: Final = ("namespace", "chroot", "none")

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 0x20
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
MNT_DETACH: Final = 2
PR_SET_CHILD_SUBREAPER: Final = 36
PIVOT_ROOT: Final = 41 if platform.machine() == "aarch64" else 155
OPEN_TREE: Final = 428
OPEN_TREE_CLONE: Final = 1
F_SETSIG: Final = 10
KEEPING: Final = frozenset({"dac_override", "kill"})
"""Capabilities of the keeper: it removes its files and ends the server, whosever they are."""
OTHERWISE: Final = "use --sandbox chroot (as root) or --sandbox none"
PROC: Final = b"/proc/self"
SEEN: Final = (b"mountinfo", b"status")
"""What of /proc/self is looked at in the sandbox, beside its fd."""

_pivot_root = syscall("pivot_root")
_open_tree = syscall("open_tree")


class IdMap(NamedTuple):
    """A range of ids: inside of the user namespace, outside of it, and how many."""

    inside: int
    outside: int
    size: int

    @classmethod
    def parse(cls, text: str) -> IdMap:
        """``:inside:outside:count:``; any character may be the separator. UsageError for anything else."""
        parts = text[1:-1].split(text[0]) if len(text) > 2 and text[0] == text[-1] else []
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
            hint = "write :INSIDE:OUTSIDE:COUNT:, such as :0:100000:65536:"
            raise UsageError(f"{text!r} is no map of ids", hint=hint)
        found = cls(*map(int, parts))
        if not found.size or max(found.inside, found.outside) + found.size > 1 << 32:
            raise UsageError(f"the map of ids {text!r} is empty or out of range", hint="ids have 32 bits")
        return found


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What is asked for. ``keep`` are the capabilities that stay; see :mod:`vmsim.host.capabilities`.

    ``uid_maps`` and ``gid_maps`` give the server a user namespace of its own; without them only a server that
    is not root gets one, in which it keeps its ids.
    """

    kind: str
    share: str
    keep: frozenset[str] = capabilities.SERVING
    uid_maps: tuple[IdMap, ...] = ()
    gid_maps: tuple[IdMap, ...] = ()

    @property
    def own_users(self) -> bool:
        """Whether there is a user namespace."""
        return bool(self.uid_maps or self.gid_maps or os.geteuid())


class Confined(NamedTuple):
    """Where the server finds the share, and itself in /proc (``LinuxFs(proc=...)``).

    ``clone`` is a mount of its own of the share, made while that was permitted (-1: it was not): file handles
    of a state are judged through it.
    """

    share: str
    proc: bytes
    clone: int = -1


class _Told(msgspec.Struct):
    """What a child tells its keeper: what failed, or else which process serves."""

    failed: str = ""
    number: int = 0
    hint: str = ""
    pid: int = 0


def run(sandbox: Sandbox, serve: Callable[[Confined], int]) -> int:
    """Have ``serve`` run confined; its exit status, or 128 and the number of the signal that killed it.

    HostError, with nothing changed, if the system does not permit it; then ``serve`` was not called. In the
    server an exception of ``serve`` ends the process: it should catch and tell them itself. With ``none``
    everything happens in this process, which loses its capabilities if it is root.
    """
    if sandbox.kind == "none":
        place = _with_clone(Confined(sandbox.share, PROC))
        if os.geteuid() == 0:
            capabilities.limit(sandbox.keep)
        return serve(place)
    sys.stdout.flush()
    sys.stderr.flush()
    told_r, told_w = os.pipe()
    life_r, life_w = os.pipe()
    go_r, go_w = os.pipe()
    with _reaping():  # from before the fork on: the server's parent may end at once
        child = os.fork()
        if not child:
            for fd in (told_r, life_w, go_w):
                os.close(fd)
            _child(sandbox, serve, told_w, life_r, go_r)
        for fd in (told_w, life_r, go_r):
            os.close(fd)
        try:
            server = _start(sandbox, child, told_r, go_w)
            if os.geteuid() == 0:
                capabilities.limit(KEEPING)
            return _keep(server)
        finally:
            for fd in (told_r, go_w, life_w):
                os.close(fd)  # a server that still runs ends now
            _reap()


def _with_clone(place: Confined) -> Confined:
    """``place`` with a mount of its own, if we may make one: it takes a capability that is given up next."""
    host = LinuxFs(place.proc)
    try:
        share = host.open_share(os.fsencode(place.share))
        try:
            return place._replace(clone=host.clone_mount(share))
        finally:
            host.close(share)
    except OSError:
        return place


# -- the keeper --------------------------------------------------------------------------------------


def _start(sandbox: Sandbox, child: int, told_r: int, go_w: int) -> int:
    """Help the server to get confined; its process id. ``child`` is it, or begets it and ends."""
    steps = 1
    if sandbox.kind == "namespace":
        if sandbox.own_users:
            _wait_told(told_r)  # it is in its user namespace
            _write_maps(sandbox, child)
            os.write(go_w, b"g")
        steps = 2  # that it is confined, and who it is: in any order, two processes tell it
    return max(_wait_told(told_r).pid for _ in range(steps)) or child


def _keep(server: int) -> int:
    """Wait for the server, and pass on the signal that ends us."""
    try:
        _wait_for_end(server)
        while (ended := os.waitpid(-1, 0))[0] != server:
            pass
    except KeyboardInterrupt as interrupt:
        number = getattr(interrupt, "status", 0) - 128
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, number if number > 0 else signal.SIGINT)
        raise
    code = os.waitstatus_to_exitcode(ended[1])
    return code if code >= 0 else 128 - code


def _wait_for_end(server: int) -> None:
    """Return when the process has ended, which is what waitpid(2) waits for, but not deaf to signals."""
    with contextlib.suppress(OSError):  # before Linux 5.3
        watch = os.pidfd_open(server)
        try:
            wait_ready(watch, None)
        finally:
            os.close(watch)


def _reap() -> None:
    """Wait until all children have ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


@contextlib.contextmanager
def _reaping() -> Iterator[None]:
    """Within this, grandchildren become our children when their parent ends."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _wait_told(told_r: int) -> _Told:
    """What a child says next; HostError if something failed, or if nobody is left to say anything."""
    size = int.from_bytes(os.read(told_r, 2), "little")
    if not size:
        raise HostError("sandbox: the server ended unexpectedly", errno=errno.ECHILD, hint=OTHERWISE)
    told = msgspec.json.decode(os.read(told_r, size), type=_Told)
    if told.failed:
        raise HostError(told.failed, errno=told.number, hint=told.hint)
    return told


def _write_maps(sandbox: Sandbox, child: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    maps = {
        "uid_map": sandbox.uid_maps or (IdMap(uid, uid, 1),),
        "gid_map": sandbox.gid_maps or (IdMap(gid, gid, 1),),
    }
    try:
        if uid:
            _write(f"/proc/{child}/setgroups", "deny")
        for name, ranges in maps.items():
            _write(f"/proc/{child}/{name}", "".join(f"{a} {b} {n}\n" for a, b, n in ranges))
    except OSError as error:
        hint = "without privilege only one's own id can be mapped, and to one id" if uid else OTHERWISE
        raise HostError("sandbox: mapping ids", errno=error.errno or errno.EPERM, hint=hint) from error


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# -- the server --------------------------------------------------------------------------------------


def _child(
    sandbox: Sandbox, serve: Callable[[Confined], int], told_w: int, life_r: int, go_r: int
) -> NoReturn:
    """Become the server, or its parent; tell the keeper how it went."""
    status = 1
    try:
        try:
            if sandbox.kind == "namespace":
                share_fd = _enter_namespaces(sandbox, told_w, go_r)
                server = os.fork()
                if server:
                    _tell(told_w, _Told(pid=server))
                    os._exit(0)
                confined = _change_root(share_fd)
            else:
                confined = _with_clone(_chroot(sandbox.share))
            _end_with_keeper(life_r)
            _forget_the_outside()
            keep = sandbox.keep
            if sandbox.kind == "namespace" and sandbox.own_users:
                keep -= {"dac_read_search"}  # it is of no use there, but would seem to be
            capabilities.limit(keep)
        except HostError as error:
            _tell(told_w, _Told(error.message.rpartition(": ")[0], error.errno, error.hint))
            os._exit(1)
        except OSError as error:
            _tell(told_w, _Told(f"sandbox: {error.strerror}", error.errno or errno.EIO, OTHERWISE))
            os._exit(1)
        _tell(told_w, _Told())
        os.close(told_w)
        os.close(go_r)
        status = serve(confined)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell(told_w: int, told: _Told) -> None:
    text = msgspec.json.encode(told)
    os.write(told_w, len(text).to_bytes(2, "little") + text)


def _check(result: int, what: str, hint: str = OTHERWISE) -> None:
    if result:
        raise HostError(f"sandbox: {what}", errno=ffi.errno, hint=hint)


def _enter_namespaces(sandbox: Sandbox, told_w: int, go_r: int) -> int:
    """Enter all but the process namespace, which the next child is in; a descriptor of the share."""
    if sandbox.own_users:
        _check(libc.unshare(CLONE_NEWUSER), "a user namespace")
        _tell(told_w, _Told())
        if not os.read(go_r, 1):
            os._exit(1)
    _check(libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC), "namespaces")
    # Opened here: other mount namespaces' cannot be bound, and other ids may not get there.
    share_fd = os.open(sandbox.share, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for maps, become in ((sandbox.gid_maps, os.setresgid), (sandbox.uid_maps, os.setresuid)):
        if maps:
            first = maps[0].inside
            become(first, first, first)
    return share_fd


def _change_root(share_fd: int) -> Confined:
    """Build the new root on top of /proc, which is always there, and move into it."""
    name = b"share-" + os.urandom(16).hex().encode()
    os.chdir(PROC)  # from here on the old /proc is reached by the working directory only
    _mount(None, b"/", MS_REC | MS_SLAVE, "mounts of its own")
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    _mount(b"vmsim", b"/proc", flags, "a root of its own", b"tmpfs", b"mode=0755,size=64k")
    os.makedirs(b"/proc/proc/self/fd", 0o755)
    os.mkdir(b"/proc/" + name, 0o755)
    _mount(b"fd", b"/proc/proc/self/fd", MS_BIND, "its own descriptors")
    for file in SEEN:
        os.close(os.open(b"/proc/proc/self/" + file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
        _mount(file, b"/proc/proc/self/" + file, MS_BIND, f"its own {file.decode()}")
    _mount(b"fd/%d" % share_fd, b"/proc/" + name, MS_BIND | MS_REC, "binding the shared directory")
    os.close(share_fd)
    _mount(None, b"/proc", flags | MS_REMOUNT | MS_RDONLY, "a read-only root")
    os.chdir(b"/proc")
    # The old root comes to lie on top of the new one, and is taken away from there.
    _check(_pivot_root(PIVOT_ROOT, b".", b"."), "changing the root")
    _check(libc.umount2(b".", MNT_DETACH), "letting go of the old root")
    os.chdir(b"/")
    return Confined(f"/{name.decode()}", PROC)


def _mount(
    source: bytes | None, target: bytes, flags: int, what: str, kind: bytes | None = None, data: bytes = b""
) -> None:
    null = ffi.NULL
    _check(libc.mount(source or null, target, kind or null, flags, data or null), what)


def _chroot(share: str) -> Confined:
    try:
        here = _open_tree(OPEN_TREE, AT_FDCWD, PROC, OPEN_TREE_CLONE | os.O_CLOEXEC)
        if here < 0:  # before Linux 5.2, or without CAP_SYS_ADMIN
            here = os.open(PROC, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.chroot(share)
        os.fchdir(here)
        os.close(here)
    except OSError as error:
        hint = "chroot takes privilege: use --sandbox namespace or none"
        raise HostError(f"sandbox: chroot to {share}", errno=error.errno or errno.EPERM, hint=hint) from error
    return Confined("/", b".")


def _end_with_keeper(life_r: int) -> None:
    """Have the kernel send SIGTERM when the keeper's end of this pipe is closed, however that happens.

    PR_SET_PDEATHSIG would be forgotten when the server takes the ids of a guest's user.
    """
    fcntl.fcntl(life_r, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life_r, F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(life_r, fcntl.F_SETFL, fcntl.fcntl(life_r, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if not os.read(life_r, 1):
            os._exit(1)  # it has ended already


def _forget_the_outside() -> None:
    """Leave nothing that would look for files of the outside, and find a guest's instead."""
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]
    os.environ["TZ"] = _zone()
    time.tzset()
    os.umask(0)
    with contextlib.suppress(PermissionError):  # without privilege they are the user's own rights
        os.setgroups([])


def _zone() -> str:
    """The present time zone in POSIX's words, which take no file."""
    offset = time.localtime().tm_gmtoff
    sign, minutes = "-" if offset >= 0 else "", abs(offset) // 60
    return f"<local>{sign}{minutes // 60}:{minutes % 60:02}"
