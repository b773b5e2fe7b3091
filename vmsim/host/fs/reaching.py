"""Getting hold of files: openat2, /proc/self/fd, file handles."""

from __future__ import annotations

import errno
import os
import re
import resource
from typing import Any, Final

from vmsim.host.apart import FIRST, apart
from vmsim.host.fs.libc import AT_EMPTY_PATH, OPENAT2, fail, ffi, libc, syscall
from vmsim.host.fs.making import LinuxMaking

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
CAP_DAC_READ_SEARCH: Final = 1 << 2
MAX_HANDLE_SZ: Final = 128
HANDLE_HEADER: Final = 8
UNNAMED: Final = os.O_TMPFILE & ~os.O_DIRECTORY
CREATES: Final = os.O_CREAT | UNNAMED
MAKES: Final = os.O_EXCL | UNNAMED
ALWAYS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
EAGAIN_TRIES: Final = 16
ENOMEM_TRIES: Final = 256
"""With the CPU given away in between: somebody else must get on with making a file."""

OPEN_TREE: Final = 428
OPEN_TREE_CLONE: Final = 1
ESCAPED: Final = (b"/", b"/ (deleted)")

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_openat2 = syscall("openat2")
_open_tree = syscall("open_tree")


class LinuxReaching(LinuxMaking):
    """Opens files beneath a directory and by handle; see ``Reaching`` of the seam."""

    _proc: bytes
    _share_clone: int

    def __init__(self) -> None:
        self._how: Any = ffi.new("unsigned long long[3]", [0, 0, RESOLVE])
        self._handle: Any = ffi.new("unsigned int[]", (HANDLE_HEADER + MAX_HANDLE_SZ) // 4)
        self._handle_bytes = memoryview(ffi.buffer(self._handle))
        self._mount_id: Any = ffi.new("int *")
        self._has_openat2 = True

    def open_share(self, path: bytes) -> int:
        """A descriptor of the shared directory itself."""
        return apart(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def open_beneath(self, dir_fd: int, path: bytes, flags: int, mode: int = 0, umask: int = 0) -> int:
        """openat2 with RESOLVE_BENEATH, NO_SYMLINKS and NO_MAGICLINKS."""
        if flags & CREATES:
            first, mode = self.allowed(dir_fd, mode, umask)
            fd = self._open_beneath(dir_fd, path, flags, first)
            # Without O_EXCL or O_TMPFILE it may have been there before, and has the mode that it has.
            if flags & MAKES:
                self.complete(fd, dir_fd, path, mode)
            return fd
        return self._open_beneath(dir_fd, path, flags, 0)

    def _open_beneath(self, dir_fd: int, path: bytes, flags: int, mode: int) -> int:
        if not self._has_openat2:
            return _walk(dir_fd, path, flags, mode)
        how = self._how
        # openat2 refuses O_NOCTTY together with O_PATH.
        how[0] = flags | (os.O_CLOEXEC | os.O_NOFOLLOW if flags & os.O_PATH else ALWAYS)
        how[1] = mode
        tries = EAGAIN_TRIES
        while True:
            fd: int = _openat2(OPENAT2, dir_fd, path, how, 24)
            if fd >= 0:
                return fd if fd >= FIRST else apart(fd)
            code = ffi.errno
            if code == errno.ENOSYS:
                self._has_openat2 = False
                return _walk(dir_fd, path, flags, mode)
            # EAGAIN: somebody renamed while the kernel walked.
            if code not in (errno.EAGAIN, errno.EINTR) or tries == 0:
                raise OSError(code, "openat2")
            tries -= 1

    def reopen(self, fd: int, flags: int) -> int:
        """Open what ``fd`` refers to once more; EAGAIN where that would have to wait for a lease.

        The attempt alone makes the kernel ask the lease's holder for it.
        """
        if flags & (os.O_PATH | os.O_NONBLOCK):
            return apart(os.open(self._link % fd, flags | os.O_CLOEXEC | os.O_NOCTTY))
        opened = apart(os.open(self._link % fd, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
        os.set_blocking(opened, True)
        return opened

    def file_handle(self, fd: int) -> tuple[int, int, bytes]:
        """(mnt_id, handle_type, bytes) of an open file."""
        return self._file_handle(fd, b"", AT_EMPTY_PATH)

    def file_handle_at(self, dir_fd: int, name: bytes) -> tuple[int, int, bytes]:
        """(mnt_id, handle_type, bytes) of a name."""
        return self._file_handle(dir_fd, name, 0)

    def _file_handle(self, fd: int, name: bytes, flags: int) -> tuple[int, int, bytes]:
        handle = self._handle
        handle[0] = MAX_HANDLE_SZ
        if libc.name_to_handle_at(fd, name, handle, self._mount_id, flags):
            fail("name_to_handle_at")
        size = handle[0]
        kind = handle[1]
        if kind >= 1 << 31:
            kind -= 1 << 32
        return self._mount_id[0], kind, bytes(self._handle_bytes[HANDLE_HEADER : HANDLE_HEADER + size])

    def open_handle(self, mount_fd: int, handle_type: int, raw: bytes, flags: int) -> int:
        """open_by_handle_at; ESTALE where the inode is gone, also while its number is given to another file.

        The kernel's ``iget_locked`` finds such an inode half made (``I_CREATING``), and its callers take that
        for a lack of memory: ENOMEM, for microseconds, then ESTALE. A real lack is still there afterwards.
        """
        if len(raw) > MAX_HANDLE_SZ:
            raise OSError(errno.EINVAL, "file handle too long")
        handle = self._handle
        handle[0] = len(raw)
        handle[1] = handle_type & 0xFFFFFFFF
        self._handle_bytes[HANDLE_HEADER : HANDLE_HEADER + len(raw)] = raw
        for _ in range(ENOMEM_TRIES):
            fd: int = libc.open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC)
            if fd >= 0:
                return apart(fd)
            if ffi.errno != errno.ENOMEM:
                break
            os.sched_yield()
        fail("open_by_handle_at")

    def open_parent(self, fd: int) -> int:
        """``..``; the kernel refuses to leave a mount elsewhere than at its root."""
        return os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)

    def clone_mount(self, fd: int) -> int:
        """open_tree with OPEN_TREE_CLONE, or the clone of the share that was made before."""
        made = self._share_clone
        if made >= 0 and os.path.sameopenfile(made, fd):
            return os.dup(made)
        clone: int = _open_tree(OPEN_TREE, fd, b"", OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC)
        if clone < 0:
            fail("open_tree")
        return clone

    def below_mount(self, fd: int) -> bool:
        """What d_path of the kernel cannot place below the root of its mount, it calls "/"."""
        return self.path_of(fd) not in ESCAPED

    def handles_allowed(self) -> bool:
        """Whether open_by_handle_at is permitted: tried on "/", or else by CAP_DAC_READ_SEARCH."""
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _, kind, raw = self.file_handle(root)
            os.close(self.open_handle(root, kind, raw, os.O_PATH))
        except OSError as error:
            return error.errno != errno.EPERM and self._may_read_and_search()
        finally:
            os.close(root)
        return True

    def path_of(self, fd: int) -> bytes:
        """Where the kernel thinks that ``fd`` is."""
        return os.readlink(self._link % fd)

    def memory_file(self, name: bytes) -> int:
        """A memfd."""
        return apart(os.memfd_create(os.fsdecode(name), os.MFD_CLOEXEC))

    def mount_points(self) -> list[tuple[int, bytes]]:
        """(mnt_id, path) of /proc/self/mountinfo, where blanks and the like are octal."""
        return [(mnt_id, path) for mnt_id, _, path, _ in self.mounts()]

    def mounts(self) -> list[tuple[int, int, bytes, bytes]]:
        """(mnt_id, mnt_id of the mount beneath, path, type) of /proc/self/mountinfo."""
        with open(self._proc + b"/mountinfo", "rb") as lines:
            rows = [(line.split(b" ", 5), line.partition(b" - ")[2].split(b" ", 1)[0]) for line in lines]
        plain = {row[4]: _OCTAL.sub(lambda m: bytes([int(m[1], 8)]), row[4]) for row, _ in rows}
        return [(int(row[0]), int(row[1]), plain[row[4]], kind.partition(b".")[0]) for row, kind in rows]

    def _may_read_and_search(self) -> bool:
        with open(self._proc + b"/status", "rb") as lines:
            effective = next(line for line in lines if line.startswith(b"CapEff:"))
        return bool(int(effective.split()[1], 16) & CAP_DAC_READ_SEARCH)

    close = staticmethod(os.close)

    def fd_limit(self) -> int:
        """RLIMIT_NOFILE (soft)."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def _walk(dir_fd: int, path: bytes, flags: int, mode: int) -> int:
    """What openat2 does, for kernels without it (before 5.6): one component at a time, never a symlink.

    A single component cannot leave its directory, so this is as safe; it only costs one open per component.
    """
    parts = path.split(b"/")
    if not path or b".." in parts or b"" in parts:
        raise OSError(errno.EXDEV if path else errno.ENOENT, "not beneath the directory")
    here = dir_fd
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            if here != dir_fd:
                os.close(here)
            here = below
        return apart(os.open(parts[-1], flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=here))
    finally:
        if here != dir_fd:
            os.close(here)
