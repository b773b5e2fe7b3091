"""The libc functions that :mod:`os` lacks, through cffi's ABI mode.

Each system call without a libc function gets a prototype of ``syscall`` of its own: a fixed one is much
cheaper to call than the variadic one, and the calling conventions of x86-64 and arm64 are the same for both.
"""

from __future__ import annotations

import platform
from typing import Any, Final, NoReturn

from cffi import FFI

FUNCTIONS: Final = """
int fstat(int fd, void *buf);
int statx(int dir_fd, const char *path, int flags, unsigned mask, void *buf);
ssize_t getdents64(int fd, void *buf, size_t size);
int renameat2(int dir_fd, const char *name, int new_dir_fd, const char *new_name, unsigned flags);
int linkat(int dir_fd, const char *path, int new_dir_fd, const char *name, int flags);
int mknodat(int dir_fd, const char *name, unsigned mode, unsigned long rdev);
int fchownat(int dir_fd, const char *path, unsigned uid, unsigned gid, int flags);
int utimensat(int dir_fd, const char *path, const void *times, int flags);
int name_to_handle_at(int dir_fd, const char *path, void *handle, int *mount_id, int flags);
int open_by_handle_at(int mount_fd, void *handle, int flags);
int fallocate(int fd, int mode, long offset, long length);
int syncfs(int fd);
"""

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

ffi: Final = FFI()
ffi.cdef(FUNCTIONS)
libc: Final[Any] = ffi.dlopen(None)


def syscall(prototype: str) -> Any:
    """The ``syscall`` function with the given parameters after the call's number."""
    own = FFI()
    own.cdef(f"long syscall(long number, {prototype});")
    library: Any = own.dlopen(None)
    call = library.syscall
    # The library must live as long as its function does; the FFI instance keeps both.
    _KEPT.append((own, library))
    return call


_KEPT: Final[list[tuple[Any, Any]]] = []


def fail(call: str) -> NoReturn:
    """Raise the OSError of the call that has just failed."""
    raise OSError(ffi.errno, call)
