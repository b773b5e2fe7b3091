"""Modes of what is made, whatever the umask of this process is.

The umask belongs to the process, which is somebody else's, and cannot even be read without changing it (or at
the price of /proc/self/status). So nothing here sets it: a thing is made with at most the mode that it shall
have, and if the kernel has taken bits away, the umask's, they are given back to what was made: first too
narrow, never too wide.

A directory with a default ACL is the exception: the kernel counts no umask there, ours neither, and what the
ACL took away stays away.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, Final

from vmsim.host.fs.attributes import LinuxAttributes
from vmsim.host.fs.credentials import LinuxCredentials

DEFAULT_ACL: Final = b"system.posix_acl_default"
PERMISSIONS: Final = 0o777
RUNS_AS_GROUP: Final = stat.S_ISGID | stat.S_IXGRP
NO_MODES: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What file systems without modes of their own (FAT and the like) say to a chmod by the owner."""
FRESH_S: Final = 10.0
"""How much older than its directory's last change something may be that was made just now."""


class LinuxMaking(LinuxAttributes, LinuxCredentials):
    """Makes modes come out as asked, without setting the umask."""

    def allowed(self, dir_fd: int, mode: int, umask: int) -> tuple[int, int]:
        """What to make something with, and the mode that it shall have: the umask counts without default ACL.

        Both differ where the kernel decides about a set-group-id bit: it looks whether the file is executable
        by its group before it applies a umask. The file is empty, so that its execution harms nobody.
        """
        if not umask & mode or self._has_default_acl(dir_fd):
            return mode, mode
        final = mode & ~umask
        return final | stat.S_IXGRP if mode & RUNS_AS_GROUP == RUNS_AS_GROUP else final, final

    def complete(self, fd: int, dir_fd: int, name: bytes, mode: int) -> None:
        """Give a new file, open as ``fd``, what it lacks of ``mode``; if that fails it is removed again."""
        try:
            have = os.fstat(fd).st_mode
            if self._differs(have, mode) and not self._has_default_acl(dir_fd):
                self._correct(have, mode, lambda full: os.fchmod(fd, full))
        except BaseException:
            if name != b".":
                self._remove(dir_fd, name, os.fstat(fd), os.unlink)
            os.close(fd)
            raise

    def complete_name(self, dir_fd: int, name: bytes, mode: int, undo: Callable[..., None]) -> None:
        """The same for something that was made under a name and is not open; ``undo`` removes its like."""
        try:
            have = os.lstat(name, dir_fd=dir_fd).st_mode
        except FileNotFoundError:
            return  # somebody has removed it since
        if not self._differs(have, mode) or self._has_default_acl(dir_fd):
            return
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            made = os.fstat(fd)
            if not self._just_made(fd, made, dir_fd, mode):
                return  # somebody has moved something else there: it keeps what it has
            try:
                self._correct(made.st_mode, mode, lambda full: os.chmod(self._link % fd, full))
            except BaseException:
                self._remove(dir_fd, name, made, undo)
                raise
        finally:
            os.close(fd)

    def _has_default_acl(self, dir_fd: int) -> bool:
        try:
            return bool(os.getxattr(self._link % dir_fd, DEFAULT_ACL))
        except OSError:
            return False  # none, or a file system without ACLs

    @staticmethod
    def _differs(have: int, mode: int) -> bool:
        """Whether permissions are missing, or the one that only helped to make it is left."""
        return bool(mode & ~have & PERMISSIONS or have & ~mode & stat.S_IXGRP)

    def _correct(self, have: int, mode: int, chmod: Callable[[int], None]) -> None:
        """Set the permissions; CAP_FSETID keeps a set-group-id bit of a group that the caller is not in.

        A file that shall be executable by its group and runs as it is no such case: with the permission that
        is missing, the kernel would have cleared the bit.
        """
        keep = have & stat.S_ISGID and (stat.S_ISDIR(have) or not mode & stat.S_IXGRP)
        lent = bool(keep) and not self.has_fsetid()
        if lent:
            self.regain_fsetid()
        try:
            chmod(stat.S_IMODE(have) & ~PERMISSIONS | mode & PERMISSIONS)
        except OSError as error:
            if error.errno not in NO_MODES:
                raise
        finally:
            if lent:
                self.drop_fsetid()

    def _just_made(self, fd: int, found: os.stat_result, dir_fd: int, mode: int) -> bool:
        """Whether this can be what was made here: the caller's, empty, and born when its directory changed.

        The two times come from the same clock, also where a server far away keeps it.
        """
        kind = stat.S_IFMT(mode)
        if stat.S_IFMT(found.st_mode) != kind or found.st_mode & PERMISSIONS & ~(mode | stat.S_IXGRP):
            return False
        if found.st_uid != os.geteuid() or found.st_nlink > (2 if kind == stat.S_IFDIR else 1):
            return False
        if kind == stat.S_IFREG and found.st_size:
            return False
        born_s, _ = self.birth(fd)
        return not born_s or born_s >= os.fstat(dir_fd).st_mtime - FRESH_S

    def _remove(self, dir_fd: int, name: bytes, made: os.stat_result, undo: Callable[..., Any]) -> None:
        """Remove what was made, if the name is still its own."""
        try:
            if os.path.samestat(os.lstat(name, dir_fd=dir_fd), made):
                undo(name, dir_fd=dir_fd)
        except OSError:
            pass  # somebody else has, or we may not; the error that led here is the one to tell
