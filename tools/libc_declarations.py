"""The C declarations of what is called in libc, and the module that cffi makes of them.

Parsing them takes cffi 100 ms in each process, so it is done here, once, and ``vmsim/host/fs/libc_ffi.py`` is
what comes of it. After a change, with the environment's interpreter: ``python tools/libc_declarations.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

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
int unshare(int flags);
int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data);
int umount2(const char *target, int flags);
int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
long syscall(long number, ...);
"""

SYSTEM_CALLS: Final = """
typedef long (*faccessat2)(long number, int dir_fd, const char *path, int mask, int flags);
typedef long (*openat2)(long number, int dir_fd, const char *path, void *how, size_t size);
typedef long (*open_tree)(long number, int dir_fd, const char *path, unsigned flags);
typedef long (*pivot_root)(long number, const char *new_root, const char *put_old);
typedef long (*setresid)(long number, int real, int effective, int saved);
typedef long (*setgroups)(long number, size_t count, const unsigned int *groups);
typedef long (*capabilities)(long number, void *header, void *data);
"""
"""``syscall`` as it is called for one of those without a function of their own.

Fixed parameters are much cheaper to call than variadic ones, and the calling conventions of x86-64 and arm64
are the same for both.
"""

MODULE: Final = "vmsim.host.fs.libc_ffi"


def prepare(path: str) -> None:
    """Write the module of the declarations to ``path``."""
    builder = FFI()
    builder.cdef(FUNCTIONS + SYSTEM_CALLS)
    builder.set_source(MODULE, None)
    builder.emit_python_code(path)


if __name__ == "__main__":
    prepare(str(Path(__file__).parent.parent / "vmsim/host/fs/libc_ffi.py"))
