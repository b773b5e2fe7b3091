"""The libc functions that :mod:`os` lacks, through cffi's ABI mode.

``tools/libc_declarations.py`` declares them and makes ``libc_ffi.py``.
"""

from __future__ import annotations

import platform
from typing import Any, Final, NoReturn

from vmsim.host.fs.libc_ffi import ffi as ffi

AT_FDCWD: Final = -100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EACCESS: Final = 0x200
AT_EMPTY_PATH: Final = 0x1000

OPENAT2: Final = 437
FACCESSAT2: Final = 439
_ARM64: Final = platform.machine() == "aarch64"
SETRESUID: Final = 147 if _ARM64 else 117
SETRESGID: Final = 149 if _ARM64 else 119
SETGROUPS: Final = 159 if _ARM64 else 116
CAPGET: Final = 90 if _ARM64 else 125
CAPSET: Final = 91 if _ARM64 else 126

libc: Final[Any] = ffi.dlopen(None)


def syscall(kind: str) -> Any:
    """``syscall`` with the parameters that ``kind`` has in the declarations, after the call's number."""
    return ffi.cast(kind, libc.syscall)


def fail(call: str) -> NoReturn:
    """Raise the OSError of the call that has just failed."""
    raise OSError(ffi.errno, call)
