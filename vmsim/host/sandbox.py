"""Confinement of a served back-end, as virtiofsd offers it: namespaces, a changed root, fewer capabilities.

Every name from a guest is resolved beneath the share anyway. This is for the case that something goes wrong:
afterwards the process sees the share and nothing else, and has the capabilities that serving files takes.
"""

from __future__ import annotations

import errno
import os
import platform
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any, Final, NoReturn

from cffi import FFI

from vmsim.errors import HostError, UsageError
from vmsim.host.fs.libc import CAPGET, CAPSET, syscall

KINDS: Final = ("namespace", "chroot", "none")
PROC_HERE: Final = b"."
"""In a sandbox the working directory is /proc/self: for ``LinuxFs(proc=...)``."""

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
MNT_DETACH: Final = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
PIVOT_ROOT: Final = 41 if platform.machine() == "aarch64" else 155
CAP_VERSION_3: Final = 0x20080522
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CAPABILITIES: Final = {
    name: number
    for number, name in enumerate(
        (
            "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
            "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
            "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
            "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
            "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
            "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
        )
    )
}
"""Names as in capabilities(7), without ``cap_``."""
KEPT: Final = frozenset(
    ("chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap")
)
"""What serving files for many users takes; virtiofsd keeps the same."""

_ffi = FFI()
_ffi.cdef("""
int unshare(int flags);
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int umount2(const char *target, int flags);
int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
""")
_libc: Any = _ffi.dlopen(None)
_pivot_root = syscall("const char *new_root, const char *put_old")
_capabilities = syscall("void *header, void *data")


def kept_capabilities(changes: str, extra: Iterable[str] = ()) -> frozenset[str]:
    """KEPT and ``extra``, changed as ``--modcaps`` says: ``+sys_admin:-chown``. UsageError for others."""
    kept = set(KEPT) | set(extra)
    for word in filter(None, changes.split(":")):
        name = word[1:].lower().removeprefix("cap_")
        if word[0] not in "+-" or name not in CAPABILITIES:
            raise UsageError(
                f"--modcaps: {word!r} names no capability",
                hint="as in +dac_read_search:-mknod, see capabilities(7)",
            )
        if word[0] == "+":
            kept.add(name)
        else:
            kept.discard(name)
    return frozenset(kept)


def enter(kind: str, share: str, capabilities: frozenset[str]) -> None:
    """Confine this process to ``share``, which is ``/`` from now on; HostError if the system does not let us.

    With ``namespace`` it goes on in a child process; the parent waits for it, passes on the signals that end
    programs, and exits as the child does.
    """
    if kind not in KINDS or kind == "none":
        raise UsageError(f"no sandbox {kind!r}", hint=", ".join(KINDS))
    if kind == "namespace":
        _enter_namespaces()
        _go_on_in_child()
        _change_root(share)
    else:
        _chroot(share)
    drop_capabilities(capabilities)


def may_enter_namespaces() -> bool:
    """Whether the system lets this process have namespaces of its own: tried in a child."""
    child = os.fork()
    if not child:
        try:
            _enter_namespaces()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def drop_capabilities(kept: frozenset[str]) -> None:
    """Give up all other capabilities for good, and never gain any."""
    mask = sum(1 << CAPABILITIES[name] for name in kept)
    for number in CAPABILITIES.values():
        if not mask >> number & 1:
            _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # EPERM: without CAP_SETPCAP there is none to gain
    header: Any = _ffi.new("unsigned int[2]", [CAP_VERSION_3, 0])
    data: Any = _ffi.new("unsigned int[6]")
    _check(_capabilities(CAPGET, header, data), "reading capabilities")
    for word in (0, 1):
        part = mask >> 32 * word & 0xFFFFFFFF
        permitted = data[3 * word + 1] & part
        data[3 * word], data[3 * word + 1], data[3 * word + 2] = permitted, permitted, 0
    _check(_capabilities(CAPSET, header, data), "dropping capabilities")
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "giving up new privileges")


def _check(result: int, what: str, hint: str = "") -> None:
    if result:
        raise HostError(f"sandbox: {what}", errno=_ffi.errno, hint=hint)


def _enter_namespaces() -> None:
    own = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    hint = "use --sandbox chroot or --sandbox none"
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _check(_libc.unshare(own), "namespaces of its own", hint)
        return
    _check(_libc.unshare(own | CLONE_NEWUSER), "a user namespace of its own", hint)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            raise HostError(f"sandbox: {name}", errno=error.errno or errno.EPERM, hint=hint) from error


def _go_on_in_child() -> None:
    child = os.fork()
    if child:
        _wait_for(child)
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "dying with its parent")


def _wait_for(child: int) -> NoReturn:
    """Be the child's shadow: same signals, same end."""

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _change_root(share: str) -> None:
    path = os.fsencode(share)
    _check(_libc.mount(_ffi.NULL, b"/", _ffi.NULL, MS_REC | MS_SLAVE, _ffi.NULL), "mounts of its own")
    _check(_libc.mount(path, path, _ffi.NULL, MS_BIND | MS_REC, _ffi.NULL), f"binding {share}")
    here = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(path)
        # The old root comes to lie on top of the new one, and is taken away from there.
        _check(_pivot_root(PIVOT_ROOT, b".", b"."), "changing the root")
        _check(_libc.umount2(b".", MNT_DETACH), "letting go of the old root")
        os.fchdir(here)
    finally:
        os.close(here)


def _chroot(share: str) -> None:
    here = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chroot(share)
        os.fchdir(here)
    except OSError as error:
        hint = "chroot takes privilege: use --sandbox none or namespace"
        raise HostError(f"sandbox: chroot to {share}", errno=error.errno or errno.EPERM, hint=hint) from error
    finally:
        os.close(here)
