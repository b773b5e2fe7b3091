"""Capabilities of this process: which ones serving files takes, and giving up the others for good."""

from __future__ import annotations

from typing import Any, Final

from vmsim.errors import HostError, UsageError
from vmsim.host.fs.libc import CAPGET, CAPSET, ffi, libc, syscall

NAMES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
"""By number, as in capabilities(7) without ``CAP_``."""

SERVING: Final = frozenset(
    {"chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap"}
)
"""What serving the files of many users takes; virtiofsd keeps the same."""

CAP_VERSION_3: Final = 0x20080522
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_capabilities = syscall("capabilities")


def changed(kept: frozenset[str], changes: str) -> frozenset[str]:
    """``kept``, changed as ``--modcaps`` says (``+sys_admin:-chown``); UsageError for what is none."""
    found = set(kept)
    for word in filter(None, changes.split(":")):
        name = word[1:].lower().removeprefix("cap_")
        if word[0] not in "+-" or name not in NAMES:
            hint = "as in +dac_read_search:-mknod; capabilities(7) has the names"
            raise UsageError(f"--modcaps: {word!r} changes no capability", hint=hint)
        (found.add if word[0] == "+" else found.discard)(name)
    return frozenset(found)


def limit(kept: frozenset[str]) -> None:
    """Give up all others, of this thread and for good, and never gain any; HostError if that fails.

    What this process does not have now it does not get either.
    """
    mask = sum(1 << NAMES.index(name) for name in kept)
    for number in range(64):  # those of kernels to come as well; what is refused could not be gained either
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header: Any = ffi.new("unsigned int[2]", [CAP_VERSION_3, 0])
    data: Any = ffi.new("unsigned int[6]")
    if _capabilities(CAPGET, header, data):
        raise HostError("reading capabilities", errno=ffi.errno)
    for word in (0, 1):
        permitted = data[3 * word + 1] & mask >> 32 * word & 0xFFFFFFFF
        data[3 * word], data[3 * word + 1], data[3 * word + 2] = permitted, permitted, 0
    if _capabilities(CAPSET, header, data):
        raise HostError("dropping capabilities", errno=ffi.errno)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise HostError("giving up new privileges", errno=ffi.errno)
